"""Every stage of every kind of model is Python that runs, and computes what the model computes."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from models import MODELS, FastSigmoid, InPlaceBuffer, LazyAttributes, ModelCase
from strategies import NetSpec, build, example_inputs, net_specs
from table import all_entries
from table.harness import Entry, needs
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from printing.executed import require_graphs_exact, require_same, require_stages_run, stages_of
from tracecompile.printing.stages import UNCHANGED
from tracecompile.runtime.module import session_of

LIBRARIES = ("snntorch", "norse", "spikingjelly", "sinabs", "tracetorch")
UNCOPIED = "sinabs: recurrent LIF"
"""Its library cannot copy it."""


class Library(nn.Module):
    """The package's own recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.neurons, self.output = nn.Linear(5, 8), snn.RLIF(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, total = None, 0.0
        for x_t in x:
            spikes, state = self.neurons(self.weights(x_t), state)
            total = total + self.output(spikes)
        return total / x.shape[0]


class Convolution(nn.Module):
    """Convolutions in a list, batch normalisation, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3)])
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        u, spikes = 0.0, []
        for t in range(x.shape[0]):
            u = 0.9 * u + self.norm(self.convs[0](x[t]))
            z = FastSigmoid.apply(u - 0.5)
            u = torch.where(z > 0, -0.25, u)
            spikes.append(torch.max_pool2d(self.convs[1](z), 2).flatten(1))
        return torch.stack(spikes)


class Record(nn.Module):
    """A preallocated record, a running sum, and work on all steps after the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        mem = torch.zeros(x.shape[1], 4)
        record = torch.zeros(x.shape[0], x.shape[1], 4)
        late = 0.0
        for t in range(x.shape[0]):
            mem = 0.8 * mem + self.fc(x[t])
            spk = FastSigmoid.apply(mem - 0.3)
            mem -= spk
            record[t] = mem
            if t >= 2:
                late = late + spk
        return {"mean": record.mean(0), "late": late}, [record[-1], record.softmax(-1)]


class OwnStatistics(nn.Module):
    """A normalisation by a running mean that every step moves, another that moves once a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)
        self.register_buffer("running_current", torch.zeros(4))
        self.register_buffer("running_input", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        v, total = torch.zeros(x.shape[1], 4), 0.0
        if self.training:
            with torch.no_grad():
                self.running_input.lerp_(x.mean((0, 1)), 0.1)
        for x_t in x:
            current = self.fc(x_t)
            if self.training:
                self.running_current = 0.9 * self.running_current + 0.1 * current.mean(0).detach()
            v = 0.8 * v + current - self.running_current
            total = total + FastSigmoid.apply(v - 0.3)
            v = v * (v < 0.3)
        return total / x.shape[0]


class States(nn.Module):
    """One time step; the argument of its state is called as a variable of the text is."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor, states: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        mem = 0.9 * states["mem"] + self.fc(x)
        spk = FastSigmoid.apply(mem - 0.5)
        return spk, {"mem": mem - spk}


