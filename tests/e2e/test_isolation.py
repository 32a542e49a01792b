"""One tenant's pods try to reach another tenant's things, with the accounts that steps have."""

from __future__ import annotations

import json
import string

import pytest

from kuznia.store import open_store
from tests.e2e.cluster import HERE, Tenant, image_of, kubectl, run
from tests.e2e.conftest import MakeTenant, variables

pytestmark = pytest.mark.timeout(600)
ACCOUNTS = ("data", "model", "registry", "notify")


@pytest.fixture(scope="module")
def pair(tenants: MakeTenant) -> tuple[Tenant, Tenant]:
    acme, globex = tenants("acme"), tenants("globex")
    for tenant in (acme, globex):
        with variables(tenant):
            open_store(tenant.store).write("runs/secret.txt", b"ours alone")
    return acme, globex


PROBE = """
import json, os, pathlib, socket
from kuznia.errors import KuzniaError
from kuznia.store import open_store

def reaches(host, port):
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True

def reads(store):
    try:
        return open_store(store).read("runs/secret.txt").decode()
    except KuzniaError as error:
        return "Denied" if "lacked the necessary privileges" in str(error) else str(error)

print(json.dumps({
    "own store": reads(os.environ["KUZNIA_STORE"]),
    "other store": reads("s3://" + os.environ["OTHER"]),
    "own mlflow": reaches("mlflow." + os.environ["OWN"] + "-training", 5000),
    "other mlflow": reaches("mlflow." + os.environ["OTHER"] + "-training", 5000),
    "token": pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists(),
}))
"""


def probe(tenant: Tenant, other: Tenant) -> dict[str, object]:
    """What a pod with the account and the settings of a training step can reach."""
    manifest = string.Template((HERE / "manifests" / "probe.yaml").read_text("utf-8"))
    values = {"OWN": tenant.name, "OTHER": other.name, "IMAGE": image_of("platform")}
    kubectl("-n", tenant.namespace, "apply", "-f", "-", text=manifest.substitute(values))
    kubectl(
        *("-n", tenant.namespace, "wait", "pod/probe", "--timeout=120s"),
        "--for=jsonpath={.status.phase}=Succeeded",
    )
    found: dict[str, object] = json.loads(kubectl("-n", tenant.namespace, "logs", "probe"))
    return found


def test_a_step_reaches_its_own_and_nobody_elses(pair: tuple[Tenant, Tenant]) -> None:
    acme, globex = pair
    program = json.dumps({"data": {"probe.py": PROBE}})
    for tenant, other in (pair, (globex, acme)):
        kubectl("-n", tenant.namespace, "create", "configmap", "probe")
        kubectl("-n", tenant.namespace, "patch", "configmap", "probe", "-p", program)
        assert probe(tenant, other) == {
            "own store": "ours alone",
            "other store": "Denied",
            "own mlflow": True,
            "other mlflow": False,
            "token": False,
        }


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        ("get", "secrets"),
        ("get", "configmaps"),
        ("list", "pods"),
        ("create", "pods"),
        ("create", "workflows.argoproj.io"),
        ("get", "workflows.argoproj.io"),
        ("create", "pods/exec"),
    ],
)
def test_the_accounts_of_steps_may_do_nothing(
    pair: tuple[Tenant, Tenant], verb: str, what: str
) -> None:
    acme, globex = pair
    for namespace in (acme.namespace, globex.namespace, "argo", "kube-system"):
        for account in ACCOUNTS:
            name = f"system:serviceaccount:{acme.namespace}:kuznia-{account}"
            said = run(
                *("kubectl", "auth", "can-i", verb, what, "-n", namespace, "--as", name),
                check=False,
            )
            assert said.strip() == "no", (namespace, account)


def test_the_executor_may_report_outputs_and_nothing_else(pair: tuple[Tenant, Tenant]) -> None:
    acme, globex = pair
    name = f"system:serviceaccount:{acme.namespace}:kuznia-executor"

    def may(verb: str, what: str, namespace: str) -> str:
        command = ("kubectl", "auth", "can-i", verb, what, "-n", namespace, "--as", name)
        return run(*command, check=False).strip()

    assert may("create", "workflowtaskresults.argoproj.io", acme.namespace) == "yes"
    assert may("create", "workflowtaskresults.argoproj.io", globex.namespace) == "no"
    assert may("get", "secrets", acme.namespace) == "no"
    assert may("list", "workflowtaskresults.argoproj.io", acme.namespace) == "no"


def test_a_person_cannot_start_pods_of_their_own(pair: tuple[Tenant, Tenant]) -> None:
    """Strict templates: a Workflow that brings its own steps is refused by the controller."""
    acme, _ = pair
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": "own-steps", "namespace": acme.namespace},
        "spec": {
            "entrypoint": "mine",
            "templates": [{"name": "mine", "container": {"image": "busybox", "command": ["true"]}}],
        },
    }
    kubectl("create", "-f", "-", text=json.dumps(workflow))
    ended = acme.ended("own-steps", 60)
    assert ended["status"]["phase"] == "Error"
    assert "workflowTemplateRef" in ended["status"]["message"]
    assert not ended["status"].get("nodes")
