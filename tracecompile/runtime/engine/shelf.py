"""What is compiled, on disk for the next process: found by all that it depends on, without the compiler."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import tracecompile

OF_THIS_PROCESS = re.compile(r"\bobject \d+|0x[0-9a-f]{4,}")
"""What a key says of an object that other processes do not have."""
ENTRY, LIBRARY, BEGUN = "entry.json", "scan_kernels", "building-"
SAID_BY_PROCESSOR = ("model name", "flags", "Features", "CPU part")


@dataclass(frozen=True)
class Entry:
    """A compiled scan.

    Attributes:
        call: Python that defines ``call``, see ``wrapper.Parts``.
        kernels: Names of the functions of its library.
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


def found(digest: str) -> Iterator[tuple[Path, Entry]]:
    """Yields the folders on disk that have a name, and what each has: for sizes that no other serves."""
    for path in sorted(_place_of(digest).glob(f"*/{ENTRY}")):
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            yield path.parent, Entry(read["call"], tuple(read["kernels"]), tuple(read["products"]), read["fits"])
        except (OSError, ValueError, KeyError):
            continue


def workplace() -> Path:
    """Returns a new folder beside those with a name, which the caller puts away or removes."""
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=BEGUN, dir=root))


def put(digest: str, entry: Entry, folder: Path) -> Path:
    """Gives a folder with a library its name, whole or not at all.

    Args:
        digest: The name.
        entry: What to say of it.
        folder: Of ``workplace``.

    Returns:
        The folder as it is called now. No other has ever been: Python loads a library of one path once.
    """
    (folder / ENTRY).write_text(json.dumps(asdict(entry)), encoding="utf-8")
    place = _place_of(digest) / folder.name.removeprefix(BEGUN)
    place.parent.mkdir(parents=True, exist_ok=True)
    return folder.rename(place)


def wanted() -> bool:
    """Tells whether anything is kept on disk: inductor's settings say so."""
    from torch._inductor import config

    return bool(config.fx_graph_cache) and not config.force_disable_caches


def _place_of(digest: str) -> Path:
    return _root() / digest[:2] / digest


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
