"""Edges that several histograms share."""

# Edges grow by a factor of 1.7 from 1 ms to about 60 s: a selection takes milliseconds on a GPU and seconds on a CPU.
SECONDS = tuple(round(0.001 * 1.7**i, 6) for i in range(22))
