"""A slow, independent reference of the `measured` rule with K bins, in float64, as plain loops.

It evaluates the formulas of the design note (gradient-rules, sections 2 and 3) with memory that grows with the number
of steps: the whole forward pass is stored first, and everything is measured from the stored pass. It shares no code
with the package, so that an agreement between the two says something.

Notation, for one layer with n neurons and batch B:

    t in 0 .. T-1           steps;  step t lies in bin floor(t K / T);  w_c = number of steps in bin c
    I_t = W x_t + b + V y_{t-1} + U z_{t-1}          current: input, own spikes, spikes z of the layer above
    (s_t, y_t) = core(s_{t-1}, I_t; p)               elementwise;  s_{-1} = 0, y_{-1} = 0
    X_c, Y_c, D_c           means over the bin's steps of x_t, y_t and y_{t-1}
    M[c', c]                d Y_{c'} / d(constant extra current in bin c),  for c' >= c
    R^p[c]                  d Y_c / dp
    G_c                     dL/dY_c as it arrives from outside the layer
    h_c                     dL/dY_c including what returns through delayed connections
    q_c                     dL/d(constant extra current in bin c) = sum over c' >= c of M[c', c] h_{c'}

A learning signal that differs within the bins is taken step by step through the top layer; the layer below it gets

    q_c = sum over t of (d y_t / d(constant extra current in bin c)) dL/dy_t
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

States = tuple[Tensor, ...]
Parameters = dict[str, Tensor]
Core = Callable[[States, Tensor, Parameters], tuple[States, Tensor]]


# ---------------------------------------------------------------------------------------------------------------------
# Neuron cores
# ---------------------------------------------------------------------------------------------------------------------


class Spike(torch.autograd.Function):
    """Heaviside step; derivative 1 / (1 + 2 |u|)^2 in its place.

    The surrogate has only a `backward`, as users write it: there is no `jvp`.
    """

    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        slope: Tensor = 1 / (1 + 2 * distance.abs()) ** 2
        return signal * slope


def spike(distance: Tensor) -> Tensor:
    """1 where `distance` >= 0, else 0, with the surrogate derivative of `Spike`."""
    spikes: Tensor = Spike.apply(distance)  # type: ignore[no-untyped-call]
    return spikes


def after_reset(membrane: Tensor, spikes: Tensor, threshold: Tensor, reset: str, detach: bool) -> Tensor:
    """The membrane after a spike.

    subtract: v - theta s;  zero: v (1 - s);  none: v.  With `detach`, s is a constant for the derivative.
    """
    if detach:
        spikes = spikes.detach()
    if reset == "subtract":
        return membrane - threshold * spikes
    if reset == "zero":
        return membrane * (1 - spikes)
    if reset == "none":
        return membrane
    raise ValueError(f"reset is {reset!r}; it must be 'subtract', 'zero' or 'none'")


def leaky_integrate_and_fire(reset: str, detach: bool) -> Core:
    """States (v,), parameters leak b and threshold theta:  v = b v + I,  s = spike(v - theta),  v = reset(v, s)."""

    def core(states: States, current: Tensor, params: Parameters) -> tuple[States, Tensor]:
        (membrane,) = states
        membrane = params["leak"] * membrane + current
        spikes = spike(membrane - params["threshold"])
        return (after_reset(membrane, spikes, params["threshold"], reset, detach),), spikes

    return core


def adaptive_threshold(reset: str, detach: bool) -> Core:
    """States (v, a), parameters leak b, threshold theta, adaptation k, adaptation_leak r:

    v = b v + I,  theta_t = theta + k a,  s = spike(v - theta_t),  v = reset(v, s; theta_t),  a = r a + s
    """

    def core(states: States, current: Tensor, params: Parameters) -> tuple[States, Tensor]:
        membrane, fatigue = states
        membrane = params["leak"] * membrane + current
        threshold = params["threshold"] + params["adaptation"] * fatigue
        spikes = spike(membrane - threshold)
        fatigue = params["adaptation_leak"] * fatigue + spikes
        return (after_reset(membrane, spikes, threshold, reset, detach), fatigue), spikes

    return core


def second_order_synapse(reset: str, detach: bool) -> Core:
    """States (i, v), parameters synapse_leak a, leak b, threshold theta:  i = a i + I,  v = b v + i,  then as above."""

    def core(states: States, current: Tensor, params: Parameters) -> tuple[States, Tensor]:
        synapse, membrane = states
        synapse = params["synapse_leak"] * synapse + current
        membrane = params["leak"] * membrane + synapse
        spikes = spike(membrane - params["threshold"])
        return (synapse, after_reset(membrane, spikes, params["threshold"], reset, detach)), spikes

    return core


def leaky_integrator(states: States, current: Tensor, params: Parameters) -> tuple[States, Tensor]:
    """A readout without spikes. States (v,), parameter leak b:  v = b v + I,  y = v."""
    (membrane,) = states
    membrane = params["leak"] * membrane + current
    return (membrane,), membrane


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """One layer:  I_t = W x_t + b + V y_{t-1} + U z_{t-1},  (s_t, y_t) = core(s_{t-1}, I_t; p).

    `x` is the output of the layer below in the same step (or the external input), `z` that of the layer above.
    """

    core: Core
    states: int
    """How many states the core carries; all start at zero."""
    weight: Tensor
    """W, [neurons, inputs]."""
    bias: Tensor | None = None
    """b, [neurons]."""
    lateral: Tensor | None = None
    """V, [neurons, neurons]."""
    topdown: Tensor | None = None
    """U, [neurons, neurons of the layer above]."""
    params: Parameters = field(default_factory=dict)
    """p, each [neurons] or a scalar tensor []."""

    @property
    def neurons(self) -> int:
        return self.weight.shape[0]


@dataclass
class Network:
    """A stack of layers, the bottom one first."""

    layers: list[Layer]

    def __post_init__(self) -> None:
        if self.layers[-1].topdown is not None:
            raise ValueError("the top layer has top-down weights, but there is no layer above it")


def named_parameters(network: Network) -> dict[str, Tensor]:
    """Every parameter under the name that the gradients use: 'layer0.weight', 'layer0.leak', ..."""
    named = {}
    for index, layer in enumerate(network.layers):
        for name in ("weight", "bias", "lateral", "topdown"):
            if getattr(layer, name) is not None:
                named[f"layer{index}.{name}"] = getattr(layer, name)
        for name, value in layer.params.items():
            named[f"layer{index}.{name}"] = value
    return named


@dataclass
class Step:
    """What one layer did in one step, everything [B, features]."""

    input: Tensor
    previous_states: States
    current: Tensor
    output: Tensor


def simulate(network: Network, x: Tensor) -> list[list[Step]]:
    """Run the network on `x` [T, B, inputs]; the result is indexed [layer][t]."""
    layers = network.layers
    batch = x.shape[1]
    states = [tuple(x.new_zeros(batch, layer.neurons) for _ in range(layer.states)) for layer in layers]
    outputs = [x.new_zeros(batch, layer.neurons) for layer in layers]
    history: list[list[Step]] = [[] for _ in layers]
    for x_t in x:
        previous_outputs = list(outputs)
        below = x_t
        for index, layer in enumerate(layers):
            current = below @ layer.weight.T
            if layer.bias is not None:
                current = current + layer.bias
            if layer.lateral is not None:
                current = current + previous_outputs[index] @ layer.lateral.T
            if layer.topdown is not None:
                current = current + previous_outputs[index + 1] @ layer.topdown.T
            next_states, output = layer.core(states[index], current, layer.params)
            history[index].append(Step(below, states[index], current, output))
            states[index], outputs[index], below = next_states, output, output
    return history


# ---------------------------------------------------------------------------------------------------------------------
# Backpropagation through time
# ---------------------------------------------------------------------------------------------------------------------


def autograd_gradients(network: Network, x: Tensor, signal: Tensor) -> dict[str, Tensor]:
    """Exact gradients of L = sum_t <signal_t, y_t> by autograd through time; `signal` is [T, B, top neurons]."""

    def leaf(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach().clone().requires_grad_()

    copy = Network(
        [
            Layer(
                layer.core,
                layer.states,
                layer.weight.detach().clone().requires_grad_(),
                leaf(layer.bias),
                leaf(layer.lateral),
                leaf(layer.topdown),
                {name: value.detach().clone().requires_grad_() for name, value in layer.params.items()},
            )
            for layer in network.layers
        ]
    )
    top_outputs = torch.stack([step.output for step in simulate(copy, x)[-1]])
    named = named_parameters(copy)
    gradients = torch.autograd.grad(
        (signal * top_outputs).sum(), list(named.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(named, gradients, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Bins
# ---------------------------------------------------------------------------------------------------------------------


def bin_edges(steps: int, bins: int) -> list[int]:
    """Edges a_0 = 0 < a_1 < ... < a_K = T such that bin c is the steps t with floor(t K / T) = c."""
    if not 1 <= bins <= steps:
        raise ValueError(f"{bins} bins for {steps} steps: every bin needs a step, so 1 <= bins <= steps")
    bin_of_step = [step * bins // steps for step in range(steps)]
    return [bin_of_step.index(c) for c in range(bins)] + [steps]


def delay_shares(edges: list[int], delay: int = 1) -> list[list[float]]:
    """shares[c][c']: the part of bin c, moved back by `delay` steps, that lies in bin c'.

    D_c = sum over c' of shares[c][c'] Y_c' when outputs are constant within bins. With delay 1 and w_c steps in bin c:
    (w_c - 1) / w_c to the own bin, 1 / w_c to the one before; the first bin's 1 / w_0 lies before the sequence, where
    outputs are zero.
    """
    bins = len(edges) - 1
    shares = [[0.0] * bins for _ in range(bins)]
    for c in range(bins):
        start, stop = edges[c] - delay, edges[c + 1] - delay
        for other in range(bins):
            overlap = min(stop, edges[other + 1]) - max(start, edges[other])
            shares[c][other] = max(overlap, 0) / (edges[c + 1] - edges[c])
    return shares


# ---------------------------------------------------------------------------------------------------------------------
# Measuring one layer
# ---------------------------------------------------------------------------------------------------------------------


def step_jacobian(layer: Layer, step: Step) -> list[list[Tensor]]:
    """The derivative of one core step, a table of [B, n] tensors: the core is elementwise, so neurons do not mix.

    Rows: the S new states, then the output. Columns: the S old states, the current, the parameters in order.
    Each row is one vector-Jacobian product of ones; a `detach` in the core makes its entries zero.
    """
    states = tuple(state.detach().clone().requires_grad_() for state in step.previous_states)
    current = step.current.detach().clone().requires_grad_()
    # One copy of a parameter per sample and neuron, so that the products of ones are not summed over samples.
    params = {name: value.detach().expand_as(current).clone().requires_grad_() for name, value in layer.params.items()}
    columns = [*states, current, *params.values()]
    with torch.enable_grad():
        new_states, output = layer.core(states, current, params)
    table = []
    for row in (*new_states, output):
        if row.requires_grad:
            ones = torch.ones_like(row)
            entries = torch.autograd.grad(
                row, columns, ones, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        else:
            entries = tuple(torch.zeros_like(current) for _ in columns)
        table.append(list(entries))
    return table


def advance(jacobian: list[list[Tensor]], tangent: list[Tensor], column: int | None) -> tuple[list[Tensor], Tensor]:
    """One step of one tangent:  e' = J_ss e + J_s*,  change of the output = J_ys e + J_y*.

    `column` says what is being varied in this step (* above): the current, a parameter, or nothing (None).
    """
    changes = []
    for row in jacobian:
        change = torch.zeros_like(row[-1])
        for entry, component in zip(row, tangent, strict=False):
            change = change + entry * component
        if column is not None:
            change = change + row[column]
        changes.append(change)
    return changes[:-1], changes[-1]


@dataclass
class Recording:
    """What the backward pass knows of one layer; lists are indexed by bin, every tensor [B, features]."""

    mean_input: list[Tensor]
    """X_c."""
    mean_output: list[Tensor]
    """Y_c."""
    mean_delayed: list[Tensor]
    """D_c, the mean of y_{t-1}."""
    response: list[list[Tensor]]
    """response[c'][c] = M[c', c]; zero for c' < c, since a current cannot change the past."""
    parameter_response: dict[str, list[Tensor]]
    """parameter_response[p][c] = R^p[c]."""


