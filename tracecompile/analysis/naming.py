"""What to call the layers and states that were found."""

from __future__ import annotations

from collections.abc import Sequence

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


def layer_names(cuts: Cuts, kinds: Sequence[Sequence[StateKind]]) -> list[str]:
    """Returns a name per root: the user's module or variable, else the node; numbered where it comes again.

    Args:
        cuts: Of the step.
        kinds: What each state of each root is: a layer is called after its membrane.
    """
    carries = {carry.placeholder: carry.name for carry in cuts.program.carries}
    names: list[str] = []
    for root, parts in zip(cuts.roots, kinds, strict=True):
        node = root if isinstance(root, fx.Node) else _last(cuts, root)
        where = node.meta.get("where")
        path = where.module_path if where is not None else ""
        if not path and not isinstance(root, fx.Node) and root.states:
            path = carries[root.states[parts.index("membrane") if "membrane" in parts else 0]]
        if isinstance(root, fx.Node) and node.op == "call_module":
            path = str(node.target)
        name = path or node.name
        names.append(name if name not in names else f"{name}#{sum(n.split('#')[0] == name for n in names) + 1}")
    return names


def _last(cuts: Cuts, core: Core) -> fx.Node:
    """Returns the last node of a core that meets no random number, if one does not: a mask is not what it masks."""
    nodes = [cuts.node[name] for name in core.nodes]
    return next((node for node in reversed(nodes) if cuts.drawn.isdisjoint(node.all_input_nodes)), nodes[-1])
