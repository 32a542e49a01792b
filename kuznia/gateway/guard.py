"""The guard's configuration from the table of releases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kuznia.gateway.table import Table

if TYPE_CHECKING:
    from kuznia.contracts.guard import GuardConfig


def guard_config(table: Table) -> GuardConfig:
    """Every release that goes through the guard, with the policy of its tenant."""
    from kuznia.contracts.guard import GuardConfig, GuardedRelease
    from kuznia.guard.rules import built_in

    used = {each.guard for each in table.targets} - {"off"}
    return GuardConfig(
        policies={name: built_in()[name] for name in sorted(used)},
        releases={
            each.id: GuardedRelease(
                tenant=each.tenant,
                model=each.model,
                stage=each.stage,
                version=each.version,
                digest=each.digest,
                risk=each.risk,
                url=f"http://{each.address}",
                policy=each.guard,
                served=each.names,
                system_prompt=each.system_prompt or None,
                deny_words=each.deny_words,
                capture=each.risk == "high",
            )
            for each in sorted(table.targets, key=lambda target: target.id)
            if each.guard != "off"
        },
    )
