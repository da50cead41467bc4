"""How the current of a layer comes from what is below, from itself, and from above."""

from __future__ import annotations

from fuzz.choices import Choices
from fuzz.draft import Draft, Module

KINDS = (
    "linear", "no bias", "matmul", "functional", "einsum", "addmm", "masked", "layer norm", "batch norm", "sequential",
    "conv1d", "conv2d", "weight norm", "gated", "attention", "low rank", "dale", "module list", "module dict", "split",
    "bmm", "parameter list", "own norm", "baddbmm", "batch norm, own", "dropout", "group norm", "mv", "grown",
)  # fmt: skip
RECURRENT = (
    "none", "linear", "matmul", "no diagonal", "filled diagonal", "inhibition", "delayed", "einsum",
    "inhibition by max",
)  # fmt: skip


def synapse(choose: Choices, draft: Draft, owner: Module, n: str, below: str, sizes: tuple[int, int]) -> list[str]:
    """Returns the lines that make ``cur<n>`` of what is below, which has as many units as the first size says."""
    kind = choose(f"synapse {n}", KINDS, 0.6)
    init, lines = _written(kind, n, below, *sizes)
    owner.add(*init)
    if "batch norm" in kind or kind == "own norm":
        draft.notes["normalised"] = True
    return lines


def _written(kind: str, n: str, x: str, below: int, above: int) -> tuple[list[str], list[str]]:
    """Returns the lines for ``__init__``, and those of the step."""
    fc, cur, weight = f"self.fc{n}", f"cur{n}", f"self.w{n} = nn.Parameter(0.4 * torch.randn({below}, {above}))"
    linear = f"{fc} = nn.Linear({below}, {above})"
    heads = above // 2
    return {
        "linear": ([linear], [f"{cur} = {fc}({x})"]),
        "no bias": ([f"{fc} = nn.Linear({below}, {above}, bias=False)"], [f"{cur} = {fc}({x})"]),
        "matmul": ([weight], [f"{cur} = {x} @ self.w{n}"]),
        "functional": ([weight], [f"{cur} = F.linear({x}, self.w{n}.t())"]),
        "einsum": ([weight], [f'{cur} = torch.einsum("bi,ij->bj", {x}, self.w{n})']),
        "addmm": (
            [weight, f"self.b{n} = nn.Parameter(torch.zeros({above}))"],
            [f"{cur} = torch.addmm(self.b{n}, {x}, self.w{n})"],
        ),
        "masked": (
            [weight, f'self.register_buffer("mask{n}", (torch.rand({below}, {above}) > 0.3).float())'],
            [f"{cur} = {x} @ (self.w{n} * self.mask{n})"],
        ),
        "layer norm": ([linear, f"self.norm{n} = nn.LayerNorm({above})"], [f"{cur} = self.norm{n}({fc}({x}))"]),
        "batch norm": ([linear, f"self.norm{n} = nn.BatchNorm1d({above})"], [f"{cur} = self.norm{n}({fc}({x}))"]),
        "group norm": ([linear, f"self.norm{n} = nn.GroupNorm(2, {above})"], [f"{cur} = self.norm{n}({fc}({x}))"]),
        "batch norm, own": (
            [linear, f'self.register_buffer("running_m{n}", torch.zeros({above}))'],
            [
                f"{cur} = {fc}({x})",
                "if self.training:",
                f"    self.running_m{n} = 0.9 * self.running_m{n} + 0.1 * {cur}.mean(0).detach()",
                f"{cur} = {cur} - self.running_m{n}",
            ],
        ),
        "own norm": (
            [linear],
            [
                f"{cur} = {fc}({x})",
                f"mean{n}, var{n} = {cur}.mean(1, keepdim=True), {cur}.var(1, keepdim=True, unbiased=False)",
                f"{cur} = ({cur} - mean{n}) / torch.sqrt(var{n} + 1e-5)",
            ],
        ),
        "sequential": (
            [f"{fc} = nn.Sequential(nn.Linear({below}, 7), nn.Tanh(), nn.Linear(7, {above}))"],
            [f"{cur} = {fc}({x})"],
        ),
        "dropout": ([linear, f"self.drop{n} = nn.Dropout(0.0)"], [f"{cur} = self.drop{n}({fc}({x}))"]),
        "conv1d": (
            [f"self.conv{n} = nn.Conv1d(1, 2, 3, padding=1)", f"{fc} = nn.Linear({2 * below}, {above})"],
            [f"{cur} = {fc}(self.conv{n}({x}.unsqueeze(1)).flatten(1))"],
        ),
        "conv2d": (
            [f"self.conv{n} = nn.Conv2d(1, 2, (2, 1))", f"{fc} = nn.Linear({below}, {above})"],
            [
                f"image{n} = {x}.reshape(-1, 1, 2, {below // 2})",
                f"{cur} = {fc}(self.conv{n}(image{n}).reshape(-1, {below}))",
            ],
        ),
        "weight norm": (
            [f"{fc} = nn.utils.parametrizations.weight_norm(nn.Linear({below}, {above}))"],
            [f"{cur} = {fc}({x})"],
        ),
        "gated": (
            [linear, f"self.gate{n} = nn.Linear({below}, {above})"],
            [f"{cur} = {fc}({x}) * torch.sigmoid(self.gate{n}({x}))"],
        ),
        "attention": (
            [f"self.qkv{n} = nn.Linear({below}, {3 * above})"],
            [
                f"q{n}, k{n}, u{n} = self.qkv{n}({x}).chunk(3, dim=1)",
                f"score{n} = torch.softmax(q{n}.unsqueeze(2) * k{n}.unsqueeze(1) / 2.0, dim=2)",
                f"{cur} = (score{n} @ u{n}.unsqueeze(2)).squeeze(2)",
            ],
        ),
        "low rank": (
            [
                f"self.left{n} = nn.Parameter(torch.randn({below}, 3))",
                f"self.right{n} = nn.Parameter(0.4 * torch.randn(3, {above}))",
            ],
            [f"{cur} = ({x} @ self.left{n}) @ self.right{n}"],
        ),
        "dale": (
            [weight, f'self.register_buffer("sign{n}", torch.tensor([1.0, -1.0] * {below // 2}).unsqueeze(1))'],
            [f"{cur} = {x} @ (self.w{n}.abs() * self.sign{n})"],
        ),
        "module list": (
            [f"{fc} = nn.ModuleList([nn.Linear({below}, {heads}) for _ in range(2)])"],
            [f"{cur} = torch.cat([fc({x}) for fc in {fc}], dim=1)"],
        ),
        "module dict": (
            [f'{fc} = nn.ModuleDict({{"plus": nn.Linear({below}, {above}), "minus": nn.Linear({below}, {above})}})'],
            [f'{cur} = {fc}["plus"]({x}) - 0.5 * {fc}["minus"]({x})'],
        ),
        "split": (
            [f"{fc} = nn.Linear({below // 2}, {above})"],
            [f"left{n}, right{n} = {x}.split({below // 2}, dim=1)", f"{cur} = {fc}(left{n}) - 0.5 * {fc}(right{n})"],
        ),
        "bmm": (
            [weight],
            [f"{cur} = torch.bmm({x}.unsqueeze(1), self.w{n}.expand({x}.shape[0], -1, -1)).squeeze(1)"],
        ),
        "baddbmm": (
            [weight, f"self.b{n} = nn.Parameter(torch.zeros(1, 1, {above}))"],
            [
                f"many{n} = self.w{n}.unsqueeze(0).repeat({x}.size(0), 1, 1)",
                f"{cur} = torch.baddbmm(self.b{n}, {x}.unsqueeze(1), many{n})[:, 0]",
            ],
        ),
        "parameter list": (
            [f"self.ws{n} = nn.ParameterList([0.4 * torch.randn({below}, {above}) for _ in range(2)])"],
            [f"{cur} = sum({x} @ w for w in self.ws{n})"],
        ),
        "mv": (
            [weight],
            [f"{cur} = torch.tensordot({x}, self.w{n}, dims=([1], [0]))"],
        ),
        "grown": (
            [linear],
            [f"{cur} = 2.0 * {fc}({x})", f"{cur} = {cur} + 0.1 * {cur}.mean(dim=-1, keepdim=True)"],
        ),
    }[kind]  # fmt: skip


