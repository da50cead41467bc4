"""The nodes of a neuron, in the constants of NIR: time constants, resistances, rest and threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracecompile.exporting.nir.building import Building, Flow, array
from tracecompile.exporting.nir.cells import CURRENT, Cell
from tracecompile.exporting.nir.later import OWN, late_name

Shape = tuple[int, ...]


def add_cell(building: Building, name: str, cell: Cell, currents: Mapping[str, Flow], shape: Shape, dt: float) -> str:
    """Adds the nodes of a neuron; returns the name of that which spikes, or whose membrane is the output.

    Args:
        building: Takes the nodes.
        name: What it is to be called.
        cell: What it computes.
        currents: What it reads, by the names in ``cell``.
        shape: Of its membrane, for one sample.
        dt: Seconds per step, with Euler's method: a decay of A per step is the time constant dt / (1 - A).

    Raises:
        ValueError: It has constants that no node of NIR can have.
    """
    feedback = bool((cell.feedback != 0).any())
    if cell.gathered is None:
        read, gain = _together(building, name, currents, cell.gains, shape)
    else:
        gathered, weight = _together(building, name, currents, cell.gathered.gains, shape)
        if cell.gathered.late:
            gathered = _delayed(building, name, gathered, dt)
        gain = cell.gains[CURRENT].expand(shape)
        constant = cell.gathered.constant + _constant(gathered, weight)
        plain = not feedback and not bool((constant != 0).any()) and bool((cell.decay < 1).all())
        if cell.threshold is not None and plain:
            return building.add(name, _cuba(cell, cell.gathered.decay, weight, gain, shape, dt), gathered)
        filtered = _integrator(cell.gathered.decay, constant, weight, shape, dt)
        read = Flow((building.add(f"{name}_synapse", filtered, gathered),), shape)
    if not cell.memory and cell.threshold is not None:
        return _threshold(building, name, cell, read, gain, shape)
    constant = cell.constant + _constant(read, gain)
    if bool((cell.decay == 1).all()) and bool((constant != 0).any()):
        read = building.with_constant(Flow(read.names, shape, (constant / gain).expand(shape)))
        constant = torch.zeros((), dtype=torch.float64)
    if cell.threshold is None:
        return building.add(name, _integrator(cell.decay, constant, gain, shape, dt), read)
    made = building.add(name, _firing(cell, constant, gain, shape, dt), read)
    if feedback:
        own = Flow((late_name(f"{OWN}{made}", 1),), shape)
        building.lead(building.scaled(f"{made}_reset", own, cell.feedback / gain), made)
    return made


def _delayed(building: Building, name: str, read: Flow, dt: float) -> Flow:
    import nir

    if read.constant is not None:
        raise ValueError("its membrane takes up a constant one step later")
    return Flow((building.add(f"{name}_delay", nir.Delay(np.full(read.shape, dt)), read),), read.shape)


def _together(
    building: Building, name: str, currents: Mapping[str, Flow], gains: Mapping[str, Tensor], shape: Shape
) -> tuple[Flow, Tensor]:
    """Returns the sum of the currents as a node can read it, and its gain; where they differ each is scaled first."""
    used = {key: gain.expand(shape) for key, gain in gains.items() if key in currents}
    if not used:
        raise ValueError("it reads nothing")
    gain = next(iter(used.values()))
    if not all(torch.equal(each, gain) for each in used.values()) or bool((gain == 0).any()):
        gain = torch.ones(shape, dtype=torch.float64)
    total = Flow((), shape)
    for key, own in used.items():
        flow = currents[key]
        if flow.shape != shape:
            raise ValueError(f"one of its currents has the shape {flow.shape}, and its membrane {shape}")
        part = flow if torch.equal(own, gain) else building.scaled(f"{name}_weight", flow, own)
        total = Flow((*total.names, *part.names), shape, total.constant)
        total = total if part.constant is None else total.plus(part.constant)
    return total, gain


def _constant(flow: Flow, gain: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float64) if flow.constant is None else flow.constant * gain


def _leak(decay: Tensor, shape: Shape) -> Tensor:
    if bool((decay >= 1).any()):
        raise ValueError(f"its state is multiplied by {float(decay.max()):g} at every step, and does not decay")
    return (1 - decay.double()).expand(shape)


def _exact(value: Tensor, shape: Shape) -> np.ndarray[Any, Any]:
    return value.double().expand(shape).contiguous().numpy()


def _integrator(decay: Tensor, constant: Tensor, gain: Tensor, shape: Shape, dt: float) -> Any:
    import nir

    if bool((decay == 1).all()):
        if bool((constant != 0).any()):
            raise ValueError("a state that forgets nothing has a constant added to it")
        return nir.I(r=_exact(gain / dt, shape))
    leak = _leak(decay, shape)
    return nir.LI(
        tau=_exact(dt / leak, shape), r=_exact(gain / leak, shape), v_leak=_exact(constant / leak, shape)
    )  # fmt: skip


def _firing(cell: Cell, constant: Tensor, gain: Tensor, shape: Shape, dt: float) -> Any:
    import nir

    assert cell.threshold is not None
    threshold = array(cell.threshold, shape)
    if bool((cell.decay == 1).all()):
        return nir.IF(r=_exact(gain / dt, shape), v_threshold=threshold)
    leak = _leak(cell.decay, shape)
    return nir.LIF(
        tau=_exact(dt / leak, shape),
        r=_exact(gain / leak, shape),
        v_leak=_exact(constant / leak, shape),
        v_threshold=threshold,
    )


def _cuba(cell: Cell, decay: Tensor, weight: Tensor, gain: Tensor, shape: Shape, dt: float) -> Any:
    import nir

    assert cell.threshold is not None
    synapse, leak = _leak(decay, shape), _leak(cell.decay, shape)
    return nir.CubaLIF(
        tau_syn=_exact(dt / synapse, shape),
        tau_mem=_exact(dt / leak, shape),
        r=_exact(gain / leak, shape),
        v_leak=_exact(cell.constant / leak, shape),
        v_threshold=array(cell.threshold, shape),
        w_in=_exact(weight / synapse, shape),
    )


def _threshold(building: Building, name: str, cell: Cell, read: Flow, gain: Tensor, shape: Shape) -> str:
    """Adds a neuron that only compares what it reads."""
    import nir

    assert cell.threshold is not None
    node = nir.Threshold(array(cell.threshold - _constant(read, gain), shape))
    return building.add(name, node, building.scaled(f"{name}_gain", read, gain))
