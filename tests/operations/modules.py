"""How each module of the table is made and called in its tests."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from operations.examples import IMAGES

MODULES: dict[type[nn.Module], tuple[Any, ...]] = {
    nn.Threshold: (0.1, 0.5), nn.Unflatten: (1, (2, 2)), nn.Softmax: (1,), nn.LogSoftmax: (1,), nn.Linear: (4, 3),
    nn.Conv1d: (2, 2, 2), nn.Conv2d: (2, 2, 2), nn.Conv3d: (2, 2, 2), nn.ConvTranspose1d: (2, 2, 2),
    nn.ConvTranspose2d: (2, 2, 2), nn.ConvTranspose3d: (2, 2, 2), nn.AvgPool1d: (2,), nn.AvgPool2d: (2,),
    nn.AvgPool3d: (2,), nn.MaxPool1d: (2,), nn.MaxPool2d: (2,), nn.MaxPool3d: (2,), nn.AdaptiveAvgPool1d: (2,),
    nn.AdaptiveAvgPool2d: (2,), nn.AdaptiveAvgPool3d: (2,), nn.AdaptiveMaxPool1d: (2,), nn.AdaptiveMaxPool2d: (2,),
    nn.AdaptiveMaxPool3d: (2,), nn.LPPool1d: (2.0, 2), nn.LPPool2d: (2.0, 2), nn.LPPool3d: (2.0, 2),
    nn.ConstantPad1d: (1, 0.5), nn.ConstantPad2d: (1, 0.5), nn.ConstantPad3d: (1, 0.5), nn.Upsample: (7,),
    nn.BatchNorm1d: (4,), nn.BatchNorm2d: (2,), nn.BatchNorm3d: (2,), nn.SyncBatchNorm: (2,),
    nn.InstanceNorm1d: (2,), nn.InstanceNorm2d: (2,), nn.InstanceNorm3d: (2,), nn.GroupNorm: (2, 4),
    nn.LayerNorm: (4,), nn.RMSNorm: (4,),
    **{kind: (1,) for name, kind in vars(nn).items() if re.match(r"(Zero|Reflection|Replication|Circular)Pad", name)},
}  # fmt: skip
"""What a module is made with, where it is made with something."""


def made(kind: type[nn.Module]) -> nn.Module:
    return kind(*MODULES.get(kind, ())).double()


def given(kind: type[nn.Module], x: Tensor) -> Tensor:
    """Returns the input of a module: images where its name says how many axes they have."""
    found = re.search(r"([123])d$", kind.__name__)
    axes = int(found[1]) if found else 0
    if kind in (nn.Upsample, nn.SyncBatchNorm, nn.FeatureAlphaDropout):
        axes = 1
    return IMAGES[axes](x) if axes and kind is not nn.BatchNorm1d else x
