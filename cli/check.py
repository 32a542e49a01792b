"""Say what is wrong with run specs, and what a run would do, without running."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import in_spec, print_json
from kuznia.errors import InputError

if TYPE_CHECKING:
    from kuznia.contracts.steps import PlanOutputs


@click.command(epilog="example: kuznia check train.yaml")
@click.argument("specs", nargs=-1, metavar="[SPEC]...", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the plans as JSON.")
def command(specs: tuple[Path, ...], as_json: bool) -> None:
    """Check the catalogue and every run spec named, and print what each run would do.

    Every fault is named at once, one a line; exit code 2 if there is one.
    """
    from kuznia.contracts.catalogue import catalogue_path, load_catalogue

    load_catalogue()
    plans: dict[str, PlanOutputs] = {}
    problems: list[str] = []
    if not as_json:
        click.echo(f"{catalogue_path()}: ok")
    for path in specs:
        try:
            plans[str(path)], words = _plan(path)
        except InputError as error:
            problems += [in_spec(problem, path) for problem in error.problems]
        else:
            if not as_json:
                click.echo(f"{path}: ok\n{textwrap.indent(words, '  ')}", nl=False)
    if as_json:
        print_json({path: plan.model_dump(mode="json") for path, plan in plans.items()})
    if problems:
        raise InputError(problems)


def _plan(path: Path) -> tuple[PlanOutputs, str]:
    """What the step plan makes of the spec and says, with its data read where it lies."""
    import contextlib
    import io
    import tempfile

    import yaml

    from kuznia import settings
    from kuznia.contracts.steps import PlanInputs
    from kuznia.store import open_store
    from steps.context import Context
    from workflows.submit import check, in_place

    _, spec, files = check(path)
    from steps import plan

    config = yaml.safe_dump(in_place(spec, files).model_dump(mode="json", exclude_none=True))
    words = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(words):
        context = Context(
            open_store(folder), settings.tracking_uri(), Path(folder), settings.cache()
        )
        outputs = plan.run(PlanInputs(config=config, run=f"check-{spec.model}"), context)
    return outputs, words.getvalue()
