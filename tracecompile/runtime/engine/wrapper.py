"""What inductor writes, taken apart: the kernels, and the function that allocates and calls them.

Its module imports the whole compiler, for names of which such a function uses a few. Taken apart, it is loaded by later
processes without. What uses anything else is ``Unwritten``.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tracecompile.runtime.engine.inductor import Unwritten, Written, is_of_torch

EXTERN = "extern_kernels"
OPERATORS = ("aten", "prims")
"""Namespaces of ``torch.ops`` that every process has."""
KEPT = ("math", "inf", "nan", "device")
"""Names of Python's and torch's own that the module imports."""


@dataclass(frozen=True)
class Kernel:
    """A kernel.

    Attributes:
        name: Under which the function calls it.
        types: Of its arguments, in C++.
        source: C++, of a function ``kernel``.
    """

    name: str
    types: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Parts:
    """What is run.

    Attributes:
        call: Python that defines ``call``, a list of tensors to a sequence of tensors.
        kernels: That it calls.
        products: Names of the functions of torch that it calls as attributes of ``extern_kernels``.
    """

    call: str
    kernels: tuple[Kernel, ...]
    products: tuple[str, ...]


def taken_apart(found: Written) -> Parts:
    """Takes apart what inductor has written.

    Raises:
        Unwritten: Where it uses what is not known here.
    """
    module = ast.parse(found.text)
    kernels = {kernel.name: kernel for kernel in _kernels(module)}
    call = _call(module)
    used = _names(call)
    aliases = {name: node for name, node in _aliases(module) if name in used}
    known = {"torch", EXTERN, *KEPT, *kernels, *aliases, *found.constants, *dir(builtins)}
    if unknown := sorted(used - known):
        raise Unwritten(f"its code uses {', '.join(unknown)}")
    for node in (*aliases.values(), call):
        _check_operators(node, aliases)
    products = sorted({node.attr for node in _attributes(call) if _is_name(node.value, EXTERN)})
    if foreign := [name for name in products if not is_of_torch(name)]:
        raise Unwritten(f"its code calls {', '.join(foreign)}")
    text = "\n".join([*map(ast.unparse, aliases.values()), ast.unparse(call), ""])
    return Parts(text, tuple(kernels[name] for name in kernels if name in used), tuple(products))


def _kernels(module: ast.Module) -> Iterator[Kernel]:
    """Yields ``name = async_compile.cpp_pybinding([types], source)``."""
    for node in module.body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(
                    func=ast.Attribute(attr="cpp_pybinding"),
                    args=[ast.List(elts=types), ast.Constant(value=str(source))],
                    keywords=[],
                ),
            ):
                yield Kernel(name, tuple(str(ast.literal_eval(each)) for each in types), source)


def _call(module: ast.Module) -> ast.FunctionDef:
    """Returns the method ``call`` of the class ``Runner`` as a function."""
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef) and node.name == "Runner":
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and each.name == "call":
                    each.args.args = each.args.args[1:]
                    return each
    raise Unwritten("its code is laid out otherwise")


def _aliases(module: ast.Module) -> Iterator[tuple[str, ast.Assign]]:
    """Yields what has another name for something of torch: ``name = torch.something.of.it``."""
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Attribute() as value) if _root(value) == "torch":
                yield name, node


def _names(call: ast.FunctionDef) -> set[str]:
    """Returns the names that a function takes from around it."""
    names = [node for node in ast.walk(call) if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)} | {each.arg for each in call.args.args}
    return {node.id for node in names} - own


def _check_operators(tree: ast.AST, aliases: Collection[str]) -> None:
    for node in _attributes(tree):
        at = ast.unparse(node)
        if at.startswith("torch.ops.") and at.split(".")[2] not in OPERATORS:
            raise Unwritten(f"its code calls {at}")
        if at == "torch.ops" and not any(other.value is node for other in _attributes(tree)):
            raise Unwritten("its code looks for operators")


def _attributes(tree: ast.AST) -> list[ast.Attribute]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
