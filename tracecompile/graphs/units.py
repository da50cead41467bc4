"""Cuts every block into what can be computed for many time steps at once and what must be taken step by step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from tracecompile.analysis.folding import find_fold
from tracecompile.graphs.glue import Glue, accruals_of
from tracecompile.graphs.moves import find_moves
from tracecompile.graphs.turns import in_turns, maker_of_moves
from tracecompile.graphs.whole_steps import joined
from tracecompile.layers import Accrual, Block, Fold, Layer
from tracecompile.program import StepProgram, example_value, step_results
from tracecompile.units import Unit


def find_units(program: StepProgram, blocks: tuple[Block, ...]) -> tuple[tuple[Unit, ...], str]:
    """Returns a unit per block, and why every time step is taken by itself, empty where it is not."""
    units = [_Cutter(program, block).unit() for block in blocks]
    mover = maker_of_moves(program, units)
    units[mover] = replace(units[mover], moves=find_moves(program))
    return in_turns(program, units)


class _Cutter:
    def __init__(self, program: StepProgram, block: Block) -> None:
        self.program, self.block = program, block
        self.layers = [program.layers[index] for index in block.layers]
        self.made = {output for layer in self.layers for output in layer.outputs}
        placeholders = [carry.placeholder for carry in program.carries]
        self.next = dict(zip(placeholders, step_results(program.step)[1], strict=True))
        self.carries = self._carries()
        self.owned: dict[str, Any] = {}

    def _carries(self) -> tuple[str, ...]:
        """Returns the states of the block, and the delays through which it reads itself."""
        found = dict.fromkeys(state for layer in self.layers for state in layer.states)
        for layer in self.layers:
            for source in layer.sources:
                if source.origin in self.made and source.delay:
                    value = source.value
                    while value in self.next:
                        found[value] = None
                        value = self.next[value].name
        return tuple(found)

    def unit(self) -> Unit:
        """Returns the two graphs of the block."""
        parts = {layer.name: self._below(layer) for layer in self.layers}
        if any(
            not isinstance(example_value(node), Tensor) for layer in self.layers for node in self._cut(layer, parts)
        ):
            # A size that both parts need would be that of many steps in one and of one in the other.
            parts = {layer.name: set() for layer in self.layers}
        cut = {node.name: node for layer in self.layers for node in self._cut(layer, parts)}
        below, below_statics, sources, below_norms = self._below_graph(parts, tuple(cut))
        fold = find_fold(self.program, below.graph, sources)
        drawn = self._drawn(cut)
        has_step = self.block.recurrent or self.layers[0].core is not None
        step, step_statics, step_norms = self._step_graph(parts, (*cut, *drawn)) if has_step else (None, (), ())
        return Unit(
            self.block.layers,
            sources,
            below,
            below_statics,
            (*cut, *drawn),
            below_norms,
            fold if isinstance(fold, Fold) else None,
            fold if isinstance(fold, str) else "",
            False,
            step,
            self.carries,
            step_statics,
            step_norms,
            self._accruals(),
            tuple(output for layer in self.layers for output in layer.outputs),
            self.block.recurrent,
            drawn=len(drawn),
        )

    def _drawn(self, cut: Collection[str]) -> list[str]:
        """Returns the random numbers that the cores take, and nothing else of what is stepped."""
        names = (name for layer in self.layers for name in layer.core_statics)
        return [name for name in dict.fromkeys(names) if name in self.program.draws.names and name not in cut]

    def _below(self, layer: Layer) -> set[fx.Node]:
        """Returns the nodes of a synapse that read nothing of the block itself."""
        inside = {source.value for source in layer.sources if source.origin in self.made}
        found: set[fx.Node] = set()
        outside = {source.value for source in layer.sources} - inside
        statics = set(layer.synapse_statics)
        for node in layer.synapse.graph.nodes:
            if node.op == "placeholder":
                if node.name in outside:
                    found.add(node)
            elif node.op != "output":
                reads = [s for s in node.all_input_nodes if not (s.op == "placeholder" and s.name in statics)]
                if all(source in found for source in reads):
                    found.add(node)
        return found

    def _cut(self, layer: Layer, parts: dict[str, set[fx.Node]]) -> list[fx.Node]:
        """Returns the values that a layer's stepped part reads from what is computed for many steps at once."""
        below = parts[layer.name]
        outside = {s.value for s in layer.sources if s.origin not in self.made}
        cut = []
        for node in layer.synapse.graph.nodes:
            available = node in below or (node.op == "placeholder" and node.name in outside)
            if available and any(user not in below for user in node.users):
                cut.append(node)
        return cut

    def _below_graph(
        self, parts: dict[str, set[fx.Node]], names: tuple[str, ...]
    ) -> tuple[fx.GraphModule, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        graph, made = fx.Graph(), dict[str, fx.Node]()
        owned: dict[str, Any] = {}
        nodes = [(layer, n) for layer in self.layers for n in layer.synapse.graph.nodes]
        outside = {s.value for layer in self.layers for s in layer.sources if s.origin not in self.made}
        inner = [(layer, n) for layer, n in nodes if n in parts[layer.name] and n.op != "placeholder"]
        read = {source.name for _, n in inner for source in n.all_input_nodes} | set(names)
        sources = tuple(dict.fromkeys(n.name for _, n in nodes if n.name in outside and n.name in read))
        known = {n.name for _, n in inner} | set(sources)
        statics = tuple(dict.fromkeys(s.name for _, n in inner for s in n.all_input_nodes if s.name not in known))
        examples = {n.name: n for _, n in nodes}
        for name in (*sources, *statics):
            made[name] = graph.placeholder(name)
            made[name].meta = dict(examples[name].meta)
        norms: dict[str, fx.Node] = {}
        for layer, n in inner:
            made[n.name] = graph.node_copy(n, lambda old: made[old.name])
            made[n.name].meta = dict(n.meta)
            self._own(layer.synapse, n, owned)
            if n.name in layer.norms:
                norms[n.name] = made[n.all_input_nodes[0].name]
        graph.output((tuple(made[name] for name in names), tuple(norms.values())))
        return fx.GraphModule(owned, graph, "Below"), statics, sources, tuple(norms)

    def _step_graph(
        self, parts: dict[str, set[fx.Node]], names: tuple[str, ...]
    ) -> tuple[fx.GraphModule, tuple[str, ...], tuple[str, ...]]:
        statics = self._step_statics(parts, set(names))
        glue = Glue(self.program)
        glue.take((*names, *self.carries, *statics))
        glue.take(accrual.name for accrual in self._accruals())
        lines = []
        for layer in self.layers:
            glue.synapse(layer, (n for n in layer.synapse.graph.nodes if n not in parts[layer.name]), count=True)
            lines.append(glue.core(layer, traced=True))
        outputs = tuple(glue.made[output] for layer in self.layers for output in layer.outputs)
        following = tuple(glue.made[self.next[carry].name] for carry in self.carries)
        moved = tuple(value for each in lines for value in each.accruals)
        of_layers = tuple((each.outputs, each.answers, each.derivatives) for each in lines)
        results = (outputs, following, moved, tuple(glue.norms.values()), of_layers)
        return joined(glue.module(results, "UnitStep")), statics, tuple(glue.norms)

    def _accruals(self) -> tuple[Accrual, ...]:
        return tuple(accrual for layer in self.layers for accrual in accruals_of(layer))

    def _step_statics(self, parts: dict[str, set[fx.Node]], names: set[str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for layer in self.layers:
            for n in layer.synapse.graph.nodes:
                if n.op not in ("placeholder", "output") and n not in parts[layer.name]:
                    found.update(dict.fromkeys(s.name for s in n.all_input_nodes if s.name in layer.synapse_statics))
            found.update(dict.fromkeys(layer.core_statics))
        return tuple(name for name in found if name not in names)

    def _own(self, module: fx.GraphModule, node: fx.Node, owned: dict[str, Any]) -> None:
        if node.op in ("call_module", "get_attr"):
            owned[str(node.target)] = module.get_submodule(str(node.target))
