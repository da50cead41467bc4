"""Models that mix time steps between their loops: one program for what lies between two of these places."""
