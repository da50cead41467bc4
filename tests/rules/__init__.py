"""The rules of the gradient."""