def record(layer: Layer, history: list[Step], edges: list[int]) -> Recording:
    """Bin means, causal tangents and responses of one layer from its stored forward pass.

    e[c] <- J_ss e[c] + (J_sI if c is the current bin)          M[now, c] += (J_ys e[c] + J_yI [c = now]) / w_now
    e^p  <- J_ss e^p  + ds/dp                                   R^p[now]  += (J_ys e^p  + dy/dp)          / w_now
    """
    bins = len(edges) - 1
    zeros = torch.zeros_like(history[0].current)
    current_column = layer.states
    parameter_columns = {name: layer.states + 1 + index for index, name in enumerate(layer.params)}

    response = [[zeros.clone() for _ in range(bins)] for _ in range(bins)]
    parameter_response = {name: [zeros.clone() for _ in range(bins)] for name in layer.params}
    mean_input, mean_output, mean_delayed = [], [], []

    tangents = [[zeros] * layer.states for _ in range(bins)]
    parameter_tangents = {name: [zeros] * layer.states for name in layer.params}
    outputs = [step.output for step in history]
    delayed = [zeros, *outputs[:-1]]

    for now in range(bins):
        start, stop = edges[now], edges[now + 1]
        width = stop - start
        mean_input.append(torch.stack([step.input for step in history[start:stop]]).mean(0))
        mean_output.append(torch.stack(outputs[start:stop]).mean(0))
        mean_delayed.append(torch.stack(delayed[start:stop]).mean(0))
        for step in history[start:stop]:
            jacobian = step_jacobian(layer, step)
            for c in range(now + 1):
                tangents[c], change = advance(jacobian, tangents[c], current_column if c == now else None)
                response[now][c] += change / width
            for name, column in parameter_columns.items():
                parameter_tangents[name], change = advance(jacobian, parameter_tangents[name], column)
                parameter_response[name][now] += change / width
    return Recording(mean_input, mean_output, mean_delayed, response, parameter_response)


