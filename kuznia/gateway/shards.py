"""The table of releases in parts, each small enough for a ConfigMap (1 MiB).

A tenant is in one part, so parts of different age never contradict each other about it. What all
tenants share is in a part of its own.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from kuznia.contracts.base import parse
from kuznia.contracts.tenant import Access
from kuznia.errors import InputError, collected
from kuznia.gateway.table import Table

PARTS = 8
ACCESS = "access"
"""Name of the part for all tenants."""


def part_of(tenant: str) -> str:
    """Name of the part that a tenant is in, for good."""
    return str(zlib.crc32(tenant.encode()) % PARTS)


def shards(table: Table) -> dict[str, Table]:
    """`table` in parts by name, those with nothing in them left out; `merged` undoes it."""
    found = {ACCESS: Table(access=table.access)}
    tenants = {each.tenant for each in table.targets} | set(table.hosts.values())
    tenants |= {tenant for opened in table.groups.values() for tenant in opened}
    tenants |= {entry["value"] for entry in table.limits}
    for part in sorted({part_of(tenant) for tenant in tenants}):
        mine = {tenant for tenant in tenants if part_of(tenant) == part}
        groups = {
            group: {tenant: stages for tenant, stages in opened.items() if tenant in mine}
            for group, opened in table.groups.items()
        }
        found[part] = Table(
            targets=tuple(each for each in table.targets if each.tenant in mine),
            hosts={host: tenant for host, tenant in table.hosts.items() if tenant in mine},
            groups={group: opened for group, opened in groups.items() if opened},
            limits=tuple(entry for entry in table.limits if entry["value"] in mine),
        )
    return found


def merged(tables: Iterable[Table]) -> Table:
    """One table of all parts, in whatever order they come."""
    parts = list(tables)
    groups: dict[str, dict[str, Any]] = {}
    for part in parts:
        for group, opened in part.groups.items():
            groups.setdefault(group, {}).update(opened)
    targets = (each for part in parts for each in part.targets)
    limits = (entry for part in parts for entry in part.limits)
    return Table(
        targets=tuple(sorted(targets, key=lambda each: each.id)),
        hosts=dict(sorted((host, who) for part in parts for host, who in part.hosts.items())),
        groups={group: dict(sorted(opened.items())) for group, opened in sorted(groups.items())},
        access=next((part.access for part in parts if part.access != Access()), Access()),
        limits=tuple(sorted(limits, key=lambda entry: str(entry["value"]))),
    )


def text_of(part: Table) -> str:
    """A part as JSON with a line for each release, so that a change is a line of git's diff."""
    lines = []
    for key, value in part.model_dump(mode="json", exclude_defaults=True).items():
        if isinstance(value, list):
            inner = ",\n".join(_compact(each) for each in value)
            lines.append(f'"{key}":[\n{inner}]')
        else:
            lines.append(f'"{key}":{_compact(value)}')
    return "{" + ",\n".join(lines) + "}\n"


def read_tables(folder: Path) -> Table:
    """The table whose parts are the files <name>.json of `folder`, the same object until one
    changes.

    Raises InputError with the faults of every file; for a folder without any, too: a volume that
    is not mounted is no empty registry.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise InputError(f"{folder}: has no *.json; put the table there, as helm/gateway does")
    return _read(tuple((path, _stamp(path)) for path in paths))


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; put it back") from None
    return found.st_ino, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=1)
def _read(files: tuple[tuple[Path, tuple[int, int, int]], ...]) -> Table:
    problems: list[str] = []
    parts = []
    for path, _ in files:
        with collected(problems):
            parts.append(_part(path))
    if problems:
        raise InputError(problems)
    return merged(parts)


def _part(path: Path) -> Table:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; put it back") from None
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({error}); run `kuznia render`") from None
    found: Table = parse(Table, value, str(path))
    return found


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
