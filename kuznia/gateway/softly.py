"""Soft configuration over the table of releases: it adds words and lowers limits, no more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kuznia.contracts.limits import Limits
from kuznia.contracts.soft import Soft, SoftModel
from kuznia.errors import InputError
from kuznia.gateway.limits import counters, limited
from kuznia.gateway.table import Table, Target


def softened(table: Table, soft: Soft, place: str) -> Table:
    """`table` with what `soft` says; InputError with every fault of it, each naming `place`.

    What is said of models that are not in the table waits until they are: they may be asleep.
    """
    known = {target.name: target for target in table.targets}
    problems = []
    for name, model in soft.models.items():
        target = known.get(name)
        if target and target.guard == "off" and (model.system_prompt or model.deny_words):
            problems.append(
                f"{place}: models.{name}: system_prompt and deny_words are the guard's work, and "
                "the tenant has none; set guard: default in its tenant.yaml, or remove them"
            )
    if problems:
        raise InputError(problems)
    return applied(table, soft)


def applied(table: Table, soft: Soft) -> Table:
    """The same without a look at its faults: what they ask for has no effect."""
    targets = tuple(_target(each, soft.models.get(each.name)) for each in table.targets)
    return table.model_copy(update={"targets": targets, "limits": _limits(table, soft)})


def unknown(soft: Soft, names: Iterable[str], place: str) -> list[str]:
    """A fault for each model in `soft` that is none of `names`."""
    return [
        f"{place}: models.{name}: no release has this name; correct it or remove it"
        for name in sorted(set(soft.models).difference(names))
    ]


def _target(target: Target, model: SoftModel | None) -> Target:
    if model is None:
        return target
    words = model.model_dump(exclude={"limits"})
    asked = {*target.limited, *limited(model.limits)}
    return target.model_copy(update=words | {"limited": tuple(sorted(asked))})


def _limits(table: Table, soft: Soft) -> tuple[dict[str, Any], ...]:
    """The limit service's entries, with the lower of both wherever a soft limit is."""
    entries = {entry["value"]: dict(entry) for entry in table.limits}
    for target in table.targets:
        model = soft.models.get(target.name)
        if model is None or not model.limits.any:
            continue
        tenant = entries.setdefault(
            target.tenant, {"key": "tenant", "value": target.tenant, "descriptors": []}
        )
        of = {(each["key"], each.get("value", "")): each for each in tenant["descriptors"]}
        own = of.get(("release", target.id), {"key": "release", "value": target.id})
        of["release", target.id] = own | {"descriptors": _lower(own, model.limits)}
        tenant["descriptors"] = [of[key] for key in sorted(of)]
    return tuple(entries[name] for name in sorted(entries))


def _lower(entry: dict[str, Any], limits: Limits) -> list[dict[str, Any]]:
    found = {each["value"]: each for each in entry.get("descriptors", ())}
    for each in counters(limits):
        hard = found.get(each["value"])
        bound = hard["rate_limit"]["requests_per_unit"] if hard else None
        if bound is None or each["rate_limit"]["requests_per_unit"] < bound:
            found[each["value"]] = each
    return [found[what] for what in sorted(found)]
