"""Pools of image-text pairs on disk, read in batches."""
