"""Targets, by what their bytes come from; `fuzz.registry` has all of them."""
