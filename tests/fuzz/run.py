"""Many programs: in batches by seed, in several processes, in slices of time; and a summary of what came of them."""

from __future__ import annotations

import gc
import json
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from fuzz.check import Verdict, check
from fuzz.choices import drawn_choices
from fuzz.render import Rendered, render
from fuzz.shrink import from_choices, shrunk

BATCH = 20
"""Programs that are drawn from one seed."""
EVERY = 20
"""Every so many programs, one is compared in full."""
REASONS = 10


def programs() -> st.SearchStrategy[Rendered]:
    """Draws programs."""
    return drawn_choices().map(render)


def drawn_from(seed: int, count: int = BATCH) -> list[Rendered]:
    """Returns the programs of one seed, without those that are there twice."""
    found: dict[str, Rendered] = {}

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def collect(rendered: Rendered) -> None:
        found.setdefault(rendered.source, rendered)

    collect()
    return list(found.values())


def batch(seed: int, folder: Path) -> list[dict[str, Any]]:
    """Checks the programs of one seed, and writes down what came of them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    gc.freeze()  # what is imported is not looked through again whenever a program counts its memory
    found = []
    for i, rendered in enumerate(drawn_from(seed)):
        began = time.process_time()
        verdict = check(rendered, full=i % EVERY == 0)
        found.append(
            {
                "seed": seed, "outcome": verdict.outcome, "reason": verdict.reason, "message": verdict.message[:600],
                "seconds": round(time.process_time() - began, 2), "taken": rendered.taken,
            }
        )  # fmt: skip
    with (folder / f"batch_{seed}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(each) + "\n" for each in found)
    return found


def run(count: int, first_seed: int, jobs: int, folder: Path, seconds: float | None = None) -> list[dict[str, Any]]:
    """Checks at least so many programs, those of earlier runs in the same folder included.

    Args:
        count: Number of programs.
        first_seed: Of the first batch.
        jobs: Number of processes.
        folder: Where the results lie; batches that are there are not run again.
        seconds: When to begin no further batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, until = [], time.monotonic() + (seconds or float("inf"))
    waiting = list(range(first_seed, first_seed + -(-count // BATCH)))
    for seed in list(waiting):
        if (folder / f"batch_{seed}.jsonl").exists():
            found += list(_read(folder / f"batch_{seed}.jsonl"))
            waiting.remove(seed)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=8) as pool:
        running: set[Future[list[dict[str, Any]]]] = set()
        while running or (waiting and time.monotonic() < until):
            while waiting and len(running) < jobs and time.monotonic() < until:
                running.add(pool.submit(batch, waiting.pop(0), folder))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                found += each.result()
                print(f"{len(found)} programs: {_shares(found)}", flush=True)
    return found


def _read(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _shares(found: list[dict[str, Any]]) -> str:
    counted = Counter(each["outcome"] for each in found)
    sound = max(len(found) - counted["unsound"], 1)
    return ", ".join(
        f"{counted[name]} {name} ({counted[name] / sound:.1%})" for name in ("right", "refused", "fault")
    ) + (f", {counted['unsound']} unsound")


def summary(found: list[dict[str, Any]]) -> str:
    """Returns the shares, and the most frequent reasons of refusals and faults with the choices they go with."""
    lines = [_shares(found)]
    for outcome in ("fault", "refused", "unsound"):
        groups = defaultdict(list)
        for each in found:
            if each["outcome"] == outcome:
                groups[each["reason"]].append(each)
        lines.append(f"\n{outcome}:")
        for reason, members in sorted(groups.items(), key=lambda item: -len(item[1]))[:REASONS]:
            lines.append(f"  {len(members):5d}  {reason}")
            lines.append(f"         with {_in_common(members, found)}")
    return "\n".join(lines)


def _in_common(members: list[dict[str, Any]], everything: list[dict[str, Any]]) -> str:
    """Returns the choices that turn up much more often among some programs than among all."""
    here = Counter(item for each in members for item in each["taken"].items())
    there = Counter(item for each in everything for item in each["taken"].items())
    scored = sorted(here, key=lambda item: -here[item] * here[item] / there[item])
    return ", ".join(f"{name}={number} ({here[name, number]}/{there[name, number]})" for name, number in scored[:4])


def write_faults(found: list[dict[str, Any]], folder: Path, most: int = 40) -> None:
    """Writes the smallest program of every kind of fault to a file of its own."""
    seen: dict[str, int] = {}
    for each in found:
        if each["outcome"] == "fault":
            seen[each["reason"]] = seen.get(each["reason"], 0) + 1
    firsts = {each["reason"]: each for each in reversed(found) if each["outcome"] == "fault"}
    for number, reason in enumerate(sorted(seen, key=lambda reason: -seen[reason])[:most]):
        rendered = from_choices(firsts[reason]["taken"])
        verdict = shrunk(Verdict("fault", reason, firsts[reason]["message"], rendered))
        text = f"# {seen[reason]} times: {reason}\n# {verdict.message[:500]}\n# {verdict.rendered.taken}\n"
        (folder / f"fault_{number:02d}.py").write_text(text + verdict.rendered.source, encoding="utf-8")
