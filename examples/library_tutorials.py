"""A tutorial each of snnTorch, SpikingJelly and Norse, converted in one line.

python examples/library_tutorials.py                       # those that are installed
python examples/library_tutorials.py --library snntorch
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import tracecompile

CHANNELS, CLASSES = 20, 4


def snntorch_net() -> nn.Module:
    """Tutorial 5: two layers of Leaky, the loop in forward."""
    import snntorch as snn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(CHANNELS, 32), snn.Leaky(beta=0.95)
            self.fc2, self.lif2 = nn.Linear(32, CLASSES), snn.Leaky(beta=0.95)

        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
            mem2_rec = []
            for step in range(x.size(0)):
                spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
                _, mem2 = self.lif2(self.fc2(spk1), mem2)
                mem2_rec.append(mem2)
            return torch.stack(mem2_rec).mean(0)

    return Net()


def spikingjelly_net() -> nn.Module:
    """The first classifier: LIF nodes, reset before every sequence, firing rates as scores."""
    from spikingjelly.activation_based import functional as sj
    from spikingjelly.activation_based import layer, neuron, surrogate

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(
                layer.Linear(CHANNELS, 32), neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan()),
                layer.Linear(32, CLASSES), neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan()),
            )  # fmt: skip
            with torch.no_grad():  # as they come, the neurons of the second layer would stay silent
                self.layer[0].weight.mul_(3)
                self.layer[2].weight.mul_(4)

        def forward(self, x: Tensor) -> Tensor:
            sj.reset_net(self)
            rate: Any = 0.0
            for t in range(x.shape[0]):
                rate = rate + self.layer(x[t])
            return rate / x.shape[0]

    return Net()


def norse_net() -> nn.Module:
    """The classification tutorial: a recurrent LIF cell and a leaky readout."""
    import norse.torch as norse

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l1 = norse.LIFRecurrentCell(CHANNELS, 32, p=norse.LIFParameters(v_th=torch.as_tensor(0.3)))
            self.fc_out, self.out = nn.Linear(32, CLASSES, bias=False), norse.LICell()

        def forward(self, x: Tensor) -> Tensor:
            s1 = so = None
            voltages = []
            for ts in range(x.shape[0]):
                z, s1 = self.l1(x[ts], s1)
                vo, so = self.out(self.fc_out(z), so)
                voltages.append(vo)
            return torch.stack(voltages).mean(0)

    return Net()


TUTORIALS: dict[str, Callable[[], nn.Module]] = {
    "snntorch": snntorch_net,
    "spikingjelly": spikingjelly_net,
    "norse": norse_net,
}


def main(arguments: Sequence[str] | None = None) -> dict[str, tuple[bool, float, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=TUTORIALS, default=None)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args(arguments)
    chosen = [options.library] if options.library else [name for name in TUTORIALS if find_spec(name)]
    results = {}
    for name in chosen:
        torch.manual_seed(0)
        model = TUTORIALS[name]()
        net = tracecompile.convert(model)  # the line
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        losses = []
        for _ in range(options.updates):
            labels = torch.randint(CLASSES, (32,))
            rates = torch.full((32, CLASSES, CHANNELS // CLASSES), 0.5)
            rates[torch.arange(32), labels] = 3.0
            x = rates.flatten(1) * torch.rand(options.steps, 32, CHANNELS)
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x), labels)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        with torch.no_grad():
            equal = torch.equal(net(x), model(x))
        results[name] = equal, losses[0], losses[-1]
        print(f"{name:13} equal bit for bit: {equal}; loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    return results


if __name__ == "__main__":
    main()
