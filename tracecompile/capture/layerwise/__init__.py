"""Work on whole sequences, before, between and after loops over time, as work of a time step."""
