"""The page of a sidecar elsewhere, or of what one recorded."""
