"""Pictures with captions that the demo and the studies train on, each built from packages and kept in a cache."""
