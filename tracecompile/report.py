"""ConversionReport: what the compiler found in a model and what it made of it, as text and as JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tracecompile.tables import WIDTH, text_lines, text_records, text_table

Status = Literal["trace", "exact", "frozen"]
"""How a parameter is trained: from traces (approximate), exactly, or not at all."""


@dataclass(frozen=True)
class Footprint:
    """Bytes per sample that are held between two time steps; none of these depends on the number of steps.

    With K bins: a trace has K slots; a state has K tangents per current and one per trained parameter of its core; an
    output has K (K + 1) / 2 responses per current, fewer where old bins fade, and K per parameter.

    Attributes:
        states: The network's own states.
        traces: Sums of what the synapses read.
        tangents: Derivatives of the states.
        responses: Derivatives of the mean outputs, with the widest band.
        snapshots: States at the moments that the exact rule keeps; as many as one recomputation needs count as one.
        piece: Graph of the steps that it runs at a time, in backward.
        profiles: What a single bin keeps of time, for its finite-horizon factors; in all, not per sample.
        grows: Whether training keeps something of every time step beside: autograd does under rule "bptt", and layers
            before or after the loop do.
    """

    states: int = 0
    traces: int = 0
    tangents: int = 0
    responses: int = 0
    snapshots: int = 0
    piece: int = 0
    profiles: int = 0
    grows: bool = False

    @property
    def total(self) -> int:
        """All that is held per sample."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """What that is made of, by name: of traces, or of what the exact rule keeps."""
        if self.piece:
            return {"states": self.states, "snapshots": self.snapshots, "a piece's graph": self.piece}
        return {"states": self.states, "traces": self.traces, "tangents": self.tangents, "responses": self.responses}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_size(value)}" for name, value in self.parts.items())
        if self.grows:
            return f"{_size(self.total)} per sample and, with the number of steps, what the notes say: {parts}"
        return f"at most {_size(self.total)} per sample, whatever the number of steps: {parts}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


@dataclass(frozen=True)
class LayerReport:
    """One layer of the converted model.

    Attributes:
        name: The user's name for it.
        kind: What it is: "spiking"; "readout", which nothing else reads; "without spikes", a state that other layers
            read; "spiking without a state", "drawn" (random numbers); or "sum", a value without neurons.
        inputs: Sources that it reads.
        states: The user's names of its states, with what they are where that can be told; its spikes are none.
        outputs: Per-step values that other layers or the user read.
        trace: The input trace and its decay, in words; "" where it keeps none.
        recurrence: How its own outputs come back to it, in words; "" where they do not.
        reset: What a spike does to its membrane, and whether gradients pass through that; "" where nothing.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    trace: str = ""
    recurrence: str = ""
    reset: str = ""

    def __str__(self) -> str:
        """Returns one line: its name, and what it is."""
        text = f"{self.name}: {self.kind}{', recurrent' if self.recurrence else ''}"
        return text if len(text) < WIDTH else f"{text[: WIDTH - 4]}..."


@dataclass(frozen=True)
class ParameterReport:
    """How one parameter gets its gradient, if it asks for one.

    Attributes:
        status: "trace" (by the chosen rule, approximate), "exact", or "frozen" (it gets none).
        reason: One sentence that says why.
    """

    status: Status
    reason: str = ""


@dataclass(frozen=True)
class ExecutionReport:
    """How the last sequence that was recorded for training was run, or the last single step, or steps of a stream.

    Attributes:
        backend: "eager" or "inductor".
        chunk: Time steps computed together; 1 is the reference.
        reason: Why.
        compiled: Scans and steps that were compiled since the conversion.
        compile_seconds: Time that took.
        obstacles: What is run without being compiled, and why, one sentence an entry.
    """

    backend: str
    chunk: int
    reason: str
    compiled: int = 0
    compile_seconds: float = 0.0
    obstacles: tuple[str, ...] = ()

    def __str__(self) -> str:
        together = f", up to {self.chunk} steps together" if self.chunk > 1 else ""
        lines = [f"{self.backend}{together}: {self.reason}"]
        if self.compiled:
            scans = f"{self.compiled} scan{'s' * (self.compiled > 1)} (or whole steps)"
            lines.append(f"{scans} compiled in {self.compile_seconds:.1f} s")
        return "\n".join([*lines, *self.obstacles])


