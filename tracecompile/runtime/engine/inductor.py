"""The one place that calls what torch keeps to itself: flat tensors to flat tensors, to the code that inductor writes.

``torch.compile`` would trace what is a graph already twice more, try out the compiler, and call it once a kernel. What
fails here, be it since another torch has other names, is ``Unwritten``: then ``torch.compile`` is called after all.
"""

from __future__ import annotations

import contextlib
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

Code = Callable[..., Any]
Run = Callable[..., Sequence[Tensor]]
OPTIONS: dict[str, Any] = {"emulate_precision_casts": True}
"""In 16 bits, values are rounded wherever they are in the model: else membranes near the threshold fall differently."""
APART: dict[str, Any] = {"pattern_matcher": False}
"""On the processor, a product and what is added to it stay two calls: one would round otherwise than the model."""
OF_CPU: dict[str, Any] = {"comprehensive_padding": False}
"""What inductor sets itself where there is no other device."""
TRUSTED: dict[str, Any] = {"cpp.vec_isa_ok": True}
"""Whether the compiler knows the processor's vectors is not tried out first, which takes as long as all the rest: where
it does not, what it is given next fails, and ``torch.compile`` looks closer."""


class Unwritten(Exception):
    """Code cannot be compiled without ``torch.compile``; its text is the reason."""


@dataclass(frozen=True)
class Written:
    """What inductor has written.

    Attributes:
        text: A module in Python, with kernels in C++ as strings.
        constants: Tensors that it reads, by their names in it.
        fits: Whether it serves other arguments, as an expression that ``fits`` evaluates: for other sizes, most of all.
    """

    text: str
    constants: dict[str, Tensor]
    fits: str


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Keeps torch's warnings of its own deprecated calls, errors where a program makes warnings errors, to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def fits(condition: str, arguments: Sequence[Tensor]) -> bool:
    """Tells whether what was written under a condition serves some arguments."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return not condition or bool(ShapeEnv().evaluate_guards_expression(condition, _dense(arguments, "meta")))


def through_torch_compile(code: Code, arguments: Sequence[Tensor]) -> Run:
    """Returns code compiled by ``torch.compile``."""
    graph = _unrolled(code, arguments)
    options = OPTIONS | APART if arguments[0].device.type == "cpu" else OPTIONS
    run: Run = torch.compile(graph, dynamic=True, fullgraph=True, options=options)
    run(*(value.clone() for value in arguments))
    return run


def compiled_step(module: fx.GraphModule, arguments: Sequence[Tensor]) -> Run:
    """Returns a step compiled for the very shapes of some arguments.

    Not by ``torch.compile``: what that looks at before every call takes half as long as a small step does.
    """
    from torch._inductor.compile_fx import compile_fx  # a second of its own, for those who compile alone

    run: Any = compile_fx(module, list(arguments), config_patches=OPTIONS | APART)
    found: Run = run
    return found


def written(code: Code, arguments: Sequence[Tensor]) -> Written:
    """Returns what inductor writes for the processor.

    Args:
        code: Flat tensors to flat tensors, of which those it is given are dense.
        arguments: What it will be called with, or the like; sizes are left open.

    Raises:
        Unwritten: Where it writes nothing.
    """
    try:
        found = _written(code, _dense(arguments))
        if not fits(found.fits, arguments):
            raise Unwritten("it would not serve what it was written for")
        return found
    except Unwritten:
        raise
    except Exception as fault:  # whatever another torch raises where something has another name or another meaning
        raise Unwritten(f"{type(fault).__name__}: {fault}") from fault


def compiler_call(source: str, name: str, folder: str) -> list[str]:
    """Returns the command that compiles a file of C++ as inductor does, into a shared library.

    Args:
        source: The file.
        name: Of the library, without its ending ``.so``.
        folder: Where that goes.

    Raises:
        Unwritten: Where there is none.
    """
    try:
        from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        with _trusting():
            options = CppTorchOptions(vec_isa=pick_vec_isa(), warning_all=False)
        return shlex.split(CppBuilder(name, [source], options, folder).get_command_line())
    except Exception as fault:
        raise Unwritten(f"{type(fault).__name__}: {fault}") from fault


def is_of_torch(name: str) -> bool:
    """Tells whether what inductor's code calls ``extern_kernels.<name>`` is ``torch.<name>``."""
    from torch._inductor.select_algorithm import extern_kernels

    return hasattr(torch, name) and getattr(extern_kernels, name, None) is getattr(torch, name)


def _dense(arguments: Sequence[Tensor], device: str | None = None) -> list[Tensor]:
    """Returns tensors like some, with the strides that dense ones have, also along axes of size 1."""
    return [torch.empty(value.shape, dtype=value.dtype, device=device or value.device) for value in arguments]


def _unrolled(code: Code, arguments: Sequence[Tensor], table: Any = None) -> fx.GraphModule:
    """Returns a graph of some code, sizes left open and nothing computed twice."""
    from torch._functorch.compile_utils import fx_graph_cse  # a second of its own, for those who compile alone

    found = make_fx(code, tracing_mode="symbolic", decomposition_table=table)(*arguments)
    found.graph = fx_graph_cse(found.graph)
    found.recompile()
    return found


def _written(code: Code, arguments: Sequence[Tensor]) -> Written:
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile_fx, config
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.post_grad import view_to_reshape
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    with _trusting(), config.patch(OPTIONS):
        graph = _unrolled(functionalize(code, remove="mutations"), arguments, select_decomp_table())
    if any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in graph.graph.nodes):
        raise Unwritten("it changes its arguments")
    given: list[Any] = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    mode = given[0].fake_mode
    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),  # casts are in the graph by now
        _trusting(),
        config.patch(OPTIONS | APART | OF_CPU),
        tracing(TracingContext(mode)),
        V.set_fake_mode(mode),
        V.set_debug_handler(DebugContext()),
    ):
        # As torch.compile does for a graph without gradients.
        graph = compile_fx._recursive_joint_graph_passes(graph, input_device=torch.device("cpu"))
        view_to_reshape(graph)
        compile_fx.fake_tensor_prop(graph, given)
        compile_fx._recursive_post_grad_passes(graph, is_inference=True)
        lowering = GraphLowering(graph, example_inputs=given, shape_env=mode.shape_env, is_inference=True)
        with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]):
            lowering.run(*given)
            text = lowering.codegen()[0].value
    condition = mode.shape_env.produce_guards_expression(given, ignore_static=False)
    return Written(text, dict(lowering.constants), condition or "")


@contextlib.contextmanager
def _trusting() -> Iterator[None]:
    """Takes the processor's vectors for granted while the context is open, and leaves no such list to others."""
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    untried = not valid_vec_isa_list.cache_info().currsize
    try:
        with config.patch(TRUSTED):
            yield
    finally:
        if untried:
            valid_vec_isa_list.cache_clear()
