"""What treats the first axis of its input alike, so that it may be applied to the parts of a batch one by one."""

from __future__ import annotations

from torch import fx, nn
from torch.nn import functional as F

from tracecompile.analysis.norms import NORMS
from tracecompile.analysis.pointwise import acts_alone
from tracecompile.capture.layerwise.stacks import called

_PER_ROW: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus,
    nn.Hardtanh, nn.ReLU6,
)  # fmt: skip
_PER_SAMPLE: tuple[type[nn.Module], ...] = (
    *_PER_ROW, *NORMS, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.GroupNorm, nn.LayerNorm, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
_SAMPLE_FUNCTIONS = frozenset(
    "conv1d conv2d conv3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d interpolate".split()
)


def treats_rows_alike(node: fx.Node, module: nn.Module | None, samples: bool) -> bool:
    """Tells whether a node gives for part of a batch that part of what it gives for the whole.

    Args:
        node: The node.
        module: What it calls, where that is a module of torch's own.
        samples: Whether each row is a whole sample, with the axes that a convolution expects, and not a batch of them.
    """
    if node.op == "call_module":
        return isinstance(module, _PER_SAMPLE if samples else _PER_ROW)
    return acts_alone(node) or node.target is F.linear or (samples and called(node) in _SAMPLE_FUNCTIONS)
