"""One table of operations: what each of them is, asked by capture, analysis, rules and folding.

An operation is one entry, whatever its spellings: a function of torch, a method, an operator of Python's, an in-place
form, an overload of ``torch.ops.aten``, a module. What the table does not know is run and listened to (see
``analysis.core_operators``); an entry here is what has to be known without that, or cannot be found out so.
"""

from tracecompile.operations.facts import (
    CUTS,
    FLAT,
    NORMALISES,
    SAME_NUMBERS,
    SHAPE_ONLY,
    UNKNOWN,
    Fact,
    Operation,
    Rows,
)
from tracecompile.operations.lookup import (
    OPERATIONS,
    Symbol,
    described,
    functions_of,
    has,
    modules_with,
    names_of,
    operation_named,
    operation_of,
    operation_of_function,
    operation_of_module,
    operation_of_property,
    symbol_named,
)

__all__ = [
    "CUTS",
    "FLAT",
    "NORMALISES",
    "OPERATIONS",
    "SAME_NUMBERS",
    "SHAPE_ONLY",
    "UNKNOWN",
    "Fact",
    "Operation",
    "Rows",
    "Symbol",
    "described",
    "functions_of",
    "has",
    "modules_with",
    "names_of",
    "operation_named",
    "operation_of",
    "operation_of_function",
    "operation_of_module",
    "operation_of_property",
    "symbol_named",
]
