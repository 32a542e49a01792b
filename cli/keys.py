"""Give out API keys of the gateway, take them back, change the key that signs them."""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from cli.output import print_json, print_table
from cli.where import root
from kuznia.errors import InputError

if TYPE_CHECKING:
    from kuznia.keys import Key
    from kuznia.store import Store

F = TypeVar("F", bound=Callable[..., None])
EPILOG = """\b
examples:
  kuznia keys create --tenant acme --name shop --models support
  kuznia keys list --tenant acme
  kuznia keys revoke 0123456789abcdef
"""
CREATE_EPILOG = """\b
examples:
  kuznia keys create --tenant acme                    all models in production
  kuznia keys create --tenant acme --name shop --models support --expires 30d
  TOKEN=$(kuznia keys create --tenant acme --stages staging,production)
"""
LIST_EPILOG = """\b
examples:
  kuznia keys list
  kuznia keys list --tenant acme --json
"""
REVOKE_EPILOG = """\b
example: kuznia keys revoke 0123456789abcdef
"""
ROTATE_EPILOG = """\b
examples:
  kuznia keys rotate --prepare   a new key that gateways can learn before it signs
  kuznia keys rotate             sign with it; the old one still verifies
  kuznia keys rotate --prune     forget old ones whose last token has ended
"""
PUBLIC_EPILOG = """\b
example: kuznia keys public > keys.pem
"""
JWKS_EPILOG = """\b
example: kuznia keys jwks > jwks.json
"""

store_option = click.option(
    "--store", "store_uri", metavar="URI", help="The gateway's store; KUZNIA_STORE unless given."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(epilog=EPILOG)
def command() -> None:
    """API keys: signed tokens with an end, which are shown once and kept nowhere."""


@command.command(epilog=CREATE_EPILOG)
@click.option("--tenant", required=True, help="Whose models it may ask.")
@click.option("--name", default="", help="Who calls with it, as audit records and limits know it.")
@click.option("--models", default="*", show_default=True, help="Models with commas, or * for all.")
@click.option("--risks", default="minimal,limited", show_default=True, help="Of which risk class.")
@click.option("--stages", default="production", show_default=True, help="Of which releases.")
@click.option("--expires", default="90d", show_default=True, help="As 12h or 90d; 365d at most.")
@store_option
@root
@json_option
def create(
    tenant: str,
    name: str,
    models: str,
    risks: str,
    stages: str,
    expires: str,
    store_uri: str | None,
    root: Path,
    as_json: bool,
) -> None:
    """Make a key and print its token, once; what else there is to say goes to stderr."""
    from kuznia.keys import issue

    key, token = issue(
        _store(store_uri),
        tenant,
        name=name,
        models=_listed(models),
        risks=_listed(risks),
        stages=_listed(stages),
        lifetime=_lifetime(expires),
        made_by=_account(),
    )
    for line in _unknown(root, key):
        click.echo(click.style("note:", fg="yellow") + f" {line}", err=True)
    if as_json:
        print_json({**key.model_dump(mode="json"), "token": token})
        return
    click.echo(
        f"key {key.jti} of {key.name}: {', '.join(key.models)} of {tenant}; risk "
        f"{', '.join(key.risks)}; in {', '.join(key.stages)}; until {_time(key.expires)}\n"
        "the token is shown this once:",
        err=True,
    )
    click.echo(token)


@command.command("list", epilog=LIST_EPILOG)
@click.option("--tenant", help="Only this tenant's.")
@store_option
@json_option
def list_keys(tenant: str | None, store_uri: str | None, as_json: bool) -> None:
    """List the keys that were made; never their tokens."""
    from datetime import UTC

    from kuznia.keys import ledger, revocations

    store = _store(store_uri)
    gone, now = revocations(store), datetime.now(UTC)
    rows = [(key, _state(key, key.jti in gone, now)) for key in ledger(store, tenant)]
    if as_json:
        print_json([{**key.model_dump(mode="json"), "revoked": key.jti in gone} for key, _ in rows])
    elif not rows:
        click.echo("no key yet; make one with `kuznia keys create --tenant TENANT`")
    else:
        print_table(
            ("key", "name", "tenant", "models", "created", "expires", "state"),
            [
                (
                    key.jti,
                    key.name,
                    key.tenant,
                    ",".join(key.models),
                    _time(key.created),
                    _time(key.expires),
                    state,
                )
                for key, state in rows
            ],
        )


@command.command(epilog=REVOKE_EPILOG)
@click.argument("jti", nargs=-1, required=True, metavar="KEY...")
@store_option
def revoke(jti: tuple[str, ...], store_uri: str | None) -> None:
    """Take keys back, by their numbers; gateways refuse them within seconds."""
    from kuznia import keys

    store, problems = _store(store_uri), []
    for each in dict.fromkeys(jti):
        try:
            done = keys.revoke(store, each, by=_account())
            click.echo(f"{each}: {'revoked' if done else 'was revoked before'}")
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)


