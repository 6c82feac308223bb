"""How a source becomes documents: formats of files, keys of records, data sets of the Hub, splits."""
