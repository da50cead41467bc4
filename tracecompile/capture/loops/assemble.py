"""Puts prologue, step and epilogue of a rolled loop together."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from tracecompile.capture.loops.after import After
from tracecompile.capture.loops.initial import asked_ahead, shape_giver, shaped
from tracecompile.capture.loops.loop_body import Past, Site, leaves_of
from tracecompile.capture.loops.loop_plan import LoopPlan, is_learned
from tracecompile.capture.loops.replay import require_same_values
from tracecompile.capture.loops.running_sums import find_sums
from tracecompile.capture.loops.slices import Stream
from tracecompile.capture.tracing.build import GraphCutter, evaluate, graph_module
from tracecompile.operations.cone import cone
from tracecompile.program import AHEAD, Carry, SequenceInput, StepOutput, StepProgram

CLOCK = "time_t"
"""Name of the input that only counts the steps."""


class Assembler(LoopPlan):
    """Builds the program of one loop from its plan."""

    def assemble(self, length: int | None) -> StepProgram | None:
        """Returns the program, None where the loop carries nothing from step to step."""
        frontier = self.frontier()
        self.roller.roll(self.loop.when[node][1] for node in frontier)
        if not self.roller.following and not self.roller.held:
            return None
        self.sums = find_sums(self.loop, self.roller, frontier)
        self.body = self.live_body(frontier)
        self.name_carries()
        if not self.carries and not self.sums:
            return None
        self.name_inputs()
        self.demand(length)
        step = self.build_step()
        program = StepProgram(
            kind="sequence",
            root=self.root,
            leaves=self.leaves,
            prologue=self.build_prologue(length),
            step=step,
            epilogue=self.build_epilogue(),
            inputs=(
                *(SequenceInput(name, item.dim) for item, name in self.inputs.items()),
                *(SequenceInput(CLOCK, 0) for _ in [0] if self.counts),
                *(SequenceInput(name, 0) for name in self.learned.values()),
            ),
            invariants=tuple(self.invariants.values()),
            carries=self.carries_of(step),
            outputs=tuple(StepOutput(name, collect, chosen) for (_, collect, chosen), name in self.outputs.items()),
            length=length,
            signature=self.signature,
            result=self.spec,
            reads_mode=self.tape.reads_mode,
            stepwise=self.tape.stepwise,
            pinned=self.tape.compared_inputs(),
            written=self.tape.states_written(),
            statistics=tuple(self.moved),
            prologue_again=self.tape.mixes_before,
        )
        if self.loop.irregular:
            require_same_values(program, self)
        return program

    def carries_of(self, step: fx.GraphModule) -> tuple[Carry, ...]:
        """Returns the states, with the names that the graph of the step gives their placeholders: it has its own ways
        with capital letters and with what Python calls so."""
        placed = [node.name for node in step.graph.nodes if node.op == "placeholder"]
        named = zip(self.carries.items(), placed[len(placed) - len(self.carries) :], strict=True)
        return tuple(Carry(name, place, statistic=self.statistic(past)) for (past, name), place in named)

    def demand(self, length: int | None) -> None:
        """Lets step and epilogue say which invariants and outputs they read."""
        self.counts = length is None and (self.clock is not None or not self.inputs)
        for site in self.body:
            if site in self.roller.slices:
                continue
            for node in self.loop.template(site).all_input_nodes:
                if node in self.loop.when or node in self.movable:
                    continue
                if is_learned(node, self.root):
                    self.ask_learned(node)
                else:
                    self.ask_invariant(node)
        After(self, dry=True).build()

    def build_step(self) -> fx.GraphModule:
        """Writes the body down once, with states and slices as placeholders."""
        cutter = GraphCutter()
        last = self.loop.steps - 1
        states: dict[Past, fx.Node] = {}
        values: list[Any] = []
        slices: dict[Stream, fx.Node] = {}
        for stream, name in self.inputs.items():
            values.append(stream.sequence.meta["val"].select(stream.dim, stream.first).clone())
            slices[stream] = cutter.placeholder(name, value=values[-1])
        if self.counts:
            values.append(torch.zeros(()))
            cutter.placeholder(CLOCK, value=values[-1])
        for node, name in self.learned.items():
            values.append(node.meta["val"])
            cutter.placeholder(name, [node], values[-1])
        for node, name in self.invariants.items():
            values.append(node.meta["val"])
            cutter.placeholder(name, [node], values[-1])
        for past, name in self.carries.items():
            source = self.loop.at(past.site, last - past.distance)
            assert source is not None
            values.append(source.meta["val"])
            states[past] = cutter.placeholder(name, value=values[-1])
        made: dict[Site, fx.Node] = {}
        for site in self.body:
            made[site] = self.one_operation(cutter, site, slices, states, made)
        outputs = tuple(made[site] for site, _, _ in self.outputs)
        following = []
        for past in self.carries:
            successor = self.roller.following.get(past)
            following.append(states[successor] if successor is not None else made[past.site])
        graph = cutter.finish((outputs, tuple(following)))
        with torch.no_grad():
            evaluate(graph, values, self.root, self.leaves)
        return graph_module(graph, self.root, self.leaves, "Step")

    def one_operation(
        self,
        cutter: GraphCutter,
        site: Site,
        slices: dict[Stream, fx.Node],
        states: dict[Past, fx.Node],
        made: dict[Site, fx.Node],
    ) -> fx.Node:
        """Writes one site of the body into the step."""
        template = self.loop.template(site)
        where = template.meta.get("where")
        if site in self.roller.slices:
            item = self.roller.slices[site]
            one = slices[item.stream]
            if item.keep:
                one = cutter.add("call_method", "unsqueeze", (one, item.stream.dim), {}, None, where)
            if item.rest:
                one = cutter.add("call_function", operator.getitem, (one, item.rest), {}, None, where)
            return one
        for position, slot in enumerate(leaves_of((template.args, template.kwargs))):
            if slot in self.loop.when:
                before = self.roller.past(site, position)
                cutter.copies[slot] = states[before] if before is not None else made[self.loop.when[slot][1]]
        cutter.copies.pop(template, None)
        copied: fx.Node = cutter.take(template)
        return copied

    def build_prologue(self, length: int | None) -> fx.GraphModule:
        """Writes down what the loop needs from before it."""
        cutter = GraphCutter()
        for node in self.tape.inputs:
            if node is not None:
                cutter.placeholder(node.name, [node], node.meta["val"])
        initial = [self.initial_node(past) for past in self.carries]
        first = [*[stream.sequence for stream in self.inputs], *self.learned, *self.invariants]
        wanted = cone([*first, *[node for node, _ in initial]])
        for node in self.tape.graph.nodes:
            if node in wanted:
                cutter.take(node)
        ahead = asked_ahead(self.loop)
        for node, copied in cutter.copies.items():
            if isinstance(copied, fx.Node):
                copied.meta[AHEAD] = ahead(node)
        count = self.step_count(cutter) if self.counts else None
        sequences = [self.taken(cutter, stream, length is not None, count) for stream in self.inputs]
        if count is not None:
            sequences.append(cutter.add("call_function", torch.zeros, (count,), {}, torch.zeros(self.loop.steps)))
        sequences += self.repeated(cutter, sequences, length)
        invariants = tuple(cutter.take(node) for node in self.invariants)
        states = tuple(
            shaped(cutter, node, number, shape_giver(self.loop, self.tape, past), self.loop.template(past.site))
            for (node, number), past in zip(initial, self.carries, strict=True)
        )
        return graph_module(cutter.finish((tuple(sequences), invariants, states)), self.root, self.leaves, "Prologue")

    def step_count(self, cutter: GraphCutter) -> fx.Node:
        """Returns the number of steps that the loop makes."""
        if self.clock is not None:
            node: fx.Node = cutter.take(self.clock)
            count = self.clock.meta["val"]
        else:
            given = next(node for node in self.tape.inputs if node is not None and hasattr(node.meta["val"], "shape"))
            count = given.meta["val"].shape[self.axis]
            node = cutter.add("call_method", "size", (cutter.take(given), self.axis), {}, count)
        missing = self.loop.steps - int(count)
        if missing:
            node = cutter.add("call_function", operator.add, (node, missing), {}, self.loop.steps)
        return node

    def taken(self, cutter: GraphCutter, stream: Stream, fixed: bool, count: fx.Node | None) -> fx.Node:
        """Returns a sequence as the loop takes it, slice by slice."""
        node: fx.Node = cutter.take(stream.sequence)
        value, where = stream.sequence.meta["val"], stream.sequence.meta.get("where")
        if stream.backwards:
            value = value.flip(stream.dim)
            node = cutter.add("call_method", "flip", (node, stream.dim), {}, value, where)
        if count is None and not fixed and self.is_constant(stream.sequence):
            count = self.step_count(cutter)  # as long as its maker wished, whatever the number of steps
        if count is not None and stream.stride == 1:
            value = value.narrow(stream.dim, stream.first, self.loop.steps)
            return cutter.add("call_method", "narrow", (node, stream.dim, stream.first, count), {}, value, where)
        index = stream.index(self.loop.steps, fixed)
        if index is None:
            return node
        return cutter.add("call_function", operator.getitem, (node, index), {}, value[index], where)

    @staticmethod
    def is_constant(sequence: fx.Node) -> bool:
        """Tells whether a sequence has nothing to do with the input, such as a schedule in a buffer."""
        return not any(node.op == "placeholder" for node in cone([sequence]))

    def repeated(self, cutter: GraphCutter, sequences: list[fx.Node], length: int | None) -> list[fx.Node]:
        """Makes sequences of what is computed once, with parameters, and read at every step: its gradient is a sum."""
        steps: Any = length
        if self.learned and sequences:
            dim = next(iter(self.inputs)).dim if self.inputs else 0
            steps = cutter.add("call_method", "size", (sequences[0], dim), {}, self.loop.steps)
        made = []
        for node in self.learned:
            value, where = node.meta["val"].unsqueeze(0), node.meta.get("where")
            one = cutter.add("call_method", "unsqueeze", (cutter.take(node), 0), {}, value, where)
            keep = [-1] * (value.dim() - 1)
            made.append(
                cutter.add(
                    "call_method", "expand", (one, steps, *keep), {}, value.expand(self.loop.steps, *keep), where
                )
            )
        return made

    def initial_node(self, past: Past) -> tuple[fx.Node, float | None]:
        """Returns the node that a state starts from, or one that has its shape and the number to fill that with."""
        if isinstance(past.initial, fx.Node):
            return past.initial, None
        number = past.initial if isinstance(past.initial, (int, float)) else 0.0
        return shape_giver(self.loop, self.tape, past), number

    def build_epilogue(self) -> fx.GraphModule:
        """Writes down what runs after the loop."""
        return graph_module(After(self, dry=False).build(), self.root, self.leaves, "Epilogue")
