"""Models of which each call is one time step: their states are found by running it several times."""
