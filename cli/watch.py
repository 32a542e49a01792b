"""How `kuznia run` shows a run: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from cli.output import COLOURS, seconds
from workflows.local import Watcher


@contextmanager
def watcher(stream: TextIO) -> Iterator[Watcher]:
    """A watcher that writes to `stream` as long as the context lasts."""
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        yield Lines(stream)
        return
    bars = Progress(
        TextColumn("{task.description}", table_column=Column(min_width=10, no_wrap=True)),
        TextColumn("{task.fields[phase]}", table_column=Column(min_width=9, no_wrap=True)),
        BarColumn(bar_width=12, table_column=Column(min_width=12)),
        TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
        TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True)),
        console=console,
    )
    with bars:
        yield Bars(bars)


def describe(facts: dict[str, Any]) -> str:
    """`12/60 steps, loss 1.93, 4.1 samples/s, 2 min 3 s left` from a progress line."""
    done, total, unit = facts.get("done", 0), facts.get("total", 0), facts.get("unit", "")
    if unit == "bytes":
        done, total, unit = done >> 20, total >> 20, "MiB"
    parts = [f"{done}/{total} {unit}".strip()]
    if doing := facts.get("doing"):
        parts.append(str(doing))
    if (loss := facts.get("loss")) is not None:
        parts.append(f"loss {loss:.3g}")
    if (speed := facts.get("samples_per_second")) is not None:
        parts.append(f"{speed:.3g} samples/s")
    if (left := facts.get("eta_seconds")) is not None:
        parts.append(f"{seconds(left)} left")
    return ", ".join(parts)


def marked(name: str, line: str) -> str:
    """A line of a step's log after the step's name, unless the step has put it there itself."""
    return line if line.startswith(f"{name}: ") else f"{name}: {line}"


class Lines(Watcher):
    """One line for each thing that happens; progress at every tenth of the way."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.tenths: dict[str, int] = {}
        self.phases: dict[str, tuple[str, int]] = {}

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def step(self, name: str, facts: dict[str, Any]) -> None:
        phase = (facts["phase"], facts["attempts"])
        if self.phases.get(name) == phase:
            return
        self.phases[name] = phase
        if facts["phase"] == "Succeeded":
            self.say(f"{name}: Succeeded in {seconds(facts['seconds'])}")
        else:
            self.say(f"{name}: {facts['phase']}")

    def progress(self, name: str, facts: dict[str, Any]) -> None:
        tenth = 10 * facts.get("done", 0) // max(facts.get("total", 1), 1)
        if tenth != self.tenths.get(name):
            self.tenths[name] = tenth
            self.say(f"{name}: {describe(facts)}")

    def log(self, name: str, line: str) -> None:
        self.say(marked(name, line))


class Bars(Watcher):
    """A line a step that is redrawn in place."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, Any] = {}

    def say(self, text: str) -> None:
        self.bars.console.print(text, markup=False)

    def step(self, name: str, facts: dict[str, Any]) -> None:
        phase = facts["phase"]
        colour = COLOURS.get(phase, "white")
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=None, phase="", facts="")
        task = self.tasks[name]
        self.bars.update(task, phase=f"[{colour}]{phase:<9}[/]")
        if phase == "Succeeded":
            self.bars.update(task, total=1, completed=1, facts="")
        if phase != "Running":
            self.bars.stop_task(task)

    def progress(self, name: str, facts: dict[str, Any]) -> None:
        self.bars.update(
            self.tasks[name],
            total=facts.get("total"),
            completed=facts.get("done", 0),
            facts=describe(facts),
        )

    def log(self, name: str, line: str) -> None:
        self.bars.console.print(marked(name, line), markup=False, soft_wrap=True)