@dataclass(frozen=True)
class ConversionReport:
    """Everything about a conversion that its user may want to know; printing it gives a table.

    Attributes:
        layers: The layers, in the order in which a time step computes them.
        parameters: Every parameter of the model by name.
        schedule: What is computed together, and in which order, one sentence an entry.
        notes: Approximations and limits, one sentence an entry.
        rule: The gradient rule: "measured", "analytic", "exact" or "bptt".
        bins: Number of time bins of the measured rule.
        backend: What was asked for: "auto", "eager" or "inductor".
        memory: What training holds per sample.
        execution: How the last sequence in training, or the last step, was run; None before the first.
    """

    layers: tuple[LayerReport, ...] = ()
    parameters: Mapping[str, ParameterReport] = field(default_factory=dict)
    schedule: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rule: str = "measured"
    bins: int = 1
    backend: str = "eager"
    memory: Footprint = field(default_factory=Footprint)
    execution: ExecutionReport | None = None

    def of_today(self, trained: Mapping[str, bool]) -> ConversionReport:
        """Returns the report with the parameters as they are trained now: a frozen one may be so for a while.

        Args:
            trained: Names of the parameters, and whether they require a gradient.
        """
        frozen = ParameterReport("frozen", "requires_grad is False")
        parameters = {name: entry if trained.get(name, True) else frozen for name, entry in self.parameters.items()}
        asking = [name for name in self.parameters if trained.get(name, True)]
        return replace(self, parameters=parameters, notes=(*self.notes, *self.cut_off(asking)))

    def cut_off(self, trained: Collection[str]) -> tuple[str, ...]:
        """Returns a sentence about those of some parameters that no gradient can reach, none where there is none."""
        dead = [name for name in trained if name in self.parameters and self.parameters[name].status == "frozen"]
        return (f"No gradient can reach {', '.join(dead)}: the table of the parameters has why.",) if dead else ()

    def __str__(self) -> str:
        numbers = [f"{index}. " for index in range(1, len(self.schedule) + 1)]
        time_bins = f", {self.bins} time bin{'s' if self.bins != 1 else ''}" if self.rule == "measured" else ""
        sections = [
            f"rule: {self.rule}{time_bins}; backend: {self.backend}",
            _section("layers", _layer_table(self.layers)),
            _section("parameters", _parameter_table(self.parameters)),
            _section("schedule", text_lines(self.schedule, numbers)),
            _section("execution of the last sequence or step", text_lines(str(self.execution or "").splitlines())),
            _section("memory", text_lines([str(self.memory)] if self.memory.total else [])),
            _section("notes", text_lines(self.notes, ["- "] * len(self.notes))),
        ]
        return "\n\n".join(section for section in sections if section)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as dictionaries, lists, strings and numbers, ready for ``json.dumps``."""
        return {
            "rule": self.rule,
            "bins": self.bins,
            "backend": self.backend,
            "layers": [_lists(asdict(layer)) for layer in self.layers],
            "parameters": {name: asdict(entry) for name, entry in self.parameters.items()},
            "schedule": list(self.schedule),
            "memory": asdict(self.memory) | {"total": self.memory.total},
            "execution": None if self.execution is None else _lists(asdict(self.execution)),
            "notes": list(self.notes),
        }


def _section(title: str, body: str) -> str:
    return f"{title}\n{body}" if body else ""


def _layer_table(layers: Sequence[LayerReport]) -> str:
    if not layers:
        return ""
    header = ("name", "kind", "inputs", "states", "outputs", "trace", "recurrence", "reset")
    cells = [[_words(getattr(layer, column)) for column in header] for layer in layers]
    return text_records(header, cells)


def _parameter_table(parameters: Mapping[str, ParameterReport]) -> str:
    if not parameters:
        return ""
    return text_table(("name", "gradient", "reason"), [(name, p.status, p.reason) for name, p in parameters.items()])


def _words(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def _lists(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
