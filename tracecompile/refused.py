"""Models that are refused by what they are, before anything of them is captured."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from tracecompile.errors import InvalidInput, UnsupportedOperation
from tracecompile.own_checks import enters_autocast
from tracecompile.parallel import refuse_parts_of_processes


def check_model(model: nn.Module) -> None:
    """Refuses a model whose forward is more than operations on tensors.

    Raises:
        InvalidInput: A Parameter has no shape yet.
        UnsupportedOperation: A module observes or quantises what passes, or exchanges it with other processes, or
            forward enters autocast.
    """
    refuse_parts_of_processes(model)
    lazy = next((name for name, value in (*model.named_parameters(), *model.named_buffers()) if is_lazy(value)), None)
    if lazy is not None:
        raise InvalidInput(
            f"{lazy} has no shape yet: it is made at the model's first call.",
            "Run the model once before converting it.",
        )
    for path, module in model.named_modules():
        if type(module).__module__.startswith(("torch.ao.quantization", "torch.ao.nn")):
            raise UnsupportedOperation(
                f"{path} ({type(module).__name__}) quantises, or observes what passes through it: a quantised network "
                "is another one at every step.",
                "Convert the model before it is prepared for quantisation, and quantise the model itself.",
            )
    if enters_autocast(model):
        raise UnsupportedOperation(
            "The model's own code enters torch.autocast: which operations run in lower precision is no part of a "
            "program.",
            "Enter it around the call of the converted module, or cast what has to be cast.",
        )
