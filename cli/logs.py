"""Show what the steps of a run printed."""

from __future__ import annotations

import time
from pathlib import Path

import click

from kuznia.errors import InputError


@click.command(epilog="example: kuznia logs --step train -f")
@click.argument("run", required=False)
@click.option("--step", help="Only this step's log.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
def command(run: str | None, step: str | None, follow: bool) -> None:
    """Show the logs of RUN, each line after the name of its step.

    RUN is a run's name or the beginning of one; without it, the newest.
    """
    from workflows import state

    run = state.find(run)
    steps = list(state.read(run)["steps"])
    if step is not None and step not in steps:
        raise InputError(f"--step {step}: is not a step of {run}; choose one of {', '.join(steps)}")
    chosen = [step] if step else steps
    offsets = dict.fromkeys(chosen, 0)
    while True:
        # Asked first: what is printed between the question and the reading is still read.
        running = follow and state.read(run)["phase"] == "Running"
        for name in chosen:
            prefix = "" if step else f"{name}: "
            offsets[name] = _copy(state.log_path(run, name), offsets[name], prefix)
        if not running:
            return
        time.sleep(0.3)


def _copy(path: Path, offset: int, prefix: str) -> int:
    """Print the whole lines of a log after `offset`; returns where they end."""
    if not path.exists():
        return offset
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            click.echo(prefix + line.decode(errors="replace"), nl=False)
    return offset
