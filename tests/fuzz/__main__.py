"""``python -m tests.fuzz``: checks many programs, and says what share is refused, and for what."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest does

from fuzz.run import run, summary, write_faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the first batch of 20 programs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="begin no further batch after so long; run again to go on")
    parser.add_argument(
        "--folder", type=Path, default=Path("fuzz_results"), help="results; batches there are not run again"
    )
    parser.add_argument("--shrink", type=int, default=20, help="kinds of faults of which a small program is written")
    given = parser.parse_args()
    found = run(given.programs, given.seed, given.jobs, given.folder, given.seconds)
    print(summary(found))
    write_faults(found, given.folder, given.shrink)
    return int(any(each["outcome"] == "fault" for each in found))


if __name__ == "__main__":
    sys.exit(main())
