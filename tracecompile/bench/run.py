"""``tracecompile bench``: a network trained in every way that is at hand, side by side in one run."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tracecompile.bench.case import Job, open_case
from tracecompile.bench.measure import measure_case
from tracecompile.bench.methods import BY_KEY, METHODS, Method
from tracecompile.bench.networks import NETWORKS
from tracecompile.bench.plot import draw, require_matplotlib
from tracecompile.bench.result import BASELINE, BenchResult, Row
from tracecompile.bench.worker import measure_peak
from tracecompile.diagnostics.memory import memory_limit
from tracecompile.files import written_whole
from tracecompile.targets import UsageError

STEPS, QUICK_STEPS = (64, 256), (32,)
REPEATS = 5

Progress = Callable[[str], Any]


def run_bench(
    target: str | None = None,
    *,
    networks: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    repeats: int = REPEATS,
    quick: bool = False,
    shape: str | None = None,
    weights: Path | None = None,
    dt: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    limit: int | None = None,
    allocator: bool = False,
    output: Path | None = None,
    picture: bool = True,
    progress: Progress = lambda text: None,
) -> BenchResult:
    """Measures time, memory and gradients of a training step.

    Args:
        target: A model as the command line names it; None for the built-in networks.
        networks: Which built-in ones; None for all.
        steps: Lengths; None for 64 and 256, or for a target the length of its own example.
        methods: Keys of the rows; None for all. The model's inference is always among them.
        repeats: Timed runs of each row.
        quick: The built-in networks small and short: a look, not a result.
        shape: Shape of a target's input, as ``--input`` takes it.
        weights: File of a target's weights.
        dt: Time step of a NIR graph.
        seed: Of weights and inputs.
        device: "cpu" or "cuda".
        limit: Bytes above which the graph of backpropagation through time is not made; None for half of what is free.
        allocator: Whether memory is measured once more with an allocator that gives back at once what was freed.
        output: The result is written here with the suffixes ``.json`` and ``.png``; None writes nothing.
        picture: Whether the PNG is written.
        progress: Takes a line of text now and then.

    Raises:
        UsageError: What is asked for does not exist.
        MissingDependency: The picture needs a package that is not installed.
        ConversionError: The model is refused.
    """
    jobs = _jobs(target, networks, steps, quick)
    chosen = _chosen(methods)
    if repeats < 1:
        raise UsageError("--repeats must be at least 1.")
    if allocator and platform.libc_ver()[0] != "glibc":
        raise UsageError("--allocator asks glibc's allocator to keep nothing: this Python runs on another one.")
    if output is not None and picture:
        require_matplotlib()
    common: dict[str, Any] = {"shape": shape, "weights": None if weights is None else str(weights), "dt": dt}
    common |= {"seed": seed, "device": device, "quick": quick}
    rows: list[Row] = []
    for job in jobs:
        rows += _measured(replace(job, **common), chosen, repeats, limit, progress, methods is not None, allocator)
    settings = {"target": target, "repeats": repeats, "quick": quick, "seed": seed, "input": shape}
    result = BenchResult(rows, environment(device), settings)
    return result if output is None else write(result, output, picture)


def _measured(
    job: Job,
    chosen: Sequence[Method],
    repeats: int,
    limit: int | None,
    progress: Progress,
    named: bool,
    allocator: bool,
) -> list[Row]:
    """Measures the rows of one network, time and gradients first, then the memory of each in a process of its own."""
    case = open_case(job)
    most = memory_limit(case.device) if limit is None else limit
    methods = chosen if named else [method.by_default(case) for method in chosen]
    found = measure_case(case, job.network or case.title, methods, repeats, most, progress)
    for row in found:
        if not row.skipped:
            progress(f"{case.title}, {case.steps} steps: memory of {row.name}")
            _add_memory(row, job, allocator)
    return found


def write(result: BenchResult, output: Path, picture: bool) -> BenchResult:
    """Writes the JSON and the picture; returns the result with their paths."""
    files = {"json": f"{output}.json"} | ({"picture": f"{output}.png"} if picture else {})
    result = replace(result, files=files)
    with written_whole(*map(Path, files.values())) as (table, *pictures):
        table.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
        for part in pictures:
            draw(result, part)
    return result


def environment(device: str) -> dict[str, Any]:
    """Returns what the measurement ran on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": name}


def _jobs(target: str | None, networks: Sequence[str] | None, steps: Sequence[int] | None, quick: bool) -> list[Job]:
    if steps is not None and (not steps or min(steps) < 1):
        raise UsageError("--steps needs whole numbers of at least 1, like 100,1000.")
    if target is not None:
        if networks is not None:
            raise UsageError("--network chooses among the built-in networks: leave it out with a TARGET.")
        chosen: Sequence[int | None] = steps or [None]
        return [Job(target=target, steps=length) for length in chosen]
    for name in networks or ():
        if name not in NETWORKS:
            raise UsageError(f"There is no network {name!r}: the networks are {', '.join(NETWORKS)}.")
    lengths = steps or (QUICK_STEPS if quick else STEPS)
    return [Job(network=name, steps=length) for name in (networks or NETWORKS) for length in lengths]


def _chosen(methods: Sequence[str] | None) -> list[Method]:
    for key in methods or ():
        if key not in BY_KEY:
            raise UsageError(f"There is no row {key!r}: the rows are {', '.join(BY_KEY)}.")
    return [method for method in METHODS if methods is None or method.key in (*methods, BASELINE)]


def _add_memory(row: Row, job: Job, allocator: bool) -> None:
    for returned in (False, True) if allocator else (False,):
        found = measure_peak(job, row.method, returned)
        if isinstance(found, str):
            row.note = f"{row.note}; {found}" if row.note else found
        elif returned:
            row.returned_bytes = found.peak
        else:
            row.peak_bytes, row.start_bytes = found.peak, found.start


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
