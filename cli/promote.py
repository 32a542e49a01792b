"""Bring a version from staging into production, or from MLflow into a release, as a commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.output import print_json
from cli.where import root
from kuznia.errors import InputError

if TYPE_CHECKING:
    from kuznia.git import Git
    from kuznia.promotion import Change

F = TypeVar("F", bound=Callable[..., None])
STAGES = ("staging", "production")
EPILOG = """\b
examples:
  kuznia promote acme/support                       what staging serves, to production
  kuznia promote acme/support --pull-request        and ask for it on the forge
  kuznia promote acme/support@3 --to staging        version 3 of MLflow's
"""


def options(command: F) -> F:
    """What promote and rollback have in common: where, and how far to go."""
    for option in reversed(
        (
            root,
            click.option("--branch", help="Commit on this new branch, not on the usual one."),
            click.option("--no-commit", is_flag=True, help="Only edit the files."),
            click.option(
                "--pull-request", is_flag=True, help="Push the branch and open its pull request."
            ),
            click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON."),
        )
    ):
        command = option(command)
    return command


@click.command(epilog=EPILOG)
@click.argument("model", metavar="TENANT/MODEL[@VERSION]")
@click.option("--from", "source", type=click.Choice(STAGES), help="[default: staging]")
@click.option("--to", "target", type=click.Choice(STAGES), default="production", show_default=True)
@options
def command(model: str, source: Any, target: Any, root: Path, **how: Any) -> None:
    """Change which version a release serves; nothing else in its file moves.

    The card comes along into model-cards/. What is made is a commit on a branch of its own,
    promote/<tenant>/<model>/<version>: it counts when it is merged. The forge is named by
    KUZNIA_FORGE, KUZNIA_FORGE_URL and KUZNIA_FORGE_TOKEN.
    """
    from kuznia import settings
    from kuznia.git import checkout_of
    from kuznia.promotion import promote, promote_version
    from kuznia.registry import Registry

    git = checkout_of(root)
    name, at, _ = model.partition("@")
    tenant, other = names(name)
    if at:
        if source:
            raise InputError(f"{model}: names a version of MLflow's; leave --from {source} out")
        version = Registry(settings.tracking_uri()).find(model)
        change = promote_version(git.folder, version, target)
    else:
        source = source or "staging"
        if source == target:
            raise InputError(
                f"{model}: is in {target} already; name a version of MLflow's as {model}@WHICH"
            )
        change = promote(git.folder, tenant, other, source, target)
    finish(git, change, **how)


def names(text: str) -> tuple[str, str]:
    """Tenant and model of `tenant/model`."""
    tenant, slash, model = text.partition("/")
    if not (tenant and slash and model):
        raise InputError(f"{text}: names no model of a tenant; write it as tenant/model")
    return tenant, model


def finish(
    git: Git,
    change: Change,
    branch: str | None,
    no_commit: bool,
    pull_request: bool,
    as_json: bool,
) -> None:
    """Apply the change and say what was done and what is next."""
    from kuznia.forges import forge
    from kuznia.promotion import apply

    if no_commit and (pull_request or branch):
        raise InputError("--no-commit: makes no branch; leave it or the other option out")
    name = f"{change.tenant}/{change.model} {change.stage}"
    if not change.files:
        done = {"model": f"{change.tenant}/{change.model}", "release": change.stage}
        done |= {"was": change.was or "", "version": change.version}
        print_json(done) if as_json else click.echo(
            f"{name}: serves {change.version} already; nothing to do"
        )
        return
    made = apply(
        git,
        change,
        commit=not no_commit,
        branch=branch,
        forge=forge() if pull_request else None,
    )
    if as_json:
        print_json(made)
        return
    click.echo(f"{name}: {change.was or 'nothing'} -> {change.version}")
    for path in made["files"]:
        click.echo(f"  {path}")
    if made["pull_request"]:
        click.echo(f"asked for: {made['pull_request']}")
    elif made["commit"]:
        click.echo(f"commit {made['commit'][:12]} on branch {made['branch']}")
        click.echo(
            f"next: git push --set-upstream origin {made['branch']}, then a pull request into "
            f"{made['base']}"
        )
    else:
        click.echo("next: look at it with `git diff`, then commit it")
