"""Show how far a run is, step by step."""

from __future__ import annotations

import click

from cli import where
from cli.output import print_error, print_json, print_table, seconds

EPILOG = """\b
examples:
  kuznia status kuznia-guide
  kuznia status --on cluster -n acme-training
"""


@click.command(epilog=EPILOG)
@click.argument("run", required=False)
@where.options
@click.option("--json", "as_json", is_flag=True, help="Print the state as JSON.")
def command(
    run: str | None, on: str, namespace: str | None, context: str | None, as_json: bool
) -> None:
    """Show how far RUN is, step by step.

    RUN is a run's name or the beginning of one; without it, the newest.
    """
    from workflows import state

    where.check(on, namespace=namespace, context=context)
    if on == "cluster":
        from workflows.cluster import Cluster
        from workflows.follow import find
        from workflows.nodes import facts_of

        facts = facts_of(find(Cluster(namespace, context), run))
    else:
        facts = state.read(state.find(run))
    if as_json:
        print_json(facts)
        return
    phase = facts["phase"]
    why = f" ({facts['message']})" if facts.get("message") else ""
    click.echo(f"{facts['run']}: {phase}{why}, started {facts['started'][:19]}")
    print_table(
        ("step", "phase", "attempts", "took", "progress"),
        [
            (
                name,
                step["phase"],
                str(step["attempts"] or ""),
                seconds(step["seconds"]) if step["seconds"] else "",
                _progress(step) if step["phase"] == "Running" else "",
            )
            for name, step in facts["steps"].items()
        ],
    )
    for name, step in facts["steps"].items():
        if step["phase"] == "Failed":
            for problem in step["message"].splitlines():
                print_error(problem)
            way = (
                f"kuznia logs {facts['run']} --on cluster -n {facts.get('namespace')} --step {name}"
            )
            log = way if on == "cluster" else state.log_path(facts["run"], name)
            click.echo(f"log: {log}", err=True)


def _progress(step: dict[str, dict[str, object]]) -> str:
    from cli.watch import describe

    return describe(step["progress"]) if "progress" in step else ""
