"""Runs the user's code on example tensors and writes down what it does."""
