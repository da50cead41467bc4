"""What an export has made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Exported:
    """A network in another format.

    Attributes:
        format: "onnx" or "nir".
        model: An ``onnx.ModelProto`` of one time step, or a ``nir.NIRGraph``.
        others: Further models by name: what begins a sequence ("begin"), and what ends one ("end"), where it takes one.
        guide: How it is run, in words.
        description: The same as data.
        notes: What the user should know of it.
        files: What was written.
    """

    format: str
    model: Any
    others: Mapping[str, Any] = field(default_factory=dict)
    guide: str = ""
    description: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        parts = [self.guide, *(f"note: {note}" for note in self.notes)]
        parts += [f"written: {', '.join(map(str, self.files))}"] if self.files else []
        return "\n\n".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """Returns all but the models, for JSON."""
        return {
            "format": self.format,
            "files": [str(path) for path in self.files],
            "notes": list(self.notes),
            **json.loads(json.dumps(self.description)),
        }
