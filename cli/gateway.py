"""Put the gateway before what is served here."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kuznia.gateway.table import Table

EPILOG = """\b
example:
  kuznia serve support                           in one terminal
  kuznia gateway                                 in another
  KEY=$(kuznia keys create --tenant acme)        in a third
  kuznia chat acme/support --url http://127.0.0.1:8080/v1 --key $KEY
"""


@click.command(epilog=EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, help="Port to listen on.")
@click.option(
    "--guard",
    type=click.Choice(("off", "default", "strict")),
    default="default",
    show_default=True,
    help="Policy for what goes in and comes out.",
)
@click.option(
    "--soft",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Soft configuration: names, notices, system prompts, deny words, lower limits.",
)
def command(host: str, port: int, guard: str, soft: Path | None) -> None:
    """Answer for every model that `kuznia serve` runs here, until Ctrl-C.

    With the same Envoy configuration as on a cluster: keys, authorisation, limits, guard, and an
    audit log in the store. Models may come and go.
    """
    from kuznia.gateway.served import targets
    from services.gateway.laptop import gateway
    from workflows.environments import envoy

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with gateway(
            lambda: local_table(guard), envoy(_say), host=host, port=port, soft=soft, say=_say
        ) as running:
            click.echo(f"ready: {running.url}; files and logs are in {running.folder}")
            for target in targets():
                click.echo(f"  {target.name} ({target.version})")
            click.echo("  kuznia keys create --tenant TENANT   makes a key; Ctrl-C ends")
            while True:
                time.sleep(1)
                running.look()
    except KeyboardInterrupt:
        click.echo("\nstopped", err=True)


def local_table(guard: str) -> Table:
    """The gateway's view of this machine: what is served, and the keys that are made here."""
    from kuznia.contracts.tenant import Access
    from kuznia.gateway.served import targets
    from kuznia.gateway.table import Table
    from kuznia.keys.issuer import public_keys, signing_key
    from kuznia.signing import public_pem

    signing_key()  # Made on first use: keys given out later are good at once.
    keys = tuple(public_pem(key).decode() for key in public_keys().values())
    return Table(
        targets=tuple(each.model_copy(update={"guard": guard}) for each in targets()),
        access=Access(keys=keys),
    )


def _say(text: str) -> None:
    click.echo(text, err=True)
