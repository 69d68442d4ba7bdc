"""The forms in which candidates come. To add one: a module here, and a line in the table of rpc/read_candidates.py."""
