"""Options of `kuznia audit` and what they name."""

from __future__ import annotations

import getpass
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from kuznia import settings
from kuznia.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from kuznia.audit.lifecycle import Operator
    from kuznia.audit.verify import Span
    from kuznia.store.objects import Store

F = TypeVar("F", bound=Callable[..., None])

store = click.option("--store", help="Store with the log; KUZNIA_STORE unless given.")
tenant = click.option("--tenant", required=True, help="The tenant, or _unknown.")
keys = click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Public key (PEM) of the log, as often as there are; this machine's unless given.",
)
private = click.option(
    "--key",
    "private",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Private key (PEM) that signs what is done; this machine's unless given.",
)
anchors = click.option("--anchors", help="Second store with copies of the checkpoints.")
secrets = click.option(
    "--secrets", help="Store with the keys of pseudonyms and content; <KUZNIA_HOME>/keys."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
reason = click.option("--reason", default="", help="Why; it becomes part of the log.")


def span(command: F) -> F:
    """`--since` and `--until`."""
    command = click.option("--until", default="", help="Last day or time (UTC).")(command)
    return click.option("--since", default="", help="First day or time (UTC), as 2026-11-21.")(
        command
    )


def store_at(uri: str | None) -> Store:
    from kuznia.store.objects import folder_of, open_store

    uri = uri or settings.store_uri()
    folder = folder_of(uri) if uri.startswith("file://") else Path(uri)
    if (uri.startswith("file://") or "://" not in uri) and not folder.is_dir():
        raise InputError(f"{uri}: is not there; name a folder or a store that has an audit log")
    return open_store(uri)


def secrets_at(uri: str | None) -> Store:
    return store_at(uri or str(settings.home() / "keys"))


def public(paths: tuple[Path, ...]) -> list[Ed25519PublicKey]:
    from kuznia.audit.keys import public_keys, public_path

    return public_keys(paths or (public_path(),))


def operator_of(store: str | None, private: Path | None, anchors: str | None) -> Operator:
    from kuznia.audit.keys import private_key
    from kuznia.audit.lifecycle import Operator

    return Operator(
        store_at(store),
        private_key(private),
        getpass.getuser(),
        time.time,
        store_at(anchors) if anchors else None,
    )


def span_of(since: str, until: str) -> Span:
    from kuznia.audit.verify import Span

    return Span(_time("--since", since, first=True), _time("--until", until, first=False))


def _time(option: str, text: str, first: bool) -> str:
    if not text:
        return ""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{option}: {text!r} is no day or time; write it as 2026-11-21") from None
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return f"{text}T00:00:00.000Z" if first else f"{text}T23:59:59.999Z"
    found = found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC).replace(tzinfo=None)
    return f"{found.isoformat(timespec='milliseconds')}Z"
