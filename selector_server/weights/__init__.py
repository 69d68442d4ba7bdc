"""Versions of the learner's weights: where they come from, and which one is served."""
