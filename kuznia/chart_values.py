"""What the charts are told: values of helm/workspace and helm/vllm from the registry in git."""

from __future__ import annotations

from typing import Any

from kuznia.contracts.catalogue import Catalogue
from kuznia.contracts.tenant import Platform, Tenant
from kuznia.errors import InputError
from kuznia.gateway.shards import shards, text_of
from kuznia.gateway.softly import softened, unknown
from kuznia.gateway.table import table_of
from kuznia.tree import SOFT, Tree

ASLEEP = ("hibernated", "retired")


def workspace_values(name: str, tenant: Tenant, platform: Platform) -> dict[str, Any]:
    """Values of helm/workspace: the tenant's over what the platform sets for all."""
    training, inference = tenant.quota.training, tenant.quota.inference
    asleep = tenant.state in ASLEEP
    groups = {
        "dataScientist": tenant.people.data_scientists,
        "mlops": tenant.people.mlops,
        "compliance": tenant.people.compliance,
    }
    made: dict[str, Any] = {
        "tenant": name,
        "state": tenant.state,
        "namespace": {"create": False},
        "store": tenant.storage.store,
        "settings": tenant.storage.settings,
        "images": platform.images,
        "storage": {
            "claim": tenant.storage.claim_gib > 0,
            "size": f"{tenant.storage.claim_gib or 100}Gi",
            "existingClaim": tenant.storage.existing_claim,
        },
        "hardware": {
            "gpuClasses": list(tenant.gpu_classes),
            "slots": 0 if asleep else training.runs,
            "queue": "kuznia" if tenant.queue else "",
            "clusterQueue": tenant.queue,
        },
        "quota": _hard(training.gpus, training.cpu, training.memory_gib)
        | ({"count/workflows.argoproj.io": "0"} if asleep else {}),
        "identities": {
            "data": tenant.identities.data,
            "model": tenant.identities.model,
            "registry": tenant.identities.registry,
            "notify": tenant.identities.notify,
            "mlflow": tenant.identities.mlflow,
        },
        "roles": {role: [_group(each) for each in names] for role, names in groups.items()},
        "mlflow": {"backend": tenant.mlflow.backend, "size": f"{tenant.mlflow.gib}Gi"},
        "webui": {"enabled": tenant.webui},
        "inference": {
            "enabled": True,
            "quota": _hard(inference.gpus, inference.cpu, inference.memory_gib),
        },
    }
    # What a tenant leaves out the platform may say for all.
    if tenant.storage.storage_class:
        made["storage"]["storageClass"] = tenant.storage.storage_class
    if tenant.storage.access_modes:
        made["storage"]["accessModes"] = list(tenant.storage.access_modes)
    if tenant.storage.secret:
        made["externalSecrets"] = {
            "enabled": True,
            "key": tenant.storage.secret,
            "signingKey": tenant.storage.signing_secret or "",
        }
    return _merged(platform.workspace, made)


def serving_values(
    name: str, tenant: Tenant, platform: Platform, catalogue: Catalogue
) -> dict[str, Any]:
    """Values of helm/vllm that all releases of a tenant share."""
    classes = {each: catalogue.gpu_classes[each] for each in tenant.gpu_classes}
    made: dict[str, Any] = {
        "tenant": name,
        "state": tenant.state,
        "settings": tenant.storage.settings,
        "secret": "kuznia",
        "images": platform.images,
        "gateway": platform.gateway,
        "claim": tenant.storage.serving_claim,
        "service_account_annotations": tenant.identities.serving,
        "signing_keys": list(tenant.signing_keys),
        "gpu_classes": {
            each: {
                "node_selector": found.node_selector,
                "tolerations": [t.model_dump(exclude_none=True) for t in found.tolerations],
                "memory_gib": found.memory_gib,
            }
            for each, found in classes.items()
        },
    }
    if platform.entry:
        # The one way to a model: who is guarded cannot be reached around the guard.
        caller = "gateway" if tenant.guard == "off" else "guard"
        made["network"] = {"callers": [caller]}
    return _merged(platform.serving, made)


def gateway_values(tree: Tree) -> dict[str, Any]:
    """Values of helm/gateway: what the platform sets, every release, by parts of the table.

    Raises InputError for what cannot be said softly.
    """
    platform = tree.platform
    if problems := unknown(tree.soft, (each.asked for each in tree.releases), str(SOFT)):
        raise InputError(problems)
    parts = shards(softened(table_of(tree), tree.soft, str(SOFT)))
    made: dict[str, Any] = {"tables": {name: text_of(part) for name, part in parts.items()}}
    if platform.access.store:
        made["store"] = platform.access.store
    made["guard"] = {"largest_mib": platform.access.largest_request_mib}
    if "gateway" in platform.images:
        made["images"] = {"gateway": platform.images["gateway"]}
    return _merged(platform.entry, made)


def _hard(gpus: int, cpu: float, memory_gib: float) -> dict[str, str]:
    """A ResourceQuota's amounts: what all pods together may ask for and take."""
    found = {"requests.cpu": f"{cpu:g}", "requests.memory": f"{memory_gib:g}Gi"}
    return found | {"requests.nvidia.com/gpu": str(gpus)}


def _group(name: str) -> dict[str, str]:
    return {"kind": "Group", "name": name}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings merged to the bottom; what is above wins."""
    made = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(made.get(key), dict)
        made[key] = _merged(made[key], value) if both else value
    return made
