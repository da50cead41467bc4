"""All kernels of a scan as one file of C++, which its headers are read for once, and as the module that is loaded."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import types
from collections.abc import Sequence
from pathlib import Path

from tracecompile.runtime.engine.inductor import Unwritten
from tracecompile.runtime.engine.wrapper import Kernel

NAME = "scan_kernels"
HEADER = "#include <torch/csrc/inductor/cpp_prefix.h>"
DECLARED = re.compile(r'extern "C"\s+void\s+kernel\(')
GIVEN = {"int64_t": "number", "float": "real", "double": "real"}
"""What reads an argument that is no pointer."""
ARGUMENTS = r"""
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdexcept>

struct Raised {};

static int64_t number(PyObject* given) {
    int64_t found = PyLong_AsLongLong(given);
    if (found == -1 && PyErr_Occurred()) throw Raised();
    return found;
}

static double real(PyObject* given) {
    double found = PyFloat_AsDouble(given);
    if (found == -1.0 && PyErr_Occurred()) throw Raised();
    return found;
}

static PyObject* data_ptr = nullptr;

static void* pointer(PyObject* given) {
    PyObject* address = PyObject_CallMethodNoArgs(given, data_ptr);
    if (!address) throw Raised();
    void* found = PyLong_AsVoidPtr(address);
    Py_DECREF(address);
    if (!found && PyErr_Occurred()) throw Raised();
    return found;
}
"""
CALL = r"""
static PyObject* call_{place}(PyObject*, PyObject* const* given, Py_ssize_t count) {{
    try {{
        if (count != {count}) throw std::runtime_error("another number of arguments");
        kernel_{place}::kernel({arguments});
    }} catch (Raised const&) {{
        return nullptr;
    }} catch (std::exception const& fault) {{
        PyErr_SetString(PyExc_RuntimeError, fault.what());
        return nullptr;
    }}
    Py_RETURN_NONE;
}}
"""
MODULE = r"""
static PyMethodDef functions[] = {{
{rows}
    {{nullptr, nullptr, 0, nullptr}}}};

static PyModuleDef definition = {{PyModuleDef_HEAD_INIT, "{name}", nullptr, -1, functions}};

PyMODINIT_FUNC PyInit_{name}(void) {{
    data_ptr = PyUnicode_InternFromString("data_ptr");
    return data_ptr ? PyModule_Create(&definition) : nullptr;
}}
"""


def source_of(kernels: Sequence[Kernel]) -> str:
    """Returns a module of Python in C++ that has a function for each kernel.

    Raises:
        Unwritten: Where a kernel is no function that can stand beside others.
    """
    parts, rows = [HEADER, ARGUMENTS], []
    for place, kernel in enumerate(kernels):
        source, found = DECLARED.subn("__attribute__((noinline)) void kernel(", kernel.source.replace(HEADER, ""))
        if found != 1 or "#include" in source or 'extern "C"' in source:
            raise Unwritten("its kernels are laid out otherwise")
        arguments = ", ".join(_argument(at, kind) for at, kind in enumerate(kernel.types))
        parts.append(f"namespace kernel_{place} {{\n{source}\n}}")
        parts.append(CALL.format(place=place, count=len(kernel.types), arguments=arguments))
        call = f"reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_{place}))"
        rows.append(f'    {{"{kernel.name}", {call}, METH_FASTCALL, ""}},')
    return "\n".join([*parts, MODULE.format(rows="\n".join(rows), name=NAME)])


def load(path: Path) -> types.ModuleType:
    """Returns the module that was compiled into a file.

    Raises:
        ImportError: Where the file is none that can be loaded.
    """
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_file_location(NAME, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _argument(place: int, kind: str) -> str:
    plain = kind.removeprefix("const ").strip()
    if plain.endswith("*"):
        return f"static_cast<{kind}>(pointer(given[{place}]))"
    if plain not in GIVEN:
        raise Unwritten(f"a kernel of it takes a {kind}")
    return f"static_cast<{plain}>({GIVEN[plain]}(given[{place}]))"
