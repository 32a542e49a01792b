"""Bring back the version that a release served before, as a commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.promote import STAGES, finish, names, options

EPILOG = """\b
examples:
  kuznia rollback acme/support
  kuznia rollback acme/support --to 3f2a91c0d4e5 --pull-request
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="TENANT/MODEL")
@click.option("--release", type=click.Choice(STAGES), default="production", show_default=True)
@click.option("--to", metavar="VERSION", help="A version it served, or its first digits.")
@options
def command(model: str, release: Any, to: str | None, root: Path, **how: Any) -> None:
    """Undo the last change of a release's version, as `git revert` would.

    Only the version lines go back: replicas and the like stay as they are now, and so do the
    cards. What is made is a commit on the branch rollback/<tenant>/<model>/<version>.
    """
    from kuznia.git import checkout_of
    from kuznia.promotion import roll_back

    git = checkout_of(root)
    finish(git, roll_back(git, *names(model), release, to), **how)
