"""The limits file, in envoyproxy/ratelimit's format, and which rule a list of entries meets.

A strict subset: what is refused here (wildcards, replaces, unlimited) is what Kuźnia never writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kuznia.contracts.base import Contract, load_yaml, parse
from kuznia.errors import InputError
from services.limits.messages import UNITS, Limit

SECONDS = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86_400,
    "month": 30 * 86_400,
    "year": 365 * 86_400,
}
"""How long each unit is, for the Go service too; windows begin at multiples of it since 1970."""


class RateLimit(Contract):
    """How much, in which time."""

    name: str = ""
    unit: Literal["second", "minute", "hour", "day", "month", "year"]
    requests_per_unit: int = Field(ge=0, lt=2**32)


class Descriptor(Contract):
    """One entry to meet, and what follows then."""

    key: str = Field(min_length=1)
    value: str = Field(default="", pattern=r"^[^*]*$")
    """Empty: any value, each counted by itself."""
    rate_limit: RateLimit | None = None
    descriptors: tuple[Descriptor, ...] = ()
    shadow_mode: bool = False
    """Count and say OK."""


class File(Contract):
    """The whole file."""

    domain: str = Field(min_length=1)
    descriptors: tuple[Descriptor, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit, ready to be held against a count."""

    most: int
    seconds: int
    shadow: bool
    limit: Any
    """The message that tells of it."""


@dataclass(slots=True)
class Node:
    """What may follow an entry, by its key and value; value "" is any."""

    rule: Rule | None = None
    next: dict[tuple[str, str], Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a file."""

    domain: str
    root: Node

    def meets(self, entries: Iterable[Any]) -> Rule | None:
        """The rule for exactly these entries; a value that is named wins over any value."""
        node = self.root
        for entry in entries:
            key = entry.key
            found = node.next.get((key, entry.value)) or node.next.get((key, ""))
            if found is None:
                return None
            node = found
        return node.rule


def read_rules(path: Path) -> Rules:
    """The rules in the file at `path`; InputError with everything that is wrong."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name the limits file that exists") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; write it as YAML") from None
    file: File = parse(File, _value(text, str(path)), str(path))
    root, problems = Node(), list[str]()
    _add(root, file.descriptors, f"{path}: {file.domain}", problems)
    if problems:
        raise InputError(problems)
    return Rules(file.domain, root)


def _value(text: str, place: str) -> Any:
    """The value of a YAML file; most are JSON below a comment, which is read many times as fast."""
    body = text
    while body.startswith("#"):
        body = body.partition("\n")[2]
    if body.startswith("{"):
        with suppress(ValueError):
            return json.loads(body)
    return load_yaml(text, place)


def _add(node: Node, descriptors: Iterable[Descriptor], place: str, problems: list[str]) -> None:
    for each in descriptors:
        here = f"{place}: {each.key}={each.value}" if each.value else f"{place}: {each.key}"
        if (each.key, each.value) in node.next:
            problems.append(f"{here}: is there twice; remove one")
            continue
        rate, rule = each.rate_limit, None
        if rate:
            rule = Rule(
                rate.requests_per_unit,
                SECONDS[rate.unit],
                each.shadow_mode,
                Limit(
                    requests_per_unit=rate.requests_per_unit,
                    unit=UNITS[rate.unit],
                    name=rate.name,
                ),
            )
        child = node.next[each.key, each.value] = Node(rule)
        _add(child, each.descriptors, here, problems)
