"""What layers compute: products, convolutions, pooling, normalisation, dropout."""

from __future__ import annotations

from torch import nn

from tracecompile.operations.facts import Fact, Operation, Rows, alike

_DROPPED = Fact.RANDOM | Fact.DROPS
_SAMPLES = Rows.SAMPLES

_BY_AXES: tuple[tuple[str, Fact, tuple[type[nn.Module], ...]], ...] = (
    ("conv", Fact.PRODUCT, (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    ("conv_transpose", Fact.PRODUCT, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
    ("avg_pool", Fact.LINEAR, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)),
    ("adaptive_avg_pool", Fact.LINEAR, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)),
    ("max_pool", Fact.CHOOSES, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)),
    ("adaptive_max_pool", Fact.CHOOSES, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)),
    ("lp_pool", Fact(0), (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)),
)
"""Of images of one, two and three axes."""

SPATIAL = tuple(
    Operation(name=f"{name}{axes}d", facts=facts, modules=(module,), rows=_SAMPLES, spatial=axes)
    for name, facts, modules in _BY_AXES
    for axes, module in enumerate(modules, 1)
)

PRODUCTS = (
    Operation(name="linear", facts=Fact.PRODUCT, modules=(nn.Linear,), rows=Rows.LAST_AXIS),
    Operation(name="matmul", facts=Fact.PRODUCT, symbol="matmul", rows=Rows.LAST_AXIS),
    Operation(name="mm", facts=Fact.PRODUCT, rows=Rows.LAST_AXIS),
    *alike("bmm einsum addmm baddbmm", Fact.PRODUCT),
    Operation(
        name="pad",
        facts=Fact.LINEAR,
        modules=(
            *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
            *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d),
            *(nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        ),
    ),
    Operation(name="interpolate", facts=Fact.LINEAR, modules=(nn.Upsample,)),
)

NORMS = (
    Operation(
        name="batch_norm",
        facts=Fact.BATCH_STATISTICS,
        modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        rows=_SAMPLES,
    ),
    Operation(
        name="instance_norm",
        facts=Fact.OWN_STATISTICS,
        modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    ),
    Operation(name="group_norm", facts=Fact(0), modules=(nn.GroupNorm,), rows=_SAMPLES),
    Operation(name="layer_norm", facts=Fact(0), modules=(nn.LayerNorm,)),
    Operation(name="rms_norm", facts=Fact(0), modules=(nn.RMSNorm,)),
)

DROPOUTS = (
    Operation(name="dropout", facts=_DROPPED | Fact.LINEAR, modules=(nn.Dropout,), rows=_SAMPLES),
    Operation(name="dropout1d", facts=_DROPPED | Fact.LINEAR, modules=(nn.Dropout1d,), rows=_SAMPLES),
    Operation(name="dropout2d", facts=_DROPPED | Fact.LINEAR, modules=(nn.Dropout2d,), rows=_SAMPLES),
    Operation(name="dropout3d", facts=_DROPPED | Fact.LINEAR, modules=(nn.Dropout3d,), rows=_SAMPLES),
    Operation(name="feature_dropout", facts=_DROPPED | Fact.LINEAR),
    Operation(name="alpha_dropout", facts=_DROPPED | Fact.LINEAR, modules=(nn.AlphaDropout,), rows=_SAMPLES),
    Operation(
        name="feature_alpha_dropout", facts=_DROPPED | Fact.LINEAR, modules=(nn.FeatureAlphaDropout,), rows=_SAMPLES
    ),
    Operation(name="rrelu", facts=_DROPPED, modules=(nn.RReLU,)),
)

LAYERS = (*SPATIAL, *PRODUCTS, *NORMS, *DROPOUTS)
