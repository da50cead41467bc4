"""Small reference layers and surrogates, trainable by plain backpropagation through time and by ``convert``.

All layers have one form, one call a time step with the state in the caller's hands::

    output, state = layer(current)              # first step: the state is zero
    output, state = layer(current, state)       # every later step
"""

from tracecompile.nn.leaky import Leaky
from tracecompile.nn.neurons import LIF, RLIF, Reset, RLIFState
from tracecompile.nn.readouts import LI, LIS
from tracecompile.nn.surrogates import (
    SpikeFunction,
    Surrogate,
    arctan,
    fast_sigmoid,
    sigmoid,
    straight_through,
    triangular,
)

__all__ = [
    "LI",
    "LIF",
    "LIS",
    "RLIF",
    "Leaky",
    "RLIFState",
    "Reset",
    "SpikeFunction",
    "Surrogate",
    "arctan",
    "fast_sigmoid",
    "sigmoid",
    "straight_through",
    "triangular",
]
