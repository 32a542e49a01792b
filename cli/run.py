"""Run the whole chain on this machine: data, training, evaluation, export, card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import in_spec, print_error, print_json, seconds

if TYPE_CHECKING:
    from workflows.local import Result
    from workflows.submit import Submission


@click.command(epilog="example: kuznia run train.yaml")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def command(spec: Path, as_json: bool) -> None:
    """Run the spec in the file SPEC to its end.

    The same command again finishes what was left and repeats nothing that is done. Ctrl-C stops
    the run; training saves a checkpoint first. Exit codes: 0 done, 2 a file is wrong, 3 something
    outside failed (try again), 130 stopped, 1 our bug.
    """
    from cli.watch import watcher
    from workflows import state
    from workflows.submit import submit

    with watcher(sys.stderr if as_json else sys.stdout) as watching:
        submission, result = submit(spec, watching)
    facts = state.read(result.run)
    if as_json:
        print_json(_report(submission, result))
    if result.phase == "Interrupted":
        click.echo(f"stopped; `kuznia run {spec}` goes on from here", err=True)
    elif result.failed:
        for problem in facts["steps"][result.failed]["message"].splitlines():
            print_error(in_spec(problem, spec))
        log = state.log_path(result.run, result.failed)
        print_error(f"step {result.failed} failed (exit code {result.exit_code}); its log: {log}")
    elif not as_json:
        _summary(submission, result, sum(s["seconds"] for s in facts["steps"].values()))
    raise SystemExit(result.exit_code)


def _report(submission: Submission, result: Result) -> dict[str, object]:
    import json

    from workflows import state

    outputs = {name.partition(".")[0]: json.loads(text) for name, text in result.outputs.items()}
    return {**state.read(result.run), "config": submission.config, "outputs": outputs}


def _summary(submission: Submission, result: Result, spent: float) -> None:
    """What was made, and what to do with it."""
    import json

    from kuznia import settings

    outputs = {name.partition(".")[0]: json.loads(text) for name, text in result.outputs.items()}
    evaluation, registration = outputs["evaluate"], outputs["register"]
    scores = "; ".join(
        f"{metric} {value['base']:.2f} -> {value['candidate']:.2f}"
        for metric, value in evaluation["metrics"].items()
    )
    name = f"{submission.spec.tenant}/{submission.spec.model}"
    click.echo(f"\n{result.run}: done ({seconds(spent)} in steps)")
    click.echo(f"  version   {registration['version']} of {name}")
    click.echo(f"  verdict   {evaluation['verdict']} ({scores}; base -> fine-tuned)")
    click.echo(f"  card      {settings.store_uri()}/{outputs['model-card']['readme']['key']}")
    click.echo(f"\nnext: kuznia serve {name}, then kuznia chat {name}")
