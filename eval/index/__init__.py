"""Where does every expert fire? The `monet index` command: its pass over text, its files, merging and export."""
