"""List runs, the newest first."""

from __future__ import annotations

import click

from cli import where
from cli.output import print_json, print_table

EPILOG = """\b
examples:
  kuznia runs
  kuznia runs --on cluster -n acme-training
"""


@click.command(epilog=EPILOG)
@where.options
@click.option("--json", "as_json", is_flag=True, help="Print every run's state as JSON.")
def command(on: str, namespace: str | None, context: str | None, as_json: bool) -> None:
    """List the runs on this machine or in a namespace of a cluster, the newest first."""
    where.check(on, namespace=namespace, context=context)
    if on == "cluster":
        from workflows.cluster import Cluster
        from workflows.follow import runs
        from workflows.nodes import facts_of

        found = [facts_of(workflow) for workflow in runs(Cluster(namespace, context))]
    else:
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
