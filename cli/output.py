"""How commands print: errors on stderr, tables, JSON; colours only on a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

COLOURS = {
    "Succeeded": "green",
    "ok": "green",
    "Running": "cyan",
    "Failed": "red",
    "problem": "red",
    "Interrupted": "yellow",
    "note": "yellow",
}


def print_error(problem: str) -> None:
    """`error: <place>: <fault>; <way out>` on stderr."""
    click.echo(click.style("error:", fg="red") + f" {problem}", err=True)


def in_spec(problem: str, spec: Path) -> str:
    """A problem of a step, told by the file that the person wrote: steps know it as `config`."""
    return f"{spec}: {rest}" if (rest := problem.removeprefix("config: ")) != problem else problem


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns aligned by spaces; known states in their colour."""
    table = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for index, row in enumerate(table):
        cells = [
            click.style(cell.ljust(width), bold=index == 0, fg=COLOURS.get(cell) if index else None)
            for cell, width in zip(row, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def seconds(value: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
