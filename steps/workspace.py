"""What the tenant's workspace takes: its own runs, and pods that its quota can hold.

Kubernetes makes no pod above a quota, and Argo waits as if it were a matter of time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kuznia import settings
from kuznia.contracts.runspec import RunSpec
from kuznia.contracts.steps import Pod
from kuznia.quantities import amount

_NAMES = {
    "requests.nvidia.com/gpu": (1, "GPUs"),
    "requests.cpu": (1, "cores"),
    "limits.cpu": (1, "cores"),
    "requests.memory": (2**30, "GiB memory"),
    "limits.memory": (2**30, "GiB memory"),
}
"""Amounts of a ResourceQuota that are compared, with the unit that people think in."""


def tenant_problems(spec: RunSpec, here: str, spec_name: str) -> Iterator[str]:
    """One line for the run of another tenant than the workspace is for (`here`; empty: any)."""
    if here and spec.tenant != here:
        yield (
            f"{spec_name}: tenant: {spec.tenant}, but this workspace is {here}'s; set tenant: "
            f"{here}, or submit it to {spec.tenant}-training"
        )


def quota_problems(pod: Pod, gpus: int, spec_name: str) -> Iterator[str]:
    """One line for each amount of the quota below what a pod that uses the hardware asks for.

    What runs beside it at all times counts; what ends by itself does not.
    """
    quota = settings.quota()
    if not quota:
        return
    containers = [_patched(quota["pod"], pod), *quota["beside"]]
    for name in [each for each in _NAMES if each in quota["hard"]]:
        unit, words = _NAMES[name]
        kind, _, what = name.partition(".")
        asked = sum(amount(each.get(kind, {}).get(what, 0)) for each in containers)
        most = amount(quota["hard"][name])
        if asked > most:
            way_out = "ask for a larger quota"
            if gpus > 1:
                way_out = f"set fewer gpus, or {way_out}"
            elif words == "GPUs":
                way_out = f"set hardware: cpu, or {way_out}"
            yield (
                f"{spec_name}: {'gpus' if gpus > 1 else 'hardware'}: this run needs "
                f"{float(asked / unit):g} {words}, the quota {name} is "
                f"{float(most / unit):g}; {way_out}"
            )


def _patched(resources: dict[str, Any], pod: Pod) -> dict[str, dict[str, Any]]:
    """What the pod's main container asks for once `plan` has patched it."""
    containers = json.loads(pod.patch).get("containers", [])
    more = containers[0]["resources"] if containers else {}
    made = {kind: resources.get(kind, {}) | more.get(kind, {}) for kind in ("limits", "requests")}
    # Kubernetes requests what is limited and not requested.
    return made | {"requests": made["limits"] | made["requests"]}
