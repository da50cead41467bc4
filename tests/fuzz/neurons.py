"""What a neuron does in one step: how its membrane moves, when it fires, and how it is reset."""

from __future__ import annotations

from dataclasses import dataclass

from fuzz.choices import Choices
from fuzz.constants import decay, threshold
from fuzz.draft import Draft, Module
from fuzz.states import States, start

KINDS = (
    "leaky", "synaptic", "adaptive", "refractory", "ternary", "graded", "resonant", "two compartments", "quadratic",
)  # fmt: skip
UPDATES = (
    "{d} * {v} + {c}", "{v} * {d} + {c} * (1 - {d})", "{v} + ({c} - {v}) * 0.2", "{c} + {v}.mul({d})",
    "torch.add({c}, {v}, alpha=0.8)", "torch.lerp({c}, {v}, 0.8)",
    "torch.addcmul({c}, {v}, torch.full_like({v}, 0.8))", "torch.clamp({d} * {v} + {c}, min=-2.0)",
    "{d} * {v} + F.relu({c}) - 0.3 * F.relu(-{c})", "{v} + 0.2 * (-{v} + {c})", "sum([{d} * {v}, {c}])",
    "torch.stack([{d} * {v}, {c}]).sum(0)", "{d} * {v}.clone() + {c}", "torch.tanh({d} * {v} + {c})",
    "({d} * {v} + {c}).clamp(-4.0, 4.0)",
)  # fmt: skip
RESETS = (
    "subtract", "to zero", "to zero, detached", "where", "where, fresh", "masked_fill", "masked write", "in place",
    "subtract, detached", "delayed to zero", "delayed subtract", "float mask", "none", "to rest", "write by mask",
)  # fmt: skip


@dataclass(frozen=True)
class Neuron:
    """One layer of neurons.

    Attributes:
        number: Of the layer, from 1; "" where it has a class of its own.
        size: Number of units.
        recalls: The spikes of the step before are needed, by others.
    """

    number: str
    size: int
    recalls: bool = False


def neuron(choose: Choices, draft: Draft, owner: Module, states: States, layer: Neuron, inputs: bool) -> list[str]:
    """Returns the lines of one step of a layer; ``cur<n>`` goes in, ``z<n>`` and the membrane come out."""
    n, size = layer.number, layer.size
    key = n or owner.name
    kind = choose(f"neuron {key}", KINDS)
    update = choose(f"update {key}", UPDATES)
    reset = choose(f"reset {key}", RESETS)
    rate = decay(choose, draft, owner, f"decay{n}", size) if "{d}" in update else ""
    limit = threshold(choose, draft, owner, f"v{n}", size)
    shaped = kind in ("refractory", "two compartments") or states.kind in ("history", "buffer")
    begins = start(choose, draft, owner, f"v{n}", size, shaped=shaped, inputs=inputs)
    states.declare(f"v{n}", begins, size)
    if layer.recalls or reset.startswith("delayed"):
        states.declare(f"z{n}", f"x.new_zeros(B, {size})", size)
    v, c, z = states.get(f"v{n}"), f"cur{n}", f"z{n}"
    lines = [f"if {v} is None:", f"    {states.put(f'v{n}', f'torch.zeros_like({c})')}"] if begins == "None" else []
    lines += _delayed(states, n, reset, limit)
    lines += _moved(states, kind, n, size, update.format(d=rate, v="{v}", c="{c}"), c)
    lines += _fired(states, kind, n, size, limit)
    lines += _reset(states, reset, n, limit)
    if f"z{n}" in states.starts and states.get(z) != z:
        lines.append(states.put(z, z))
    return lines


def _delayed(states: States, n: str, reset: str, limit: str) -> list[str]:
    """Returns the reset by the spike of the step before."""
    if not reset.startswith("delayed"):
        return []
    v, z = states.get(f"v{n}"), states.get(f"z{n}")
    return [states.put(f"v{n}", f"{v} * (1 - {z})" if reset == "delayed to zero" else f"{v} - {limit} * {z}")]


