"""The objects that Argo CD is told by: projects, Applications, one ApplicationSet a tenant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kuznia.contracts.release import STAGES
from kuznia.contracts.tenant import Part, Platform, Tenant
from kuznia.tree import REGISTRY

GENERATED = Path("argocd/generated")
PLATFORM_PROJECT = "kuznia"
KEEP = "Prune=confirm,Delete=confirm"
"""Argo CD's option for what holds data: it waits for a person's word."""

RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/warn": "restricted",
}

TENANT_KINDS = {
    "": (
        *("ConfigMap", "LimitRange", "PersistentVolumeClaim", "ResourceQuota", "Secret"),
        *("Service", "ServiceAccount"),
    ),
    "apps": ("Deployment",),
    "argoproj.io": ("WorkflowTemplate",),
    "autoscaling": ("HorizontalPodAutoscaler",),
    "batch": ("Job",),
    "external-secrets.io": ("ExternalSecret",),
    "keda.sh": ("ScaledObject",),
    "kueue.x-k8s.io": ("LocalQueue",),
    "networking.k8s.io": ("NetworkPolicy",),
    "policy": ("PodDisruptionBudget",),
    "rbac.authorization.k8s.io": ("Role", "RoleBinding"),
}
"""What a tenant's Applications may contain; nothing that reaches beyond its namespaces."""
CHILDREN = {
    "": ("Endpoints", "Pod"),
    "apps": ("ReplicaSet",),
    "discovery.k8s.io": ("EndpointSlice",),
}
"""What these make: Argo CD shows only what a project may contain, and a pod has the reason."""
RETRY = {"limit": 20, "backoff": {"duration": "5s", "factor": 2, "maxDuration": "1m"}}
"""A tenant's parts come up in any order: a namespace may be a moment late."""


def bootstrap(platform: Platform) -> tuple[dict[str, Any], ...]:
    """What a person applies once: our project, and the Applications that bring all others."""
    project = _object("argoproj.io/v1alpha1", "AppProject", PLATFORM_PROJECT, platform.argocd) | {
        "spec": {
            "description": "Kuźnia itself: tenants' projects and namespaces, the upstream parts.",
            "sourceRepos": ["*"],
            "destinations": [{"name": "*", "namespace": "*", "server": "*"}],
            "clusterResourceWhitelist": [{"group": "*", "kind": "*"}],
        }
    }
    source = _source(platform, GENERATED) | {
        "directory": {"recurse": True, "include": "*/argocd/*.yaml"}
    }
    root = _application("kuznia", PLATFORM_PROJECT, platform, source, "in-cluster", platform.argocd)
    # Tenants go by their own two steps, never because a file is gone.
    root["spec"]["syncPolicy"]["automated"]["prune"] = False
    own = _source(platform, Path("argocd/platform")) | {"directory": {"recurse": True}}
    settings = _application(
        "kuznia-platform", PLATFORM_PROJECT, platform, own, "in-cluster", platform.argocd
    )
    settings["spec"]["syncPolicy"]["automated"]["prune"] = False
    return project, root, settings


def part(name: str, part: Part, platform: Platform) -> dict[str, Any]:
    source: dict[str, Any] = {"repoURL": part.repository, "targetRevision": part.version}
    source |= {"chart": part.chart} if part.chart else {"path": part.path}
    if part.values:
        source["helm"] = {"valuesObject": part.values}
    made = _application(name, PLATFORM_PROJECT, platform, source, "in-cluster", part.namespace)
    made["spec"]["syncPolicy"]["syncOptions"].append("CreateNamespace=true")
    return made


def shared(platform: Platform) -> dict[str, Any]:
    """What all tenants share, from helm/shared, in the gateway's namespace."""
    return _own_chart("shared", platform.shared | {"images": platform.images}, platform)


def sync(platform: Platform) -> dict[str, Any]:
    """What turns MLflow's aliases into commits, from helm/sync, in the gateway's namespace."""
    image = {"image": platform.images["platform"]} if "platform" in platform.images else {}
    of = {"repository": platform.repository, "branch": platform.revision}
    return _own_chart("sync", of | image | platform.sync, platform)


def gateway(platform: Platform, values: Path) -> dict[str, Any]:
    """The gateway, from helm/gateway; its `values` are generated, with every release in them."""
    source = _source(platform, Path("helm/gateway")) | {
        "helm": {"releaseName": "gateway", "valueFiles": [f"/{values}"]}
    }
    made = _in_shared_namespace("gateway", source, platform)
    made["metadata"]["annotations"] = {
        "argocd.argoproj.io/manifest-generate-paths": f"/helm/gateway;/{values}"
    }
    # An autoscaler's, where there is one.
    made["spec"]["ignoreDifferences"] = [
        {
            "group": "apps",
            "kind": kind,
            "jqPathExpressions": [
                'select(.metadata.annotations["kuznia.autoscaled"] == "true") | .spec.replicas'
            ],
        }
        for kind in ("Deployment", "StatefulSet")
    ]
    made["spec"]["syncPolicy"]["syncOptions"] += ["RespectIgnoreDifferences=true"]
    return made


def _own_chart(name: str, values: dict[str, Any], platform: Platform) -> dict[str, Any]:
    source = _source(platform, Path("helm") / name) | {
        "helm": {"releaseName": name, "valuesObject": values}
    }
    return _in_shared_namespace(name, source, platform)


def _in_shared_namespace(name: str, source: dict[str, Any], platform: Platform) -> dict[str, Any]:
    made = _application(
        *(f"kuznia-{name}", PLATFORM_PROJECT, platform, source, "in-cluster", platform.gateway)
    )
    policy = made["spec"]["syncPolicy"]
    policy["syncOptions"].append("CreateNamespace=true")
    policy["managedNamespaceMetadata"] = {"labels": RESTRICTED}
    return made


