"""What torch wraps around a net to train it over several processes: what is refused of it, and what is seen through.

A wrapper works by hooks around the calls of what it wraps. Around a net they find what they expect. Within a model they
would have to run around calls that the program does not make, or makes once a step: gradients would not be averaged, or
weights not be gathered, without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tracecompile.errors import UnsupportedOperation

AS_A_WHOLE = (
    "Convert the model as it is, and wrap the converted module as a whole: DistributedDataParallel(net), or "
    "torch.distributed.fsdp.fully_shard(net)."
)
WRAPPERS = (
    ("torch.nn.parallel", "DistributedDataParallel"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp", "FSDPModule"),
)
"""Classes of what exchanges weights or gradients around its calls, by the modules that have them once imported."""
HANDS_ON = ("RegisterPostBackwardFunctionBackward", "_DDPSinkBackward")
"""What wrappers pass tensors through, unchanged both ways: arguments of ``fully_shard``, results of ``find_unused``."""


def refuse_parts_of_processes(model: nn.Module) -> None:
    """Refuses a model within which tensors are exchanged between processes.

    Raises:
        UnsupportedOperation: It or a part of it is wrapped, its Parameters lie elsewhere, or it synchronises.
    """
    kinds = tuple(kind for home, name in WRAPPERS if (kind := getattr(sys.modules.get(home), name, None)) is not None)
    for path, module in model.named_modules():
        if isinstance(module, kinds):
            kind = "fully_shard" if type(module).__name__.startswith("FSDP") else type(module).__name__
            raise UnsupportedOperation(
                f"{path or 'The model'} is wrapped by {kind}, which exchanges weights or gradients between processes "
                "around its calls: the program does not call it as the wrapper expects.",
                AS_A_WHOLE,
            )
    refuse_spread(model)
    refuse_synchronised(model)


def refuse_spread(model: nn.Module) -> None:
    """Refuses a model whose Parameters are not there as a whole, as they are now.

    Raises:
        UnsupportedOperation: One is a part of it, or a piece of a flat one.
    """
    if not _has_processes():
        return
    spread = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    for path, value in _tensors(model):
        if isinstance(value, spread):
            raise UnsupportedOperation(
                f"{path} is a DTensor: this process holds a part of it, and the program needs all.",
                "After fully_shard(net) call the net itself, net(x), whose hooks gather its weights; for anything else "
                "take the whole state, get_model_state_dict(net, options=StateDictOptions(full_state_dict=True)), "
                "into a model of one process. Tensor parallelism within a model cannot be converted.",
            )
        if getattr(value, "_is_flat_param", False) or getattr(value._base, "_is_flat_param", False):
            raise UnsupportedOperation(
                f"{path} is a piece of a flat parameter: FullyShardedDataParallel (FSDP1) has put it in the place of "
                "the model's own.",
                "Use its successor, torch.distributed.fsdp.fully_shard(net), or DistributedDataParallel(net).",
            )


def refuse_synchronised(model: nn.Module) -> None:
    """Refuses normalisations that would take the statistics of all processes, at every time step.

    Raises:
        UnsupportedOperation: There is one in training, and there is more than one process.
    """
    if not _has_processes():
        return
    for path, module in model.named_modules():
        is_one = isinstance(module, nn.SyncBatchNorm) and module.training
        if is_one and torch.distributed.get_world_size(module.process_group) > 1:
            raise UnsupportedOperation(
                f"{path} is a SyncBatchNorm in training: it would exchange the statistics of the batch between "
                "processes at every time step, and the rules differentiate those of one process.",
                "Leave BatchNorm as it is (each process normalises by its own part of the batch), take GroupNorm or "
                "LayerNorm, or freeze the statistics with eval().",
            )


def gather_for(net: nn.Module, method: str) -> None:
    """Lets a method beside ``forward`` run between the hooks of ``fully_shard``, where a net has them.

    Without them weights would not be gathered, nor gradients given to those who keep the weights.
    """
    sharded = sys.modules.get("torch.distributed.fsdp")
    if sharded is not None and isinstance(net, sharded.FSDPModule) and method not in vars(net):
        sharded.register_fsdp_forward_method(net, method)


def passed_on(state: Tensor, returned: Tensor) -> bool:
    """Tells whether a tensor is the one that a net has returned, be it through the hands of a wrapper.

    Args:
        state: As it was handed in.
        returned: As the net has returned it.
    """
    if state is returned:
        return True
    function, number = state.grad_fn, state.output_nr
    while function is not None and function.name() in HANDS_ON and number < len(function.next_functions):
        function, number = function.next_functions[number]
        if function is not None and function is returned.grad_fn and number == returned.output_nr:
            return True
    return False


def _has_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields what stands in the places of Parameters, and tensors that have become attributes."""
    for path, module in model.named_modules():
        for name, value in (*module._parameters.items(), *vars(module).items()):
            if isinstance(value, Tensor):
                yield f"{path}.{name}" if path else name, value
