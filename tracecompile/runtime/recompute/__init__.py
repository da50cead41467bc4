"""Backpropagation through time in flat memory: states are kept at a few moments, and the steps between run again."""