class Shadows(nn.Module):
    """Variables, arguments and attributes named after whatever the text might use."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.run = nn.Linear(5, 4), nn.Linear(4, 4)
        self.step = nn.Parameter(torch.tensor(0.9))

    def forward(self, input: Tensor, model: Tensor) -> Tensor:  # noqa: A002
        getitem = lambda_ = torch.zeros(input.shape[1], 4)
        states = []
        for self_ in input:
            linear = nn.functional.linear(self_, self.model.weight) * model
            prologue = self.run(getitem)
            constants = linear + prologue
            lambda_ = self.step * lambda_ + constants
            run = lambda_ - 0.5
            getitem = FastSigmoid.apply(run)
            lambda_ = lambda_ - getitem
            getitem_ = torch.stack([lambda_, getitem])
            states.append(getitem_[0])
        return torch.stack(states)


def drawn(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape)


def own_models() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    return {
        "library": (Library(), (drawn(6, 3, 5),)),
        "convolution, training": (Convolution(), (drawn(6, 3, 2, 6, 6),)),
        "convolution, evaluation": (Convolution().eval(), (drawn(6, 3, 2, 6, 6),)),
        "record": (Record(), (drawn(6, 3, 5),)),
        "states": (States(), (drawn(3, 5), {"mem": drawn(3, 4)})),
        "own statistics": (OwnStatistics(), (drawn(6, 3, 5),)),
        "shadows": (Shadows(), (drawn(6, 3, 5), drawn(3, 4))),
    }


OWN = ("library", "convolution, training", "convolution, evaluation", "record", "own statistics", "states", "shadows")
RULES = ("measured", "analytic", "bptt")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", OWN)
def test_every_stage_runs(name: str, rule: str) -> None:
    model, args = own_models()[name]
    require_stages_run(model, args, rule=rule)


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_every_stage_of_a_hand_written_model_runs(case: ModelCase) -> None:
    given_ = case.example_inputs(6, 3)
    require_stages_run(case.factory(), given_ if isinstance(given_, tuple) else (given_,))


@pytest.mark.libraries
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "entry",
    [entry for entry in all_entries() if entry.library in LIBRARIES and entry.name != UNCOPIED][::6],
    ids=lambda entry: entry.name,
)
def test_every_stage_of_a_library_model_runs(entry: Entry) -> None:
    with needs(entry):
        # The statistics of a model that is not converted before it runs may stand elsewhere.
        require_stages_run(entry.model(), entry.arguments(5, 2), check_statistics=False)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", OWN)
def test_every_graph_is_printed_exactly(name: str, rule: str) -> None:
    model, args = own_models()[name]
    assert require_graphs_exact(model, args, rule=rule) > 10


@pytest.mark.parametrize("name", ["two_recurrent_layers", "adaptive_threshold", "tuple_state", "in_place_buffer"])
def test_every_graph_of_a_hand_written_model_is_printed_exactly(name: str) -> None:
    case = MODELS[name]
    given_ = case.example_inputs(6, 3)
    require_graphs_exact(case.factory(), given_ if isinstance(given_, tuple) else (given_,))


@settings(max_examples=15)
@given(net_specs())
def test_every_stage_of_a_generated_model_runs(spec: NetSpec) -> None:
    built = build(spec)
    args = example_inputs(spec, built.module)
    require_stages_run(built.module, args if isinstance(args, tuple) else (args,))


@pytest.mark.parametrize("make", [lambda: InPlaceBuffer(3), LazyAttributes], ids=["buffer", "attributes"])
def test_a_step_model_goes_on_from_what_it_carries(make: Any) -> None:
    model, steps = make(), drawn(5, 3, 4)
    net = tracecompile.convert(copy.deepcopy(model), steps[0])
    for name, printed in stages_of(net):
        run, reference, carried = printed.run()["run"], copy.deepcopy(model), {}
        for x_t in steps:
            require_same(run(net.source, x_t, carried=carried), reference(x_t), name)


def test_a_stage_that_changes_nothing_prints_nothing() -> None:
    net = tracecompile.convert(Library(), drawn(6, 3, 5), rule="bptt")
    for name, text in net.stages:
        changed = name not in ("draw_ahead", "insert_input_traces", "insert_rate_inversion")
        assert (text == f"# Library after {name}\n{UNCHANGED}\n") is not changed
    assert net.code == net.stages[-1][1]


def test_the_layers_are_named_in_the_words_of_the_field() -> None:
    net = tracecompile.convert(Library(), drawn(6, 3, 5), bins=2)
    lines = net.code.splitlines()
    assert lines[:2] == ["# Library after emit_module", "# Rule: measured, 2 bins. A call is a whole sequence."]
    assert (
        "# Layer neurons: spiking, recurrent, reset detached; states neurons_membrane (membrane); slopes recorded."
        in lines
    )


def test_a_value_has_the_name_of_its_variable_or_none_of_the_users() -> None:
    code = tracecompile.convert(Library(), drawn(6, 3, 5)).code
    step = code[code.index("\ndef step(") : code.index("\ndef traced_step(")]
    assert "    gate = spike.detach()\n" in step
    assert "    membrane = add - gate * neurons_threshold\n" in step
    # total = total + self.output(spikes): the sum is not part of the step, and output is not total.
    assert "    output = model.output(spike)\n" in step


def test_modules_and_tensors_are_read_where_the_user_reads_them() -> None:
    model, args = own_models()["convolution, training"]
    code = tracecompile.convert(model, args).code
    assert "model.norm(model.convs[0](" in code
    assert "import torch\n" in code
    assert "torch.max_pool2d(" in code


def test_text_depends_on_no_example() -> None:
    net = tracecompile.convert(Record(), drawn(6, 3, 5))
    other = tracecompile.convert(Record(), drawn(9, 2, 5))
    for _, program in session_of(net).ready.stages.programs:
        for part in (program.prologue, program.step, program.epilogue):
            for node in part.graph.nodes:
                node.meta.pop("val", None)
    assert net.stages == other.stages


def test_stages_are_formatted(tmp_path: Path) -> None:
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed")
    for name, (model, args) in own_models().items():
        for number, (_, text) in enumerate(tracecompile.convert(model, args).stages):
            (tmp_path / f"{name}_{number}.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "120", "--isolated", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