def recurrent(choose: Choices, draft: Draft, owner: Module, n: str, size: int) -> tuple[str, list[str]]:
    """Returns the kind of the recurrent connections, and lines that add to ``cur<n>``; ``{z}`` are the last spikes."""
    kind = choose(f"recurrent {n}", RECURRENT)
    cur, weight = f"cur{n}", f"self.rec{n} = nn.Parameter(0.2 * torch.randn({size}, {size}))"
    init, lines = {
        "none": ([], []),
        "linear": ([f"self.rec{n} = nn.Linear({size}, {size})"], [f"{cur} = {cur} + 0.3 * self.rec{n}({{z}})"]),
        "matmul": ([weight], [f"{cur} = {cur} + {{z}} @ self.rec{n}"]),
        "no diagonal": ([weight], [f"{cur} = {cur} + {{z}} @ (self.rec{n} * (1 - torch.eye({size})))"]),
        "filled diagonal": (
            [weight],
            [
                f"lateral{n} = self.rec{n}.clone()",
                f"lateral{n}.fill_diagonal_(0)",
                f"{cur} = {cur} + {{z}} @ lateral{n}",
            ],
        ),
        "inhibition": ([], [f"{cur} = {cur} - 0.1 * {{z}}.sum(1, keepdim=True)"]),
        "inhibition by max": ([], [f"{cur} = {cur} - 0.2 * {{z}}.max(dim=1, keepdim=True)[0]"]),
        "delayed": ([weight], [f"{cur} = {cur} + late{n}[0] @ self.rec{n}"]),
        "einsum": ([weight], [f'{cur} = {cur} + torch.einsum("bi,ij->bj", {{z}}, self.rec{n})']),
    }[kind]
    owner.add(*init)
    return kind, lines
