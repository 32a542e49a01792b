"""List every release: who serves which version, since when, and what its card says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import print_json, print_table
from kuznia.errors import InputError

if TYPE_CHECKING:
    from kuznia.tree import Deployed

EPILOG = """\b
examples:
  kuznia releases
  kuznia releases acme/support --json
"""


@click.command(epilog=EPILOG)
@click.argument("which", metavar="[TENANT[/MODEL]]", required=False)
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=".",
    help="The checkout with argocd/registry; the current folder unless given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every release as JSON.")
def command(which: str | None, root: Path, as_json: bool) -> None:
    """List the releases in argocd/registry, as this checkout has them."""
    from kuznia.git import checkout_of
    from kuznia.promotion import since
    from kuznia.tree import load_tree

    git = checkout_of(root)
    every = load_tree(git.folder).releases
    known = [(f"{each.tenant}/{each.model}", each) for each in every]
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
            "verdict": _verdict(git.folder, each),
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


def _verdict(root: Path, deployed: Deployed) -> str:
    from kuznia.card_views import read_card

    card = deployed.release.card
    if card is None:
        return "no card"
    try:
        text = (root / card).read_text("utf-8")
    except FileNotFoundError:
        return "card is missing"
    return str(read_card(text, card).evaluation.verdict.value)
