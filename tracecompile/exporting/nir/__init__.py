"""A network as a graph of NIR: neurons by their algebra, synapses as layers, read back and compared."""