# ---------------------------------------------------------------------------------------------------------------------
# Backward
# ---------------------------------------------------------------------------------------------------------------------


def coupled_groups(network: Network) -> list[list[int]]:
    """Layers that must be solved together, bottom group first: neighbours joined by top-down weights."""
    groups = [[0]]
    for index in range(1, len(network.layers)):
        if network.layers[index - 1].topdown is None:
            groups.append([index])
        else:
            groups[-1].append(index)
    return groups


@dataclass
class StepByStep:
    """What a signal on single steps gives besides that of the bins."""

    currents: dict[int, list[Tensor]] = field(default_factory=dict)
    """By layer, q_c that it adds to those of the layer."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the top layer, and of the parameters of cores."""
    feedback: list[Tensor] = field(default_factory=list)
    """Signal per bin on the top outputs through their own lateral weights."""


def take_step_by_step(network: Network, histories: list[list[Step]], edges: list[int], signal: Tensor) -> StepByStep:
    """Pulls dL/dy_t of the top, [T, B, n], through the top layer, and from there to the bins of the layer below it.

    A signal on the last step alone needs no second pass: it goes to the bins of the top layer.
    """
    found = StepByStep()
    top = len(network.layers) - 1
    layer, history = network.layers[top], histories[top]
    answers = answer(found, top, layer, history, edges, signal)
    if not bool(signal[:-1].any()):
        found.currents[top] = answers
        return found
    q = adjoint(layer, history, signal)
    name = f"layer{top}"
    found.gradients[f"{name}.weight"] = sum_of_products(q, [step.input for step in history])
    if layer.bias is not None:
        found.gradients[f"{name}.bias"] = torch.stack(q).sum((0, 1))
    found.feedback = [zeros_of(history) for _ in edges[1:]]
    if layer.lateral is not None:
        delayed = [zeros_of(history), *(step.output for step in history[:-1])]
        found.gradients[f"{name}.lateral"] = sum_of_products(q, delayed)
        for t in range(1, len(q)):
            made_in = next(c for c in range(len(edges) - 1) if t - 1 < edges[c + 1])
            found.feedback[made_in] = found.feedback[made_in] + q[t] @ layer.lateral
    if top > 0:
        below = torch.stack(q) @ layer.weight
        found.currents[top - 1] = answer(found, top - 1, network.layers[top - 1], histories[top - 1], edges, below)
    return found


