"""What this machine serves: one file a model in <home>/serve, for as long as its vLLM runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kuznia import settings
from kuznia.contracts.base import parse
from kuznia.gateway.table import Target
from kuznia.store import open_store, root_and_key

if TYPE_CHECKING:
    from kuznia.registry import ModelVersion


def folder() -> Path:
    return settings.home() / "serve"


def target_of(version: ModelVersion, url: str) -> Target:
    """A version as the gateway knows it; its risk class is on its card, high without one."""
    from kuznia.card_views import read_card
    from kuznia.cards import card_key

    store = open_store(root_and_key(version.uri)[0])
    key = f"{card_key(version.tenant, version.model, version.version)}/card.yaml"
    try:
        risk = read_card(store.read(key).decode(), key).purpose.risk.value
    except FileNotFoundError:
        risk = None
    return Target.model_validate(
        {
            "tenant": version.tenant,
            "model": version.model,
            # What is served on a laptop is what there is to ask.
            "stage": "production",
            "version": version.version,
            "digest": version.digest,
            "risk": risk or "high",
            "address": urlsplit(url).netloc,
        }
    )


@contextmanager
def listed(target: Target) -> Iterator[None]:
    """Tell the gateway of this machine about `target` while it is served."""
    path = folder() / f"{target.tenant}.{target.model}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(target.model_dump_json(), "utf-8")
    partial.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def targets() -> tuple[Target, ...]:
    """All that is served here now."""
    found = []
    for path in sorted(folder().glob("*.json")):
        found.append(parse(Target, json.loads(path.read_text("utf-8")), str(path)))
    return tuple(found)
