"""Copies of the user's model, which run in its place."""
