"""What stands in the compiler's place for a network that was loaded: the programs that were saved, and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tracecompile.compiled import Compiled, Request
from tracecompile.errors import InvalidInput
from tracecompile.printing import Stages
from tracecompile.saving.models import weights_of
from tracecompile.saving.programs import read, read_programs
from tracecompile.saving.values import Json


class WrittenPrograms:
    """Programs as they were written.

    Attributes:
        contents: The model, the settings and the programs, ready to run as ``codes`` say.
    """

    def __init__(self, content: Json, tensors: Mapping[str, Tensor], codes: Sequence[str]) -> None:
        """Reads what ``write`` has written.

        Args:
            content: As JSON.
            tensors: Weights and constants.
            codes: The code of every program.
        """
        self.content, self.codes = content, tuple(codes)
        contents = read(content, tensors)
        weights = weights_of(contents.model)
        self.constants = {name: value for name, value in tensors.items() if name not in weights}
        self.contents = replace(contents, compiled=self._coded(contents.compiled))

    def _coded(self, compiled: Sequence[Compiled]) -> tuple[Compiled, ...]:
        return tuple(
            replace(each, stages=Stages(each.stages.programs, code))
            for each, code in zip(compiled, self.codes, strict=True)
        )

    def __call__(self, request: Request, earlier: Sequence[Compiled]) -> Compiled:
        """Returns the program for a call.

        Raises:
            InvalidInput: None was saved for a call of this kind.
        """
        tensors = {**self.constants, **weights_of(request.model)}
        for each in self._coded(read_programs(self.content, tensors, request.model)):
            if each.fits(request.model, request.args, request.kwargs):
                each.stages.run_as_printed()
                return each
        raise InvalidInput(
            "A call of this kind needs a program of its own, and a network that was loaded has no source to capture: "
            "it takes the dtypes, devices, numbers and structures that it was called with before it was saved.",
            "Call the converted network in this way before it is saved.",
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what is made of the rest."""
        return {"content": self.content, "codes": self.codes, "constants": self.constants}
