"""List every release: who serves which version, since when, and what its card says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import print_json, print_table
from cli.where import root
from kuznia.errors import InputError

if TYPE_CHECKING:
    from kuznia.tree import Deployed, Tree

EPILOG = """\b
examples:
  kuznia releases
  kuznia releases acme/support --json
"""


@click.command(epilog=EPILOG)
@click.argument("which", metavar="[TENANT[/MODEL]]", required=False)
@root
@click.option("--json", "as_json", is_flag=True, help="Print every release as JSON.")
def command(which: str | None, root: Path, as_json: bool) -> None:
    """List the releases in argocd/registry, as this checkout has them."""
    from kuznia.git import checkout_of
    from kuznia.promotion import since
    from kuznia.tree import load_tree

    git = checkout_of(root)
    tree = load_tree(git.folder)
    known = [(f"{each.tenant}/{each.model}", each) for each in tree.releases]
    chosen = [each for name, each in known if f"{name}/".startswith(f"{which or name}/")]
    if which and not chosen:
        names = ", ".join(sorted({name for name, _ in known})) or "none"
        raise InputError(f"{which}: has no release here; there are: {names}")
    dates = since(git)
    found = [
        {
            "tenant": each.tenant,
            "model": each.model,
            "release": each.stage,
            "version": each.release.version,
            "since": dates.get(str(each.path), ""),
            "verdict": _verdict(tree, each),
            "card": each.release.card,
        }
        for each in chosen
    ]
    if as_json:
        print_json(found)
    elif not found:
        click.echo("no release yet; make one with `kuznia promote acme/support@3 --to staging`")
    else:
        keys = ("tenant", "model", "release", "version", "since", "verdict")
        print_table(
            keys, [[str(row[key])[:19] or "not committed" for key in keys] for row in found]
        )


def _verdict(tree: Tree, deployed: Deployed) -> str:
    try:
        card = tree.card_of(deployed.release)
    except FileNotFoundError:
        return "card is missing"
    return str(card.evaluation.verdict.value) if card else "no card"