def project(name: str, tenant: Tenant, platform: Platform) -> dict[str, Any]:
    spaces = [f"{name}-training", f"{name}-inference"]
    made = _object("argoproj.io/v1alpha1", "AppProject", name, platform.argocd, name)
    return made | {
        "spec": {
            "description": f"What the tenant {name} has: two namespaces, from this repository.",
            "sourceRepos": [platform.repository],
            "destinations": [{"name": tenant.cluster, "namespace": each} for each in spaces],
            "clusterResourceWhitelist": [],
            "namespaceResourceWhitelist": [
                {"group": group, "kind": kind}
                for allowed in (TENANT_KINDS, CHILDREN)
                for group, kinds in allowed.items()
                for kind in kinds
            ],
        }
    }


def namespaces_application(name: str, tenant: Tenant, platform: Platform) -> dict[str, Any]:
    source = _source(platform, GENERATED / name / "namespaces")
    return _application(
        f"{name}-namespaces", PLATFORM_PROJECT, platform, source, tenant.cluster, "default", name
    )


def workspace_application(name: str, tenant: Tenant, platform: Platform) -> dict[str, Any]:
    values = GENERATED / name / "values" / "workspace.yaml"
    source = _source(platform, Path("helm/workspace")) | {
        "helm": {"releaseName": name, "valueFiles": [f"/{values}"]}
    }
    made = _application(
        *(f"{name}-workspace", name, platform, source, tenant.cluster, f"{name}-training", name)
    )
    made["metadata"]["annotations"] = {
        "argocd.argoproj.io/manifest-generate-paths": f"/helm/workspace;/{values}"
    }
    return made


def releases(name: str, tenant: Tenant, platform: Platform) -> dict[str, Any]:
    """One Application for each release file, made by Argo CD from git alone.

    Its project is written out, so no file can move a release into another. A release file that is
    gone leaves the Application and what it runs; `kuznia check` guards removals.
    """
    folder = REGISTRY / name
    values = GENERATED / name / "values" / "vllm.yaml"
    model, stage = "{{ .path.basename }}", '{{ .path.filename | trimSuffix ".yaml" }}'
    file = "{{ .path.path }}/{{ .path.filename }}"
    source = _source(platform, Path("helm/vllm")) | {
        "helm": {
            "releaseName": f"{model}-{stage}",
            "valueFiles": [f"/{values}", f"/{file}"],
            "valuesObject": {"model": model, "release": stage},
        }
    }
    template = _application(
        *(f"{name}-{model}-{stage}", name, platform, source, tenant.cluster, f"{name}-inference"),
        name,
    )
    metadata = template["metadata"]
    metadata.pop("namespace")
    metadata["labels"] |= {"kuznia.model": model, "kuznia.release": stage}
    metadata["annotations"] = {
        "argocd.argoproj.io/manifest-generate-paths": f"/helm/vllm;/{values};/{file}"
    }
    if tenant.state == "active":
        # The autoscaler's, once it is there.
        template["spec"]["ignoreDifferences"] = [
            {
                "group": "apps",
                "kind": "Deployment",
                "jqPathExpressions": [
                    'select(.metadata.annotations["kuznia.autoscaled"] == "true") | .spec.replicas'
                ],
            }
        ]
        template["spec"]["syncPolicy"]["syncOptions"] += ["RespectIgnoreDifferences=true"]
    return _object(
        "argoproj.io/v1alpha1", "ApplicationSet", f"{name}-releases", platform.argocd, name
    ) | {
        "spec": {
            "goTemplate": True,
            "goTemplateOptions": ["missingkey=error"],
            "generators": [
                {
                    "git": {
                        "repoURL": platform.repository,
                        "revision": platform.revision,
                        "files": [{"path": f"{folder}/*/{stage}.yaml"} for stage in STAGES],
                    }
                }
            ],
            "syncPolicy": {
                "applicationsSync": "create-update",
                "preserveResourcesOnDeletion": True,
            },
            "template": {"metadata": metadata, "spec": template["spec"]},
        }
    }


def namespace(tenant: str, what: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": f"{tenant}-{what}",
            "labels": {
                "app.kubernetes.io/part-of": "kuznia",
                "kuznia.tenant": tenant,
                "kuznia.workspace": what,
                **RESTRICTED,
            },
            "annotations": {"argocd.argoproj.io/sync-options": KEEP},
        },
    }


def _application(
    name: str,
    project: str,
    platform: Platform,
    source: dict[str, Any],
    cluster: str,
    namespace: str,
    tenant: str = "",
) -> dict[str, Any]:
    made = _object("argoproj.io/v1alpha1", "Application", name, platform.argocd, tenant)
    return made | {
        "spec": {
            "project": project,
            "source": source,
            "destination": {"name": cluster, "namespace": namespace},
            "syncPolicy": {
                "automated": {"prune": True, "selfHeal": True},
                "retry": RETRY,
                "syncOptions": ["ServerSideApply=true", "ApplyOutOfSyncOnly=true"],
            },
        }
    }


def _object(version: str, kind: str, name: str, namespace: str, tenant: str = "") -> dict[str, Any]:
    labels = {"app.kubernetes.io/part-of": "kuznia"} | ({"kuznia.tenant": tenant} if tenant else {})
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _source(platform: Platform, path: Path) -> dict[str, Any]:
    return {
        "repoURL": platform.repository,
        "targetRevision": platform.revision,
        "path": path.as_posix(),
    }
