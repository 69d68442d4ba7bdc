"""`selector export` makes bundles of models of open_clip, of transformers, or of a torch module of one's own."""
