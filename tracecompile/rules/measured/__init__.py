"""The measured rule: the slope of every neuron is carried along in forward mode, instead of guessed."""
