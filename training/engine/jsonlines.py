"""Reading the input lines of a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from training.engine.errors import EngineError
from training.jobspec import JsonRecord, SpecError

HINT = "The file was damaged or written by another version. Start a new run, which writes it again."

Line = TypeVar("Line", bound=JsonRecord)


def read_lines(path: Path, line_type: type[Line]) -> list[Line]:
    """The records of ``path`` in order. Raises ``EngineError`` bad_dataset with the number of the first bad line."""
    lines = []
    with path.open("rb") as file:  # so that a byte that is no text is an error of its own line
        for number, text in enumerate(file, start=1):
            try:
                lines.append(line_type.from_dict(json.loads(text.decode())))
            except (SpecError, ValueError, TypeError, AttributeError) as error:
                raise EngineError("bad_dataset", f"Line {number} of {path.name} is not valid: {error}", HINT) from error
    return lines
