"""Ordinary operations in odd places: each turns a tensor of shape (batch, units) into another of the same shape."""

from __future__ import annotations

import torch
from support.program import HALF

from fuzz.choices import Choices
from fuzz.draft import Draft, Module

PLAIN = (
    "", "{c}.clone()", "torch.flip({c}, [1])", "torch.roll({c}, 1, 1)", "{c}.clamp(-3, 3)", "torch.tanh({c})",
    "F.softplus({c}) - 0.7", "F.gelu({c})", "F.leaky_relu({c}, 0.2)", "F.hardtanh({c})", "torch.nan_to_num({c})",
    "{c} - {c}.mean(1, keepdim=True)", "{c} / ({c}.norm(dim=1, keepdim=True) + 1)", "2 * F.normalize({c}, dim=1)",
    "{c}.sort(dim=1)[0]", "torch.cumsum({c}, dim=1) * 0.5", "F.softmax({c}, dim=1) * 3",
    "torch.where({c} > 0, {c}, 0.1 * {c})", "{c}.masked_fill({c} < -2, -2.0)", "torch.maximum({c}, -0.5 * {c})",
    "{c}.half().to({c}.dtype)", "{c}.T.T", "torch.cat({c}.chunk(2, dim=1)[::-1], dim=1)",
    "{c}.reshape(-1, 2, {h}).transpose(1, 2).reshape(-1, {n})", "torch.stack([{c}, {c}.detach()]).mean(0)",
    "{c}.unsqueeze(-1).repeat(1, 1, 2).mean(-1)", "{c}.contiguous().view_as({c})", "torch.autograd.Variable({c})",
    "F.pad({c}, (1, 0))[:, :-1]", "{c} * torch.ones_like({c})", "{c} + torch.zeros({c}.shape)",
    "{c}.index_select(1, torch.arange({n}).flip(0))", "{c}[:, torch.arange({n})]", "{c}[..., [{picked}]]",
    "{c}.pow(2).add(1e-3).sqrt() * {c}.sign()", "torch.log1p({c}.abs()) * torch.sign({c})",
    "{c}.gather(1, {c}.argsort(1))", "torch.logaddexp({c}, torch.zeros_like({c})) - 0.5", "F.layer_norm({c}, ({n},))",
    "F.dropout({c}, 0.0)", "torch.einsum('bi->bi', {c})", "{c}.expand(1, -1, -1)[0]", "torch.movedim({c}, 0, 1).t()",
    "{c}.type_as(x)", "{c}.to(torch.get_default_dtype())", "torch.atleast_2d({c})",
    "{c}.swapaxes(0, 1).swapaxes(0, 1)", "{c}.add_(0.05)", "torch.clamp_max({c}, 2.5)",
    "torch.min({c}, torch.full_like({c}, 2.5))", "{c}.cos() + {c}", "torch.rsub({c}, 0.2)",
    "F.avg_pool1d({c}.unsqueeze(1), 3, 1, 1).squeeze(1) * 2",
    "F.interpolate({c}.unsqueeze(1), scale_factor=2)[:, 0, ::2]", "{c} * ({c}.abs() < 3)",
    "torch.where({c}.isnan(), torch.zeros_like({c}), {c})", "{c}.abs() - 0.3", "{c}.half().to({c}.dtype)",
    "torch.outer(torch.ones({c}.shape[0]), torch.linspace(0.5, 1.5, {n})) * {c}",
    "torch.diff({c}, dim=1, prepend={c}[:, :1])", "torch.addcdiv({c}, {c}, {c}.abs() + 1)",
    "torch.hypot({c}, {c}) - 0.5", "{c}.unfold(1, 2, 2).flatten(1)", "{c}.float().to({c})",
    "{c}.logsumexp(1, keepdim=True) * 0.1 + {c}", "{c} % 1.5", "torch.special.expit({c}) - 0.2", "{c}.cummax(1)[0]",
    "torch.scatter(torch.zeros_like({c}), 1, {c}.argsort(1), {c})",
    "{c}.topk(3, dim=1)[0].sum(1, keepdim=True) * 0.2 + {c}", "{c} / max(1, {c}.dim())",
    "{c}.mul(1 / {c}.shape[-1]) * 8", "torch.block_diag({c})", "torch.hstack([{c}[:, :2], {c}[:, 2:]])",
    "{c}.var(1, keepdim=True).sqrt() + {c}", "(lambda u: u * 0.9)({c})",
    "torch.linalg.norm({c}, dim=1, keepdim=True) * 0.1 + {c}",
)  # fmt: skip
WRITES = (
    (), ("{c} += 0.1",), ("{c}.mul_(0.9)",), ("{c} = {c}.clone()", "{c}[:, 0] = 0.0"), ("F.relu_({c})",),
    ("{c} = {c} * 1.0", "{c}[:, ::2] *= 0.5"), ("{c} = {c}.clone()", "{c}[{c} > 2] = 2.0"), ("{c}.clamp_(min=-1.0)",),
    ("{c} = {c} + 0.0", "{c}[:, 1:3].add_(0.2)"), ("assert {c}.shape[1] == {n}",),
    ("{c} = {c}.requires_grad_() * 1.0",), ("for k in range(2):", "    {c} = {c} + 0.1 * torch.tanh({c})"),
    ("{c}, unused = {c}, {c}.sum()",), ("if {c}.dim() == 2:", "    {c} = {c} * 1.1"),
    ("{c} = torch.jit.script(damp)({c})",), ("{c} = damp({c})",),
    ("with torch.no_grad():", "    level = {c}.abs().mean()", "{c} = {c} / (1 + level)"),
    ("twice = {c} * 2", "del twice"),
    ("parts = list({c}.unbind(1))", "parts[0] = parts[0] * 0.5", "{c} = torch.stack(parts, 1)"),
    ("{c} = torch.utils.checkpoint.checkpoint(torch.tanh, {c}, use_reentrant=False)",),
    ("{c}.data = {c}.data * 1.0",),
    ("scale = {c}.detach().abs().amax(1, keepdim=True).clamp(min=1.0)", "{c} = {c} / scale"),
)  # fmt: skip
CASTS = {".half()": HALF, ".float()": torch.finfo(torch.float32).eps}
DAMP = "def damp(u):\n    return 0.9 * u + 0.1 * torch.tanh(u)"


def odd(choose: Choices, draft: Draft, owner: Module, name: str, c: str, size: int) -> list[str]:
    """Returns lines that do something odd with a tensor, mostly none."""
    places = {"c": c, "n": size, "h": size // 2, "picked": ", ".join(str(i) for i in reversed(range(size)))}
    lines = []
    if plain := choose(f"odd {name}", PLAIN, 0.8):
        lines.append(f"{c} = {plain.format(**places)}")
        coarse = next((error for cast, error in CASTS.items() if cast in plain), 0.0)
        draft.notes["coarse"] = max(coarse, draft.notes.get("coarse", 0.0))
    written = choose(f"odd writes {name}", WRITES, 0.9)
    if any("damp" in line for line in written):
        draft.define("damp", DAMP)
    if any("checkpoint" in line for line in written):
        draft.use("import torch.utils.checkpoint")
    return lines + [line.format(**places) for line in written]
