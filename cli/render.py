"""Make what Argo CD reads from the registry in git; print what a cluster is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.where import root
from kuznia.errors import InputError

if TYPE_CHECKING:
    from kuznia.tree import Tree

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
IMAGES_FILE = click.option(
    "--images",
    "images_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Take all images from the map that `make images` prints.",
)


EPILOG = """\b
examples:
  kuznia render                 make argocd/generated anew
  kuznia render --tree          and show everything that a cluster would apply
  kuznia render --diff main     what would change on the cluster, for a pull request
  kuznia render template | kubectl apply -n acme-training -f -
"""


@click.group(epilog=EPILOG, invoke_without_command=True)
@click.option("--check", is_flag=True, help="Write nothing; fail if a generated file differs.")
@click.option("--tree", is_flag=True, help="Show every object that the cluster would apply.")
@click.option("--diff", metavar="REVISION", help="Show what changes on the cluster since REVISION.")
@root
@click.pass_context
def command(ctx: click.Context, check: bool, tree: bool, diff: str | None, root: Path) -> None:
    """Turn argocd/registry into argocd/generated, argocd/bootstrap.yaml and CODEOWNERS.

    Its commands print YAML for a cluster on stdout. Nothing is sent anywhere.
    """
    if ctx.invoked_subcommand is not None:
        return
    from kuznia import generated
    from kuznia.contracts.catalogue import load_catalogue
    from kuznia.tree import load_tree

    declared, catalogue = load_tree(root), load_catalogue()
    if check:
        if stale := generated.stale(declared, catalogue):
            raise InputError(
                f"{path}: is not what argocd/registry makes; run `kuznia render`" for path in stale
            )
    else:
        for path in generated.write(declared, catalogue):
            click.echo(path, err=tree or diff is not None)
    if tree or diff:
        _show(declared, diff)


def _show(declared: Tree, revision: str | None) -> None:
    """The picture as a tree, or as what changes from `revision`; exit code 2 if a part fails."""
    from kuznia.picture import difference, lines, picture
    from kuznia.tree import load_tree, tree_at

    new = picture(declared)
    if revision is None:
        shown = lines(new)
    else:
        with tree_at(declared.root, revision) as folder:
            shown = difference(picture(load_tree(folder)), new)
    for line in shown:
        click.echo(line)
    if failed := [each for each in new if each.failure]:
        raise InputError(
            f"{each.source}: {each.name} cannot be rendered: {each.failure.splitlines()[-1]}"
            for each in failed
        )


@command.command(
    epilog="example: kuznia render template --image train=registry.example.org/train:0.1.0"
)
@click.option("-n", "--namespace", help="Where it is for; not written unless given.")
@IMAGES_FILE
@IMAGES
def template(namespace: str | None, images: Sequence[str], images_file: Path | None) -> None:
    """The WorkflowTemplate of the chain, with images from elsewhere."""
    from workflows.render import template

    _print([template(images, namespace, images_file)])


@command.command(
    epilog="example: kuznia render job train.yaml --images images.yaml | kubectl apply -f -"
)
@SPEC
@NAMESPACE
@IMAGES_FILE
@IMAGES
@click.option("--claim", help="Volume claim with the store, mounted at /storage.")
@click.option("--cpu", help="Cores of the pod; times `gpus`. 4 unless given.")
@click.option("--memory", help="Its memory; times `gpus`. 16Gi unless given.")
@click.option("--disk", help="Its disk. 100Gi unless given.")
def job(
    spec: Path,
    namespace: str | None,
    images: Sequence[str],
    images_file: Path | None,
    claim: str | None,
    cpu: str | None,
    memory: str | None,
    disk: str | None,
) -> None:
    """Training alone, as a plain Kubernetes Job: no Argo needed."""
    from workflows.job import job

    given = {"cpu": cpu, "memory": memory, "ephemeral-storage": disk}
    sizes = {resource: size for resource, size in given.items() if size is not None}
    _print(job(spec, namespace, images, claim, images_file=images_file, sizes=sizes))


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
