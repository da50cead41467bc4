"""Runs scans: as they are, or compiled by inductor, once per distinct core and piece of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tracecompile.layers import Unit
from tracecompile.runtime.chunked.core_scan import Carried, CoreScan, ScanResult
from tracecompile.runtime.chunked.scan import scan


class Scans:
    """Runs the scans of units as they are."""

    def begin(self) -> None:
        """Says that a sequence begins."""

    def pieces(self, unit: Unit, steps: int) -> list[int]:
        """Returns the lengths of the scans that a chunk of a unit is made of."""
        return [steps]

    def run(
        self,
        unit: Unit,
        cores: Sequence[CoreScan],
        layers: Sequence[int],
        steps: int,
        values: Sequence[Tensor],
        carries: Sequence[Tensor],
        statics: Sequence[Any],
        carried: Sequence[Carried],
    ) -> ScanResult:
        """Runs one scan; see ``scan``."""
        assert unit.step is not None
        return scan(unit.step.forward, cores, layers, steps, values, carries, statics, carried)
