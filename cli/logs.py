"""Show what the steps of a run printed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from cli import where
from kuznia.errors import InputError

EPILOG = """\b
examples:
  kuznia logs --step train -f
  kuznia logs --on cluster -n acme-training --step train -f
"""


@click.command(epilog=EPILOG)
@click.argument("run", required=False)
@where.options
@click.option("--step", help="Only this step's log.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
def command(
    run: str | None,
    on: str,
    namespace: str | None,
    context: str | None,
    step: str | None,
    follow: bool,
) -> None:
    """Show the logs of RUN, each line after the name of its step.

    RUN is a run's name or the beginning of one; without it, the newest.
    """
    from workflows import state

    where.check(on, namespace=namespace, context=context)
    if on == "cluster":
        _on_cluster(run, namespace, context, step, follow)
        return
    run = state.find(run)
    chosen = _chosen(step, state.read(run))
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


def _on_cluster(
    run: str | None, namespace: str | None, context: str | None, step: str | None, follow: bool
) -> None:
    from workflows.cluster import Cluster
    from workflows.follow import find, log_lines
    from workflows.nodes import facts_of

    cluster = Cluster(namespace, context)
    facts = facts_of(find(cluster, run))
    for name, line in log_lines(cluster, facts["run"], _chosen(step, facts), follow):
        if line is not None:
            click.echo(line if step else f"{name}: {line}")
        else:
            kept = f"runs/{facts['tenant']}/{facts['run']}/{name}"
            click.echo(
                f"{name}: its pod and log are gone; its results: {kept} in the store", err=True
            )


def _chosen(step: str | None, facts: dict[str, Any]) -> list[str]:
    """The steps whose logs are asked for."""
    steps = list(facts["steps"])
    if step is not None and step not in steps:
        raise InputError(
            f"--step {step}: is not a step of {facts['run']}; choose one of {', '.join(steps)}"
        )
    return [step] if step else steps


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
