"""What was selected lately, and why, kept for people to look at. Without it nothing of a selection stays."""
