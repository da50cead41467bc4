"""Models that loop over time: the trace of a whole sequence becomes one time step."""
