"""Print the model card of a version."""

from __future__ import annotations

import click

EPILOG = """\b
examples:
  kuznia card support                        of the version in staging
  kuznia card support --version production --format yaml
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("--version", "which", help="Alias, version or MLflow's number; staging by default.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("md", "yaml")),
    default="md",
    show_default=True,
    help="For people, or the canonical file.",
)
def command(model: str, which: str | None, form: str) -> None:
    """Print the card of MODEL: what it is for, how good it is, what it was made from."""
    from kuznia import settings
    from kuznia.cards import card_key
    from kuznia.errors import InputError
    from kuznia.registry import Registry
    from kuznia.store import open_store, root_and_key

    version = Registry(settings.tracking_uri()).find(f"{model}@{which}" if which else model)
    store = open_store(root_and_key(version.uri)[0])
    name = "card.yaml" if form == "yaml" else "README.md"
    key = f"{card_key(version.tenant, version.model, version.version)}/{name}"
    try:
        text = store.read(key).decode()
    except FileNotFoundError:
        raise InputError(
            f"{store.uri_of(key)}: has not been written; run the chain again to finish it"
        ) from None
    click.echo(text, nl=False)
