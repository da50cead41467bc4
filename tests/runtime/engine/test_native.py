"""Scans compiled without ``torch.compile``: the same values, found again on disk, and what happens where it fails."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.cpu_vec_isa import valid_vec_isa_list

from tracecompile.runtime.engine import inductor, library, native, shelf, wrapper
from tracecompile.runtime.engine.inductor import Unwritten, Written
from tracecompile.runtime.engine.kernels import Kernels
from tracecompile.runtime.engine.sums.products import Products

KEY = ("a recurrence", 3)
OTHER = ("another", 3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps what is compiled apart from what other programs compile."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path


def recurrence(x: Tensor, h: Tensor, weight: Tensor) -> list[Tensor]:
    """Returns three states of a recurrent layer, and the last once more with a gain."""
    rows = []
    for x_t in x:
        h = torch.tanh(0.5 * x_t + h @ weight)
        rows.append(h)
    return [torch.stack(rows), 2 * h]


def given(batch: int = 4, width: int = 6) -> list[Tensor]:
    """Returns what it takes."""
    torch.manual_seed(batch)
    return [torch.randn(3, batch, width), torch.randn(batch, width), torch.randn(width, width)]


def assert_right(kernels: Kernels, arguments: list[Tensor], key: tuple[Any, ...] = KEY) -> None:
    """Asserts that what is compiled computes what the code does."""
    found = kernels.get(key, recurrence, arguments)(*arguments)
    torch.testing.assert_close(list(found), recurrence(*arguments))


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Returns the commands that compilers are called with."""
    commands: list[list[str]] = []

    def seen(*arguments: Any) -> list[str]:
        commands.append(inductor.compiler_call(*arguments))
        return commands[-1]

    monkeypatch.setattr(native, "compiler_call", seen)
    return commands


def test_every_size_is_served_by_one_call_of_the_compiler(compilers: list[list[str]]) -> None:
    kernels = Kernels()
    for batch, width in [(4, 6), (7, 6), (33, 40)]:
        assert_right(kernels, given(batch, width))
    assert (len(compilers), kernels.count, kernels.detours) == (1, 1, [])


def test_sizes_that_are_equal_serve_no_others(compilers: list[list[str]]) -> None:
    kernels = Kernels()
    for batch in (6, 4, 5):  # 6 samples are as many as the layer is wide
        assert_right(kernels, given(batch))
    assert (len(compilers), kernels.detours) == (2, [])
    for batch in (6, 5):
        assert_right(Kernels(), given(batch))
    assert len(compilers) == 2, "both are on disk"


