"""Reading the input lines of a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from training.engine.errors import EngineError
from training.jobspec import JsonRecord, SpecError

Line = TypeVar("Line", bound=JsonRecord)


def read_lines(path: Path, line_type: type[Line]) -> list[Line]:
    """The records of ``path`` in order. Raises ``EngineError`` bad_dataset with the number of the first bad line."""
    lines = []
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                lines.append(line_type.from_dict(json.loads(text)))
            except (SpecError, ValueError, TypeError, AttributeError) as error:
                raise EngineError("bad_dataset", f"Line {number} of {path.name} is not valid: {error}") from error
    return lines
