"""Start a run on a cluster: check it, upload its data, create its Workflow under the run's name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kuznia.settings
from kuznia.contracts.base import digest_of
from kuznia.contracts.runspec import RunSpec
from kuznia.errors import DependencyError, InputError
from steps.workspace import tenant_problems
from workflows.cluster import Cluster
from workflows.nodes import ENDED
from workflows.render import labels_of
from workflows.submit import Submission, check, compiled, prepare

SETTINGS = "kuznia"
"""The ConfigMap with the environment variables of every step."""
CATALOGUE = "kuznia-catalogue"
_GONE_WITHIN = 180.0
"""Seconds that the deletion of a Workflow with its pods may take."""


def submit(
    path: Path, namespace: str | None, context: str | None, say: Callable[[str], None]
) -> tuple[Cluster, Submission, dict[str, Any]]:
    """Check the run spec at `path`, upload its data and start the run, or find it; its Workflow.

    Uses the store that the cluster's ConfigMap names; how to reach it (AWS_ENDPOINT_URL, ...) is
    taken from there too, unless this process's environment says otherwise.
    """
    _, spec, files = check(path, base=False)
    cluster = Cluster(namespace or f"{spec.tenant}-training", context)
    settings = workspace(cluster)
    if problems := list(tenant_problems(spec, settings.get("KUZNIA_TENANT", ""), str(path))):
        raise InputError(problems)
    store = settings["KUZNIA_STORE"]
    if store.startswith("file://") and files:
        raise InputError(_not_on_the_volume(path, spec, files, store))
    for variable, value in settings.items():
        if variable.startswith(("AWS_", "GOOGLE_")):
            os.environ.setdefault(variable, value)
    os.environ["KUZNIA_STORE"] = store
    _use_catalogue(cluster, settings)
    if files:
        say(f"putting the data into {store}")
    submission = prepare(path)
    return (
        cluster,
        submission,
        start(cluster, manifest_of(submission, cluster.namespace), say),
    )


def workspace(cluster: Cluster) -> dict[str, str]:
    """What the namespace's ConfigMap tells every step; InputError unless a run has all it needs."""
    settings = cluster.get("configmaps", SETTINGS)
    if settings is None and _lacks_namespace(cluster):
        raise InputError(
            f"namespace {cluster.namespace}: is not on {cluster.host}; install the tenant's "
            "workspace (chart helm/workspace) or name another with --namespace"
        )
    values: dict[str, str] = (settings or {}).get("data") or {}
    problems = []
    if "KUZNIA_STORE" not in values:
        what = f"ConfigMap {SETTINGS}" + (" with KUZNIA_STORE" if settings else "")
        problems.append(f"has no {what}; install the tenant's workspace (chart helm/workspace)")
    if cluster.get("workflowtemplates", template_name()) is None:
        problems.append(_other_templates(cluster))
    if problems:
        raise InputError(f"namespace {cluster.namespace}: {problem}" for problem in problems)
    return values


def _use_catalogue(cluster: Cluster, settings: dict[str, str]) -> None:
    """Let this process, too, use the tenant's own catalogue, where there is one."""
    if "KUZNIA_CATALOGUE" in settings and (found := cluster.get("configmaps", CATALOGUE)):
        text = found["data"]["catalogue.yaml"]
        path = kuznia.settings.cache() / "catalogues" / f"{digest_of(text)}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        os.environ["KUZNIA_CATALOGUE"] = str(path)


def start(cluster: Cluster, manifest: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The Workflow of `manifest`'s name, created unless it runs or has succeeded.

    One that failed, or was made from another template, is deleted first: what its steps have
    done is in the store. Two people who call this at once get the same Workflow.
    """
    name = manifest["metadata"]["name"]
    template = manifest["spec"]["workflowTemplateRef"]
    until = time.monotonic() + _GONE_WITHIN
    while time.monotonic() < until:
        found = cluster.get("workflows", name)
        if found is None:
            created = cluster.create("workflows", manifest)
            if created:
                say(f"{name}: submitted to namespace {cluster.namespace}")
                return created
            continue
        phase = found.get("status", {}).get("phase")
        if "deletionTimestamp" in found["metadata"]:
            time.sleep(0.5)
        elif phase not in ENDED:
            say(f"{name}: runs already in namespace {cluster.namespace}; following it")
            return found
        elif phase == "Succeeded" and found["spec"].get("workflowTemplateRef") == template:
            say(f"{name}: has succeeded before; nothing is repeated")
            return found
        else:
            say(f"{name}: ended before ({phase}); what is done is kept, the rest starts again")
            _delete(cluster, found)
    raise DependencyError(
        f"{name}: is being deleted and does not go; see what holds it with "
        f"`kubectl -n {cluster.namespace} get workflow {name} -o yaml`"
    )


def _delete(cluster: Cluster, workflow: dict[str, Any]) -> None:
    """Delete this very state of the Workflow: not one that somebody has retried or remade."""
    facts = workflow["metadata"]
    seen = {"uid": facts["uid"], "resourceVersion": facts["resourceVersion"]}
    # Foreground: its pods go first, since the next Workflow's pods have the same names.
    options = {"propagationPolicy": "Foreground", "preconditions": seen}
    cluster.delete("workflows", facts["name"], options)


def manifest_of(submission: Submission, namespace: str) -> dict[str, Any]:
    """The Workflow of a run: the installed template, with the run spec as its one argument."""
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            "name": submission.run,
            "namespace": namespace,
            "labels": labels_of(submission),
        },
        "spec": {
            "workflowTemplateRef": {"name": template_name()},
            "arguments": {"parameters": [{"name": "config", "value": submission.config}]},
        },
    }


def template_name() -> str:
    """Name of the installed WorkflowTemplate that this version's runs are made from."""
    name: str = compiled()["metadata"]["name"]
    return name


def _other_templates(cluster: Cluster) -> str:
    name = template_name()
    stem = name.rstrip("0123456789-")
    found = [item["metadata"]["name"] for item in cluster.find("workflowtemplates")]
    if others := sorted(other for other in found if other.startswith(stem)):
        return (
            f"has {', '.join(others)}, not {name}; install the workspace of this version, "
            "or the kuznia that fits"
        )
    return f"has no WorkflowTemplate {name}; install the tenant's workspace with it"


def _lacks_namespace(cluster: Cluster) -> bool:
    try:
        return cluster.get("namespaces", cluster.namespace) is None
    except InputError:
        # Most people may not look at namespaces; then it is not known to be missing.
        return False


def _not_on_the_volume(path: Path, spec: RunSpec, files: dict[str, Path], store: str) -> list[str]:
    return [
        f"{path}: data.{key}: {file}: the store is a volume of the cluster, out of reach from "
        f"here; put the file there and name it {store}/datasets/{spec.tenant}/{file.name}"
        for key, file in files.items()
    ]
