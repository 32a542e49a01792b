"""Options that say where: runs here or on a cluster, and the checkout with the registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from kuznia.errors import InputError

F = TypeVar("F", bound=Callable[..., None])

root = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=".",
    help="The checkout with argocd/registry; the current folder unless given.",
)


def options(command: F) -> F:
    """`--on`, `--namespace` and `--context`, as `on`, `namespace` and `context`."""
    command = click.option("--context", help="The kubeconfig's context, if not the current one.")(
        command
    )
    command = click.option(
        "-n", "--namespace", help="On a cluster: the tenant's namespace, <tenant>-training."
    )(command)
    return click.option(
        "--on",
        type=click.Choice(("here", "cluster")),
        default="here",
        show_default=True,
        help="On this machine, or on a Kubernetes cluster with Argo Workflows.",
    )(command)


def check(on: str, **given: object) -> None:
    """Refuse options of a cluster where none is meant: they would be ignored."""
    if on == "here" and (odd := [f"--{name}" for name, value in given.items() if value]):
        raise InputError(
            f"{', '.join(odd)}: only a run on a cluster has that; add --on cluster or leave it out"
        )