def sum_of_products(q: list[Tensor], values: list[Tensor]) -> Tensor:
    return torch.stack([signal.T @ value for signal, value in zip(q, values, strict=True)]).sum(0)


def answer(
    found: StepByStep, index: int, layer: Layer, history: list[Step], edges: list[int], signal: Tensor
) -> list[Tensor]:
    """q_c = sum over t of (d y_t / d(constant extra current in bin c)) dL/dy_t, and the same for every parameter."""
    answers = [zeros_of(history) for _ in edges[1:]]
    tangents = [[zeros_of(history)] * layer.states for _ in edges[1:]]
    of_parameters = {name: zeros_of(history) for name in layer.params}
    parameter_tangents = {name: [zeros_of(history)] * layer.states for name in layer.params}
    for t, step in enumerate(history):
        jacobian = step_jacobian(layer, step)
        for c in range(len(edges) - 1):
            now = edges[c] <= t < edges[c + 1]
            tangents[c], change = advance(jacobian, tangents[c], layer.states if now else None)
            answers[c] = answers[c] + change * signal[t]
        for column, name in enumerate(layer.params, layer.states + 1):
            parameter_tangents[name], change = advance(jacobian, parameter_tangents[name], column)
            of_parameters[name] = of_parameters[name] + change * signal[t]
    for name, value in layer.params.items():
        found.gradients[f"layer{index}.{name}"] = of_parameters[name].sum_to_size(value.shape)
    return answers


