"""Pools of image-text pairs on disk or in a store, read in batches."""
