"""Streams in a store: who writes what where, how a segment gets there, what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kuznia.errors import DependencyError
from kuznia.store.objects import Store

ROOT = "audit"
_KEY = re.compile(rf"{ROOT}/([^/]+)/([^/]+)/(\d{{12}})\.(jsonl|checkpoint)")


@dataclass
class Stored:
    """What a store has of one stream: the numbers of first records."""

    tenant: str
    writer: str
    segments: set[int] = field(default_factory=set)
    checkpoints: set[int] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"{self.tenant}/{self.writer}"


def key_of(tenant: str, writer: str, first: int, kind: str = "jsonl") -> str:
    """Where a segment or a checkpoint is."""
    return f"{ROOT}/{tenant}/{writer}/{first:012d}.{kind}"


def publish(
    stores: Sequence[Store], tenant: str, writer: str, first: int, body: bytes, note: bytes
) -> None:
    """Put a segment and its checkpoint into the first store, the checkpoint alone into others.

    Safe to repeat. Raises DependencyError where a store does not answer, or has another one there.
    """
    for number, store in enumerate(stores):
        if number == 0:
            _create(store, key_of(tenant, writer, first), body)
        _create(store, key_of(tenant, writer, first, "checkpoint"), note)


def _create(store: Store, key: str, value: bytes) -> None:
    if not store.create(key, value) and store.read(key) != value:
        raise DependencyError(
            f"{store.uri_of(key)}: another one is there already, and none is ever replaced; find "
            "out who writes under this name"
        )


def streams(store: Store, tenant: str | None = None) -> dict[str, Stored]:
    """Everything a store has of the log, or of one tenant's, by `<tenant>/<writer>`, sorted."""
    found: dict[str, Stored] = {}
    for key, _ in store.keys(f"{ROOT}/{tenant}" if tenant else ROOT):
        if match := _KEY.fullmatch(key):
            owner, writer, first, kind = match.groups()
            stream = found.setdefault(f"{owner}/{writer}", Stored(owner, writer))
            (stream.segments if kind == "jsonl" else stream.checkpoints).add(int(first))
    return dict(sorted(found.items()))


def strangers(store: Store) -> Iterator[str]:
    """Keys in the log's folder that are none of its own."""
    return (key for key, _ in store.keys(ROOT) if not _KEY.fullmatch(key))
