"""Neurons of libraries within a model of one's own."""

from __future__ import annotations

from fuzz.choices import Choices
from fuzz.draft import Draft, Module
from fuzz.states import States

STYLES = (
    "snntorch", "snntorch hidden", "snntorch synaptic", "spikingjelly", "spikingjelly parametric", "norse",
    "norse current",
)  # fmt: skip


def library_neuron(
    choose: Choices, draft: Draft, owner: Module, states: States, n: str, style: str, size: int
) -> list[str]:
    """Returns the lines of one step of a layer of library neurons: ``cur<n>`` goes in, ``z<n>`` comes out."""
    lif, cur, z, v = f"self.lif{n}", f"cur{n}", f"z{n}", f"v{n}"
    draft.notes["single"] = True
    if style.startswith("snntorch"):
        draft.use("import snntorch as snn")
        slope = choose(
            f"snntorch slope {n}", ("", ", spike_grad=surrogate.fast_sigmoid(slope=10)", ", reset_mechanism='zero'")
        )
        if "surrogate" in slope:
            draft.use("from snntorch import surrogate")
        if style == "snntorch hidden":
            owner.add(f"{lif} = snn.Leaky(beta=0.8, threshold=0.5, init_hidden=True{slope})")
            draft.notes.setdefault("resets", []).append(f"{lif}.reset_mem()")  # type: ignore[attr-defined]
            return [f"{z} = {lif}({cur})"]
        if style == "snntorch synaptic":
            owner.add(f"{lif} = snn.Synaptic(alpha=0.6, beta=0.8, threshold=0.5{slope})")
            for name in (f"i{n}", v):
                states.declare(name, f"x.new_zeros(B, {size})", size)
            i, v = states.get(f"i{n}"), states.get(v)
            return [f"{z}, {i}, {v} = {lif}({cur}, {i}, {v})"]
        owner.add(f"{lif} = snn.Leaky(beta=0.8, threshold=0.5{slope})")
        begin = choose(f"snntorch start {n}", (f"x.new_zeros(B, {size})", f"{lif}.init_leaky()"))
        states.declare(v, begin, size)
        return [f"{z}, {states.get(v)} = {lif}({cur}, {states.get(v)})"]
    if style.startswith("spikingjelly"):
        draft.use("from spikingjelly.activation_based import functional, neuron")
        draft.notes.setdefault("resets", []).append("functional.reset_net(self)")  # type: ignore[attr-defined]
        if style == "spikingjelly":
            owner.add(
                f"{lif} = neuron.LIFNode(tau=2.0, v_threshold=0.5, v_reset={choose(f'v_reset {n}', ('0.0', 'None'))})"
            )
        else:
            owner.add(f"{lif} = neuron.ParametricLIFNode(v_threshold=0.5, detach_reset=True)")
        return [f"{z} = {lif}({cur})"]
    draft.use("import norse.torch as norse")
    states.declare(v, "None", size)
    if style == "norse":
        owner.add(
            f"{lif} = norse.LIFCell(p=norse.LIFParameters(v_th=torch.as_tensor(0.3), alpha=torch.as_tensor(50.0)))"
        )
        return [f"{z}, {states.get(v)} = {lif}(3 * {cur}, {states.get(v)})"]
    owner.add(f"{lif} = norse.LIFBoxCell(p=norse.LIFBoxParameters(v_th=torch.as_tensor(0.1)))")
    return [f"{z}, {states.get(v)} = {lif}(3 * {cur}, {states.get(v)})"]
