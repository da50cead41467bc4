"""A program as a module text: what it is, its functions, and a driver that runs it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from tracecompile.capture.tracing.names import valid_name
from tracecompile.layers import Layer
from tracecompile.printing.carried import HELPERS
from tracecompile.printing.driver import Driver
from tracecompile.printing.glue import Glue, results_of
from tracecompile.printing.header import facts, title
from tracecompile.printing.layout import WIDTH
from tracecompile.printing.page import Function, Page, Printed
from tracecompile.printing.steps import StepText
from tracecompile.printing.variables import variable_of
from tracecompile.program import StepProgram
from tracecompile.rules import rule_of

OF_DRAWS = "# In the order of the model. Of what it computes besides only the shapes are read."
IN_TRACE_FORM = "# The same in trace form: what is carried beside the states is summed from fold to fold."


def print_graph(program: StepProgram, module: fx.GraphModule, name: str) -> Printed:
    """Returns one graph of a program as a function; it takes ``model`` first where it reads the model."""
    page = Page(program)
    function = page.add(module, name)
    page.close()
    lines = page.print(function)
    return page.printed("\n".join([*page.head(), "", "", *lines]).lstrip("\n") + "\n")


def print_program(program: StepProgram, stage: str) -> Printed:
    """Returns a program as it is after a stage of the pipeline.

    The text ends in ``run(model, *arguments)``, which returns what the model returns.
    """
    return _Stage(program, stage).printed()


class _Stage:
    """Chooses which functions of a program are printed, and in which order."""

    def __init__(self, program: StepProgram, stage: str) -> None:
        self.program, self.stage = program, stage
        self.page = Page(program)
        self.sections: list[tuple[str, list[Function]]] = []
        self.emitted = program.emitted
        self._plan()

    def _plan(self) -> None:
        program, emitted = self.program, self.emitted
        before = program if emitted is None else emitted
        lifted = () if emitted is None else emitted.prologue_attributes
        wanted = {**_starts(program, before.prologue), **_attributes(before.prologue, lifted)}
        self.prologue = self.page.add(before.prologue, "prologue", wanted)
        first = [self.prologue]
        if emitted is not None:
            first.append(self.page.add(emitted.arguments, "arguments", _attributes(emitted.arguments, lifted)))
        self.statics: Function | None = None
        if program.statics is not None:
            graph = program.statics.graph
            self.statics = self.page.add(graph, "statics", _attributes(graph, program.statics.attributes))
            first.append(self.statics)
        self._section("before the first step", first)
        self.draws: Function | None = None
        if program.draws.graph is not None:
            self.draws = self.page.add(program.draws.graph, "draws", None, (OF_DRAWS,))
            self._section("what one time step draws", [self.draws])
        self.glue = Glue(self.page, program)
        for heading, functions in self._middle():
            self._section(heading, functions)
        lifted = () if emitted is None else emitted.epilogue_attributes
        self.epilogue = self.page.add(before.epilogue, "epilogue", _attributes(before.epilogue, lifted))

    def _section(self, heading: str, functions: list[Function]) -> None:
        if functions:
            self.sections.append((heading, functions))

    def _middle(self) -> Iterator[tuple[str, list[Function]]]:
        """Yields what is between the first step and the last: one step, by layers, by units, or as it is emitted."""
        program = self.program
        self.step: Function | None = None
        self.traced: Function | None = None
        if not program.layers:
            self.step = self.page.add(program.step, "step")
            yield "one time step", [self.step]
            return
        by_units = bool(program.units)
        layers = [function for layer in program.layers for function in self._layer(layer, by_units)]
        yield ("layers, as backward evaluates them" if by_units or self.emitted else "layers"), layers
        if by_units:
            yield "units: first what is computed for many steps at once, then what is stepped", self.glue.units()
        if self.emitted is not None:
            self.step = self.page.add(self.emitted.plain, "step")
            functions = [self.step]
            if self.emitted.accruals:
                wanted = self.glue.in_trace_form(program.layers, self.emitted.traced, self.emitted.accruals)
                self.traced = self.page.add(self.emitted.traced, "traced_step", wanted, (IN_TRACE_FORM,))
                functions.append(self.traced)
            yield "one time step", functions

    def _layer(self, layer: Layer, by_units: bool) -> Iterator[Function]:
        """Yields the functions of a layer; once the step is made of units or emitted, those of backward alone."""
        name = valid_name(layer.name)
        note = (f"# Layer {layer.name}.",)
        forward = not by_units and self.emitted is None
        if layer.local is not None and layer.local is not layer.synapse:
            if forward:
                yield self.glue.synapse(layer, note)
                yield from self.glue.traced_synapse(layer)
            yield self.page.add(layer.local, f"{name}_local", None, note)
        elif forward or rule_of(self.program.settings).records:
            yield self.glue.synapse(layer, note)
        if layer.core is not None and forward:
            yield from self.glue.core(layer)
        rule = layer.response
        if rule is None:
            return
        for part, graph in rule.parts.items():
            if graph is not layer.core or not forward:
                yield self.page.add(graph, f"{name}_{part}", None, (f"# Of the {rule.kind}.",))

    def printed(self) -> Printed:
        """Writes everything down."""
        page = self.page
        carried = self.glue.carried
        records = self.glue.carries()
        written = ("step", "traced_step") if self.step is None else ()
        for name in (*written, *(HELPERS if records else ())):
            page.scope.reserve(name)
        run = Driver(page, self.program, self.prologue, self.statics, self.epilogue, records, self.draws)
        page.close()
        parts = [
            self._titled(heading, [page.print(function) for function in group]) for heading, group in self.sections
        ]
        if self.step is None:
            step = StepText(self.glue, traced=False)
            forms = [step.lines()]
            if records:
                forms.append([IN_TRACE_FORM, *StepText(self.glue, traced=True).lines()])
            parts.append(self._titled("one time step", forms))
            names = step.names
            takes_model, traced_takes_model = self.glue.takes_model(), self.glue.takes_model(traced=True)
        else:
            nodes = {node.name: node for node in self.step.module.graph.nodes}
            names = {name: self.step.results[node] for name, node in nodes.items() if node in self.step.results}
            takes_model = self.step.takes_model
            traced_takes_model = self.traced is not None and self.traced.takes_model
        if records:
            parts.append(self._titled("what is carried beside the states", [carried.start(), carried.fold()]))
        parts.append(self._titled("after the last step", [page.print(self.epilogue)]))
        parts.append(self._titled("the loop", [run.lines(takes_model, traced_takes_model)]))
        head = [title(self.program, self.stage), *facts(self.program, names), "", *page.head()]
        return page.printed("\n\n\n".join(["\n".join(head).strip(), *parts]) + "\n")

    def _titled(self, heading: str, functions: list[list[str]]) -> str:
        ruler = f"# {'-' * (WIDTH - 3 - len(heading))} {heading}"
        return "\n\n\n".join([ruler, *("\n".join(lines) for lines in functions)])


def _starts(program: StepProgram, prologue: fx.GraphModule) -> dict[fx.Node, str]:
    """Names initial values after the states that start from them, where the user has not named them."""
    initial = zip(results_of(prologue)[2], program.carries, strict=True)
    made = [
        (node, carry.placeholder) for node, carry in initial if isinstance(node, fx.Node) and node.op != "placeholder"
    ]
    return {node: name for node, name in made if variable_of(node) is None}


def _attributes(module: fx.GraphModule, paths: tuple[str, ...]) -> dict[fx.Node, str]:
    """Names the first arguments after the attributes of the model that are passed for them."""
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    return {node: valid_name(path) for node, path in zip(placeholders, paths, strict=False)}
