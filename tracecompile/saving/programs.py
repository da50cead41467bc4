"""All that a converted network runs on, as JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tracecompile.arguments import Arguments
from tracecompile.capture.tracing.surrogates import SurrogateLeaf
from tracecompile.compiled import Compiled
from tracecompile.errors import InvalidInput
from tracecompile.graphs.copies import graphs_of
from tracecompile.neuron_step import NeuronStep, OpaqueStep
from tracecompile.printing import Stages
from tracecompile.program import Settings, StepProgram
from tracecompile.rules.formulas import Surrogate
from tracecompile.rules.norm import RecordedNorm, StillNorm
from tracecompile.rules.opaque import StepWithSlopes
from tracecompile.rules.slopes import WithSlopes
from tracecompile.saving import imported
from tracecompile.saving.functions import check_method
from tracecompile.saving.graphs import read_graph, write_graph
from tracecompile.saving.models import as_weights, read_model, weights_of, write_model
from tracecompile.saving.surrogates import written_out
from tracecompile.saving.trees import read_signature, read_tree, write_signature, write_tree
from tracecompile.saving.values import Json, Reader, Writer
from tracecompile.segment import Segment, with_segments

LAST = "emit_module"
"""The stage that is kept of a program."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a folder holds beside the code.

    Attributes:
        model: What the programs run on.
        compiled: By mode and kind of call; the last is that of the last call.
    """

    model: nn.Module
    compiled: tuple[Compiled, ...]

    @property
    def settings(self) -> Settings:
        """What the user asked for."""
        return self.compiled[-1].program.asked


def write(contents: Contents) -> tuple[Json, dict[str, Tensor]]:
    """Returns contents as JSON, and the tensors that it names: weights, and constants of the programs.

    Raises:
        InvalidInput: Something in them has no written form; says what, and where it comes from.
    """
    root = contents.model
    weights = weights_of(root)
    programs = [program for each in contents.compiled for program in with_segments(each.program)]
    apart = {name for program in programs for name in (*program.leaves, *program.constants)}
    writer = Writer({id(value): name for name, value in weights.items()}, _writers(root, apart))
    compiled = [_write_compiled(writer, each) for each in contents.compiled]
    graphs = [graph for each in contents.compiled for graph in graphs_of(each.program)]
    called, read = (
        {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == op}
        for op in ("call_module", "get_attr")
    )
    model = write_model(writer, root, called, read)
    written = {"model": model, "programs": compiled, "shared": writer.shared}
    return written, {**weights, **writer.tensors}


def read(written: Json, tensors: Mapping[str, Tensor], imports: bool = True) -> Contents:
    """Returns the contents; without ``imports`` nothing is imported, and what needs that is refused.

    Raises:
        InvalidInput: What is written is not what ``write`` writes.
    """
    known = as_weights(dict(tensors), written["model"])
    reader = Reader(written["shared"], known, _readers(nn.Module()), imports)
    model = read_model(reader, written["model"])
    return Contents(model, read_programs(written, known, model, imports))


def read_programs(
    written: Json, tensors: Mapping[str, Tensor], model: nn.Module, imports: bool = True
) -> tuple[Compiled, ...]:
    """Returns the programs, which run on a model that is there already and on its tensors."""
    reader = Reader(written["shared"], tensors, _readers(model), imports)
    return tuple(_read_compiled(reader, entry) for entry in written["programs"])


def _write_compiled(writer: Writer, compiled: Compiled) -> Json:
    arguments = compiled.arguments
    own = {"signature", "positions"}
    plain = {
        f.name: writer.write(getattr(arguments, f.name)) for f in dataclasses.fields(arguments) if f.name not in own
    }
    positions = {name: pytree.tree_flatten(value) for name, value in arguments.positions.items()}
    return {
        "program": writer.write(compiled.program),
        "report": writer.write(compiled.report),
        "arguments": {
            **plain,
            "signature": write_signature(arguments.signature),
            "positions": {name: [leaves, write_tree(spec)] for name, (leaves, spec) in positions.items()},
        },
        **{name: writer.write(getattr(compiled, name)) for name in ("modes", "numbers", "steps", "shape")},
    }


def _read_compiled(reader: Reader, written: Json) -> Compiled:
    program = reader.read(written["program"])
    given = dict(written["arguments"])
    signature = read_signature(given.pop("signature"))
    positions = {
        name: pytree.tree_unflatten(leaves, read_tree(spec)) for name, (leaves, spec) in given.pop("positions").items()
    }
    plain = {name: reader.read(value) for name, value in given.items()}
    return Compiled(
        program,
        Stages([(LAST, program)]),
        reader.read(written["report"]),
        Arguments(signature=signature, positions=positions, **plain),
        **{name: reader.read(written[name]) for name in ("modes", "numbers", "steps", "shape")},
    )


Writers = dict[type, tuple[str, Callable[[Writer, Any], Json]]]


def _writers(root: nn.Module, apart: Collection[str]) -> Writers:
    paths = {id(module): path for path, module in root.named_modules()}

    def module(writer: Writer, value: nn.Module) -> Json:
        if id(value) in paths:
            return {"path": paths[id(value)]}
        return {"modules": write_model(writer, value, [""], [])}

    return {
        fx.GraphModule: ("graph", lambda writer, value: write_graph(writer, value, root, apart)),
        StepProgram: ("program", _write_program),
        Segment: ("segment", lambda writer, segment: writer.write(segment.program)),
        SurrogateLeaf: ("surrogate", _write_surrogate),
        WithSlopes: ("slopes", _write_slopes),
        OpaqueStep: ("step of a neuron", imported.write_step),
        NeuronStep: ("value of a neuron", imported.write_value),
        StepWithSlopes: ("slopes of a neuron", imported.write_slopes),
        RecordedNorm: ("recorded norm", lambda writer, norm: writer.write(norm.module)),
        StillNorm: ("still norm", lambda writer, norm: writer.write(norm.module)),
        nn.Module: ("module", module),
    }


def _write_program(writer: Writer, program: StepProgram) -> Json:
    names = [field.name for field in dataclasses.fields(program) if field.name not in ("root", "signature", "result")]
    trees = {name: write_tree(getattr(program, name)) for name in ("signature", "result")}
    return {"fields": {name: writer.write(getattr(program, name)) for name in names}, **trees}


def _write_surrogate(writer: Writer, leaf: SurrogateLeaf) -> Json:
    value, gradient = written_out(leaf)
    arguments = sum(node.op == "placeholder" for node in value.graph.nodes)
    parts = [writer.write(value), writer.write(gradient)]
    return {"name": leaf.function.__name__, "arguments": arguments, "formulas": parts}


def _write_slopes(writer: Writer, slopes: WithSlopes) -> Json:
    operation: Any = slopes.operation
    return {"operation": writer.write(operation), "kind": slopes.kind, "wanted": writer.write(slopes.wanted)}


Readers = dict[str, Callable[[Reader, Json], Any]]


def _readers(root: nn.Module) -> Readers:
    def module(reader: Reader, written: Json) -> nn.Module:
        return root.get_submodule(written["path"]) if "path" in written else read_model(reader, written["modules"])

    return {
        "graph": lambda reader, written: read_graph(reader, written, root),
        "program": lambda reader, written: _read_program(reader, written, root),
        "segment": lambda reader, written: Segment(reader.read(written)),
        "surrogate": _read_surrogate,
        "slopes": _read_slopes,
        "step of a neuron": imported.read_step,
        "value of a neuron": imported.read_value,
        "slopes of a neuron": imported.read_slopes,
        "recorded norm": lambda reader, written: RecordedNorm(reader.read(written)),
        "still norm": lambda reader, written: StillNorm(reader.read(written)),
        "module": module,
    }


def _read_program(reader: Reader, written: Json, root: nn.Module) -> StepProgram:
    fields = {name: reader.read(value) for name, value in written["fields"].items()}
    signature, result = (read_tree(written[name]) for name in ("signature", "result"))
    program = StepProgram(root=root, signature=signature, result=result, **fields)
    for path in _paths(program):
        if not isinstance(program.resolve(path), Tensor):
            raise InvalidInput(f"The program reads {path}, which is no tensor of the model.")
    return program


def _paths(program: StepProgram) -> list[str]:
    """Returns the attributes of the model that a program takes as arguments, or moves."""
    found = [carry.statistic for carry in program.carries if carry.statistic]
    found += [*program.statistics, *(program.statics.attributes if program.statics is not None else ())]
    emitted = program.emitted
    return found + ([*emitted.prologue_attributes, *emitted.epilogue_attributes] if emitted is not None else [])


def _read_slopes(reader: Reader, written: Json) -> WithSlopes:
    operation = reader.read(written["operation"])
    if isinstance(operation, str):
        check_method(operation)
    return WithSlopes(operation, written["kind"], reader.read(written["wanted"]))


def _read_surrogate(reader: Reader, written: Json) -> Surrogate:
    value, gradient = (reader.read(part) for part in written["formulas"])
    return Surrogate(written["name"], written["arguments"], value, gradient)
