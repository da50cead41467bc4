"""What is compiled, on disk for the next process: found by all that it depends on, without the compiler."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import tracecompile

OF_THIS_PROCESS = re.compile(r"\bobject \d+|0x[0-9a-f]{4,}")
"""What a key says of an object that other processes do not have."""
ENTRY, LIBRARY = "entry.json", "scan_kernels"
SAID_BY_PROCESSOR = ("model name", "flags", "Features", "CPU part")


@dataclass(frozen=True)
class Entry:
    """A compiled scan.

    Attributes:
        call: Python that defines ``call``, see ``wrapper.Parts``.
        kernels: Names of the functions of its library, which has this text's folder.
        products: Names of functions of torch.
        fits: The condition under which it serves some arguments.
    """

    call: str
    kernels: tuple[str, ...]
    products: tuple[str, ...]
    fits: str


def digest_of(key: tuple[Any, ...]) -> str | None:
    """Returns the name of what is compiled for a key on this machine; None where no other process has such a key."""
    text = repr(key)
    if OF_THIS_PROCESS.search(text):
        return None
    return hashlib.sha256("\n".join([text, repr(_state()), _sources(), _machine()]).encode()).hexdigest()


def place_of(digest: str) -> Path:
    """Returns the folder of what has a name."""
    return _root() / digest[:2] / digest


def find(digest: str) -> Entry | None:
    """Returns what is on disk under a name."""
    try:
        found = json.loads((place_of(digest) / ENTRY).read_text(encoding="utf-8"))
        return Entry(found["call"], tuple(found["kernels"]), tuple(found["products"]), found["fits"])
    except (OSError, ValueError, KeyError):
        return None


def workplace() -> Path:
    """Returns a new folder beside those of ``place_of``, which the caller puts away or removes."""
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="building-", dir=root))


def put(digest: str, entry: Entry, folder: Path) -> Path:
    """Gives a folder with a library its name, whole or not at all.

    Args:
        digest: The name.
        entry: What to say of it.
        folder: Of ``workplace``.

    Returns:
        The folder under that name.
    """
    (folder / ENTRY).write_text(json.dumps(asdict(entry)), encoding="utf-8")
    place = place_of(digest)
    place.parent.mkdir(exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)  # what could not be loaded
    try:
        folder.rename(place)
    except OSError:  # another process was faster
        shutil.rmtree(folder, ignore_errors=True)
    return place


def wanted() -> bool:
    """Tells whether anything is kept on disk: inductor's settings say so."""
    from torch._inductor import config

    return bool(config.fx_graph_cache) and not config.force_disable_caches


def _root() -> Path:
    """Returns the folder of all, in that of what inductor compiles."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "tracecompile"


def _state() -> Sequence[Any]:
    """Returns what changes the code that is written, beside the key."""
    from torch._inductor import config

    return [
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.mkldnn.enabled,
        [os.environ.get(name) for name in ("CXX", "ATEN_CPU_CAPABILITY")],
        sorted(config.save_config_portable().items()),
    ]


@functools.cache
def _machine() -> str:
    """Returns what a library runs on: kernels are compiled for the processor at hand."""
    said = [torch.__version__, str(torch.version.git_version), sys.version, *platform.uname()[4:]]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        said += [line for line in lines if line.startswith(SAID_BY_PROCESSOR)]
    except OSError:
        said.append(platform.processor())
    return "\n".join(said)


@functools.cache
def _sources() -> str:
    """Returns the digest of this package: how a scan is made of a step is in no key."""
    found = hashlib.sha256()
    for path in sorted(Path(tracecompile.__path__[0]).rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()
