"""A saved network comes back where nothing of its source is, or says what is wrong with the folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.demo.network import DigitNet
from tracecompile.errors import ConversionError, InvalidInput
from tracecompile.saving.folder import FORMAT
from tracecompile.saving.place import CODE, PROGRAM, REPORT, WEIGHTS
from tracecompile.saving.programs import read


def spikes(steps: int, batch: int = 3) -> Tensor:
    return (torch.rand(steps, batch, 64, generator=torch.Generator().manual_seed(steps)) < 0.3).float()


@pytest.fixture
def net() -> tracecompile.TracedModule:
    torch.manual_seed(0)
    return tracecompile.convert(DigitNet(hidden=16), spikes(8))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("saved")
    tracecompile.save(tracecompile.convert(DigitNet(hidden=16), spikes(8)), path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "saved"))


def trained(net: nn.Module, steps: int = 30) -> list[Tensor]:
    """Returns the parameters after a few steps of an optimiser with momentum."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        net(spikes(steps)).square().mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in net.parameters()]


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_network_that_was_loaded_trains_on_bit_for_bit(
    net: tracecompile.TracedModule, folder: Path, weights_only: bool
) -> None:
    again = tracecompile.load(folder, weights_only=weights_only)
    assert again.report == net.report
    assert again.state_dict().keys() == net.state_dict().keys()
    assert torch.equal(net(spikes(30)), again(spikes(30)))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    ours, theirs = trained(net), trained(again)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(before, ours, strict=True))


def test_what_was_loaded_is_saved_as_it_was(folder: Path, tmp_path: Path) -> None:
    tracecompile.save(tracecompile.load(folder), tmp_path / "again")
    for name in (CODE, PROGRAM, REPORT):
        assert (folder / name).read_text() == (tmp_path / "again" / name).read_text(), name


def test_the_folder_says_its_format_and_versions(folder: Path) -> None:
    report = json.loads((folder / REPORT).read_text())
    assert (report["format"], report["torch"]) == (FORMAT, torch.__version__)
    assert report["tracecompile"] == tracecompile.__version__
    assert {entry.name for entry in folder.iterdir()} == {CODE, PROGRAM, REPORT, WEIGHTS}


def test_the_code_imports_torch_and_this_package_alone(folder: Path) -> None:
    imports = [line for line in (folder / CODE).read_text().splitlines() if line.startswith(("import ", "from "))]
    assert imports
    assert {line.split()[1].partition(".")[0] for line in imports} <= {"torch", "tracecompile", "operator", "math"}


USER = """
import torch
from torch import nn

class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, g):
        (u,) = ctx.saved_tensors
        return g / (1 + FACTOR * u.abs()) ** 2

FACTOR = 5

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 8)

    def forward(self, x):
        v = x.new_zeros(x.shape[1], 8)
        out = []
        for x_t in x:
            v = 0.9 * v + self.fc(x_t)
            z = Fire.apply(v - 0.1)
            v = v - z
            out.append(z + v)
        return torch.stack(out)
"""
ELSEWHERE = """
import sys, torch, tracecompile
net = tracecompile.load(sys.argv[1])
x = (torch.rand(9, 2, 64, generator=torch.Generator().manual_seed(9)) < 0.3).float()
out = net(x)
out.square().sum().backward()
print(out.double().sum().item(), net.fc.weight.grad.double().norm().item())
"""


def test_nothing_of_the_users_is_needed_or_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_own_network.py").write_text(USER)
    monkeypatch.syspath_prepend(tmp_path)
    import users_own_network  # type: ignore[import-not-found]

    net = tracecompile.convert(users_own_network.Net(), spikes(8))
    tracecompile.save(net, tmp_path / "saved")
    x = spikes(9, 2)
    out = net(x)
    out.square().sum().backward()
    # A newer file of the same name is on the path of the process that loads.
    (tmp_path / "users_own_network.py").write_text(USER.replace("0.9", "0.5").replace("FACTOR = 5", "FACTOR = 1"))
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [float(number) for number in done.stdout.split()]
    assert found == [out.double().sum().item(), net.fc.weight.grad.double().norm().item()]


# What is wrong with a folder is said, and names the file.


