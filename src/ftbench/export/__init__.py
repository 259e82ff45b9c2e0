"""A finished run as a model that others' programs load."""
