"""Decides what a rolled loop computes, carries, reads and gives, before any graph is built."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.loops.collected import collected
from tracecompile.capture.loops.loop_body import Loop, Past, Site, leaves_of
from tracecompile.capture.loops.roll import Roller
from tracecompile.capture.loops.running_sums import RunningSum
from tracecompile.capture.loops.slices import Stream
from tracecompile.capture.tracing.build import find, is_random
from tracecompile.capture.tracing.names import unique, valid_name
from tracecompile.capture.tracing.step_mode import in_single_steps
from tracecompile.operations.cone import cone
from tracecompile.program import ChosenSteps, Collect

Output = tuple[Site, Collect, ChosenSteps | None]


class LoopPlan:
    """What the program of one loop consists of, and what each part is called.

    Attributes:
        body: Sites that the step computes, in the user's order.
        carries: The states, each with the state that it hands on (None: the site's own value).
        sums: Accumulators that the runtime keeps, by the site of the running sum.
        outputs: Per-step values that the epilogue asks for.
        invariants: Values from before the loop that step or epilogue ask for.
        learned: Those of them that step asks for and parameters make: the step takes them like a sequence.
        clock: The argument that says how many steps there are, where no sequence does.
        axis: The axis of the first tensor that says so otherwise.
        counts: Whether the step takes an input that only counts the steps.
        moved: What statistics of the model hold at the end, by name: the last of the results.
    """

    def __init__(
        self, root: nn.Module, loop: Loop, signature: pytree.TreeSpec, clock: fx.Node | None = None, axis: int = 0
    ) -> None:
        self.root = in_single_steps(root)
        self.loop = loop
        self.tape = loop.tape
        self.signature = signature
        self.clock = clock
        self.axis = axis
        self.counts = False
        self.leaves: dict[str, nn.Module] = dict(self.tape.leaves)
        self.roller = Roller(loop)
        self.movable = movable_nodes(self.tape.graph)
        returned, moved = self.tape.results()
        self.results, self.spec = pytree.tree_flatten(returned, is_leaf=lambda leaf: collected(loop, leaf) is not None)
        self.results += moved.values()
        self.moved = moved
        self.body: list[Site] = []
        self.carries: dict[Past, str] = {}
        self.sums: dict[Site, RunningSum] = {}
        self.outputs: dict[Output, str] = {}
        self.invariants: dict[fx.Node, str] = {}
        self.inputs: dict[Stream, str] = {}
        self.learned: dict[fx.Node, str] = {}
        for name, value in self.tape.constants.items():
            if not hasattr(root, name):
                root.register_buffer(name, value, persistent=False)

    def frontier(self) -> list[fx.Node]:
        """Returns the nodes of the loop that the results read, directly or through what runs after the loop."""
        wanted = cone((node for leaf in self.results for node in leaves_of(leaf)), lambda node: node in self.loop.when)
        return [node for node in self.tape.graph.nodes if node in wanted and node in self.loop.when]

    def live_body(self, frontier: list[fx.Node]) -> list[Site]:
        """Returns the sites that outputs and states need once the runtime keeps the running sums."""
        live: set[Site] = set()
        waiting = [self.loop.when[node][1] for node in frontier]
        while waiting:
            site = waiting.pop()
            if site in self.sums:
                site = self.sums[site].added
            if site in live:
                continue
            live.add(site)
            if site not in self.roller.slices:
                waiting += [
                    self.loop.when[node][1]
                    for node in self.loop.template(site).all_input_nodes
                    if node in self.loop.when
                ]
        return [site for site in self.loop.body if site in live]

    def name_carries(self) -> None:
        """Names the states that the body reads, after the value that they hold."""
        taken: set[str] = set()
        for site in self.body:
            for position, _ in enumerate(leaves_of((self.loop.template(site).args, self.loop.template(site).kwargs))):
                past = self.roller.past(site, position)
                while past is not None and site not in self.roller.slices:
                    if past not in self.carries:
                        name = unique(self.state_name(past), taken)
                        self.carries[past] = name
                    past = self.roller.following.get(past)
        # The states of neurons come first, and are counted alone where a mode has no statistics.
        self.carries = dict(sorted(self.carries.items(), key=lambda item: bool(self.statistic(item[0]))))

    def statistic(self, past: Past) -> str:
        """Returns the name of the statistic that a state is, from what the model holds on; empty for any other."""
        start = past.initial
        name = str(start.target) if isinstance(start, fx.Node) and start.op == "get_attr" else ""
        is_moved = past.distance == 1 and self.moved.get(name) is self.loop.template(past.site)
        return name if is_moved else ""

    def state_name(self, past: Past) -> str:
        """Returns the user's name for a state: the attribute that holds it, else its module and variable."""
        node = self.loop.template(past.site)
        for name, value in self.tape.attributes.items():
            if value is node:
                return valid_name(name)
        where = node.meta.get("where")
        text = where.source.partition("=")[0].strip() if where is not None and "=" in where.source else ""
        name = text.rstrip("+-*/").strip().removeprefix("self.")
        suffix = "" if past.distance == 1 else f"_{past.distance}_ago"
        path = where.module_path if where is not None else ""
        plain = name.replace(".", "").isidentifier()
        parts = [part for part in (path, name if plain else "state" if path else f"{node.name}_before") if part]
        return valid_name(".".join(parts)) + suffix

    def name_inputs(self) -> None:
        """Names the slices of sequences that the body reads."""
        taken = set(self.carries.values())
        for site in self.body:
            found = self.roller.slices.get(site)
            if found is not None and found.stream not in self.inputs:
                self.inputs[found.stream] = unique(f"{found.stream.sequence.name}_t", taken)

    def ask_invariant(self, node: fx.Node) -> str:
        """Returns the name of an invariant, noting that it is wanted."""
        if node not in self.invariants:
            taken = {*self.carries.values(), *self.inputs.values(), *self.invariants.values()}
            self.invariants[node] = unique(f"{node.name}_fixed" if node.op == "placeholder" else node.name, taken)
        return self.invariants[node]

    def ask_learned(self, node: fx.Node) -> None:
        """Names a value from before the loop through which parameters learn, noting that the step wants it."""
        if node not in self.learned:
            taken = {*self.carries.values(), *self.inputs.values(), *self.invariants.values(), *self.learned.values()}
            self.learned[node] = unique(f"{node.name}_t", taken)

    def ask_output(self, site: Site, collect: Collect, chosen: ChosenSteps | None = None) -> str:
        """Returns the name of a per-step output, noting that it is wanted."""
        if (site, collect, chosen) not in self.outputs:
            self.outputs[site, collect, chosen] = unique(self.loop.template(site).name, set(self.outputs.values()))
        return self.outputs[site, collect, chosen]


def is_learned(node: fx.Node, root: nn.Module) -> bool:
    """Tells whether parameters have a part in a value."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return False
    for source in cone([node]):
        if source.op == "get_attr" and isinstance(named(root, str(source.target)), nn.Parameter):
            return True
        module = named(root, str(source.target)) if source.op == "call_module" else None
        if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
            return True
    return False


def named(root: nn.Module, target: str) -> Any:
    """Returns what a target names in the model, None for a leaf that capture added."""
    try:
        return find(root, target)
    except AttributeError:
        return None


def movable_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Returns the nodes that only the model's own tensors decide: the step computes them itself."""
    fixed: set[fx.Node] = set()
    movable: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            fixed.add(node)
            movable.add(node)
        elif node.op.startswith("call_") and not is_random(node) and fixed.issuperset(node.all_input_nodes):
            fixed.add(node)
            if any(source in movable for source in node.all_input_nodes):
                movable.add(node)
    return movable
