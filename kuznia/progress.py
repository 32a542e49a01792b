"""How a step says how far it is: one JSON object a line on standard output.

    progress: {"step": "train", "done": 12, "total": 60, "unit": "steps", "loss": 1.93}

The engine turns such lines into progress bars; in a log they read well enough as they are.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MARK = "progress: "


def progress(step: str, done: int, total: int, unit: str, **facts: Any) -> None:
    """Say that `done` of `total` units are done, with whatever else is worth showing."""
    line = {"step": step, "done": done, "total": total, "unit": unit, **facts}
    say(MARK + json.dumps(line))


def say(line: str) -> None:
    """Print a line in one write: lines of several threads never mix, as they do with `print`."""
    sys.stdout.write(line.rstrip("\n") + "\n")
    sys.stdout.flush()


def parse_progress(line: str) -> dict[str, Any] | None:
    """The object in a progress line, or None for any other line."""
    if not line.startswith(MARK):
        return None
    try:
        value = json.loads(line.removeprefix(MARK))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
