"""This package turns candidates into embeddings: bundles, preprocessing, towers on a device, the reference's cache."""
