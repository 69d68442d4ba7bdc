"""References of two pretrained towers that stay as they are, with a trained projection on top of each."""
