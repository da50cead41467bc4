"""Both programs of a model that reads its mode: what is saved has no source that the other could be captured from."""

from __future__ import annotations

from torch.utils import _pytree as pytree

from tracecompile.compiled import Compiled, Request, training_flags
from tracecompile.errors import ConversionError
from tracecompile.program import example_value
from tracecompile.runtime.session import Session


def in_both_modes(session: Session) -> tuple[Compiled, ...]:
    """Returns everything that a session has compiled, the last call's last, and where the program is that of one mode
    the one of the other mode as well, if there is one."""
    ready = session.ready
    earlier = [compiled for compiled, _ in session.programs if compiled is not ready]
    if ready.modes is None or any(each.modes not in (None, ready.modes) for each in earlier):
        return (*earlier, ready)
    model = session.model
    flags = {module: module.training for module in model.modules()}
    try:
        model.train(not model.training)
        if training_flags(model) == ready.modes:
            return (*earlier, ready)
        return (session.compiler(_example(session), earlier), *earlier, ready)
    except ConversionError:
        return (*earlier, ready)  # what is refused here would have been refused in that mode
    finally:
        for module, training in flags.items():
            module.training = training


def _example(session: Session) -> Request:
    program = session.program
    leaves = [example_value(node) for node in program.prologue.graph.nodes if node.op == "placeholder"]
    args, kwargs = pytree.tree_unflatten(leaves, program.signature)
    return Request(session.model, args, kwargs, session.settings)
