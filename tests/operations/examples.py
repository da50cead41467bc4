"""How each operation of the table is called in its tests: the one line that an entry has to have here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tracecompile.operations import OPERATIONS, Fact, Operation, functions_of

Arguments = Callable[[Tensor, Tensor], tuple[Any, ...]]

NUMBERS = 10.0 * torch.tensor([[-0.31, 0.17, 0.43, -0.09], [0.23, -0.47, 0.05, 0.37], [0.41, 0.29, -0.19, -0.13]])
OTHERS = torch.tensor([[0.7, -0.2, 1.3, 0.4], [-0.6, 1.1, 0.3, -1.7], [0.9, -0.8, 1.9, 0.1]])
"""Three samples of four numbers of both signs, none whole, none twice."""


def _image(axes: int) -> Callable[[Tensor], Tensor]:
    """Makes images of two channels and as many axes, a sample each, of numbers."""
    sizes = (4,) * axes
    weights = torch.linspace(0.5, 1.5, 2 * 4**axes).double().reshape(1, 2, *sizes)
    return lambda x: x.repeat(1, 2 * 4 ** (axes - 1)).reshape(x.shape[0], 2, *sizes) * weights


IMAGES = {axes: _image(axes) for axes in (1, 2, 3)}
NONE = Fact(0)


def _kernel(y: Tensor, axes: int) -> Tensor:
    return y.flatten()[:4].repeat(2**axes).reshape(2, 2, *[2] * axes)


def _truths(x: Tensor, y: Tensor) -> tuple[Any, ...]:
    return x > 0, y > 0


def _whole(x: Tensor, y: Tensor) -> tuple[Any, ...]:
    return (10 * x).long(), (10 * y).long().abs() % 5


def _pair(x: Tensor, y: Tensor) -> tuple[Any, ...]:
    return x, y


def _size(x: Tensor, y: Tensor) -> tuple[Any, ...]:
    return (x.shape,)


ARGUMENTS: dict[str, Arguments] = dict.fromkeys(
    """add sub rsub mul div floor_divide remainder pow fmod maximum minimum gt ge lt le heaviside copy type_as
    expand_as equal allclose""".split(),
    _pair,
) | {
    **dict.fromkeys("eq ne logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor".split(), _truths),
    **dict.fromkeys("logical_not bitwise_not".split(), lambda x, y: (x > 0,)),
    **dict.fromkeys("bernoulli poisson".split(), lambda x, y: (x.sigmoid(),)),
    **dict.fromkeys("bitwise_left_shift bitwise_right_shift".split(), _whole),
    **dict.fromkeys("zeros ones empty rand randn".split(), _size),
    **dict.fromkeys("new_zeros new_ones new_empty".split(), lambda x, y: (x, x.shape)),
    **dict.fromkeys("tensor as_tensor asarray".split(), lambda x, y: ([1.0, 2.0],)),
    **dict.fromkeys("unsqueeze sum mean amax amin softmax log_softmax unbind".split(),
                    lambda x, y: (x, 1)),
    **dict.fromkeys("cat stack".split(), lambda x, y: ([x, y], 1)),
    **dict.fromkeys("chunk split".split(), lambda x, y: (x, 2, 1)),
    **{f"{name}{axes}d": lambda x, y, image=IMAGES[axes]: (image(x), 2)
       for name in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool") for axes in (1, 2, 3)},
    **{f"lp_pool{axes}d": lambda x, y, image=IMAGES[axes]: (image(x), 2.0, 2) for axes in (1, 2, 3)},
    **{f"{name}{axes}d": lambda x, y, axes=axes: (IMAGES[axes](x), _kernel(y, axes))
       for name in ("conv", "conv_transpose") for axes in (1, 2, 3)},
    **{f"dropout{axes}d": lambda x, y, image=IMAGES[axes]: (image(x), 0.5) for axes in (1, 2, 3)},
    **{name: lambda x, y: (IMAGES[1](x), 0.5, True)
       for name in ("alpha_dropout", "feature_dropout", "feature_alpha_dropout")},
    "bool": lambda x, y: (x.relu(),),
    "squeeze": lambda x, y: (x[:, None, [3, 1, 0, 2]], 1),
    "flatten": lambda x, y: (x.reshape(-1, 2, 2).transpose(1, 2), 1),
    "view_as": lambda x, y: (x, y.reshape(-1, 2, 2)),
    "reshape_as": lambda x, y: (x, y.reshape(-1, 2, 2)),
    "dropout": lambda x, y: (x, 0.5),
    "rrelu": lambda x, y: (x, 0.1, 0.3, True),
    "real": lambda x, y: (torch.complex(x, y),),
    "imag": lambda x, y: (torch.complex(x, y),),
    "lerp": lambda x, y: (x, y, y.abs()),
    "addcmul": lambda x, y: (x, y, y + 0.5),
    "addcdiv": lambda x, y: (x, y, y + 0.05),
    "masked_fill": lambda x, y: (x, y > 0, 0.5),
    "where": lambda x, y: (y > 0, x, 0.5 * x),
    "clamp": lambda x, y: (x, -0.5, 0.5),
    "clamp_min": lambda x, y: (x, -0.5),
    "clamp_max": lambda x, y: (x, 0.5),
    "threshold": lambda x, y: (x, 0.1, 0.5),
    "logit": lambda x, y: (x, 0.1),
    "to": lambda x, y: (x, torch.float32),
    "type": lambda x, y: (x, torch.float32),
    "expand": lambda x, y: (x, x.shape),
    "view": lambda x, y: (x, (-1, 2, 2)),
    "reshape": lambda x, y: (x, (-1, 2, 2)),
    "unflatten": lambda x, y: (x, 1, (2, 2)),
    "permute": lambda x, y: (x, (1, 0)),
    "transpose": lambda x, y: (x, 0, 1),
    "movedim": lambda x, y: (x, 0, 1),
    "getitem": lambda x, y: (x, (slice(None), 1)),
    "__setitem__": lambda x, y: (x.clone(), 1, 0.5),
    "select": lambda x, y: (x, 1, 2),
    "narrow": lambda x, y: (x, 1, 1, 2),
    "index_select": lambda x, y: (x, 1, torch.tensor([2, 0])),
    "roll": lambda x, y: (x, 1, 1),
    "flip": lambda x, y: (x, (1,)),
    "repeat": lambda x, y: (x, (1, 2)),
    "tile": lambda x, y: (x, (1, 2)),
    "masked_select": lambda x, y: (x, x > 0),
    "nonzero": lambda x, y: (x > 0,),
    "argwhere": lambda x, y: (x > 0,),
    "unique": lambda x, y: (x > 0,),
    "item": lambda x, y: (x[1, 2],),
    "is_nonzero": lambda x, y: (x[1, 2],),
    "__contains__": lambda x, y: (x, 0.5),
    "__format__": lambda x, y: (x, ""),
    "__deepcopy__": lambda x, y: (x, {}),
    "linear": lambda x, y: (x, y[:, :4]),
    "matmul": lambda x, y: (x, y.T),
    "mm": lambda x, y: (x, y.T),
    "bmm": lambda x, y: (x[None], y.T[None]),
    "einsum": lambda x, y: ("bi,oi->bo", x, y),
    "addmm": lambda x, y: (torch.ones(1).to(x), x, y.T),
    "baddbmm": lambda x, y: (torch.ones(1).to(x), x[None], y.T[None]),
    "pad": lambda x, y: (x, (1, 2)),
    "interpolate": lambda x, y: (IMAGES[1](x), 7),
    "batch_norm": lambda x, y: (x, torch.zeros(4).to(x), torch.ones(4).to(x), None, None, True),
    "instance_norm": lambda x, y: (IMAGES[1](x),),
    "group_norm": lambda x, y: (x, 2),
    "layer_norm": lambda x, y: (x, (4,)),
    "rms_norm": lambda x, y: (x, (4,)),
    "full": lambda x, y: (x.shape, 0.5),
    "full_like": lambda x, y: (x, 0.5),
    "new_full": lambda x, y: (x, x.shape, 0.5),
    "new_tensor": lambda x, y: (x, [1.0, 2.0]),
    "new": lambda x, y: (x, 2),
    "fill": lambda x, y: (x, 0.5),
    "scalar_tensor": lambda x, y: (0.5,),
    "arange": lambda x, y: (4,),
    "eye": lambda x, y: (4,),
    "randint": lambda x, y: (1000, x.shape),
    "randint_like": lambda x, y: (x, 1000),
    "normal": lambda x, y: (x, y.abs()),
}  # fmt: skip
"""Those that are not called with one tensor alone."""


def calls(entry: Operation) -> Callable[..., Any]:
    """Returns what computes an operation out of place: a function, else a method, else a property."""
    found = [one for one in functions_of(entry) if not getattr(one, "__name__", "").endswith("_")]
    found.sort(key=lambda one: one is not getattr(nn.functional, entry.name, None))
    if found:
        return found[0]
    names = [name for name in (entry.name, *entry.also) if hasattr(Tensor, name)]
    if names:
        return lambda x, *args: getattr(x, names[0])(*args)
    if hasattr(Tensor, f"{entry.name}_"):
        return lambda x, *args: getattr(x.clone(), f"{entry.name}_")(*args)
    return getattr(torch.ops.aten, entry.name)  # type: ignore[no-any-return]


def packets(entry: Operation) -> list[Any]:
    """Returns the operators of torch.ops.aten that are an operation."""
    names = [f"{name}{end}" for name in (entry.name, *entry.also, *entry.aten) for end in ("", "_")]
    return [
        getattr(torch.ops.aten, name) for name in names if not name.startswith("__") and hasattr(torch.ops.aten, name)
    ]


def run(entry: Operation, x: Tensor, y: Tensor) -> Any:
    """Computes an operation of numbers, with the same random ones every time."""
    torch.manual_seed(0)
    return calls(entry)(*ARGUMENTS.get(entry.name, lambda x, y: (x,))(x, y))


def numbers() -> tuple[Tensor, Tensor]:
    return NUMBERS.double(), OTHERS.double()


def with_facts(facts: Fact, without: Fact = NONE) -> list[Operation]:
    """Returns the entries of which one of some facts is true, and none of others."""
    return [entry for entry in OPERATIONS if entry.facts & facts and not entry.facts & without]
