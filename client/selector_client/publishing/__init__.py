"""Publishes the weights of a trainer, so that sidecars can score with them."""
