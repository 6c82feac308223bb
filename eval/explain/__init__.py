"""What is an expert called, and how good is the name? `monet explain`, `monet score`, `monet index numbers`."""
