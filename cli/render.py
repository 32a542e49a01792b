"""Print what a cluster is given: the template, a plain Job, a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

SPEC = click.argument("spec", type=click.Path(path_type=Path))
NAMESPACE = click.option(
    "-n", "--namespace", help="Where it is for; <tenant>-training unless given."
)
IMAGES = click.option(
    "--image",
    "images",
    multiple=True,
    metavar="NAME=REF",
    help="Take image NAME (platform, train, serve) from REF, by tag or digest.",
)


@click.group(epilog="example: kuznia render template | kubectl apply -n acme-training -f -")
def command() -> None:
    """Print YAML for a cluster on stdout; nothing is sent anywhere."""


@command.command(
    epilog="example: kuznia render template --image train=registry.example.org/train:0.1.0"
)
@click.option("-n", "--namespace", help="Where it is for; not written unless given.")
@IMAGES
def template(namespace: str | None, images: Sequence[str]) -> None:
    """The WorkflowTemplate of the chain, with images from elsewhere."""
    from workflows.render import template

    _print([template(images, namespace)])


@command.command(epilog="example: kuznia render job train.yaml | kubectl apply -f -")
@SPEC
@NAMESPACE
@IMAGES
@click.option("--claim", help="Volume claim with the store, mounted at /storage.")
def job(spec: Path, namespace: str | None, images: Sequence[str], claim: str | None) -> None:
    """Training alone, as a plain Kubernetes Job: no Argo needed."""
    from workflows.job import job

    _print(job(spec, namespace, images, claim))


@command.command(
    epilog="example: kuznia render cron train.yaml --schedule '0 3 * * 1' | kubectl apply -f -"
)
@SPEC
@click.option(
    "--schedule", required=True, help="Minute, hour, day of month, month, day of week, as in cron."
)
@click.option("--timezone", help="Such as Europe/Warsaw; the cluster's unless given.")
@NAMESPACE
def cron(spec: Path, schedule: str, timezone: str | None, namespace: str | None) -> None:
    """The run in SPEC again and again, as a CronWorkflow."""
    from workflows.cron import cron

    _print([cron(spec, schedule, timezone, namespace)])


def _print(documents: list[dict[str, Any]]) -> None:
    """YAML that people can read: keys as written, texts of several lines as they are."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    click.echo(
        yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, allow_unicode=True), nl=False
    )
