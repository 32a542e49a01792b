"""Show how far a run is, step by step."""

from __future__ import annotations

import click

from cli.output import print_error, print_json, print_table, seconds


@click.command(epilog="example: kuznia status kuznia-guide")
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the state as JSON.")
def command(run: str | None, as_json: bool) -> None:
    """Show how far RUN is, step by step.

    RUN is a run's name or the beginning of one; without it, the newest.
    """
    from workflows import state

    facts = state.read(state.find(run))
    if as_json:
        print_json(facts)
        return
    phase = facts["phase"]
    click.echo(f"{facts['run']}: {phase}, started {facts['started'][:19]}")
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
            click.echo(f"log: {state.log_path(facts['run'], name)}", err=True)


def _progress(step: dict[str, dict[str, object]]) -> str:
    from cli.watch import describe

    return describe(step["progress"]) if "progress" in step else ""
