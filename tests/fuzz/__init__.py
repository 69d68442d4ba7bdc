"""Hostile bytes for every decoder: `python -m fuzz`, see docs/fuzzing.md."""
