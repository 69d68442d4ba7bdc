"""Asks a sidecar for the best sub-batch of a super-batch, and falls back to a uniform one where that fails."""
