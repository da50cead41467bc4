"""Products with spikes: a row of spikes times a matrix is the sum of the matrix' rows where a neuron has fired."""
