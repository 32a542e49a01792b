"""List the runs on this machine, the newest first."""

from __future__ import annotations

import click

from cli.output import print_json, print_table


@click.command(epilog="example: kuznia runs")
@click.option("--json", "as_json", is_flag=True, help="Print every run's state as JSON.")
def command(as_json: bool) -> None:
    """List the runs on this machine, the newest first."""
    from workflows import state

    found = [state.read(run) for run in state.runs()]
    if as_json:
        print_json(found)
    elif not found:
        click.echo("no runs yet; start one with `kuznia run train.yaml`")
    else:
        print_table(
            ("run", "tenant", "phase", "started"),
            [(s["run"], s.get("tenant", ""), s["phase"], s["started"][:19]) for s in found],
        )
