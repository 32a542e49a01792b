"""Say what is wrong with run specs and with the registry in git, without running anything."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import in_spec, print_json
from cli.where import root
from kuznia.errors import InputError

if TYPE_CHECKING:
    from kuznia.contracts.catalogue import Catalogue
    from kuznia.contracts.steps import PlanOutputs
    from kuznia.tree import Tree


EPILOG = """\b
examples:
  kuznia check train.yaml                   a run spec, and what a run would do
  kuznia check                              the registry in git, where there is one here
  kuznia check --against origin/main        and what a pull request may not change in it
  kuznia check --against origin/main --mlflow   and whether MLflow knows what it deploys
"""


@click.command(epilog=EPILOG)
@click.argument("specs", nargs=-1, metavar="[SPEC]...", type=click.Path(path_type=Path))
@click.option("--against", metavar="REVISION", help="Check the change of the registry since then.")
@click.option(
    "--mlflow",
    is_flag=True,
    help="Ask MLFLOW_TRACKING_URI for every release; with --against for those that changed.",
)
@click.option(
    "--approved-by",
    multiple=True,
    metavar="NAME",
    help="Who approved the change, with --against: high risk in production needs two.",
)
@root
@click.option("--json", "as_json", is_flag=True, help="Print the plans as JSON.")
def command(
    specs: tuple[Path, ...],
    against: str | None,
    mlflow: bool,
    approved_by: tuple[str, ...],
    root: Path,
    as_json: bool,
) -> None:
    """Check the catalogue, the registry in git, and every run spec named; print what runs would do.

    Every fault is named at once, one a line; exit code 2 if there is one.
    """
    from kuznia.contracts.catalogue import catalogue_path, load_catalogue
    from kuznia.tree import REGISTRY

    catalogue = load_catalogue()
    plans: dict[str, PlanOutputs] = {}
    problems: list[str] = []
    if not as_json:
        click.echo(f"{catalogue_path()}: ok")
    if (root / REGISTRY).is_dir():
        found = _registry(root, catalogue, against, mlflow, approved_by)
        problems += found
        if not found and not as_json:
            click.echo(f"{REGISTRY}: ok")
    elif against or mlflow:
        problems.append(f"{root / REGISTRY}: is not here; name the checkout with --root")
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


def _registry(
    root: Path,
    catalogue: Catalogue,
    against: str | None,
    mlflow: bool,
    approved_by: tuple[str, ...],
) -> list[str]:
    """What is wrong with the registry in git, and with its change since `against`."""
    from kuznia import settings
    from kuznia.registry import Registry
    from kuznia.tree import load_tree, read_tree, tree_at
    from kuznia.tree_checks import (
        problems_of_approval,
        problems_of_change,
        problems_of_registration,
        problems_of_tree,
    )

    try:
        tree = load_tree(root)
    except InputError as error:
        return error.problems
    problems = problems_of_tree(tree, catalogue) + _gateway(tree)
    asked = list(tree.releases)
    if against:
        try:
            with tree_at(root, against) as folder:
                # Whatever could be read of it: a change may mend what is wrong there.
                old, _ = read_tree(folder)
        except InputError as error:
            return [*problems, *error.problems]
        if old:
            problems += problems_of_change(old, tree)
            if approved_by:
                problems += problems_of_approval(old, tree, set(approved_by))
        before = {each.path: each.release for each in old.releases} if old else {}
        asked = [each for each in asked if before.get(each.path) != each.release]
    if mlflow and asked:
        problems += problems_of_registration(asked, Registry(settings.tracking_uri()))
    return problems


def _gateway(tree: Tree) -> list[str]:
    """What the gateway would not take: its files are made, and checked by Envoy if that is here."""
    from kuznia.gateway.folder import compiled, validate
    from kuznia.gateway.places import Places
    from kuznia.gateway.softly import softened
    from kuznia.gateway.table import table_of
    from kuznia.tree import SOFT
    from workflows.environments import envoy, is_ready

    here = Path("/gateway")
    try:
        table = softened(table_of(tree), tree.soft, str(SOFT))
        made = compiled(table, Places(here / "conf", here / "spool", here / "run"), {})
        if is_ready("gateway"):
            validate(made, envoy())
    except InputError as error:
        return error.problems
    return []


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
