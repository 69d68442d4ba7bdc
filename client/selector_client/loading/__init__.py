"""Feeds a trainer with the selected sub-batches of its super-batches, and resumes where it stopped."""
