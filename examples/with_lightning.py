"""Lightning: the converted net is an attribute of the LightningModule, and the Trainer does the rest.

    pip install lightning
    python examples/with_lightning.py

Sanity check, ``Trainer.fit`` and going on from a checkpoint. No class of tracecompile's is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import tracecompile
import tracecompile.nn as snn

CHANNELS, CLASSES = 12, 3


class Net(nn.Module):
    """One layer of spiking neurons and a leaky readout, averaged over time."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weights, self.neurons = nn.Linear(CHANNELS, hidden), snn.LIF(hidden)
        self.output, self.readout = nn.Linear(hidden, CLASSES), snn.LI(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state, last, total = None, None, 0.0
        for x_t in x:
            spikes, state = self.neurons(self.weights(x_t), state)
            score, last = self.readout(self.output(spikes), last)
            total = total + score
        return total / x.shape[0]


class Classifier(lightning.LightningModule):
    """As for any module; ``convert`` is the only line that would not be there without it."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = tracecompile.convert(Net(hidden))

    def shared_step(self, batch: Sequence[Tensor], name: str) -> Tensor:
        spikes, labels = batch
        scores = self.net(spikes.transpose(0, 1))  # a loader puts the batch first
        loss = functional.cross_entropy(scores, labels)
        self.log(f"{name}_loss", loss)
        self.log(f"{name}_accuracy", (scores.argmax(1) == labels).float().mean())
        return loss

    def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        return self.shared_step(batch, "train")

    def validation_step(self, batch: Sequence[Tensor], index: int) -> None:
        self.shared_step(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def loader(examples: int, steps: int, batch: int, seed: int, shuffle: bool) -> DataLoader[Any]:
    """Spike trains in which one of three groups of channels fires more often."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (examples,), generator=generator)
    rates = torch.full((examples, CLASSES, CHANNELS // CLASSES), 0.1)
    rates[torch.arange(examples), labels] = 0.4
    spikes = torch.bernoulli(rates.flatten(1)[:, None].expand(-1, steps, -1), generator=generator)
    return DataLoader(TensorDataset(spikes, labels), batch_size=batch, shuffle=shuffle)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("lightning-run"))
    options = parser.parse_args(arguments)
    lightning.seed_everything(0)
    training = loader(options.examples, options.steps, 32, 0, shuffle=True)
    validation = loader(options.examples // 2, options.steps, 32, 1, shuffle=False)

    def trainer(epochs: int) -> lightning.Trainer:
        checkpoint = ModelCheckpoint(options.folder, filename="last", enable_version_counter=False)
        return lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=[checkpoint], logger=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=2,
        )  # fmt: skip

    first = trainer(options.epochs // 2)
    first.fit(Classifier(), training, validation)
    # Another day: a new module, and the optimiser and the weights of the checkpoint.
    resumed, model = trainer(options.epochs), Classifier()
    resumed.fit(model, training, validation, ckpt_path=options.folder / "last.ckpt")
    result = {name: float(value) for name, value in resumed.callback_metrics.items()}
    result |= {"steps_before": float(first.global_step), "steps": float(resumed.global_step)}
    print(result)
    print(model.net.report)
    return result


if __name__ == "__main__":
    main()
