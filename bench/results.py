"""How every benchmark says what it found: one table on the screen, one JSON file in results/."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum of repeated measurements."""
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Spread of ours/theirs, pair by pair, as the runs alternated."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def machine(*packages: str) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": model[0] if model else platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
    }


def save(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    facts: dict[str, Any],
    note: str = "",
) -> None:
    """Print `rows` as a table and write bench/results/<name>.json.

    Every row has the same keys: what was measured first, then figures (numbers or spreads).
    """
    result = {"name": name, "title": title, "note": note, "rows": rows, "machine": facts}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", "utf-8")
    print(markdown(result))


def markdown(result: dict[str, Any]) -> str:
    """The result as a Markdown section with one table."""
    rows = result["rows"]
    heads = list(rows[0])
    lines = [f"## {result['title']}", ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(_cell(row[head]) for head in heads) + " |" for row in rows]
    facts = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    where = f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB; {packages}"
    lines += ["", f"{result['note']} Measured on {where}.".strip()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:g} ({value['min']:g} to {value['max']:g})"
    return f"{value:g}" if isinstance(value, float) else str(value)
