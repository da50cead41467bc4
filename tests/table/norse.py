"""Networks in the style of Norse's documentation: functional steps, states that the caller holds as named tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from table.harness import Entry

INPUTS, HIDDEN, CLASSES = 6, 8, 3


def sequence(steps: int, batch: int) -> tuple[Tensor]:
    """A sequence of input currents, time first."""
    return (6 * torch.randn(steps, batch, INPUTS),)


def one_step(steps: int, batch: int) -> tuple[Tensor, None]:
    """The input of one step, and no state: the model makes its own."""
    return 6 * torch.randn(batch, INPUTS), None


def pictures(steps: int, batch: int) -> tuple[Tensor]:
    """A sequence of small pictures, as an encoder makes them."""
    return (2 * torch.rand(steps, batch, 1, 14, 14),)


class Cells(nn.Module):
    """A step function: two LIF cells and a leaky readout, their states in one tuple that the caller hands back."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = norse.LIFCell()
        self.fc2 = nn.Linear(HIDDEN, HIDDEN)
        self.lif2 = norse.LIFCell(norse.LIFParameters(v_th=torch.as_tensor(0.1)))
        self.out = norse.LILinearCell(HIDDEN, CLASSES)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s1, s2, so = (None, None, None) if state is None else state
        z, s1 = self.lif1(self.fc1(x), s1)
        z, s2 = self.lif2(self.fc2(z), s2)
        v, so = self.out(z, so)
        return v, (s1, s2, so)


