"""The demo: a small contrastive training run on icons and their names, with and without selection."""
