"""How a spike is written, so that a gradient passes: every definition gives a function ``spike``."""

from __future__ import annotations

from fuzz.choices import Choices
from fuzz.draft import Draft

FUNCTION = """class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return {forward}

    @staticmethod
    def backward(ctx, grad_output):
        (u,) = ctx.saved_tensors
        return {backward}


spike = Spike.apply"""


def function(forward: str, backward: str) -> str:
    return FUNCTION.format(forward=forward, backward=backward)


FAST = "grad_output / (1 + 5 * u.abs()) ** 2"
WAYS = {
    "fast sigmoid": function("(u > 0).to(u.dtype)", FAST),
    "triangle": function("(u > 0).to(u)", "grad_output * torch.clamp(1 - u.abs(), min=0.1)"),
    "arctan, cloned": function("u.gt(0.0).type_as(u)", "grad_output.clone() / (1 + (torch.pi * u) ** 2)"),
    "gaussian": function("(u >= 0).to(u.dtype)", "grad_output * torch.exp(-u * u)"),
    "heaviside": function("torch.heaviside(u, torch.zeros_like(u))", FAST),
    "new ones": function(
        "torch.where(u > 0, torch.ones_like(u), torch.zeros_like(u))", "0.4 * grad_output / (1 + u.abs()) ** 2"
    ),
    "written into zeros": '''class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        out = torch.zeros_like(u)
        out[u > 0] = 1.0
        return out

    @staticmethod
    def backward(ctx, grad_output):
        (u,) = ctx.saved_tensors
        grad_input = grad_output.clone()
        return grad_input / (3 * torch.abs(u) + 1.0) ** 2


def spike(u):
    return Spike.apply(u)''',
    "setup context": '''class Spike(torch.autograd.Function):
    @staticmethod
    def forward(u, scale):
        return (u > 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        u, scale = inputs
        ctx.save_for_backward(u)
        ctx.scale = scale

    @staticmethod
    def backward(ctx, grad_output):
        (u,) = ctx.saved_tensors
        return grad_output / (1 + ctx.scale * u.abs()) ** 2, None


def spike(u):
    return Spike.apply(u, 4.0)''',
    "closure": '''def fast_sigmoid(slope=5.0):
    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            ctx.save_for_backward(u)
            return (u > 0).to(u.dtype)

        @staticmethod
        def backward(ctx, grad_output):
            (u,) = ctx.saved_tensors
            return grad_output / (slope * u.abs() + 1.0) ** 2

    return Spike.apply


spike = fast_sigmoid()''',
    "scale as an attribute": '''class Spike(torch.autograd.Function):
    scale = 4.0

    @staticmethod
    def forward(ctx, u, width):
        ctx.width = width
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        (u,) = ctx.saved_tensors
        return grad_output / (Spike.scale * u.abs() / ctx.width + 1.0) ** 2, None


def spike(u, width=1.0):
    return Spike.apply(u, width)''',
    "straight through": '''def spike(u):
    hard = (u > 0).to(u.dtype)
    soft = torch.sigmoid(4 * u)
    return hard.detach() - soft.detach() + soft''',
    "straight through, float": '''def spike(u):
    soft = torch.sigmoid(3.0 * u)
    return (u > 0).float() + (soft - soft.detach())''',
    "straight through, where": '''def spike(u):
    soft = 0.5 * torch.tanh(2 * u) + 0.5
    return torch.where(u > 0, 1.0, 0.0).detach() + soft - soft.detach()''',
    "scripted slope": '''@torch.jit.script
def slope(u):
    return 1.0 / (1.0 + 5.0 * torch.abs(u)) ** 2


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        (u,) = ctx.saved_tensors
        return grad_output * slope(u)


spike = Spike.apply''',
    "scripted step": '''@torch.jit.script
def heaviside(u: torch.Tensor) -> torch.Tensor:
    return (u > 0.0).to(u.dtype)


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return heaviside(u)

    @staticmethod
    def backward(ctx, grad_output):
        (u,) = ctx.saved_tensors
        return grad_output * torch.sigmoid(2 * u) * (1 - torch.sigmoid(2 * u))


spike = Spike.apply''',
    "a module": '''class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        (u,) = ctx.saved_tensors
        return grad_output / (1 + 5 * u.abs()) ** 2


class SpikeFunction(nn.Module):
    def forward(self, u):
        return Spike.apply(u)


spike = SpikeFunction()''',
    "derivative kept": '''class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(torch.exp(-2 * u.abs()))
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        (derivative,) = ctx.saved_tensors
        return derivative * grad_output


spike = Spike.apply''',
}  # fmt: skip


def surrogate(choose: Choices, draft: Draft) -> None:
    """Defines ``spike``."""
    name = choose("surrogate", list(WAYS))
    draft.define("spike", WAYS[name])
