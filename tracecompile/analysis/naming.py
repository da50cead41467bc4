"""What to call the layers and states that were found."""

from __future__ import annotations

from torch import fx

from tracecompile.analysis.cuts import Cuts, Root
from tracecompile.layers import Core, LayerKind, StateKind


def layer_kind(root: Root) -> LayerKind:
    """Returns what a layer is."""
    if isinstance(root, fx.Node):
        return "junction"
    if not root.states:
        return "stateless"
    return "spiking" if root.spikes else "readout"


def state_kind(cuts: Cuts, root: Root, state: str) -> StateKind:
    """Returns what a state is, from what its next value depends on and what it leads to."""
    assert isinstance(root, Core)
    node = cuts.node[state]
    above = _above(cuts.view.delayed[node], set(root.nodes))
    spikes = {cuts.node[name] for name in root.spikes}
    feeds_spike = any(node in _above(spike, set(root.nodes)) for spike in spikes)
    currents = set(cuts.currents(root))
    if not spikes:
        others = [cuts.node[other] for other in root.states if other != state]
        drives = any(node in _above(cuts.view.delayed[other], set(root.nodes)) for other in others)
        return "current" if drives and not above.intersection(others) else "membrane"
    if above & spikes and not above & currents:
        return "adaptation"
    if feeds_spike and (above & spikes or len(root.states) == 1):
        return "membrane"
    return "current" if above & currents and not above & spikes and len(root.states) > 1 else "membrane"


def _above(node: fx.Node, inside: set[str]) -> set[fx.Node]:
    found, pending = {node}, [node]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                if source.name in inside:
                    pending.append(source)
    return found


def layer_names(cuts: Cuts) -> list[str]:
    """Returns a name per root: the user's module or variable, else the node; numbered where it comes again."""
    carries = {carry.placeholder: carry.name for carry in cuts.program.carries}
    names: list[str] = []
    for root in cuts.roots:
        node = root if isinstance(root, fx.Node) else cuts.node[root.nodes[-1]]
        where = node.meta.get("where")
        path = where.module_path if where is not None else ""
        if not path and not isinstance(root, fx.Node) and root.states:
            path = carries[root.states[0]]
        if isinstance(root, fx.Node) and node.op == "call_module":
            path = str(node.target)
        name = path or node.name
        names.append(name if name not in names else f"{name}#{sum(n.split('#')[0] == name for n in names) + 1}")
    return names
