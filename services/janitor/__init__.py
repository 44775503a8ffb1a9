"""Looks after the stores of a service; see README.md."""
