"""BrainTrace's rule pp_prop, in a Python of its own: JAX and torch need not be in one environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracecompile.bench import pp_prop
from tracecompile.bench.case import Case
from tracecompile.bench.networks import CLASSES, LEAK, SLOPE, ConvNet, Looped
from tracecompile.bench.over_time import looped_of
from tracecompile.bench.running import Run, Skipped
from tracecompile.diagnostics.check import projection_loss

PYTHON = "TRACECOMPILE_BRAINTRACE_PYTHON"
"""Environment variable with the Python that has BrainTrace; without it, it is looked for in this one."""
NEEDED = "import braintrace, brainstate, jax, numpy"


class Elsewhere(Run):
    """A training step that another process runs."""

    def __init__(self, case: Case, looped: Looped, python: str) -> None:
        note = f"decay {LEAK}, windows of one step, in a process of its own"
        super().__init__(lambda: looped, lambda module: None, note=note)
        self._folder = tempfile.mkdtemp(prefix="tracecompile-bench-")
        (x,) = case.inputs
        scores = torch.zeros(x.shape[1], CLASSES, requires_grad=True)
        (cotangent,) = torch.autograd.grad(projection_loss(scores), scores)  # the loss is linear in the scores
        task: dict[str, Any] = {name: value.detach().numpy() for name, value in looped.named_parameters()}
        task |= {"x": x.numpy(), "cotangent": cotangent.numpy(), "leak": LEAK, "slope": SLOPE}
        np.savez(Path(self._folder) / "task.npz", **task)
        command = [python, "-P", str(Path(pp_prop.__file__)), self._folder, str(torch.get_num_threads())]
        self._errors = (Path(self._folder) / "errors.txt").open("w+")
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )

    def __del__(self) -> None:
        """Ends the process."""
        if hasattr(self, "_process"):
            self._process.kill()
            self._process.communicate()
            self._errors.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def step(self) -> None:
        """Runs once."""
        self._asked("step")

    def gradients(self) -> dict[str, Tensor | None]:
        """Returns the gradients of the last run by the names of the model's parameters."""
        self._asked("gradients")
        with np.load(Path(self._folder) / "gradients.npz") as found:
            return {name: torch.from_numpy(found[name].copy()) for name in found}

    def peak(self) -> int:
        """Returns the peak memory of the process, in bytes."""
        return int(self._asked("peak"))

    def _asked(self, what: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(what, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if answer:
            return answer
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
        raise Skipped(f"the process of BrainTrace has ended: {last}")


def braintrace_pp_prop(case: Case) -> Run:
    """Training online by products of filtered inputs and filtered slopes (Wang et al.), as BrainTrace 0.2 has it.

    Raises:
        Skipped: BrainTrace is not installed, or the network is none that is written for it.
    """
    looped = looped_of(case)
    if isinstance(looped, ConvNet):
        raise Skipped("written in BrainTrace for the dense and the recurrent network")
    if case.device.type != "cpu":
        raise Skipped("BrainTrace is run on the CPU alone")
    python = os.environ.get(PYTHON) or sys.executable
    found = subprocess.run([python, "-P", "-c", NEEDED], capture_output=True, text=True, check=False)
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise Skipped(f"BrainTrace is not installed for {python} ({reason}); {PYTHON} names another Python")
    return Elsewhere(case, looped, python)
