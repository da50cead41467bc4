"""The source of a model while it is put together: imports, definitions, classes with their lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import indent
from typing import Any

INPUTS, HIDDEN, OUTPUTS = 6, 8, 4


@dataclass
class Module:
    """A class of the program that is an ``nn.Module``.

    Attributes:
        name: Of the class.
        says: Its docstring.
        arguments: Parameters of ``__init__``, after self.
        init: Lines of ``__init__``.
        methods: Whole methods, without indentation.
    """

    name: str
    says: str
    arguments: str = ""
    init: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        """Adds lines to ``__init__``, each only once."""
        self.init += [line for line in lines if line not in self.init]

    def method(self, header: str, lines: list[str]) -> None:
        """Adds a method."""
        self.methods.append("\n".join([f"def {header}:", *inner(lines)]))

    def render(self) -> str:
        """Returns the source of the class."""
        given = f"self, {self.arguments}" if self.arguments else "self"
        init = "\n".join([f"def __init__({given}):", *inner(["super().__init__()", *self.init])])
        body = "\n\n".join([f'"""{self.says}"""', init, *self.methods])
        return f"class {self.name}(nn.Module):\n{indent(body, '    ')}"


@dataclass
class Draft:
    """A program while it is put together.

    Attributes:
        imports: Lines of imports, beyond those that every model has.
        definitions: Functions and classes before the net, by name.
        net: The model.
        notes: What else the user of the program has to know, as keywords of the program.
    """

    net: Module
    imports: list[str] = field(default_factory=list)
    definitions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def use(self, line: str) -> None:
        """Adds an import."""
        if line not in self.imports:
            self.imports.append(line)

    def define(self, name: str, source: str) -> None:
        """Adds a definition, once."""
        self.definitions.setdefault(name, source)

    def render(self) -> str:
        """Returns the source of the file."""
        head = ["import torch", "import torch.nn.functional as F", "from torch import nn"]
        imports = "\n".join(sorted({*self.imports, *head}, key=lambda line: (line.split()[1], line)))
        return "\n\n\n".join([imports, *self.definitions.values(), self.net.render()]) + "\n"


def inner(lines: list[str]) -> list[str]:
    """Returns lines one level further in."""
    return [f"    {line}" if line else "" for line in "\n".join(lines).split("\n")]