@command.command(epilog=ROTATE_EPILOG)
@click.option("--prepare", "ahead", is_flag=True, help="Only make the next key, and publish it.")
@click.option("--prune", "tidy", is_flag=True, help="Only forget old keys without living tokens.")
@click.option(
    "--leaked", is_flag=True, help="Forget the old key at once and revoke all it has signed."
)
@store_option
def rotate(ahead: bool, tidy: bool, leaked: bool, store_uri: str | None) -> None:
    """Change the key that signs; tokens of the old one stay good until they end.

    A gateway must know a key before it takes its tokens: --prepare, publish `kuznia keys public`,
    then rotate.
    """
    from kuznia import keys

    if ahead + tidy + leaked > 1:
        raise InputError("--prepare, --prune, --leaked: each is a way of its own; give one")
    if ahead:
        click.echo(f"{keys.prepare()}: signs from the next `kuznia keys rotate` on")
        return
    if tidy:
        dropped = keys.prune(_store(store_uri))
        click.echo("\n".join(f"{kid}: dropped" for kid in dropped) or "nothing to drop")
        return
    new, old = keys.rotate(keep_old=not leaked)
    click.echo(f"{new}: signs from now on")
    if old and leaked:
        store = _store(store_uri)
        signed = [key.jti for key in keys.ledger(store) if key.kid == old]
        done = sum(keys.revoke(store, jti, by=_account()) for jti in signed)
        click.echo(f"{old}: dropped, and {done} keys that it signed revoked; make new ones")
    elif old:
        click.echo(f"{old}: verifies until its last token has ended")


@command.command(epilog=PUBLIC_EPILOG)
def public() -> None:
    """Print the public keys (PEM), as platform.yaml takes them under access.keys."""
    from kuznia import settings
    from kuznia.keys import public_keys, signing_key
    from kuznia.signing import public_pem

    if settings.keys_folder() is None:
        signing_key()  # Made on first use: a gateway may be told before the first API key.
    for key in public_keys().values():
        click.echo(public_pem(key).decode(), nl=False)


@command.command(epilog=JWKS_EPILOG)
def jwks() -> None:
    """Print the public keys as a JSON Web Key Set, for any other that verifies tokens."""
    from kuznia import keys

    print_json(keys.jwks())


def _store(uri: str | None) -> Store:
    from kuznia import settings
    from kuznia.store import open_store

    return open_store(uri or settings.store_uri())


def _listed(text: str) -> list[str]:
    return [word for each in text.split(",") if (word := each.strip())]


def _lifetime(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,6})([hd])", text)
    if not found:
        raise InputError(f"--expires: {text!r} is no time; write it as 12h or 90d")
    return timedelta(**{{"h": "hours", "d": "days"}[found[2]]: int(found[1])})


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")


def _state(key: Key, gone: bool, now: datetime) -> str:
    if gone:
        return "revoked"
    return "expired" if key.expires <= now else "ok"


def _account() -> str:
    """Who runs this, for the ledger."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # A container's user need not have a name.


def _unknown(root: Path, key: Key) -> list[str]:
    """What the key names and nobody here knows: it may come later, so it is no fault."""
    known, place = _models(root)
    wanted = {f"{key.tenant}/*"} if key.models == ("*",) else set(key.models)
    if not known:
        return []
    tenants = {name.partition("/")[0] for name in known}
    if key.tenant not in tenants:
        return [f"{place} has no tenant {key.tenant}; the key is good for nothing until it has"]
    return [
        f"{place} has no model {name}; the key cannot ask it until it has"
        for name in sorted(wanted - known - {f"{key.tenant}/*"})
    ]


def _models(root: Path) -> tuple[set[str], str]:
    """`tenant/model` of all that are known here, and `tenant/` of each tenant; and where from."""
    from kuznia import settings
    from kuznia.tree import REGISTRY, read_tree

    tree, _ = read_tree(root)
    if tree and tree.tenants:
        known = {f"{name}/" for name in tree.tenants}
        return known | {f"{each.tenant}/{each.model}" for each in tree.releases}, str(REGISTRY)
    uri = settings.tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return set(), ""
    from kuznia.registry import Registry

    return {model.name.replace(".", "/") for model in Registry(uri).models()}, f"MLflow at {uri}"
