"""The losses that sub-batches are scored by."""
