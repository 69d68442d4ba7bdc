"""`selector export`: bundles from open_clip, transformers or an own torch module."""
