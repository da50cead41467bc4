"""A built-in network in BrainTrace (JAX), trained by its rule pp_prop, in a process of its own.

    python -P pp_prop.py FOLDER THREADS

The folder has ``task.npz``: the weights by the names of the model's parameters, ``x`` [time, batch, inputs],
``cotangent`` [batch, classes] of the mean scores, ``leak`` and ``slope``. Then it does what it reads, a line each, and
answers with a line: ``step`` runs a training step, ``gradients`` writes ``gradients.npz``, ``peak`` says the peak of
its memory in bytes.

It imports nothing of tracecompile, so that it runs under any Python that has BrainTrace. Run with braintrace 0.2.6,
brainstate 0.5.4 and jax 0.10.2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]


def network(weights: Arrays, batch: int, leak: float, slope: float) -> Any:
    """Returns the network, a brainstate module that takes one step [batch, inputs] a call.

    A neuron keeps its membrane before the reset alone: spikes kept as a second state would be counted twice.
    """
    import brainstate
    import braintrace
    import jax
    import jax.numpy as jnp

    @jax.custom_jvp  # type: ignore[untyped-decorator, unused-ignore]
    def spike(distance: Any) -> Any:
        return (distance > 0).astype(distance.dtype)

    @spike.defjvp  # type: ignore[untyped-decorator, unused-ignore]
    def _slope(values: Any, tangents: Any) -> Any:
        return spike(values[0]), tangents[0] / (1.0 + slope * jnp.abs(values[0])) ** 2

    def linear(name: str) -> Any:
        weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        begin: dict[str, Any] = {"w_init": lambda *shape, **options: jnp.asarray(weight.T), "b_init": None}
        if bias is not None:
            begin["b_init"] = lambda *shape, **options: jnp.asarray(bias)
        return braintrace.nn.Linear(weight.shape[1], weight.shape[0], **begin)

    class Neurons(brainstate.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self, name: str, features: int) -> None:
            super().__init__()
            self.features = features
            self.lateral = linear(f"{name}.lateral") if f"{name}.lateral.weight" in weights else None

        def init_state(self, batch_size: int | None = None, **options: Any) -> None:
            self.membrane = brainstate.HiddenState(jnp.zeros((batch, self.features)))

        def update(self, current: Any) -> Any:
            before = self.membrane.value
            fired = spike(before - 1.0)
            membrane = leak * (before - jax.lax.stop_gradient(fired)) + current
            self.membrane.value = membrane if self.lateral is None else membrane + self.lateral(fired)
            return spike(self.membrane.value - 1.0)

    class Network(brainstate.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.readout = linear("fc1"), linear("fc2"), linear("readout")
            self.lif1, self.lif2 = (Neurons(f"lif{i}", len(weights[f"fc{i}.weight"])) for i in (1, 2))

        def update(self, x: Any) -> Any:
            return self.readout(self.lif2(self.fc2(self.lif1(self.fc1(x)))))

    return Network()


def training_step(task: Arrays) -> Callable[[], Arrays]:
    """Returns what runs a training step, forward and backward; it returns the gradients by the model's names.

    Every step is a window of its own (``multi-step``): in the mode ``single-step``, which is BrainTrace's default, what
    lies outside of time, as the readout does, gets no gradient at all.
    """
    import brainstate
    import braintrace
    import jax
    import jax.numpy as jnp

    x, cotangent, leak = jnp.asarray(task["x"]), jnp.asarray(task["cotangent"]), float(task["leak"])
    net = network(task, x.shape[1], leak, float(task["slope"]))
    learner = braintrace.compile(
        net, "pp_prop", x[0], batch_size=x.shape[1], decay_or_rank=leak, vjp_method="multi-step"
    )

    def step() -> Any:
        for neurons in (net.lif1, net.lif2):
            neurons.membrane.value = jnp.zeros_like(neurons.membrane.value)
        learner.reset_state(x.shape[1])
        return learner.etrace_grad(x, step_fn=lambda x_t: (learner(x_t) * cotangent).sum())

    run = brainstate.transform.jit(step)

    def named() -> Arrays:
        found: dict[str, Any] = {}
        for path, parts in jax.block_until_ready(run()).items():
            layer = ".".join(path[:-1])
            found |= {f"{layer}.weight": parts["weight"].T}
            found |= {f"{layer}.bias": parts["bias"]} if "bias" in parts else {}
        return found

    return named


def main(folder: Path, threads: int) -> None:
    """Does what it reads."""
    if hasattr(os, "sched_setaffinity"):  # jax takes as many threads as there are processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    with np.load(folder / "task.npz") as loaded:
        step = training_step(dict(loaded))
    gradients: Arrays = {}
    for line in sys.stdin:
        match line.strip():
            case "step":
                gradients, answer = step(), "done"
            case "gradients":
                arrays: dict[str, Any] = {name: np.asarray(value) for name, value in gradients.items()}
                np.savez(folder / "gradients.npz", **arrays)
                answer = "done"
            case "peak":
                status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
                answer = str(next(int(row.split()[1]) * 1024 for row in status if row.startswith("VmHWM:")))
        print(answer, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