def _moved(states: States, kind: str, n: str, size: int, update: str, c: str) -> list[str]:
    """Returns how the membrane follows the current."""
    zeros, get, put = f"x.new_zeros(B, {size})", states.get, states.put
    v, lines = f"v{n}", []
    if kind == "synaptic":
        states.declare(f"i{n}", zeros, size)
        lines.append(put(f"i{n}", f"0.6 * {get(f'i{n}')} + {c}"))
        c = get(f"i{n}")
    if kind == "refractory":
        states.declare(f"r{n}", zeros, size)
        lines.append(f"{c} = {c} * ({get(f'r{n}')} <= 0).to({c}.dtype)")
    if kind == "two compartments":
        states.declare(f"d{n}", zeros, size)
        lines.append(put(f"d{n}", f"0.7 * {get(f'd{n}')} + {c} - 0.1 * {get(v)}"))
        c = get(f"d{n}")
    if kind == "resonant":
        states.declare(f"o{n}", zeros, size)
        lines += [
            f"turned = 0.9 * ({get(v)} * 0.8 - {get(f'o{n}')} * 0.6) + {c}",
            put(f"o{n}", f"0.9 * ({get(v)} * 0.6 + {get(f'o{n}')} * 0.8)"),
            put(v, "turned"),
        ]
        return lines
    if kind == "quadratic":
        drift = f"0.1 * {get(v)} * ({get(v)} - 0.4)"
        lines.append(put(v, f"torch.clamp({get(v)} + {drift} + 0.3 * {c}, -2.0, 2.0)"))
        return lines
    lines.append(put(v, update.format(v=get(v), c=c)))
    return lines


def _fired(states: States, kind: str, n: str, size: int, limit: str) -> list[str]:
    """Returns how spikes come from the membrane."""
    get, put, z = states.get, states.put, f"z{n}"
    v = get(f"v{n}")
    if kind == "adaptive":
        states.declare(f"a{n}", f"x.new_zeros(B, {size})", size)
        a = get(f"a{n}")
        return [f"{z} = spike({v} - ({limit} + 0.2 * {a}))", put(f"a{n}", f"0.9 * {a} + {z}")]
    if kind == "ternary":
        return [f"{z} = spike({v} - {limit}) - spike(-{v} - {limit})"]
    if kind == "graded":
        return [f"{z} = spike({v} - {limit}) * torch.sigmoid({v})"]
    fired = [f"{z} = spike({v} - {limit})"]
    if kind == "refractory":
        r = get(f"r{n}")
        fired.append(put(f"r{n}", f"torch.where({z} > 0, torch.full_like({r}, 2.0), {r} - 1.0)"))
    return fired


def _reset(states: States, reset: str, n: str, limit: str) -> list[str]:
    """Returns the reset in the step of the spike."""
    v, z = states.get(f"v{n}"), f"z{n}"
    values = {
        "subtract": f"{v} - {limit} * {z}",
        "subtract, detached": f"{v} - ({limit} * {z}).detach()",
        "to zero": f"{v} * (1 - {z})",
        "to zero, detached": f"{v} * (1 - {z}.detach())",
        "where": f"torch.where({z} > 0, torch.zeros_like({v}), {v})",
        "where, fresh": f"torch.where({z}.bool(), x.new_zeros(1), {v})",
        "masked_fill": f"{v}.masked_fill({z} > 0, 0.0)",
        "float mask": f"{v} * (~({z} > 0)).float()",
        "to rest": f"{z} * (-0.1) + (1 - {z}) * {v}",
    }
    if reset in values:
        return [states.put(f"v{n}", values[reset])]
    if reset == "in place":
        return [f"{v} -= {limit} * {z}"]
    if reset == "masked write":
        return [states.put(f"v{n}", f"{v}.clone()"), f"{v}[{z} > 0] = 0.0"]
    if reset == "write by mask":
        return [f"{v}[{z} > 0] = -0.1"]
    return []
