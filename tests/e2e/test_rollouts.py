"""Releases on a real Argo CD: a new version takes over, comes back by `git revert`, or never."""

from __future__ import annotations

import json
import os
import shutil
import string
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuznia.manifest import MANIFEST, manifest_digest, write_manifest
from kuznia.registry import mlflow_client
from kuznia.store import open_store
from tests.e2e import versions
from tests.e2e.cluster import (
    HERE,
    Tenant,
    forwarded,
    get,
    image_of,
    kubectl,
    need_program,
    run,
    wait_for,
)
from tests.e2e.conftest import variables
from tests.e2e.platform import ARGO_CD, SHARED, Platform
from tests.e2e.releases import NAME, Load, caller, lost, moment, pods, publish, ready
from tests.e2e.versions import MODEL, Version
from tests.fixtures.checkouts import commit

pytestmark = [pytest.mark.timeout(1200), pytest.mark.long]


@pytest.fixture(scope="module")
def tenant(deployed: Platform) -> Tenant:
    """The second tenant."""
    return list(deployed.tenants.values())[1]


@pytest.fixture(scope="module")
def made(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    return versions.make(tiny_base, tmp_path_factory.mktemp("made") / "versions", 1, 2)


@pytest.fixture(scope="module")
def first(deployed: Platform, tenant: Tenant, made: list[Version]) -> dict[str, Any]:
    """The lines of the first version, which is served."""
    lines = versions.store(tenant, made[0], deployed.key)
    revision, _ = publish(deployed, tenant, lines)
    deployed.healthy(f"{tenant.name}-{NAME}", revision, 300)
    return lines


def steps_of(pushed: float, deployed: Platform, tenant: Tenant, version: str) -> dict[str, float]:
    """Seconds from a push to each thing that followed it."""
    (pod,) = pods(tenant, version)[-1:]
    status = pod["status"]
    (fetched,) = status["initContainerStatuses"]
    ended = fetched["state"]["terminated"]
    operation = deployed.application(f"{tenant.name}-{NAME}")["status"]["operationState"]
    times = {
        "Argo CD begins to sync": moment(operation["startedAt"]),
        "the new pod is created": moment(pod["metadata"]["creationTimestamp"]),
        "weights are fetched and checked": moment(ended["finishedAt"]),
        "vLLM answers as recorded": ready(pod) or 0.0,
    }
    return {name: round(at - pushed, 1) for name, at in times.items()}


def test_a_new_version_takes_over_and_comes_back_without_a_lost_request(
    deployed: Platform, tenant: Tenant, made: list[Version], first: dict[str, Any]
) -> None:
    second = versions.store(tenant, made[1], deployed.key)
    figures: dict[str, Any] = {}
    with caller("gateway") as pod:
        load = Load(pod, tenant)
        wait_for("the first answers", lambda: len(load.answers()) > 30, 60)
        (old,) = load.latest(20)

        revision, pushed = publish(deployed, tenant, second)
        deployed.healthy(f"{tenant.name}-{NAME}", revision, 300)
        wait_for("answers of the new version only", lambda: old not in load.latest(30), 120)
        (new,) = load.latest(20)
        figures["to a new version"] = steps_of(pushed, deployed, tenant, second["version"])
        moves = [pushed]

        revision, reverted = deployed.revert()
        deployed.healthy(f"{tenant.name}-{NAME}", revision, 300)
        wait_for("answers of the old version only", lambda: load.latest(30) == {old}, 120)
        figures["back by git revert"] = steps_of(reverted, deployed, tenant, first["version"])
        moves.append(reverted)
        answers = load.stop()

    assert lost(answers) == []
    assert {each["text"] for each in answers} == {old, new}
    assert sum(each["stream"] for each in answers) > len(answers) / 3
    for (name, steps), at, text in zip(figures.items(), moves, (new, old), strict=True):
        after = [each for each in answers if each["end"] > at and each["text"] == text]
        steps["the first answer"] = round(after[0]["end"] - at, 1)
        print(name, json.dumps(steps))
    figures["answers"] = len(answers)
    waits = sorted(each["end"] - each["start"] for each in answers)
    figures["slowest answer"] = round(waits[-1], 2)
    figures["median answer"] = round(waits[len(waits) // 2], 2)
    if folder := os.environ.get("KUZNIA_E2E_FIGURES"):
        (Path(folder) / "rollout.json").write_text(json.dumps(figures, indent=1), "utf-8")


def spoilt(folder: Path) -> None:
    """One byte of the weights changes, as a disk or a thief would have it."""
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def wrong_digest(lines: dict[str, Any]) -> dict[str, Any]:
    return lines | {"digest": lines["version"] + "f" * 52}


CASES: dict[str, tuple[Callable[[Path], None] | None, bool, str]] = {
    "a wrong digest": (None, True, "the release's digest is"),
    "a tampered file": (spoilt, True, "model.safetensors: differs from the manifest"),
    "no signature": (None, False, "manifest.json.sig: is missing"),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_that_are_not_the_releases_are_never_served(
    case: str,
    deployed: Platform,
    tenant: Tenant,
    tiny_base: Path,
    first: dict[str, Any],
    tmp_path: Path,
) -> None:
    spoil, signed, words = CASES[case]
    seed = 10 + list(CASES).index(case)
    (version,) = versions.make(tiny_base, tmp_path / "versions", seed)
    lines = versions.store(tenant, version, deployed.key if signed else None, spoil)
    if case == "a wrong digest":
        lines = wrong_digest(lines)
    never_served(deployed, tenant, lines, words, first["version"])


def test_a_version_that_answers_like_its_base_is_never_ready(
    deployed: Platform,
    tenant: Tenant,
    tiny_base: Path,
    first: dict[str, Any],
    tmp_path: Path,
) -> None:
    """The base's weights with a fine-tune's recorded answers: an adapter that was left out, say."""
    (version,) = versions.make(tiny_base, tmp_path / "versions", 20)
    weights = version.folder / "model.safetensors"
    weights.write_bytes((tiny_base / "model.safetensors").read_bytes())
    recorded = json.loads(version.answers.read_text("utf-8"))
    (version.folder / MANIFEST).unlink()
    write_manifest(version.folder, "version", {"base": "tiny"})
    recorded["version_digest"] = manifest_digest(version.folder)
    version.answers.write_text(json.dumps(recorded), "utf-8")
    lines = versions.store(tenant, version, deployed.key)
    never_served(deployed, tenant, lines, "answers like its base", first["version"])


def never_served(
    deployed: Platform, tenant: Tenant, lines: dict[str, Any], words: str, served: str
) -> None:
    """A refused release: its pod says why, the version before goes on, and all is taken back."""
    need_program("argocd")
    publish(deployed, tenant, lines)
    try:
        never_ready(tenant, lines["version"], words)
        still_serves(tenant, served)
    finally:
        revision, _ = deployed.revert()
    deployed.healthy(f"{tenant.name}-{NAME}", revision, 240)


def never_ready(tenant: Tenant, version: str, words: str) -> None:
    """The pod of a version says why it does not start, to kubectl and in Argo CD."""

    def told() -> str | None:
        for pod in pods(tenant, version):
            assert ready(pod) is None
            described = kubectl(
                "describe", "pod", pod["metadata"]["name"], "-n", f"{tenant.name}-inference"
            )
            for line in described.splitlines():
                if "Message:" in line and words in line:
                    return line
        return None

    wait_for(f"the reason in `kubectl describe`: {words}", told, 240)

    wait_for(
        f"the reason in Argo CD: {words}",
        lambda: words in resource_tree(f"{tenant.name}-{NAME}"),
        60,
    )


def resource_tree(application: str) -> str:
    """What Argo CD shows of an Application's resources, with their health."""
    with tempfile.TemporaryDirectory() as folder:
        # In core mode the CLI looks where the context does.
        config = Path(folder) / "config"
        config.write_bytes(Path(os.environ["KUBECONFIG"]).read_bytes())
        here = ("--kubeconfig", str(config))
        kubectl("config", "set-context", "--current", f"--namespace={ARGO_CD}", *here)
        return run(
            *("env", f"KUBECONFIG={config}"),
            *("argocd", "app", "get", application, "--core", "--output", "tree=detailed"),
            check=False,
        )


def still_serves(tenant: Tenant, version: str) -> None:
    """The version before is ready and the only one behind the Service."""
    (pod,) = [each for each in pods(tenant, version) if ready(each)]
    listed = kubectl(
        *("get", "endpointslices", "-n", f"{tenant.name}-inference", "-o", "json"),
        *("-l", f"kubernetes.io/service-name={NAME}"),
    )
    behind = [
        endpoint["targetRef"]["name"]
        for each in json.loads(listed)["items"]
        for endpoint in each.get("endpoints") or []
        if endpoint["conditions"].get("ready")
    ]
    assert behind == [pod["metadata"]["name"]]


REACHES = """
import json, socket, sys
found = {}
for target in sys.argv[1:]:
    host, port = target.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=4).close()
        found[target] = True
    except OSError:
        found[target] = False
print(json.dumps(found))
"""


def test_only_the_gateway_and_the_guard_reach_a_model(
    tenant: Tenant, first: dict[str, Any]
) -> None:
    target = f"{NAME}.{tenant.name}-inference:8000"
    for role, expected in (("gateway", True), ("guard", True), ("kuznia-sync", False)):
        with caller(role) as pod:
            said = kubectl("-n", SHARED, "exec", pod, "--", "python", "-c", REACHES, target)
            assert json.loads(said) == {target: expected}, role


def test_a_tenants_model_reaches_nothing_of_another(
    deployed: Platform, tenant: Tenant, first: dict[str, Any]
) -> None:
    other = next(iter(deployed.tenants.values()))
    (pod,) = pods(tenant, first["version"])
    targets = [
        f"mlflow.{other.name}-training:5000",
        f"mlflow.{tenant.name}-training:5000",
        "kubernetes.default:443",
    ]
    said = kubectl(
        *("-n", f"{tenant.name}-inference", "exec", pod["metadata"]["name"], "-c", "vllm", "--"),
        *("python", "-c", REACHES, *targets),
    )
    found = json.loads(said)
    assert found[targets[0]] is False
    assert found[targets[1]] is False


WRITES = """
import json, sys
from kuznia.errors import DependencyError
from kuznia.registry import mlflow_answers, mlflow_client
uri = sys.argv[1]
found = {}
with mlflow_answers(uri):
    client = mlflow_client(uri)
    found["read"] = sorted(model.name for model in client.search_registered_models())
for what, write in {
    "create": lambda: client.create_registered_model("mine"),
    "tag": lambda: client.set_registered_model_tag(found["read"][0], "digest", "mine"),
    "delete": lambda: client.delete_registered_model(found["read"][0]),
}.items():
    try:
        with mlflow_answers(uri):
            write()
        found[what] = "written"
    except DependencyError as error:
        found[what] = "refused"
print(json.dumps(found))
"""


def test_tenants_read_the_common_models_and_write_nothing(
    deployed: Platform, tenant: Tenant
) -> None:
    kubectl(
        "-n", SHARED, "wait", "deploy/mlflow-common", "--for=condition=Available", "--timeout=180s"
    )
    kubectl(
        *("-n", SHARED, "wait", "job", "-l", "app.kubernetes.io/part-of=kuznia"),
        *("--for=condition=Complete", "--timeout=180s"),
    )
    manifest = string.Template((HERE / "manifests" / "probe.yaml").read_text("utf-8"))
    values = {"OWN": tenant.name, "OTHER": tenant.name, "IMAGE": image_of("platform")}
    program = WRITES.replace("sys.argv[1]", f"'http://mlflow-common.{SHARED}:5000'")
    data = json.dumps({"data": {"probe.py": program}})
    kubectl("-n", tenant.namespace, "create", "configmap", "probe")
    kubectl("-n", tenant.namespace, "patch", "configmap", "probe", "-p", data)
    kubectl("-n", tenant.namespace, "apply", "-f", "-", text=manifest.substitute(values))
    kubectl(
        *("-n", tenant.namespace, "wait", "pod/probe", "--timeout=120s"),
        "--for=jsonpath={.status.phase}=Succeeded",
    )
    found = json.loads(kubectl("-n", tenant.namespace, "logs", "probe"))
    kubectl("-n", tenant.namespace, "delete", "pod", "probe")
    assert found == {
        "read": ["base.smollm2-135m-instruct"],
        "create": "refused",
        "tag": "refused",
        "delete": "refused",
    }


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        ("patch", "deployments.apps"),
        ("delete", "pods"),
        ("create", "pods/exec"),
        ("get", "secrets"),
        ("patch", "services"),
    ],
)
def test_nobody_of_the_tenant_touches_what_is_served(
    tenant: Tenant, deployed: Platform, verb: str, what: str
) -> None:
    for group in ("scientists", "mlops"):
        for namespace in (f"{tenant.name}-inference", ARGO_CD):
            said = run(
                *("kubectl", "auth", "can-i", verb, what, "-n", namespace),
                *("--as", "jo", "--as-group", f"{tenant.name}-{group}"),
                check=False,
            )
            assert said.strip() == "no", (group, namespace)


def test_a_release_file_cannot_leave_its_project(deployed: Platform, tenant: Tenant) -> None:
    """Pushed past every check: keys that name a project, a namespace and another tenant's place."""
    path = deployed.checkout / "argocd" / "registry" / tenant.name / "thief" / "staging.yaml"
    path.parent.mkdir(parents=True)
    keys = {"project": "default", "namespace": "kube-system", "path": {"basename": "x"}}
    path.write_text(yaml.safe_dump(keys), "utf-8")
    commit(deployed.checkout, "A thief's release")
    deployed.forge.push(deployed.checkout, "kuznia")
    try:
        name = f"{tenant.name}-thief-staging"
        application = wait_for(name, lambda: deployed.application(name), 120)
        assert application["spec"]["project"] == tenant.name
        assert application["spec"]["destination"]["namespace"] == f"{tenant.name}-inference"

        def refused() -> bool:
            status = deployed.application(name).get("status", {})
            return "ComparisonError" in json.dumps(status.get("conditions", []))

        wait_for("the refusal", refused, 120)
        assert deployed.application("x-staging") == {}
    finally:
        deployed.revert()
        kubectl("-n", ARGO_CD, "delete", "application", name, "--ignore-not-found")


def test_hibernate_and_wake(deployed: Platform, tenant: Tenant, first: dict[str, Any]) -> None:
    """One word in git: everything stops, nothing is lost, and the same word wakes it."""
    with forwarded(tenant.namespace, "service/mlflow", 5000) as mlflow:
        mlflow_client(mlflow).create_registered_model(f"{tenant.name}.{MODEL}")
    claim = get("pvc", "mlflow", tenant.namespace)["metadata"]["uid"]
    path = f"{tenant.name}/tenant.yaml"
    place = deployed.checkout / "argocd" / "registry" / path
    awake = yaml.safe_load(place.read_text("utf-8"))

    deployed.write({path: awake | {"state": "hibernated"}})
    deployed.push(f"{tenant.name} sleeps")
    inference = f"{tenant.name}-inference"

    def asleep() -> bool:
        listed = [
            json.loads(kubectl("get", "pods", "-n", each, "-o", "json"))["items"]
            for each in (inference, tenant.namespace)
        ]
        return not any(listed)

    wait_for("no pod of the tenant", asleep, 240)
    assert get("pvc", "mlflow", tenant.namespace)["metadata"]["uid"] == claim
    refused = tenant_workflow(tenant)
    assert "exceeded quota" in refused

    deployed.write({path: awake})
    revision, _ = deployed.push(f"{tenant.name} wakes")
    deployed.healthy(f"{tenant.name}-workspace", revision, 240)
    deployed.healthy(f"{tenant.name}-{NAME}", revision, 240)
    with forwarded(tenant.namespace, "service/mlflow", 5000) as mlflow:
        found = mlflow_client(mlflow).get_registered_model(f"{tenant.name}.{MODEL}")
    assert found.name == f"{tenant.name}.{MODEL}"
    with variables(tenant):
        key = first["uri"].removeprefix(f"{tenant.store}/")
        assert open_store(tenant.store).exists(f"{key}/manifest.json")


def tenant_workflow(tenant: Tenant) -> str:
    """What Kubernetes says to a run that is started now."""
    try:
        tenant.submit(f"try-{int(time.time())}", "tenant: x")
    except AssertionError as error:
        return str(error)
    return ""


def test_a_tenant_retires_in_two_steps(
    deployed: Platform, tenant: Tenant, first: dict[str, Any]
) -> None:
    """What MLflow knows is in the store before anything goes, and nothing goes unasked."""
    path = f"{tenant.name}/tenant.yaml"
    place = deployed.checkout / "argocd" / "registry" / path
    active = yaml.safe_load(place.read_text("utf-8"))
    with forwarded(tenant.namespace, "service/mlflow", 5000) as mlflow:
        client = mlflow_client(mlflow)
        name = f"{tenant.name}.{MODEL}"
        if not client.search_registered_models(f"name='{name}'"):
            client.create_registered_model(name)
        client.create_model_version(name, first["uri"], tags={"version": first["version"]})
    deployed.write({path: active | {"state": "retired"}})
    deployed.push(f"{tenant.name} retires")
    archives = ("job", "-n", tenant.namespace, "-l", "app.kubernetes.io/name=archive")
    wait_for("the Job", lambda: kubectl("get", *archives, "-o", "name"), 120)
    kubectl("wait", *archives, "--timeout=180s", "--for=condition=Complete")
    with variables(tenant):
        store = open_store(tenant.store)
        (kept,) = json.loads(store.read(f"archive/{tenant.name}/registry.json"))
        assert (kept["name"], kept["uri"]) == (name, first["uri"])
        assert store.exists(f"archive/{tenant.name}/manifests/{MODEL}/{first['version']}.json")
    (deployment,) = [get("deployment", NAME, f"{tenant.name}-inference")]
    wait_for(
        "no replica",
        lambda: get("deployment", NAME, f"{tenant.name}-inference")["spec"]["replicas"] == 0,
        60,
    )
    claim = get("pvc", "mlflow", tenant.namespace)["metadata"]["uid"]

    shutil.rmtree(place.parent)
    revision, _ = deployed.push(f"{tenant.name} is gone")
    deployed.root_at(revision)
    kubectl(
        *("-n", ARGO_CD, "delete", "applicationset,application,appproject"),
        *("-l", f"kuznia.tenant={tenant.name}"),
    )
    time.sleep(15)
    assert get("pvc", "mlflow", tenant.namespace)["metadata"]["uid"] == claim
    assert (
        deployment["metadata"]["uid"]
        == (get("deployment", NAME, f"{tenant.name}-inference")["metadata"]["uid"])
    )
