"""Generated from proto/selector/v1 by `make proto`; do not edit."""
