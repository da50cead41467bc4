"""What makes tensors of nothing but numbers and sizes."""

from __future__ import annotations

from tracecompile.operations.facts import Fact, Operation, alike

_FILLED = Fact.FILLS | Fact.ELEMENTWISE

TENSORS = (
    Operation(name="zeros", facts=_FILLED | Fact.TAKES_SIZE, fill=0),
    Operation(name="ones", facts=_FILLED | Fact.TAKES_SIZE, fill=1),
    Operation(name="full", facts=_FILLED | Fact.TAKES_SIZE),
    Operation(name="zeros_like", facts=_FILLED | Fact.LIKE, fill=0),
    Operation(name="ones_like", facts=_FILLED | Fact.LIKE, fill=1),
    Operation(name="full_like", facts=_FILLED | Fact.LIKE),
    Operation(name="new_zeros", facts=_FILLED | Fact.OF_TYPE | Fact.TAKES_SIZE, fill=0),
    Operation(name="new_ones", facts=_FILLED | Fact.OF_TYPE | Fact.TAKES_SIZE, fill=1),
    Operation(name="new_full", facts=_FILLED | Fact.OF_TYPE | Fact.TAKES_SIZE),
    *alike("zero fill scalar_tensor", Fact.ELEMENTWISE),
    Operation(name="empty", facts=Fact.TAKES_SIZE),
    Operation(name="empty_like", facts=Fact.ELEMENTWISE | Fact.LIKE),
    *alike("new_empty new_tensor", Fact.OF_TYPE | Fact.TAKES_SIZE),
    *alike("tensor as_tensor asarray", Fact.OF_NUMBERS | Fact.TAKES_SIZE),
    *alike("new arange eye", Fact.TAKES_SIZE),
    *alike("rand randn randint normal", Fact.RANDOM | Fact.TAKES_SIZE),
    *alike("bernoulli poisson", Fact.RANDOM),
    *alike("rand_like randn_like randint_like", Fact.RANDOM | Fact.LIKE),
)
