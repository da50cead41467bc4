"""Both programs of a model that reads its mode: what is saved has no source that the other could be captured from."""

from __future__ import annotations

from tracecompile.compiled import Compiled, training_flags
from tracecompile.errors import ConversionError
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
        return (session.compiler(session.example(), earlier), *earlier, ready)
    except ConversionError:  # what is refused here would have been refused in that mode
        return (*earlier, ready)
    finally:
        for module, training in flags.items():
            module.training = training
