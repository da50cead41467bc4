"""Peak memory of one row, in a process of its own: ``python -m tracecompile.bench.worker JOB``."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import tracecompile
from tracecompile.bench.case import Case, Job, open_case
from tracecompile.bench.methods import BY_KEY, Method
from tracecompile.diagnostics.memory import peak_resident_bytes

REPETITIONS = 2
"""Training steps that a process runs: the second one meets what the first one left behind."""
SHORT = 64
"""Time steps of the training step before them, whose memory is what does not depend on the length: long enough for all
that is compiled, or written down, once."""
TIME_LIMIT = 3600
RETURNED = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment in which glibc's allocator gives blocks of 64 kB and more back as soon as they are freed."""


@dataclass(frozen=True)
class Peak:
    """Peak memory of a process, in bytes.

    Attributes:
        peak: After its training steps: main memory of the process, or memory of the CUDA device.
        start: Before them, but after a training step of ``SHORT`` time steps, with the inputs of all steps loaded; None
            where the sequence is no longer than that, or its length cannot be chosen.
    """

    peak: int
    start: int | None


def measure_peak(job: Job, key: str, returned: bool = False) -> Peak | str:
    """Runs a row in a fresh process.

    Args:
        job: The case.
        key: The row.
        returned: Whether the process gives memory back as soon as it is freed, so that its peak is what was in use.

    Returns:
        What it took; a sentence where the process failed.
    """
    package = str(Path(tracecompile.__file__).parent.parent)
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
    task = json.dumps({"job": job.to_dict(), "method": key, "threads": torch.get_num_threads()})
    command = [sys.executable, "-m", "tracecompile.bench.worker", task]
    environment = {**os.environ, "PYTHONPATH": path} | (RETURNED if returned else {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIME_LIMIT, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"the process for its memory ended with code {done.returncode}: {last}"
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Peak(found["peak"], found["start"])


def run_task(task: str) -> Peak:
    """Does in this process what ``measure_peak`` asks of another."""
    asked = json.loads(task)
    torch.set_num_threads(asked["threads"])
    case, method = open_case(Job(**asked["job"])), BY_KEY[asked["method"]]
    short = case.of_length(SHORT) if case.steps > SHORT else None
    start = None
    if short is not None:
        start = _peak_of(method, short)
        gc.collect()  # a converted module has cycles, and two of them at once are not what is measured
    return Peak(_peak_of(method, case, REPETITIONS), start)


def _peak_of(method: Method, case: Case, repetitions: int = 1) -> int:
    """Trains, and returns the peak of the process that did, which it has reached by then."""
    run = method.make(case)
    for _ in range(repetitions):
        run.prepare()
        run.step()
    elsewhere = run.peak()
    if elsewhere is not None:
        return elsewhere
    return torch.cuda.max_memory_allocated(case.device) if case.device.type == "cuda" else peak_resident_bytes()


if __name__ == "__main__":
    peak = run_task(sys.argv[1])
    print(json.dumps({"peak": peak.peak, "start": peak.start}))