class LoopOverCells(nn.Module):
    """The same written as a loop over time that returns every voltage, with the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = Cells()

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        seq_length, _, _ = x.shape
        state, voltages = None, []
        for ts in range(seq_length):
            v, state = self.cells(x[ts], state)
            voltages += [v]
        return torch.stack(voltages), state


class RecurrentCell(nn.Module):
    """A recurrent LIF cell and a leaky integrator; the maximum of the voltage over time is the logit."""

    def __init__(self, autapses: bool = True) -> None:
        import norse.torch as norse

        super().__init__()
        parameters = norse.LIFParameters(v_th=torch.as_tensor(0.3))
        self.lif = norse.LIFRecurrentCell(INPUTS, HIDDEN, p=parameters, autapses=autapses)
        self.fc = nn.Linear(HIDDEN, CLASSES)
        self.out = norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        s1 = so = None
        voltages = []
        for x_t in x:
            z, s1 = self.lif(x_t, s1)
            v, so = self.out(self.fc(z), so)
            voltages.append(v)
        return torch.max(torch.stack(voltages), dim=0).values


class OverTime(nn.Module):
    """Modules that loop over time themselves, one after the other, final states returned."""

    def __init__(self, second: Callable[[], nn.Module]) -> None:
        import norse.torch as norse

        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = norse.LIF()
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.second = second()

    def forward(self, x: Tensor) -> tuple[Tensor, Any, Any]:
        z, s1 = self.lif1(self.fc1(x))
        y, s2 = self.second(self.fc2(z))
        return y, s1, s2


class Box(nn.Module):
    """Current-less LIF cells, one for each way to reset."""

    def __init__(self) -> None:
        import norse.torch as norse
        from norse.torch.functional.lif_box import LIFBoxParameters
        from norse.torch.functional.reset import reset_subtract

        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = norse.LIFBoxCell(LIFBoxParameters(v_th=torch.as_tensor(0.3)))
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = norse.LIFBoxCell(LIFBoxParameters(v_th=torch.as_tensor(0.05), reset_method=reset_subtract))

    def forward(self, x: Tensor) -> Tensor:
        s1 = s2 = None
        spikes = []
        for ts in range(x.shape[0]):
            z, s1 = self.lif1(self.fc1(x[ts]), s1)
            z, s2 = self.lif2(self.fc2(z), s2)
            spikes.append(z)
        return torch.stack(spikes)


class Convolutional(nn.Module):
    """The MNIST tutorial's network, small: two convolutions, a dense layer and a leaky integrator as readout."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        self.features = 3 * 3 * 4
        self.conv1 = nn.Conv2d(1, 3, 3, 1)
        self.conv2 = nn.Conv2d(3, 4, 3, 1)
        self.fc1 = nn.Linear(self.features, HIDDEN)
        self.lif0 = norse.LIFCell(p=norse.LIFParameters(alpha=torch.as_tensor(80.0), v_th=torch.as_tensor(0.1)))
        self.lif1 = norse.LIFCell(p=norse.LIFParameters(v_th=torch.as_tensor(0.1)))
        self.lif2 = norse.LIFCell(p=norse.LIFParameters(v_th=torch.as_tensor(0.05)))
        self.out = norse.LILinearCell(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        seq_length, batch_size = x.shape[0], x.shape[1]
        s0 = s1 = s2 = so = None
        voltages = torch.zeros(seq_length, batch_size, CLASSES, device=x.device, dtype=x.dtype)
        for ts in range(seq_length):
            z = self.conv1(x[ts])
            z, s0 = self.lif0(z, s0)
            z = F.max_pool2d(z, 2, 2)
            z = 10 * self.conv2(z)
            z, s1 = self.lif1(z, s1)
            z = F.avg_pool2d(z, 1, 1)[:, :, :3, :3]
            z = z.reshape(-1, self.features)
            z = self.fc1(z)
            z, s2 = self.lif2(z, s2)
            v, so = self.out(F.relu(z), so)
            voltages[ts, :, :] = v
        return voltages


def sequential() -> nn.Module:
    """SequentialState of cells: one step a call, the list of states handed back."""
    import norse.torch as norse

    return norse.SequentialState(
        nn.Linear(INPUTS, HIDDEN),
        norse.LIFCell(),
        nn.Linear(HIDDEN, HIDDEN),
        norse.LIFRecurrentCell(HIDDEN, HIDDEN, p=norse.LIFParameters(v_th=torch.as_tensor(0.3))),
        nn.Linear(HIDDEN, CLASSES),
        norse.LICell(),
    )


def sequential_over_time() -> nn.Module:
    """SequentialState of modules that loop over time, one after the other."""
    import norse.torch as norse

    return norse.SequentialState(
        nn.Linear(INPUTS, HIDDEN),
        norse.LIF(),
        norse.LIFRecurrent(HIDDEN, HIDDEN, p=norse.LIFParameters(v_th=torch.as_tensor(0.3))),
        nn.Linear(HIDDEN, CLASSES),
        norse.LI(),
    )


class LoopOverSequential(nn.Module):
    """A loop over a convolutional SequentialState whose states the loop holds."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        low = norse.LIFParameters(v_th=torch.as_tensor(0.1))
        self.net = norse.SequentialState(
            nn.Conv2d(1, 3, 3),
            norse.LIFCell(low),
            nn.AvgPool2d(3),
            nn.Flatten(),
            nn.Linear(48, HIDDEN),
            norse.LIFCell(low),
            norse.LILinearCell(HIDDEN, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        state, voltages = None, []
        for x_t in x:
            v, state = self.net(x_t, state)
            voltages.append(v)
        return torch.stack(voltages)


class ResidualOverTime(nn.Module):
    """Convolutions over time and batch at once, neurons over time, and connections past the second layer."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        low = norse.LIFParameters(v_th=torch.as_tensor(0.1))
        self.conv1 = nn.Conv1d(1, 4, 3, padding=1)
        self.lif1 = norse.LIF(low)
        self.conv2 = nn.Conv1d(4, 4, 3, padding=1)
        self.lif2 = norse.LIF(low)
        self.fc = nn.Linear(4 * INPUTS, CLASSES)
        self.out = norse.LI()

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        steps, batch, _ = x.shape
        y, _ = self.lif1(self.conv1(x.reshape(steps * batch, 1, INPUTS)).view(steps, batch, 4, INPUTS))
        z, _ = self.lif2(self.conv2(y.flatten(0, 1)).view(steps, batch, 4, INPUTS) + y)
        return self.out(self.fc(torch.relu(z + y).flatten(2)))


class Lifted(nn.Module):
    """SequentialState over time with a lifted convolution."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        low = norse.LIFParameters(v_th=torch.as_tensor(0.1))
        self.net = norse.SequentialState(
            norse.Lift(nn.Conv2d(1, 3, 3)),
            norse.LIF(low),
            norse.Lift(nn.AvgPool2d(3)),
            nn.Flatten(2),
            nn.Linear(48, HIDDEN),
            norse.LIFRecurrent(HIDDEN, CLASSES, p=low),
            norse.LI(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0]


class Encoded(nn.Module):
    """A still input that an encoder turns into spike trains, layers over time, the best voltage as class score."""

    def __init__(self, steps: int) -> None:
        import norse.torch as norse

        super().__init__()
        low = norse.LIFParameters(v_th=torch.as_tensor(0.1))
        self.encoder = norse.ConstantCurrentLIFEncoder(steps)
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.lif = norse.LIFRecurrent(HIDDEN, HIDDEN, p=low)
        self.readout = nn.Linear(HIDDEN, CLASSES)
        self.out = norse.LI()

    def forward(self, x: Tensor) -> Tensor:
        z, _ = self.lif(5 * self.fc(self.encoder(x)))
        v, _ = self.out(self.readout(z))
        return F.log_softmax(v.max(0).values, dim=1)


def still(steps: int, batch: int) -> tuple[Tensor]:
    """An input that does not change over time."""
    return (4 * torch.rand(batch, INPUTS),)


def recurrent_without_autapses() -> nn.Module:
    return RecurrentCell(autapses=False)


def over_time_with_readout() -> nn.Module:
    def readout() -> nn.Module:
        import norse.torch as norse

        return norse.LI()

    return OverTime(readout)


def over_time_recurrent() -> nn.Module:
    def recurrent() -> nn.Module:
        import norse.torch as norse

        return norse.LIFRecurrent(CLASSES, HIDDEN, p=norse.LIFParameters(v_th=torch.as_tensor(0.3)))

    return OverTime(recurrent)


def entry(name: str, build: Callable[[], nn.Module], example: Callable[..., Any] = sequence, **options: Any) -> Entry:
    # States of Norse start in float32 whatever the dtype of the input, and so do its parameters.
    return Entry(f"norse: {name}", build, example, library="norse", double=False, **options)


ENTRIES = [
    entry("LIFCell and LILinearCell, explicit state", Cells, one_step, kind="step"),
    entry("loop over cells that returns the last state", LoopOverCells),
    entry("LIFRecurrentCell and LICell, maximum over time", RecurrentCell),
    entry("LIFRecurrentCell without autapses", recurrent_without_autapses),
    entry("LIF and LI over time", over_time_with_readout),
    entry("LIF and LIFRecurrent over time", over_time_recurrent),
    entry("LIFBoxCell, both resets", Box),
    entry("SequentialState of cells", sequential, one_step, kind="step"),
    entry("SequentialState over time", sequential_over_time),
    entry("still input, encoder inside, layers over time", Cells, still, build_for=Encoded),
    entry("lifted convolution in a SequentialState over time", Lifted, pictures),
    entry("residual convolutional net over time", ResidualOverTime),
    entry("loop over a convolutional SequentialState", LoopOverSequential, pictures),
    entry("convolutional net of the MNIST tutorial", Convolutional, pictures),
]  # fmt: skip
