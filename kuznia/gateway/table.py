"""Which releases the gateway knows, where they are, and who may ask them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kuznia.contracts.base import Contract
from kuznia.contracts.release import Stage
from kuznia.contracts.runspec import Risk
from kuznia.contracts.tenant import Access, Tenant
from kuznia.gateway.limits import configuration, limited
from kuznia.tree import Deployed, Tree

PORT = 8000
"""vLLM's, in every release's Service."""


class Target(Contract):
    """One release behind the gateway."""

    tenant: str
    model: str
    stage: Stage
    version: str
    digest: str
    risk: Risk
    """On its card; high where there is none."""
    address: str
    """host:port of its vLLM."""
    guard: str = "off"
    """Name of the guard's policy."""
    limited: tuple[str, ...] = ()
    """Counters with a limit that applies to it, as requests_per_minute."""
    concurrency: int | None = None
    """Requests in progress at most."""
    split: int = 0
    """Per cent of production's callers who are answered by staging."""
    title: str = ""
    """Its name for people."""
    description: str = ""
    notice: str = ""
    """What people are told about it, in a header."""
    system_prompt: str = ""
    """Put before every conversation by the guard."""
    deny_words: tuple[str, ...] = ()
    """Refused by the guard besides what its policy refuses."""

    @property
    def id(self) -> str:
        """`acme/support@production`: its name in Envoy, in limits and in the audit log."""
        return f"{self.name}@{self.stage}"

    @property
    def name(self) -> str:
        """`acme/support`, as clients ask for it."""
        return f"{self.tenant}/{self.model}"

    @property
    def names(self) -> tuple[str, str]:
        """What its vLLM answers to; staging's plain name is used by split and where it is alone."""
        return self.name, f"{self.name}:{self.stage}"


class Table(Contract):
    """All that the gateway is compiled from."""

    targets: tuple[Target, ...] = ()
    hosts: dict[str, str] = {}
    """A tenant's host names, and whose they are."""
    groups: dict[str, dict[str, tuple[Stage, ...]]] = {}
    """Groups of the organisation: the tenants they open, with the stages."""
    access: Access = Access()
    """Names of the gateway, identity providers, public keys."""
    limits: tuple[dict[str, Any], ...] = ()
    """Each limited tenant's entry in the limit service's file."""

    def by_name(self) -> dict[str, Target]:
        """Every name that a client may ask for; a plain name is production where there is one."""
        found: dict[str, Target] = {}
        for target in sorted(self.targets, key=lambda each: each.id, reverse=True):
            found[f"{target.name}:{target.stage}"] = target
            if target.stage == "production" or target.name not in found:
                found[target.name] = target
        return dict(sorted(found.items()))


def table_of(tree: Tree) -> Table:
    """The gateway's view of the registry in git: releases of tenants that are awake."""
    awake = {name: tenant for name, tenant in tree.tenants.items() if tenant.state == "active"}
    staged = {(each.tenant, each.model) for each in tree.releases if each.stage == "staging"}
    return Table(
        targets=tuple(
            _target(each, awake[each.tenant], tree, (each.tenant, each.model) in staged)
            for each in tree.releases
            if each.tenant in awake
        ),
        hosts={host: name for name, tenant in sorted(awake.items()) for host in tenant.hosts},
        groups=_groups(awake.items()),
        access=tree.platform.access,
        limits=tuple(configuration(awake, tree.releases)["descriptors"]),
    )


def _target(deployed: Deployed, tenant: Tenant, tree: Tree, staged: bool) -> Target:
    release = deployed.release
    return Target(
        tenant=deployed.tenant,
        model=deployed.model,
        stage=deployed.stage,
        version=release.version,
        digest=release.digest,
        risk=tree.risk_of(release) or "high",
        address=f"{deployed.model}-{deployed.stage}.{deployed.tenant}-inference.svc:{PORT}",
        guard=tenant.guard,
        limited=limited(tenant.limits, tenant.key_limits, release.limits),
        concurrency=release.concurrency,
        split=release.split if staged else 0,
    )


def _groups(tenants: Iterable[tuple[str, Tenant]]) -> dict[str, dict[str, tuple[Stage, ...]]]:
    found: dict[str, dict[str, tuple[Stage, ...]]] = {}
    for name, tenant in sorted(tenants):
        people = tenant.people
        for group in people.callers:
            found.setdefault(group, {})[name] = ("production",)
        for group in (*people.data_scientists, *people.mlops):
            found.setdefault(group, {})[name] = ("production", "staging")
    return dict(sorted(found.items()))
