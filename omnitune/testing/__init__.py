"""Tiny models and data, made on the spot: for our tests, and for those of plug-ins."""