def test_values_are_those_of_torch_compile() -> None:
    def elementwise(x: Tensor, leak: Tensor) -> list[Tensor]:
        v = torch.zeros_like(x[0])
        rows = []
        for x_t in x:
            v = leak * v + x_t
            spike = (v > 1).to(v.dtype)
            rows.append(spike / v.abs().mul_(25.0).add_(1.0).pow_(2.0))  # in place, as surrogates have it
            v = v - spike
        return [torch.stack(rows), v]

    arguments = [2 * torch.rand(8, 5, 70), torch.tensor(0.9)]
    kernels = Kernels()
    found = kernels.get(KEY, elementwise, arguments)(*arguments)
    expected = inductor.through_torch_compile(elementwise, arguments)(*arguments)
    assert kernels.detours == []
    assert [value.sum() != 0 for value in found]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_next_process_finds_it_and_calls_no_compiler(compilers: list[list[str]], folder: Path) -> None:
    assert_right(Kernels(), given())
    assert len(compilers) == 1
    program = (
        "import sys, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "from tests.runtime.engine.test_native import *\n"
        "native.begun = None\n"
        "kernels = Kernels()\n"
        "assert_right(kernels, given(9))\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules, 'the compiler was loaded'\n"
        "print(kernels.count, kernels.detours)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert said.stdout.split() == ["1", "[]"], said.stderr
    assert not list(folder.rglob("building-*"))


def test_what_is_found_is_for_this_key_these_threads_and_this_code(
    compilers: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_right(Kernels(), given())
    assert_right(Kernels(), given(), OTHER)
    assert len(compilers) == 2
    assert_right(Kernels(), given())
    assert len(compilers) == 2
    assert list(shelf.found(str(shelf.digest_of(KEY))))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert not list(shelf.found(str(shelf.digest_of(KEY))))
    monkeypatch.undo()
    monkeypatch.setattr(shelf, "_sources", lambda: "another version of this package")
    assert not list(shelf.found(str(shelf.digest_of(KEY))))


def test_a_library_that_was_cut_short_is_compiled_anew(
    compilers: list[list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_right(Kernels(), given())
    other = shutil.copytree(folder, folder / "other")  # this process has loaded the library where it was
    (cut,) = other.rglob("*.so")
    cut.write_bytes(b"cut short")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(other))
    kernels = Kernels()
    assert_right(kernels, given())
    assert (len(compilers), kernels.detours) == (2, [])
    (path,) = other.rglob("*.so")
    assert path.stat().st_size > 1000
    assert path != cut


def test_a_key_of_this_process_is_not_on_disk(folder: Path) -> None:
    for key in [("constant0: object 140213", 1), (object(), 1)]:
        assert shelf.digest_of(key) is None
        kernels = Kernels()
        assert_right(kernels, given(), key)
        assert kernels.detours == []
    assert not list(folder.rglob("*.so"))
    assert shelf.digest_of(KEY) == shelf.digest_of(("a recurrence", 3)) != shelf.digest_of(OTHER)


def test_compilers_run_side_by_side(compilers: list[list[str]]) -> None:
    kernels = Kernels()
    kernels.begin(KEY, recurrence, given())
    kernels.begin(OTHER, recurrence, given())
    kernels.begin(KEY, recurrence, given())
    assert (len(compilers), kernels.count) == (2, 0), "both began before either was waited for, and each once"
    assert_right(kernels, given())
    assert_right(kernels, given(), OTHER)
    assert (len(compilers), kernels.count) == (2, 2)


def test_a_compiler_that_nobody_waits_for_is_stopped(folder: Path) -> None:
    kernels = Kernels()
    kernels.begin(KEY, recurrence, given())
    (begun,) = kernels._begun.values()
    process = begun.process
    assert list(folder.rglob("building-*"))
    del kernels, begun
    gc.collect()
    assert process.returncode is not None
    assert not list(folder.rglob("building-*"))


@pytest.mark.parametrize("missing", ["torch._inductor.graph.GraphLowering", "torch._inductor.cpp_builder.CppBuilder"])
def test_a_torch_with_other_names_compiles_by_itself(
    missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.delattr(missing)
    with pytest.raises(Unwritten):
        native.begun(recurrence, given(), None, Products())
    monkeypatch.undo()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))

    def fails(*_: Any) -> None:
        raise Unwritten("AttributeError: another torch")

    monkeypatch.setattr(native, "written", fails)
    kernels = Kernels()
    assert_right(kernels, given())
    assert_right(kernels, given(6))
    assert (kernels.count, kernels.detours) == (1, ["AttributeError: another torch"])


@pytest.mark.parametrize("command", [["false"], ["no-such-compiler"]])
def test_a_compiler_that_fails_leaves_it_to_torch_compile(
    command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "compiler_call", lambda *_: command)
    kernels = Kernels()
    assert_right(kernels, given())
    assert len(kernels.detours) == 1
    assert not list(folder.rglob("building-*"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where nothing else has imported this
def test_what_changes_its_arguments_is_not_written() -> None:
    with pytest.raises(Unwritten, match="changes its arguments"):
        inductor.written(lambda x: [x.add_(1)], [torch.zeros(3)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_others_try_the_processor_out_themselves() -> None:
    valid_vec_isa_list.cache_clear()
    inductor.written(recurrence, given())
    assert valid_vec_isa_list.cache_info().currsize == 0


RUNNER = "aten = torch.ops.aten\nother = torch.ops.mine\nclass Runner:\n    def call(self, args):\n        {}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("return helper(args)", "uses helper"),
        ("return torch.ops.mine.op(args[0])", "torch.ops.mine"),
        ("return other.op(args[0])", "torch.ops.mine"),
        ("return getattr(torch.ops, 'mine')", "looks for operators"),
        ("return extern_kernels.bias_addmm(args)", "bias_addmm"),
    ],
)
def test_code_that_uses_what_is_not_known_is_not_taken(line: str, said: str) -> None:
    with pytest.raises(Unwritten, match=said):
        wrapper.taken_apart(Written(RUNNER.format(line), {}, ""))
    with pytest.raises(Unwritten, match="laid out otherwise"):
        wrapper.taken_apart(Written("def call(args): pass", {}, ""))


def test_known_code_is_taken_with_what_it_uses_alone() -> None:
    parts = wrapper.taken_apart(Written(RUNNER.format("return [aten.add(extern_kernels.mm(*args), inf)]"), {}, ""))
    assert parts.products == ("mm",)
    assert "torch.ops.mine" not in parts.call
    names: dict[str, Any] = {"torch": torch, "inf": 1.0, "extern_kernels": torch}
    exec(parts.call, names)
    assert torch.equal(names["call"]([torch.eye(2), torch.eye(2)])[0], torch.eye(2) + 1)


def test_a_kernel_that_is_no_plain_function_is_not_taken() -> None:
    head = library.HEADER
    good = wrapper.Kernel(
        "k", ("float*", "const int64_t"), f'{head}\nextern "C"  void  kernel(float* a, const int64_t n) {{}}'
    )
    assert "namespace kernel_1" in library.source_of([good, good])
    for source in ("void other() {}", good.source + "\n#include <map>", good.source + "\n" + good.source):
        with pytest.raises(Unwritten, match="laid out otherwise"):
            library.source_of([wrapper.Kernel("k", good.types, source)])
    with pytest.raises(Unwritten, match="bool"):
        library.source_of([wrapper.Kernel("k", ("bool",), good.source)])
