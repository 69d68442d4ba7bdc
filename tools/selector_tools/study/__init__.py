"""A small contrastive training, fed with and without selection: what the demo and the benchmark of training share."""
