"""Work in two processes that torch starts, joined by gloo."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

PROCESSES = 2


def in_two_processes(work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Returns what a function of a module returns in each of two processes.

    Args:
        work: Takes its rank, and the rest; it raises where something is wrong.
        folder: Is empty.
        *args: The rest.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_enter, (port, work, str(folder), args), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def _enter(rank: int, port: int, work: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=PROCESSES)
    torch.save(work(rank, *args), Path(folder) / f"{rank}.pt")
    distributed.barrier()
    # Not by returning: the threads of gloo abort one in ten interpreters that end, with a plain torch network as well.
    os._exit(0)