def change(name: str, text: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(text((folder / name).read_text()))

    return damage


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return damage


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no code": (lambda folder: (folder / CODE).unlink(), CODE),
    "no program": (lambda folder: (folder / PROGRAM).unlink(), PROGRAM),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    "no report": (lambda folder: (folder / REPORT).unlink(), REPORT),
    "code that is no Python": (change(CODE, lambda text: f"{text}\n)"), CODE),
    "code that raises": (change(CODE, lambda text: f"{text}\n1 / 0\n"), CODE),
    "code without a step": (change(CODE, lambda text: text.replace("def traced_step(", "def other(")), CODE),
    "half a program": (change(PROGRAM, lambda text: text[: len(text) // 2]), PROGRAM),
    "another program": (change(PROGRAM, lambda text: text.replace('"nodes"', '"knots"')), PROGRAM),
    "a program that is a list": (change(PROGRAM, lambda text: "[]"), PROGRAM),
    "a report that is none": (change(REPORT, lambda text: "{"), REPORT),
    "another format": (change(REPORT, lambda text: text.replace(f'"format": {FORMAT}', '"format": 99')), REPORT),
    "weights that end early": (cut, WEIGHTS),
    "rubbish for weights": (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 400), WEIGHTS),
    "other shapes": (weights(lambda all_: {name: torch.zeros(2, 2) for name in all_}), WEIGHTS),
    "other dtypes": (weights(lambda all_: {name: value.double() for name, value in all_.items()}), WEIGHTS),
    "a weight missing": (weights(lambda all_: dict(list(all_.items())[1:])), WEIGHTS),
    "a weight too many": (weights(lambda all_: {**all_, "mine": torch.zeros(1)}), WEIGHTS),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("weights_only", [False, True])
def test_damage_is_one_clear_error(folder: Path, damage: tuple[Callable[[Path], Any], str], weights_only: bool) -> None:
    spoil, name = damage
    spoil(folder)
    with pytest.raises(InvalidInput, match=name):
        tracecompile.load(folder, weights_only=weights_only)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not a folder written by"):
        tracecompile.load(tmp_path)
    for place, met in ((tmp_path / "nothere", "does not exist"), (Path(__file__), "is a file, not a folder")):
        with pytest.raises(InvalidInput, match=met) as caught:
            tracecompile.load(place)
        assert "tracecompile.save" in caught.value.advice


def test_a_network_that_is_not_captured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not captured"):
        tracecompile.save(tracecompile.convert(DigitNet(hidden=4)), tmp_path / "saved")


def test_a_folder_with_anything_else_is_left_alone(net: tracecompile.TracedModule, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InvalidInput, match=r"thesis\.tex"):
        tracecompile.save(net, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    tracecompile.save(net, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert torch.equal(tracecompile.load(tmp_path)(spikes(9)), net(spikes(9)))
    tracecompile.save(net, tmp_path, overwrite=True)


MINE: dict[str, Callable[[Path], Any]] = {
    "a file with a name of ours": lambda path: (path / CODE).write_text("mine"),
    "weights": lambda path: save_file({"mine": torch.ones(2)}, path / WEIGHTS),
    "a report": lambda path: (path / REPORT).write_text(json.dumps({"figures": 3})),
    "code with a number": lambda path: (path / "module_1.py").write_text("mine"),
    "a hidden file": lambda path: (path / ".git").write_text("mine"),
    "a folder": lambda path: (path / "module_7").mkdir(),
}


def content_of(folder: Path) -> dict[str, bytes | None]:
    return {entry.name: entry.read_bytes() if entry.is_file() else None for entry in folder.iterdir()}


@pytest.mark.parametrize("make", MINE.values(), ids=MINE.keys())
def test_what_no_earlier_version_has_written_stays(
    net: tracecompile.TracedModule, tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    make(tmp_path)
    before = content_of(tmp_path)
    with pytest.raises(InvalidInput, match="save has not written"):
        tracecompile.save(net, tmp_path)
    assert content_of(tmp_path) == before
    if before.keys() & {CODE, WEIGHTS, REPORT}:
        with pytest.raises(InvalidInput, match="that save has not written"):
            tracecompile.save(net, tmp_path, overwrite=True)
        assert content_of(tmp_path) == before
        return
    for _ in range(2):
        tracecompile.save(net, tmp_path, overwrite=True)
        assert before.items() <= content_of(tmp_path).items()
        assert torch.equal(tracecompile.load(tmp_path)(spikes(9)), net(spikes(9)))


def test_a_version_with_fewer_programs_leaves_none_of_the_others(
    net: tracecompile.TracedModule, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    net.double()(spikes(9).double())
    tracecompile.save(net, folder)
    several = set(content_of(folder))
    (folder / "module_77.py").write_text("mine")
    tracecompile.save(tracecompile.convert(DigitNet(hidden=16), spikes(8)), folder, overwrite=True)
    fewer = set(content_of(folder))
    assert "module_77.py" in fewer
    assert fewer - {"module_77.py"} < several


def test_a_save_that_fails_leaves_the_earlier_version(
    net: tracecompile.TracedModule, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content_of(folder)
    write = Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        if CODE in path.name:
            raise OSError("No space left on device")
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        tracecompile.save(net, folder)
    assert content_of(folder) == before


def test_what_a_save_left_that_was_cut_off_is_in_nobodys_way(net: tracecompile.TracedModule, tmp_path: Path) -> None:
    (tmp_path / f".{WEIGHTS}.part").write_bytes(b"half of it")
    tracecompile.save(net, tmp_path)
    assert content_of(tmp_path).keys() == {CODE, PROGRAM, REPORT, WEIGHTS}


def test_a_file_at_the_place_of_the_folder_is_refused(net: tracecompile.TracedModule, tmp_path: Path) -> None:
    (tmp_path / "saved").write_text("mine")
    with pytest.raises(InvalidInput, match="not a folder"):
        tracecompile.save(net, tmp_path / "saved", overwrite=True)
    assert (tmp_path / "saved").read_text() == "mine"


# The code is what runs; without trust it is compared and not run.


def test_the_code_in_the_folder_is_what_runs(net: tracecompile.TracedModule, folder: Path) -> None:
    text = (folder / CODE).read_text()
    changed = text.replace("def epilogue(", "def epilogue(*given):\n    return _epilogue(*given)\n\n\ndef _epilogue(")
    doubled = changed.replace(
        "    return _epilogue(*given)", "    return tuple(2 * leaf for leaf in _epilogue(*given))"
    )
    (folder / CODE).write_text(doubled)
    again = tracecompile.load(folder)
    assert again.code == doubled
    assert torch.equal(again(spikes(9)), 2 * net(spikes(9)))
    with pytest.raises(InvalidInput, match="not the code that this version prints"):
        tracecompile.load(folder, weights_only=True)


def test_code_is_not_run_without_trust(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / CODE).write_text((folder / CODE).read_text() + f"\nopen({str(mark)!r}, 'w').close()\n")
    with pytest.raises(InvalidInput, match=CODE):
        tracecompile.load(folder, weights_only=True)
    command = [sys.executable, "-m", "tracecompile", "inspect", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert CODE in done.stderr
    assert "Traceback" not in done.stderr
    assert not mark.exists()
    tracecompile.load(folder)
    assert mark.exists(), "the check above could not have failed"


def test_a_file_that_save_does_not_write_is_refused_without_trust(folder: Path) -> None:
    (folder / "extra.py").write_text("")
    tracecompile.load(folder)
    with pytest.raises(InvalidInput, match=r"extra\.py"):
        tracecompile.load(folder, weights_only=True)


CALLS = {
    "a function of the system": ('"torch.stack"', '"os.system"'),
    "a function that reads files": ('"torch.stack"', '"torch.load"'),
    "a function of this package": ('"torch.stack"', '"tracecompile.saving.folder.load"'),
    "a builtin": ('"torch.stack"', '"builtins.exec"'),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_program_calls_nothing_but_operations(folder: Path, call: tuple[str, str]) -> None:
    text = (folder / PROGRAM).read_text()
    changed = text.replace('"torch.unbind"', call[1]).replace('"operator.add"', call[1]).replace(call[0], call[1])
    assert changed != text
    (folder / PROGRAM).write_text(changed)
    with pytest.raises(InvalidInput, match=call[1].strip('"')):
        tracecompile.load(folder, weights_only=True)


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Returns what changes the program and then prints its code, as somebody would who knows how."""

    def forge(folder: Path) -> None:
        content = json.loads((folder / PROGRAM).read_text())
        change(content)
        (folder / PROGRAM).write_text(json.dumps(content))
        try:
            (folder / CODE).write_text(read(content, load_file(folder / WEIGHTS)).compiled[0].stages.code)
        except Exception:
            return  # not even that can be printed

    return forge


def nodes(content: dict[str, Any], op: str) -> list[list[Any]]:
    graphs = [entry["graph"] for entry in content["shared"] if "graph" in entry]
    return [node for graph in graphs for node in graph["nodes"] if node[1] == op]


def records(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [entry["fields"] for entry in content["shared"] if entry.get("record") == name]


def rename_layer(content: dict[str, Any]) -> None:
    for fields in records(content, "Layer"):
        fields["name"] += "\nimport os"


def rename_line(content: dict[str, Any]) -> None:
    for fields in records(content, "SourceLine"):
        fields["source"] = "x\rimport os"


def rename_argument(content: dict[str, Any]) -> None:
    for node in nodes(content, "placeholder"):
        node[0] = node[2] = "x=print"


def read_globals(content: dict[str, Any]) -> None:
    for fields in records(content, "Emitted"):
        fields["prologue_attributes"] = ["forward.__globals__", *fields["prologue_attributes"]]


def call_what_is_no_module(content: dict[str, Any]) -> None:
    for node in nodes(content, "call_module"):
        node[2] = "register_forward_hook"


def call_by_key(content: dict[str, Any]) -> None:
    for node in nodes(content, "call_function"):
        node[2], node[4] = "builtins.max", {"dict": [["key", {"function": "builtins.getattr"}]]}


def call_a_method_of_no_tensor(content: dict[str, Any]) -> None:
    for entry in content["shared"]:
        if "slopes" in entry:
            entry["slopes"].update(operation="__reduce__", kind="call_method")


def set_what_makes_a_module(content: dict[str, Any]) -> None:
    for module in content["model"].values():
        module["plain"]["__class__"] = {"function": "builtins.int"}


FORGED = [
    rename_layer,
    rename_line,
    rename_argument,
    read_globals,
    call_what_is_no_module,
    call_by_key,
    call_a_method_of_no_tensor,
    set_what_makes_a_module,
]


@pytest.mark.parametrize("change", FORGED, ids=lambda change: change.__name__)
def test_a_program_that_was_forged_with_its_code_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    before = json.loads((folder / PROGRAM).read_text())
    edit(change)(folder)
    assert json.loads((folder / PROGRAM).read_text()) != before
    with pytest.raises(InvalidInput, match=PROGRAM):
        tracecompile.load(folder, weights_only=True)


# Calls of other kinds.


class ReadsMode(nn.Module):
    """Computes something else in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(64, 8), snn.LIF(8)

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for x_t in x:
            z, state = self.lif(3 * self.fc(x_t) if self.training else self.fc(x_t), state)
            out.append(z)
        return torch.stack(out)


@pytest.mark.parametrize("training", [False, True])
def test_both_modes_are_saved(training: bool, tmp_path: Path) -> None:
    net = tracecompile.convert(ReadsMode().train(training), spikes(8))
    tracecompile.save(net, tmp_path / "saved")
    assert net.training == training
    assert (tmp_path / "saved" / "module_1.py").is_file()
    again = tracecompile.load(tmp_path / "saved", weights_only=True)
    assert again.training == training
    outputs = []
    for mode in (True, False):
        expected = net.train(mode)(spikes(9))
        assert torch.equal(again.train(mode)(spikes(9)), expected)
        outputs.append(expected)
    assert not torch.equal(*outputs)


def test_a_call_of_another_kind_is_refused(folder: Path) -> None:
    again = tracecompile.load(folder)
    with pytest.raises(ConversionError, match="no source to capture"):
        again.double()(spikes(9).double())
    assert again.float()(spikes(9)).isfinite().all()


def test_shared_modules_stay_shared(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 64)
            self.blocks = nn.ModuleList([self.fc, self.fc])
            self.lif = snn.LIF(64)

        def forward(self, x: Tensor) -> Tensor:
            state, out = None, []
            for x_t in x:
                z, state = self.lif(self.blocks[1](self.fc(x_t)), state)
                out.append(z)
            return torch.stack(out)

    net = tracecompile.convert(Shared(), spikes(8))
    tracecompile.save(net, tmp_path / "saved")
    again = tracecompile.load(tmp_path / "saved")
    assert again.blocks[0] is again.fc
    assert len(list(again.parameters())) == len(list(net.parameters()))
    assert torch.equal(again(spikes(5)), net(spikes(5)))


def test_hooks_of_parameters_are_written_out(tmp_path: Path) -> None:
    net = tracecompile.convert(DigitNet(hidden=16), spikes(8))
    name, parameter = next(iter(net.named_parameters()))
    parameter.register_hook(lambda gradient: 3 * gradient)
    tracecompile.save(net, tmp_path / "saved")
    again = tracecompile.load(tmp_path / "saved")
    for each in (net, again):
        each(spikes(9)).square().sum().backward()
    assert torch.equal(dict(again.named_parameters())[name].grad, parameter.grad)
    seen: list[Tensor] = []
    parameter.register_hook(lambda gradient: seen.append(gradient) if float(gradient.sum()) > 1e9 else None)
    with pytest.raises(InvalidInput, match=name):
        tracecompile.save(net, tmp_path / "saved")


def test_a_hook_of_a_module_that_is_called_is_refused(tmp_path: Path) -> None:
    net = tracecompile.convert(ReadsMode(), spikes(8))
    net.fc.register_forward_hook(lambda *_: None)
    with pytest.raises(InvalidInput, match="fc has hooks"):
        tracecompile.save(net, tmp_path / "saved")
