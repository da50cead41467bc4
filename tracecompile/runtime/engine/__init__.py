"""Sequences in chunks of time steps: synapses over all steps of a chunk at once, the rest of every block as a scan."""
