"""From the registry's limits to the rate limit service's file, in envoyproxy/ratelimit's format.

Envoy asks with three lists of entries for each of the four counters W of `Limits`:

    tenant=acme, what=W                                   all callers of the tenant together
    tenant=acme, caller=<who>, what=W                     each caller
    tenant=acme, release=acme/support@production, what=W  all callers of the release together
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kuznia.contracts.limits import Limits
from kuznia.contracts.tenant import Tenant
from kuznia.tree import Deployed

DOMAIN = "kuznia"
WHATS = tuple(sorted(Limits.model_fields))


def limited(*limits: Limits) -> tuple[str, ...]:
    """The counters of which any of `limits` has one, sorted; Envoy asks about these alone."""
    return tuple(sorted({what for each in limits for what in each.model_dump(exclude_none=True)}))


def configuration(tenants: Mapping[str, Tenant], releases: Iterable[Deployed]) -> dict[str, Any]:
    """The value of the service's YAML file: sorted, and only what is set.

    Equal limits give equal values, in whatever order they come.
    """
    of: dict[str, list[Deployed]] = {}
    for each in releases:
        of.setdefault(each.tenant, []).append(each)
    entries = [
        _entry("tenant", name, _of_tenant(tenant, of.get(name, [])))
        for name, tenant in sorted(tenants.items())
    ]
    return {"domain": DOMAIN, "descriptors": [entry for entry in entries if entry["descriptors"]]}


def text_of(value: dict[str, Any]) -> str:
    """The file's text: YAML that is JSON too, a line a tenant, quick to write and to read."""
    lines = ",\n".join(json.dumps(each, separators=(",", ":")) for each in value["descriptors"])
    return f'{{"domain":{json.dumps(value["domain"])},"descriptors":[\n{lines}\n]}}\n'


def release_id(deployed: Deployed) -> str:
    """As `acme/support@production`."""
    return f"{deployed.tenant}/{deployed.model}@{deployed.stage}"


def _of_tenant(tenant: Tenant, releases: Iterable[Deployed]) -> list[dict[str, Any]]:
    found = []
    if each_caller := counters(tenant.key_limits):
        # Without a value: it applies to every caller, and counts each by itself.
        found.append({"key": "caller", "descriptors": each_caller})
    for deployed in sorted(releases, key=release_id):
        if rules := counters(deployed.release.limits):
            found.append(_entry("release", release_id(deployed), rules))
    return found + counters(tenant.limits)


def counters(limits: Limits) -> list[dict[str, Any]]:
    """The limit service's entries for what is set of `limits`, by name."""
    return [
        {
            "key": "what",
            "value": what,
            "rate_limit": {
                "name": what,
                "unit": what.rpartition("_")[2],
                "requests_per_unit": most,
            },
        }
        for what in WHATS
        if (most := getattr(limits, what)) is not None
    ]


def _entry(key: str, value: str, descriptors: list[dict[str, Any]]) -> dict[str, Any]:
    return {"key": key, "value": value, "descriptors": descriptors}
