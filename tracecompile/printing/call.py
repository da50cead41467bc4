"""The arguments of ``run``: those of the user's forward, and the leaves that the program takes of them."""

from __future__ import annotations

import inspect

from tracecompile.printing.layout import INDENT
from tracecompile.printing.naming import Scope
from tracecompile.program import StepProgram


class CallArguments:
    """Lays a call over the leaves that the prologue takes and the states that the caller hands in.

    Attributes:
        nested: Whether an argument is more than one leaf.
    """

    def __init__(self, program: StepProgram) -> None:
        self.program = program
        positional, keywords = program.signature.children()
        specs = [*positional.children(), *keywords.children()]
        declared = _declared(program)
        wanted = [declared[i] if i < len(declared) else f"argument_{i}" for i in range(len(positional.children()))]
        self.wanted = [*wanted, *(str(key) for key in keywords.context)]
        self.places: list[list[int]] = []
        start = 0
        for spec in specs:
            self.places.append(list(range(start, start + spec.num_leaves)))
            start += spec.num_leaves
        self.is_leaf = [spec.is_leaf() for spec in specs]
        self.nested = not all(self.is_leaf)
        self.explicit = set(program.explicit_states)
        self.of_states = [any(place in self.explicit for place in places) for places in self.places]
        self.names: list[str] = []

    def named(self, scope: Scope) -> list[str]:
        """Returns the parameters; those of states may be left out at the end."""
        self.names = [scope.take(wanted) for wanted in self.wanted]
        optional = len(self.names)
        while optional and self.of_states[optional - 1]:
            optional -= 1
        return [name if place < optional else f"{name}=None" for place, name in enumerate(self.names)]

    def leaves(self, scope: Scope) -> tuple[list[str], list[str]]:
        """Returns the prologue's leaves, and the lines that take the arguments apart for them."""
        lines, found = [], []
        for number, name in enumerate(self.names):
            wanted = self.places[number]
            if self.of_states[number] or not wanted:
                continue  # a list of states may hold None for the layers that have none: no input either
            if self.is_leaf[number]:
                found.append(name)
                continue
            parts = scope.take(f"{name}_leaves")
            lines.append(f"{INDENT}{parts} = tree_leaves({name})")
            found += [f"{parts}[{place - self.places[number][0]}]" for place in wanted]
        taken = sum(node.op == "placeholder" for node in self.program.prologue.graph.nodes)
        if taken == len(found):
            return found, lines
        # Flags and what else is no number was built in; it is not known here which of the arguments these were.
        given = scope.take("given")
        varies = "not isinstance(leaf, (bool, str, type(None)))"
        lines.append(f"{INDENT}{given} = [leaf for leaf in [{', '.join(found)}] if {varies}]")
        return [f"*{given}"], lines

    def handed_in(self, scope: Scope) -> tuple[str, list[str], list[str]] | None:
        """Returns when states are handed in, the lines that take them apart, and the states."""
        lines, found = [], dict[int, str]()
        names = [name for name, states in zip(self.names, self.of_states, strict=True) if states]
        if not names:
            return None
        for name, places, leaf in zip(self.names, self.places, self.is_leaf, strict=True):
            if not self.explicit.intersection(places):
                continue
            parts = name
            if not leaf:
                parts = scope.take(f"{name}_leaves")
                lines.append(f"{INDENT * 2}{parts} = tree_leaves({name})")
            found.update((place, name if leaf else f"{parts}[{place - places[0]}]") for place in places)
        condition = " and ".join(f"{name} is not None" for name in names)
        return condition, lines, [found[place] for place in self.program.explicit_states]


def _declared(program: StepProgram) -> list[str]:
    try:
        parameters = inspect.signature(program.root.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
