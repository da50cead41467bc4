"""Where a number comes from: a literal, the model's attributes, numpy, buffers, parameters."""

from __future__ import annotations

from fuzz.choices import Choices
from fuzz.draft import HIDDEN, Draft, Module

SOURCES = (
    "literal", "attribute", "math", "numpy", "numpy of an array", "numpy per unit", "item", "tensor", "buffer",
    "per unit", "sigmoid", "clamped", "exp of tau", "parameter per unit", "fraction", "dictionary", "namespace",
    "from numpy", "list", "computed buffer",
)  # fmt: skip


def decay(choose: Choices, draft: Draft, owner: Module, name: str, size: int, value: float = 0.8) -> str:
    """Returns the expression of a decay between 0 and 1; the owner's ``__init__`` gets what it needs."""
    source = choose(f"decay of {name}", SOURCES)
    at = f"self.{name}"
    if source == "literal":
        return str(value)
    if source in ("numpy", "numpy of an array", "numpy per unit", "from numpy"):
        draft.use("import numpy as np")
    if source == "math":
        draft.use("import math")
    if source == "namespace":
        draft.use("from types import SimpleNamespace")
    if source == "computed buffer":
        owner.add(f'self.register_buffer("tau_{name}", torch.tensor(5.0))')
        return f"torch.exp(-1 / self.tau_{name})"
    if source in ("dictionary", "namespace", "list"):
        kept, read = {
            "dictionary": (f'{{"{name}": {value}}}', f'["{name}"]'),
            "namespace": (f"SimpleNamespace({name}={value})", f".{name}"),
            "list": (f"[{value}, 0.9]", "[0]"),
        }[source]
        owner.add(f"self.{name}_config = {kept}")
        return f"self.{name}_config{read}"
    made = {
        "attribute": f"{value}",
        "math": "math.exp(-1 / 5)",
        "numpy": "np.exp(-1 / 5.0)",
        "numpy of an array": "np.array([0.7, 0.8, 0.9], dtype=np.float32)",
        "numpy per unit": f"np.exp(-1 / np.linspace(2, 9, {size})).astype(np.float32)",
        "from numpy": f"torch.from_numpy(np.linspace(0.6, 0.9, {size})).float()",
        "item": f"torch.tensor({value}).item()",
        "tensor": f"torch.tensor({value})",
        "buffer": f"torch.tensor({value})",
        "per unit": f"torch.linspace(0.6, 0.9, {size})",
        "sigmoid": "nn.Parameter(torch.tensor(1.4))",
        "clamped": f"nn.Parameter(torch.tensor({value}))",
        "exp of tau": "nn.Parameter(torch.tensor(5.0))",
        "parameter per unit": f"nn.Parameter(torch.linspace(0.5, 2.0, {size}))",
        "fraction": "5",
    }[source]
    if source in ("buffer", "per unit"):
        owner.add(f'self.register_buffer("{name}", {made})')
    else:
        owner.add(f"{at} = {made}")
    read = {
        "numpy of an array": f"{at}[1]",
        "numpy per unit": f"torch.as_tensor({at})",
        "sigmoid": f"torch.sigmoid({at})",
        "parameter per unit": f"torch.sigmoid({at})",
        "clamped": f"{at}.clamp(0.0, 1.0)",
        "exp of tau": f"torch.exp(-1.0 / {at})",
        "fraction": f"(1 - 1 / {at})",
    }
    return read.get(source, at)


THRESHOLDS = ("literal", "attribute", "numpy", "buffer", "per unit", "parameter")


def threshold(choose: Choices, draft: Draft, owner: Module, name: str, size: int) -> str:
    """Returns the expression of a threshold."""
    source = choose(f"threshold of {name}", THRESHOLDS)
    at = f"self.{name}_threshold"
    if source == "literal":
        return "0.5"
    if source == "numpy":
        draft.use("import numpy as np")
    made = {
        "attribute": f"{at} = 0.5",
        "numpy": f"{at} = np.float32(0.5)",
        "buffer": f'self.register_buffer("{name}_threshold", torch.tensor(0.5))',
        "per unit": f'self.register_buffer("{name}_threshold", torch.linspace(0.3, 0.7, {size}))',
        "parameter": f"{at} = nn.Parameter(torch.full(({size},), 0.5))",
    }[source]
    owner.add(made)
    return at


__all__ = ["HIDDEN", "decay", "threshold"]
