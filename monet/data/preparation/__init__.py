"""`monet data prepare` and `monet data join`: the stages from a source to a prepared folder."""
