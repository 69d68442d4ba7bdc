"""`selector reference` trains a reference, scores a pool with it, shows what it knows, and makes it smaller."""
