"""Talks to a service over HTTP."""
