"""What Argo CD reads of the registry in git: what each tenant may, and who may not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cli.main import main
from kuznia import generated
from kuznia.applications import CHILDREN, GENERATED, TENANT_KINDS
from kuznia.contracts.catalogue import load_catalogue
from kuznia.gateway.shards import merged
from kuznia.gateway.table import Table, table_of
from kuznia.generated import BOOTSTRAP, OWNERS
from kuznia.tree import REGISTRY, load_tree
from tests.fixtures.checkouts import PLATFORM_FILE, checkout, commit, release, tenant, write
from workflows.environments import ROOT

REPOSITORY = PLATFORM_FILE["repository"]


def made(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Objects in every generated file, by path below argocd/generated."""
    files = generated.generated(load_tree(root), load_catalogue())
    return {
        str(path.relative_to(GENERATED)): list(yaml.safe_load_all(text))
        for path, text in files.items()
        if path.is_relative_to(GENERATED)
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two tenants, one of them with two releases."""
    people = {"mlops": ["acme-mlops"], "reviewers": ["@acme-mlops", "@risk"]}
    acme = tenant(gpu_classes=["l4"], people=people)
    checkout(tmp_path, acme=acme, beta=tenant("beta", cluster="in-cluster"))
    card = {"card": "model-cards/acme/support/x.yaml"}
    return write(
        tmp_path,
        {"acme/support/staging.yaml": release(), "acme/support/production.yaml": release(**card)},
    )


def test_a_tenants_project_reaches_its_two_namespaces_and_no_more(root: Path) -> None:
    (project,) = made(root)["acme/argocd/project.yaml"]
    spec = project["spec"]
    assert spec["sourceRepos"] == [REPOSITORY]
    assert spec["destinations"] == [
        {"name": "in-cluster", "namespace": "acme-training"},
        {"name": "in-cluster", "namespace": "acme-inference"},
    ]
    assert spec["clusterResourceWhitelist"] == []
    kinds = {(each["group"], each["kind"]) for each in spec["namespaceResourceWhitelist"]}
    assert kinds == {
        (group, kind)
        for allowed in (TENANT_KINDS, CHILDREN)
        for group, many in allowed.items()
        for kind in many
    }
    assert not {"Namespace", "Application", "ApplicationSet", "Workflow", "ClusterRole"} & {
        kind for _, kind in kinds
    }


def test_what_a_tenant_has_in_argo_cd_is_found_by_its_label(root: Path) -> None:
    for path, objects in made(root).items():
        if path.startswith("acme/argocd/"):
            assert [each["metadata"]["labels"]["kuznia.tenant"] for each in objects] == ["acme"]


def test_a_release_file_cannot_choose_its_project_or_namespace(root: Path) -> None:
    (releases,) = made(root)["acme/argocd/releases.yaml"]
    spec = releases["spec"]
    template = spec["template"]["spec"]
    assert template["project"] == "acme"
    assert template["destination"] == {"name": "in-cluster", "namespace": "acme-inference"}
    assert "templatePatch" not in spec
    assert spec["goTemplateOptions"] == ["missingkey=error"]
    assert spec["syncPolicy"] == {
        "applicationsSync": "create-update",
        "preserveResourcesOnDeletion": True,
    }
    (git,) = (each["git"] for each in spec["generators"])
    assert git["files"] == [
        {"path": "argocd/registry/acme/*/staging.yaml"},
        {"path": "argocd/registry/acme/*/production.yaml"},
    ]


def test_only_the_platforms_project_makes_namespaces(root: Path) -> None:
    files = made(root)
    projects = {
        path: [each["spec"]["project"] for each in objects if each["kind"] == "Application"]
        for path, objects in files.items()
        if path.endswith(("namespaces.yaml", "workspace.yaml")) and "/argocd/" in path
    }
    assert projects == {
        "acme/argocd/namespaces.yaml": ["kuznia"],
        "acme/argocd/workspace.yaml": ["acme"],
        "beta/argocd/namespaces.yaml": ["kuznia"],
        "beta/argocd/workspace.yaml": ["beta"],
    }
    for name in ("training", "inference"):
        (namespace,) = files[f"acme/namespaces/{name}.yaml"]
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        assert (
            namespace["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]
            == "Prune=confirm,Delete=confirm"
        )


def test_a_person_applies_one_file_that_prunes_nothing(root: Path) -> None:
    text = generated.generated(load_tree(root), load_catalogue())[BOOTSTRAP]
    objects = list(yaml.safe_load_all(text))
    assert [(each["kind"], each["metadata"]["name"]) for each in objects] == [
        ("AppProject", "kuznia"),
        ("Application", "kuznia"),
        ("Application", "kuznia-platform"),
    ]
    for application in objects[1:]:
        assert application["spec"]["syncPolicy"]["automated"]["prune"] is False


def test_an_unquoted_placeholder_never_breaks_the_yaml(root: Path) -> None:
    (releases,) = made(root)["acme/argocd/releases.yaml"]
    metadata = releases["spec"]["template"]["metadata"]
    assert metadata["name"] == (
        'acme-{{ .path.basename }}-{{ .path.filename | trimSuffix ".yaml" }}'
    )


@pytest.mark.parametrize("state", ["hibernated", "retired"])
def test_asleep_starts_nothing_and_keeps_everything(tmp_path: Path, state: str) -> None:
    files = made(checkout(tmp_path, acme=tenant(state=state)))
    (workspace,) = files["acme/values/workspace.yaml"]
    assert workspace["state"] == state
    assert workspace["hardware"]["slots"] == 0
    assert workspace["quota"]["count/workflows.argoproj.io"] == "0"
    assert files["acme/values/vllm.yaml"][0]["state"] == state
    awake = made(checkout(tmp_path, acme=tenant()))
    assert "count/workflows.argoproj.io" not in awake["acme/values/workspace.yaml"][0]["quota"]
    assert awake.keys() == files.keys()


def test_another_cluster_gets_all_of_a_tenant(tmp_path: Path) -> None:
    checkout(tmp_path, acme=tenant(cluster="far"))
    clusters = {"in-cluster": "https://kubernetes.default.svc", "far": "https://far.example.org"}
    write(tmp_path, {"platform.yaml": {**PLATFORM_FILE, "clusters": clusters}})
    files = made(tmp_path)
    for name in ("namespaces", "workspace"):
        assert files[f"acme/argocd/{name}.yaml"][0]["spec"]["destination"]["name"] == "far"
    template = files["acme/argocd/releases.yaml"][0]["spec"]["template"]
    assert template["spec"]["destination"]["name"] == "far"


def test_what_the_platform_sets_for_all_a_tenant_overrides(tmp_path: Path) -> None:
    checkout(tmp_path)
    more = {
        "workspace": {
            "mlflow": {"size": "1Gi", "storageClass": "fast"},
            "storage": {"storageClass": "fast", "accessModes": ["ReadWriteOnce"]},
            "retry": {"pause": "1s"},
        }
    }
    write(tmp_path, {"platform.yaml": {**PLATFORM_FILE, **more}})
    (values,) = made(tmp_path)["acme/values/workspace.yaml"]
    assert values["mlflow"] == {"size": "5Gi", "storageClass": "fast", "backend": "sqlite"}
    assert values["storage"].items() >= more["workspace"]["storage"].items()
    assert values["retry"] == {"pause": "1s"}


def test_a_tenant_says_how_its_claim_is_mounted_or_names_one(tmp_path: Path) -> None:
    store = {"store": "file:///storage/store"}
    acme = tenant(storage={**store, "existing_claim": "nfs"})
    disk = {"claim_gib": 50, "access_modes": ["ReadWriteOnce"]}
    checkout(tmp_path, acme=acme, beta=tenant("beta", storage={**store, **disk}))
    files = made(tmp_path)
    named, own = (files[f"{name}/values/workspace.yaml"][0]["storage"] for name in ("acme", "beta"))
    assert (named["claim"], named["existingClaim"]) == (False, "nfs")
    assert "accessModes" not in named
    assert (own["claim"], own["existingClaim"]) == (True, "")
    assert own["accessModes"] == ["ReadWriteOnce"]


def test_what_all_share_lies_in_the_gateways_namespace(root: Path) -> None:
    (shared,) = made(root)["platform/argocd/shared.yaml"]
    assert shared["spec"]["destination"]["namespace"] == "llm-shared"
    assert shared["spec"]["project"] == "kuznia"


def test_the_sync_is_deployed_where_the_platform_says_how(root: Path) -> None:
    assert "platform/argocd/sync.yaml" not in made(root)
    given = {"forge": {"kind": "gitea", "url": "https://git.example.org/ai/kuznia"}}
    write(root, {"platform.yaml": {**PLATFORM_FILE, "sync": given}})
    (sync,) = made(root)["platform/argocd/sync.yaml"]
    values = sync["spec"]["source"]["helm"]["valuesObject"]
    assert values == {"repository": REPOSITORY, "branch": "main", **given}


def test_the_gateway_is_deployed_where_the_platform_says_how(root: Path) -> None:
    callers = {"acme": "guard", "beta": "gateway"}
    beta = tenant("beta", guard="off", people={"callers": ["everyone"]})
    write(root, {"beta/tenant.yaml": beta})
    assert "platform/argocd/gateway.yaml" not in made(root)
    for name in callers:
        (values,) = made(root)[f"{name}/values/vllm.yaml"]
        assert "network" not in values
    platform = {
        "entry": {"replicas": 3, "tables": {"access": "{}"}},
        "access": {"hosts": ["llm.example.org"], "store": "s3://kuznia/gateway"},
        "images": {"gateway": "registry.example.org/gateway@sha256:1"},
        "serving": {"network": {"scrapers": [{}], "callers": ["anyone"]}},
    }
    write(root, {"platform.yaml": PLATFORM_FILE | platform})
    files = made(root)
    (application,) = files["platform/argocd/gateway.yaml"]
    assert application["spec"]["destination"]["namespace"] == "llm-shared"
    assert application["spec"]["source"]["helm"]["valueFiles"] == [
        "/argocd/generated/platform/values/gateway.yaml"
    ]
    (values,) = files["platform/values/gateway.yaml"]
    assert (values["replicas"], values["store"]) == (3, "s3://kuznia/gateway")
    assert values["images"] == {"gateway": "registry.example.org/gateway@sha256:1"}
    parts = [Table.model_validate_json(text) for text in values["tables"].values()]
    assert merged(parts) == merged([table_of(load_tree(root))])
    for name, caller in callers.items():
        (values,) = files[f"{name}/values/vllm.yaml"]
        assert values["network"] == {"scrapers": [{}], "callers": [caller]}


def test_a_changed_release_is_one_changed_line(root: Path) -> None:
    def lines() -> list[str]:
        files = generated.generated(load_tree(root), load_catalogue())
        return files[GENERATED / "platform" / "values" / "gateway.yaml"].splitlines()

    write(root, {"platform.yaml": PLATFORM_FILE | {"entry": {"replicas": 1}}})
    before = lines()
    write(root, {"acme/support/staging.yaml": release(version="a" * 12)})
    after = lines()
    assert len(before) == len(after)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1


def test_who_must_approve_production(root: Path) -> None:
    text = generated.generated(load_tree(root), load_catalogue())[OWNERS]
    assert text.splitlines()[1:] == ["/argocd/registry/acme/*/production.yaml @acme-mlops @risk"]


def render(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["render", *arguments])
    return done.exit_code, done.output


def test_render_writes_what_differs_and_removes_what_is_gone(root: Path) -> None:
    code, words = render("--root", str(root), "--check")
    assert code == 2
    assert "argocd/generated/acme/argocd/project.yaml: is not what argocd/registry makes" in words
    assert render("--root", str(root))[0] == 0
    assert render("--root", str(root), "--check") == (0, "")
    (root / GENERATED / "acme" / "argocd" / "extra.yaml").write_text("kind: Secret\n", "utf-8")
    shutil.rmtree(root / REGISTRY / "beta")
    code, words = render("--root", str(root))
    assert code == 0
    assert "argocd/generated/acme/argocd/extra.yaml" in words.splitlines()
    assert not (root / GENERATED / "beta").exists()
    assert not (root / GENERATED / "acme" / "argocd" / "extra.yaml").exists()
    assert render("--root", str(root), "--check") == (0, "")


@pytest.fixture
def deployed(root: Path) -> Path:
    """The checkout with its charts, rendered and committed."""
    access = {"store": "s3://kuznia/gateway"}
    write(root, {"platform.yaml": PLATFORM_FILE | {"entry": {"replicas": 2}, "access": access}})
    for chart in ("vllm", "workspace", "shared", "gateway"):
        shutil.copytree(ROOT / "helm" / chart, root / "helm" / chart)
    assert render("--root", str(root))[0] == 0
    commit(root)
    return root


@pytest.mark.chart
def test_the_picture_names_every_object_of_every_application(deployed: Path) -> None:
    code, words = render("--root", str(deployed), "--tree")
    assert code == 0, words
    lines = words.splitlines()
    assert "  acme-support-staging (helm/vllm)" in lines
    assert "    Deployment/support-staging" in lines
    assert "    Namespace/acme-inference" in lines
    assert "    StatefulSet/gateway" in lines
    assert lines.index("acme") < lines.index("  acme-support-staging (helm/vllm)")


@pytest.mark.chart
def test_a_part_that_cannot_be_rendered_is_marked_and_fails(deployed: Path) -> None:
    values = yaml.safe_load((deployed / "argocd/registry/acme/support/staging.yaml").read_text())
    write(deployed, {"acme/support/staging.yaml": {**values, "arguments": ["--trust-remote-code"]}})
    code, words = render("--root", str(deployed), "--tree")
    assert code == 2
    assert "  [FAILED] acme-support-staging (helm/vllm)" in words.splitlines()
    assert "helm/vllm: acme-support-staging cannot be rendered: " in words


@pytest.mark.chart
def test_the_difference_is_what_changes_on_the_cluster(deployed: Path) -> None:
    assert render("--root", str(deployed), "--diff", "main") == (0, "")
    new = {"acme/support/staging.yaml": release(version="aaaaaaaaaaaa", replicas=3)}
    write(deployed, new)
    code, words = render("--root", str(deployed), "--diff", "main")
    assert code == 0
    lines = words.splitlines()
    assert "--- a/acme-support-staging/Deployment/support-staging" in lines
    assert "+  replicas: 3" in lines
    assert not any("production" in line for line in lines if line.startswith(("---", "+++")))
