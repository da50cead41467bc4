"""Puts prologue, step and epilogue of a rolled loop together."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.after import After, collected
from tracecompile.capture.build import GraphCutter, alike, cone, evaluate, graph_module, is_random
from tracecompile.capture.replay import require_same_values
from tracecompile.capture.roll import Loop, Past, Roller, Site, Slice, leaves_of
from tracecompile.capture.tracer import valid_name
from tracecompile.program import Carry, Collect, SequenceInput, StepOutput, StepProgram

Output = tuple[Site, Collect]


class Assembler:
    """Builds the program of one loop.

    Attributes:
        body: Sites that the step computes, in the user's order.
        carries: The states, each with the state that it hands on (None: the site's own value).
        sums: Accumulators that the runtime keeps: site of the running sum -> what is added.
        outputs: Per-step values that the epilogue asks for.
        invariants: Values from before the loop that step or epilogue ask for.
    """

    def __init__(self, root: nn.Module, loop: Loop, signature: pytree.TreeSpec) -> None:
        self.root = root
        self.loop = loop
        self.tape = loop.tape
        self.signature = signature
        self.leaves: dict[str, nn.Module] = dict(self.tape.leaves)
        self.roller = Roller(loop)
        self.movable = movable_nodes(self.tape.graph)
        self.results, self.spec = pytree.tree_flatten(
            self.tape.result, is_leaf=lambda leaf: collected(loop, leaf) is not None
        )
        self.body: list[Site] = []
        self.carries: dict[Past, str] = {}
        self.sums: dict[Site, Site] = {}
        self.outputs: dict[Output, str] = {}
        self.invariants: dict[fx.Node, str] = {}
        self.inputs: dict[Slice, str] = {}
        for name, value in self.tape.constants.items():
            if not hasattr(root, name):
                root.register_buffer(name, value, persistent=False)

    def assemble(self, length: int | None) -> StepProgram | None:
        """Returns the program, None where the loop carries nothing from step to step."""
        frontier = self.frontier()
        self.roller.roll(self.loop.when[node][1] for node in frontier)
        if not self.roller.following and not self.roller.writes:
            return None
        self.sums = find_sums(self.loop, self.roller, frontier)
        self.body = self.live_body(frontier)
        self.name_carries()
        if not self.carries and not self.sums:
            return None
        self.name_inputs()
        self.demand()
        step = self.build_step()
        program = StepProgram(
            kind="sequence",
            root=self.root,
            leaves=self.leaves,
            prologue=self.build_prologue(),
            step=step,
            epilogue=self.build_epilogue(),
            inputs=tuple(SequenceInput(name, item.dim) for item, name in self.inputs.items()),
            invariants=tuple(self.invariants.values()),
            carries=tuple(Carry(name, name) for name in self.carries.values()),
            outputs=tuple(StepOutput(name, collect) for (_, collect), name in self.outputs.items()),
            length=length,
            signature=self.signature,
            result=self.spec,
        )
        if self.loop.irregular:
            require_same_values(program, self)
        return program

    # What there is -------------------------------------------------------------------------------------------------

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
                site = self.sums[site]
            elif site in self.roller.writes:
                site = self.loop.when[self.loop.template(site).args[2]][1]  # type: ignore[index]
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

    def state_name(self, past: Past) -> str:
        """Returns the user's name for a state: the attribute that holds it, else its variable, else its operation."""
        node = self.loop.template(past.site)
        for name, value in self.tape.attributes.items():
            if value is node:
                return valid_name(name)
        where = node.meta.get("where")
        text = where.source.partition("=")[0].strip() if where is not None and "=" in where.source else ""
        name = text.rstrip("+-*/").strip().removeprefix("self.")
        suffix = "" if past.distance == 1 else f"_{past.distance}_ago"
        return (valid_name(name) if name.replace(".", "").isidentifier() else f"{node.name}_before") + suffix

    def name_inputs(self) -> None:
        """Names the slices of sequences that the body reads."""
        taken = set(self.carries.values())
        for site in self.body:
            item = self.roller.slices.get(site)
            item = None if item is None else replace(item, keep=False)
            if item is not None and item not in self.inputs:
                self.inputs[item] = unique(f"{item.sequence.name}_t", taken)

    def demand(self) -> None:
        """Lets step and epilogue say which invariants and outputs they read."""
        for site in self.body:
            if site in self.roller.slices:
                continue
            for node in self.loop.template(site).all_input_nodes:
                if node not in self.loop.when and node not in self.movable:
                    self.ask_invariant(node)
        After(self, dry=True).build()

    def ask_invariant(self, node: fx.Node) -> str:
        """Returns the name of an invariant, noting that it is wanted."""
        if node not in self.invariants:
            taken = {*self.carries.values(), *self.inputs.values(), *self.invariants.values()}
            self.invariants[node] = unique(f"{node.name}_fixed" if node.op == "placeholder" else node.name, taken)
        return self.invariants[node]

    def ask_output(self, site: Site, collect: Collect) -> str:
        """Returns the name of a per-step output, noting that it is wanted."""
        if (site, collect) not in self.outputs:
            self.outputs[site, collect] = unique(self.loop.template(site).name, set(self.outputs.values()))
        return self.outputs[site, collect]

    # The three graphs ----------------------------------------------------------------------------------------------

    def build_step(self) -> fx.GraphModule:
        """Writes the body down once, with states and slices as placeholders."""
        cutter = GraphCutter()
        last = self.loop.steps - 1
        states: dict[Past, fx.Node] = {}
        values: list[Any] = []
        slices: dict[Slice, fx.Node] = {}
        for item, name in self.inputs.items():
            values.append(item.sequence.meta["val"].select(item.dim, last))
            slices[item] = cutter.placeholder(name, value=values[-1])
        for node, name in self.invariants.items():
            values.append(node.meta["val"])
            cutter.placeholder(name, [node], values[-1])
        for past, name in self.carries.items():
            source = self.loop.at(past.site, last - past.distance)
            assert source is not None
            values.append(source.meta["val"])
            states[past] = cutter.placeholder(name, value=values[-1])
        for site in self.body:
            template = self.loop.template(site)
            if site in self.roller.slices:
                item = self.roller.slices[site]
                one = slices[replace(item, keep=False)]
                if item.keep:
                    one = cutter.add("call_method", "unsqueeze", (one, item.dim), {}, None, template.meta.get("where"))
                cutter.copies[template] = one
                continue
            for position, slot in enumerate(leaves_of((template.args, template.kwargs))):
                before = self.roller.past(site, position)
                if before is not None:
                    cutter.copies[slot] = states[before]
            cutter.take(template)
        outputs = tuple(cutter.copies[self.loop.template(site)] for site, _ in self.outputs)
        following = []
        for past in self.carries:
            successor = self.roller.following.get(past)
            following.append(
                states[successor] if successor is not None else cutter.copies[self.loop.template(past.site)]
            )
        graph = cutter.finish((outputs, tuple(following)))
        with torch.no_grad():
            evaluate(graph, values, self.root, self.leaves)
        return graph_module(graph, self.root, self.leaves, "Step")

    def build_prologue(self) -> fx.GraphModule:
        """Writes down what the loop needs from before it."""
        cutter = GraphCutter()
        for node in self.tape.inputs:
            if node is not None:
                cutter.placeholder(node.name, [node], node.meta["val"])
        initial = [self.initial_node(past) for past in self.carries]
        wanted = cone([*[item.sequence for item in self.inputs], *self.invariants, *[node for node, _ in initial]])
        for node in self.tape.graph.nodes:
            if node in wanted:
                cutter.take(node)
        sequences = tuple(cutter.take(item.sequence) for item in self.inputs)
        invariants = tuple(cutter.take(node) for node in self.invariants)
        states = tuple(
            self.shaped(cutter, node, number, past) for (node, number), past in zip(initial, self.carries, strict=True)
        )
        return graph_module(cutter.finish((sequences, invariants, states)), self.root, self.leaves, "Prologue")

    def initial_node(self, past: Past) -> tuple[fx.Node, float | None]:
        """Returns the node that a state starts from, or one that has its shape and the number to fill that with."""
        if isinstance(past.initial, fx.Node):
            return past.initial, None
        number = past.initial if isinstance(past.initial, (int, float)) else 0.0
        return self.shape_giver(past), number

    def shape_giver(self, past: Past) -> fx.Node:
        """Returns the earliest node that has a state's shape and depends on the input."""
        later = next(node for node in self.loop.visits[past.site] if node is not None)
        wanted = later.meta["val"]
        needed = cone([later])
        varying: set[fx.Node] = set()
        nodes: list[fx.Node] = list(self.tape.graph.nodes)
        for node in nodes:
            if node.op == "placeholder" or any(source in varying for source in node.all_input_nodes):
                varying.add(node)
                if node in needed and alike(node.meta.get("val"), wanted):
                    return node
        return later

    def shaped(self, cutter: GraphCutter, node: fx.Node, number: float | None, past: Past) -> fx.Node:
        """Gives an initial state the shape that the state has later."""
        source: fx.Node = cutter.take(node)
        value = node.meta["val"]
        where = node.meta.get("where")
        if number is not None:
            target, rest = (torch.zeros_like, ()) if number == 0 else (torch.full_like, (number,))
            return cutter.add("call_function", target, (source, *rest), {}, target(value, *rest), where)
        like = self.shape_giver(past)
        if value.shape == like.meta["val"].shape:
            return source
        expanded = value.expand_as(like.meta["val"])
        return cutter.add("call_method", "expand_as", (source, cutter.take(like)), {}, expanded, where)

    def build_epilogue(self) -> fx.GraphModule:
        """Writes down what runs after the loop."""
        return graph_module(After(self, dry=False).build(), self.root, self.leaves, "Epilogue")


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


def find_sums(loop: Loop, roller: Roller, frontier: list[fx.Node]) -> dict[Site, Site]:
    """Finds the states that only add up, from zero, what the step gives: the runtime collects those."""
    sums: dict[Site, Site] = {}
    last = loop.steps - 1
    for site in roller.body():
        node = loop.template(site)
        if node.target is not operator.add or site in roller.slices or len(node.args) != 2:
            continue
        pasts = [roller.past(site, position) for position, _ in enumerate(leaves_of((node.args, node.kwargs)))]
        own = [past for past in pasts if past is not None]
        others = [arg for arg in node.args if isinstance(arg, fx.Node) and loop.when.get(arg, (-1, None))[0] == last]
        if len(own) != 1 or own[0].site != site or own[0].distance != 1 or len(others) != 1:
            continue
        readers = {
            loop.when[user][1] for visit in loop.visits[site] if visit for user in visit.users if user in loop.when
        }
        if readers & roller.live != {site} or any(
            loop.when[one] != (last, site) for one in frontier if loop.when[one][1] == site
        ):
            continue
        if starts_at_zero(own[0].initial, node, others[0]):
            sums[site] = loop.when[others[0]][1]
    return sums


def starts_at_zero(initial: Any, total: fx.Node, added: fx.Node) -> bool:
    """Tells whether a running sum starts as nothing: adding the first value to it gives that value."""
    value, first = total.meta["val"], added.meta["val"]
    if value.shape != first.shape or value.dtype != first.dtype:
        return False
    if not isinstance(initial, fx.Node):
        return initial is None or initial == 0
    start = initial.meta["val"]
    names = ("zeros", "zeros_like", "new_zeros")
    name = initial.target if isinstance(initial.target, str) else getattr(initial.target, "__name__", "")
    return name in names and isinstance(start, torch.Tensor) and start.dtype == value.dtype


def unique(name: str, taken: set[str]) -> str:
    """Returns a name that is not taken yet, and takes it."""
    candidate, number = name or "value", 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
