"""The gradient rules: each says what a layer records per step and what its local graph is."""
