"""Measurements that anyone can repeat: `selector bench`."""
