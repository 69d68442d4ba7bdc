"""Does selection help on a user's own pool and model? The arms of a study at a small budget, and what they show."""
