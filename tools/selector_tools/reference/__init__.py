"""`selector reference`: train a reference, score a pool with it, see what it knows, and make it smaller."""
