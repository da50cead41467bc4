"""A module text: imports, constants, and functions in their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from tracecompile.printing.body import Body
from tracecompile.printing.imports import Imports
from tracecompile.printing.layout import WIDTH, call, names, sequence, statement
from tracecompile.printing.literals import literal
from tracecompile.printing.naming import Scope, wanted_name
from tracecompile.printing.operators import is_written
from tracecompile.printing.owned import add_parts, is_formula, made
from tracecompile.printing.references import MODEL, References, described
from tracecompile.program import StepProgram


@dataclass(frozen=True)
class Printed:
    """A text, and what it has to be run with.

    Attributes:
        text: A Python module.
        constants: What the program owns besides the model, by name: what the text does not make itself it reads as
            ``constants["..."]``.
        functions: The name of each graph's function, and whether it takes the model first.
        names: What the constants are called.
    """

    text: str
    constants: dict[str, Any]
    functions: Mapping[fx.GraphModule, tuple[str, bool]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def run(self, file: str = "<printed>") -> dict[str, Any]:
        """Executes the text in a namespace of its own, and returns that; ``file`` is what tracebacks call it."""
        namespace: dict[str, Any] = {"constants": self.constants, "__name__": "printed", "__file__": file}
        exec(compile(self.text, file, "exec"), namespace)
        return namespace


@dataclass
class Function:
    """A graph that is going to be printed as a function.

    Attributes:
        module: The graph.
        name: Its name in the text.
        takes_model: Whether it reads the model, and takes it as its first argument.
        wanted: Names for some of its nodes that it would not get by itself.
        notes: Comments above it.
        results: Names that its nodes have been given.
    """

    module: fx.GraphModule
    name: str
    takes_model: bool = False
    wanted: Mapping[fx.Node, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    results: dict[fx.Node, str] = field(default_factory=dict)

    def call(self, given: Iterable[str]) -> Any:
        """Returns a call of it."""
        return call(self.name, names([*([MODEL] if self.takes_model else []), *given]))


class Page:
    """Writes a module text. First all functions are added, then they are printed: a name that one of them calls must
    not be a variable in another."""

    def __init__(self, program: StepProgram | None = None) -> None:
        self.imports = Imports()
        self.references = References(program)
        self.values = {} if program is None else {node.name: node for node in program.step.graph.nodes}
        self.functions: dict[fx.GraphModule, Function] = {}
        self.scope = Scope()
        self.names: dict[str, str] = {}
        for name in (MODEL, "constants", "run"):
            self.scope.reserve(name)

    def add(
        self,
        module: fx.GraphModule,
        name: str,
        wanted: Mapping[fx.Node, str] | None = None,
        notes: tuple[str, ...] = (),
    ) -> Function:
        """Adds a function; its name is final after ``close``."""
        wanted = {**self._arguments(module), **(wanted or {})}
        function = Function(module, name, self.survey(module, module.graph.nodes), wanted, notes)
        self.functions[module] = function
        return function

    def _arguments(self, module: fx.GraphModule) -> dict[fx.Node, str]:
        """Names what a function takes of the step as the step does."""
        found: dict[fx.Node, str] = {}
        for node in module.graph.nodes:
            for ending in ("", "_collected", "_final"):
                made = self.values.get(str(node.target).removesuffix(ending)) if node.op == "placeholder" else None
                if made is not None and str(node.target).endswith(ending):
                    found[node] = f"{wanted_name(made)}{ending}"
        return found

    def survey(self, module: fx.GraphModule, nodes: Iterable[fx.Node]) -> bool:
        """Notes what nodes import and which constants they read; tells whether they read the model."""
        reads_model = False
        for node in nodes:
            if "torch." in literal((list(node.args), dict(node.kwargs)), self._leaf).text:
                self.imports.modules.add("torch")
            if node.op in ("call_module", "get_attr"):
                path = self.references.path(module, str(node.target))
                reads_model |= path is not None
                self.attribute(module, str(node.target))
            elif node.op == "call_function" and not is_written(node):
                self.function(node.target)  # type: ignore[arg-type]
        return reads_model

    def _leaf(self, value: Any) -> Any:
        return names([""])[0] if isinstance(value, fx.Node) else names([self.constant(value)])[0]

    def close(self) -> None:
        """Names everything that the functions share."""
        for name in self.imports.bound():
            self.scope.reserve(name)
        for function in self.functions.values():
            function.name = self.scope.take(function.name)
        for key in self.references.constants:
            self.names[key] = self.scope.take(key)

    def printed(self, text: str) -> Printed:
        """Returns the whole text with what it stands for."""
        functions = {graph: (function.name, function.takes_model) for graph, function in self.functions.items()}
        return Printed(text, self.references.constants, functions, self.names)

    # What a body asks for.

    def function(self, function: Callable[..., Any]) -> str:
        """Returns the name of a function that is called."""
        return self.imports.name_of(function) or self.constant(function)

    def attribute(self, module: fx.GraphModule, target: str) -> str:
        """Returns the expression for what a target of a graph names."""
        path = self.references.path(module, target)
        return path if path is not None else self.constant(self.references.value(module, target), target)

    def constant(self, value: Any, wanted: str = "") -> str:
        """Returns the name of a value that is no literal."""
        key = self.references.key(value)
        if key is None:
            wanted = wanted or getattr(value, "__name__", type(value).__name__).lower()
            add_parts(self, value, wanted)
            key = self.references.constant(value, wanted)
        return self.names.get(key, key)

    # Printing.

    def print(self, function: Function) -> list[str]:
        """Returns the lines of a function."""
        body = Body(self, function.module, Scope(self.scope), function.wanted)
        nodes = list(function.module.graph.nodes)
        taken = [MODEL] if function.takes_model else []
        taken += [body.name(node) for node in nodes if node.op == "placeholder"]
        body.write(nodes)
        function.results = {node: value.text for node, value in body.values.items()}
        return [*function.notes, *signature(function.name, taken), *body.lines]

    def head(self) -> list[str]:
        """Returns the imports and the declarations of the constants."""
        lines = [f"import {module}" for module in sorted(self.imports.modules)]
        for module, found in sorted(self.imports.names.items()):
            line = f"from {module} import {', '.join(sorted(found))}"
            split = sequence("(", names(sorted(found)), ")")
            lines += [line] if len(line) <= WIDTH else statement(f"from {module} import ", split, 0)
        for function in [found for graph, found in self.functions.items() if graph in self.formulas]:
            lines += ["", "", *self.print(function)]
        if self.references.constants:
            gap = ["", ""] if self.formulas else [""] if lines else []
            lines += [*gap, "# What the program owns besides the model."]
        for key, value in self.references.constants.items():
            lines.append(self._declaration(key, value))
        return lines

    def _declaration(self, key: str, value: Any) -> str:
        """Returns the line that makes a constant, or takes it from outside."""
        expression = made(self, value)
        line = f"{self.names[key]} = {expression or f'constants[{json.dumps(key, ensure_ascii=False)}]'}"
        comment = f"  # {described(value)}"
        return line + comment if len(line + comment) <= WIDTH and expression is None else line

    @property
    def formulas(self) -> set[fx.GraphModule]:
        """The graphs of surrogate functions that are written out."""
        found = [value for value in self.references.constants.values() if is_formula(value)]
        return {part for value in found for part in (value.value, value.gradient)}


def signature(name: str, parameters: Iterable[str]) -> list[str]:
    """Returns the first line of a function, or the first lines."""
    return statement("def ", call(name, names(parameters)), 0, ":")