def adjoint(layer: Layer, history: list[Step], signal: Tensor) -> list[Tensor]:
    """q_t by autograd through the layer's own core, its currents apart from each other."""
    currents = [step.current.detach().clone().requires_grad_() for step in history]
    states = history[0].previous_states
    outputs = []
    with torch.enable_grad():
        for current in currents:
            states, output = layer.core(states, current, layer.params)
            outputs.append(output)
        loss = (torch.stack(outputs) * signal).sum()
        found = torch.autograd.grad(loss, currents, allow_unused=True, materialize_grads=True)
    return list(found)


def zeros_of(history: list[Step]) -> Tensor:
    return torch.zeros_like(history[0].current)


def solve(
    network: Network,
    recordings: list[Recording],
    top_signal: list[Tensor],
    shares: list[list[float]],
    terms: int,
    jointly: bool,
    by_step: StepByStep | None = None,
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The signals h[layer][c] on mean outputs and q[layer][c] on currents, from the last bin to the first.

    For layer l with V_l, and U_{l-1} the top-down weights of the layer below it:

        r_l,c = V_l^T q_l,c + U_{l-1}^T q_{l-1},c                     signal on the delayed mean D_l,c
        h_l,c = G_l,c + sum over c' of shares[c'][c] r_l,c'           G_l,c = W_{l+1}^T q_{l+1},c, or `top_signal`
        q_l,c = sum over c' >= c of M_l[c', c] h_l,c'

    For c' > c the r are known. The own-bin r_l,c is not: it starts at zero and every one of the `terms` Neumann
    iterations replaces it by the r of the sweep before. A sweep goes through the layers of a group from top to bottom.
    The groups are single layers where no top-down weights join them; `jointly` makes the whole network one group,
    which has the same limit for many terms.
    """
    layers = network.layers
    bins = len(shares)
    zeros = [torch.zeros_like(recording.mean_output[0]) for recording in recordings]
    h = [[zeros[index]] * bins for index in range(len(layers))]
    q = [[zeros[index]] * bins for index in range(len(layers))]

    def outside_signal(index: int, c: int) -> Tensor:
        if index == len(layers) - 1:
            return top_signal[c]
        return q[index + 1][c] @ layers[index + 1].weight

    def delayed_signal(index: int, c: int) -> Tensor:
        total = zeros[index]
        own, below = layers[index], layers[index - 1] if index > 0 else None
        if own.lateral is not None:
            total = total + q[index][c] @ own.lateral
        if below is not None and below.topdown is not None:
            total = total + q[index - 1][c] @ below.topdown
        return total

    groups = [list(range(len(layers)))] if jointly else coupled_groups(network)
    for group in reversed(groups):
        for c in reversed(range(bins)):
            own_bin = {index: zeros[index] for index in group}
            for _ in range(terms + 1):
                for index in reversed(group):
                    total = outside_signal(index, c) + shares[c][c] * own_bin[index]
                    for later in range(c + 1, bins):
                        total = total + shares[later][c] * delayed_signal(index, later)
                    h[index][c] = total
                    given = by_step.currents.get(index) if by_step is not None else None
                    q[index][c] = zeros[index] if given is None else given[c]
                    for later in range(c, bins):
                        q[index][c] = q[index][c] + recordings[index].response[later][c] * h[index][later]
                own_bin = {index: delayed_signal(index, c) for index in group}
    return h, q


def reference_gradients(
    network: Network,
    x: Tensor,
    signal: Tensor,
    bins: int | list[int],
    terms: int,
    jointly: bool = False,
    by_step: bool = False,
) -> dict[str, Tensor]:
    """Gradients of the `measured` rule with `bins` bins, or bins with these edges.

    `signal` is dL/dy_t of the top output, [T, B, top neurons].

    dL/dW = sum_c q_c X_c^T,   dL/db = sum_c q_c,   dL/dV = sum_c q_c D_c^T,   dL/dp = sum_c h_c R^p[c],
    dL/dU = sum_c q_c D_c^T with the D of the layer above; all summed over samples.

    With bins = T this is backpropagation through time, whatever `terms`. For `jointly` see `solve`. With `by_step` the
    signal is taken step by step, see above; the readouts must then have no recurrent weights.
    """
    edges = bin_edges(len(x), bins) if isinstance(bins, int) else bins
    shares = delay_shares(edges)
    with torch.no_grad():
        histories = simulate(network, x)
        recordings = [record(layer, history, edges) for layer, history in zip(network.layers, histories, strict=True)]
        top_signal = [signal[start:stop].sum(0) for start, stop in pairwise(edges)]
        gradients = {name: torch.zeros_like(value) for name, value in named_parameters(network).items()}
        found = take_step_by_step(network, histories, edges, signal) if by_step else None
        if found is not None:
            top_signal = found.feedback or [torch.zeros_like(value) for value in top_signal]
            gradients |= {name: value.clone() for name, value in found.gradients.items()}
        h, q = solve(network, recordings, top_signal, shares, terms, jointly, found)

        for index, layer in enumerate(network.layers):
            own = recordings[index]
            for c in range(len(shares)):
                gradients[f"layer{index}.weight"] += q[index][c].T @ own.mean_input[c]
                if layer.bias is not None:
                    gradients[f"layer{index}.bias"] += q[index][c].sum(0)
                if layer.lateral is not None:
                    gradients[f"layer{index}.lateral"] += q[index][c].T @ own.mean_delayed[c]
                if layer.topdown is not None:
                    gradients[f"layer{index}.topdown"] += q[index][c].T @ recordings[index + 1].mean_delayed[c]
                for name, value in layer.params.items():
                    per_sample = h[index][c] * own.parameter_response[name][c]
                    gradients[f"layer{index}.{name}"] += per_sample.sum_to_size(value.shape)
    return gradients
