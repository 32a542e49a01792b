"""Run the whole chain: data, training, evaluation, export, card."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import where
from cli.output import in_spec, print_error, print_json, seconds

if TYPE_CHECKING:
    from workflows.local import Result
    from workflows.submit import Submission

EPILOG = """\b
examples:
  kuznia run train.yaml
  kuznia run train.yaml --on cluster --detach
"""


class Duration(click.ParamType[float]):
    """`90s`, `30m`, `24h` as seconds."""

    name = "duration"

    def convert(self, value: Any, _: Any, __: Any) -> float:
        if not (match := re.fullmatch(r"(\d+)([smh])", str(value))):
            self.fail(f"{value!r} is not a duration; write 90s, 30m or 24h")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


@click.command(epilog=EPILOG)
@click.argument("spec", type=click.Path(path_type=Path))
@where.options
@click.option(
    "--deadline",
    type=Duration(),
    default="24h",
    show_default=True,
    help="On a cluster: stop following after this time; the run goes on.",
)
@click.option("--detach", is_flag=True, help="On a cluster: start the run and do not follow it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def command(
    spec: Path,
    on: str,
    namespace: str | None,
    context: str | None,
    deadline: float,
    detach: bool,
    as_json: bool,
) -> None:
    """Run the spec in the file SPEC to its end.

    The same command again finishes what was left and repeats nothing that is done. Ctrl-C stops
    the run; training saves a checkpoint first. On a cluster what the steps print is shown as it
    comes, and Ctrl-C only stops following it. Exit codes: 0 done, 2 a file is wrong, 3 something
    outside failed (try again), 130 stopped, 1 our bug.
    """
    where.check(on, namespace=namespace, context=context, detach=detach)
    if on == "cluster":
        _on_cluster(spec, namespace, context, deadline, detach, as_json)
        return
    from cli.watch import watcher
    from kuznia import settings
    from workflows import state
    from workflows.submit import submit

    with watcher(sys.stderr if as_json else sys.stdout) as watching:
        submission, result = submit(spec, watching)
    facts = state.read(result.run)
    again = f"stopped; `kuznia run {spec}` goes on from here"
    log = f"its log: {state.log_path(result.run, result.failed)}" if result.failed else ""
    if _end(spec, submission, result, facts, settings.store_uri(), again, log, as_json):
        name = f"{submission.spec.tenant}/{submission.spec.model}"
        click.echo(f"\nnext: kuznia serve {name}, then kuznia chat {name}")
    raise SystemExit(result.exit_code)


def _on_cluster(
    spec: Path,
    namespace: str | None,
    context: str | None,
    deadline: float,
    detach: bool,
    as_json: bool,
) -> None:
    from cli.watch import watcher
    from kuznia import settings
    from workflows.follow import follow
    from workflows.nodes import facts_of, result_of
    from workflows.on_cluster import submit

    with watcher(sys.stderr if as_json else sys.stdout) as watching:
        cluster, submission, workflow = submit(spec, namespace, context, watching.say)
        run = submission.run
        at = f"--on cluster -n {cluster.namespace}" + (f" --context {context}" if context else "")
        again = f"kuznia run {spec} {at}"
        ways = f"follow it: {again}\nstop it: argo stop -n {cluster.namespace} {run}"
        if not detach:
            try:
                workflow = follow(cluster, run, watching, deadline)
            except KeyboardInterrupt:
                watching.say(f"detached; {run} goes on\n{ways}")
                raise SystemExit(130) from None
    facts, result = facts_of(workflow), result_of(workflow)
    if facts["exit_code"] is None:
        print_json(facts) if as_json else click.echo(ways)
        return
    stopped = f"was stopped; `{again}` goes on from there"
    log = f"its log: `kuznia logs {run} {at} --step {result.failed}`"
    _end(spec, submission, result, facts, settings.store_uri(), stopped, log, as_json)
    raise SystemExit(result.exit_code)


def _end(
    spec: Path,
    submission: Submission,
    result: Result,
    facts: dict[str, Any],
    store: str,
    stopped: str,
    log: str,
    as_json: bool,
) -> bool:
    """Say how the run ended; whether there is a version to go on with."""
    import json

    outputs = {name.partition(".")[0]: json.loads(text) for name, text in result.outputs.items()}
    if as_json:
        print_json({**facts, "config": submission.config, "outputs": outputs})
    if result.phase == "Interrupted":
        click.echo(stopped, err=True)
    elif result.failed:
        for problem in facts["steps"][result.failed]["message"].splitlines():
            print_error(in_spec(problem, spec))
        print_error(f"step {result.failed} failed (exit code {result.exit_code}); {log}")
    elif result.exit_code:
        way_out = f"argo get -n {facts['namespace']} {result.run}"
        print_error(f"{result.run}: {facts['message'] or 'failed'}; see `{way_out}`")
    elif result.exit_code == 0 and not as_json:
        spent = sum(step["seconds"] for step in facts["steps"].values())
        _summary(submission, result.run, outputs, spent, store)
        return True
    return False


def _summary(
    submission: Submission, run: str, outputs: dict[str, Any], spent: float, store: str
) -> None:
    """What was made."""
    evaluation, registration = outputs["evaluate"], outputs["register"]
    scores = "; ".join(
        f"{metric} {value['base']:.2f} -> {value['candidate']:.2f}"
        for metric, value in evaluation["metrics"].items()
    )
    name = f"{submission.spec.tenant}/{submission.spec.model}"
    click.echo(f"\n{run}: done ({seconds(spent)} in steps)")
    click.echo(f"  version   {registration['version']} of {name}")
    click.echo(f"  verdict   {evaluation['verdict']} ({scores}; base -> fine-tuned)")
    click.echo(f"  card      {store}/{outputs['model-card']['readme']['key']}")
