"""Runs submitted to a real Argo, followed, interrupted and found again; the steps are stand-ins."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from click.testing import CliRunner, Result

from cli.main import main
from kuznia.store import open_store
from tests.e2e.cluster import (
    HOWTO,
    forwarded,
    get,
    kubectl,
    need_api,
    need_program,
    run,
    wait_for,
)
from tests.e2e.stand_in import stand_in_template
from workflows.cluster import RIGHTS
from workflows.environments import ROOT
from workflows.on_cluster import template_name
from workflows.submit import TEMPLATE, prepare

SPEC = {
    "base": "smollm2-135m-instruct",
    "data": {"train": "file:///storage/train.jsonl", "format": "alpaca"},
    "card": {"purpose": "Tries the submission.", "owner": "tests", "risk": "minimal"},
}
MISTAKES = [
    "error: {spec}: data.train: is wrong; correct it",
    "error: {spec}: seed: is wrong too; correct it",
]


@dataclass
class Place:
    """A tenant's namespace, and the kubeconfig of somebody with the tenant's role in it."""

    tenant: str
    folder: Path
    kubeconfig: Path

    @property
    def namespace(self) -> str:
        return f"{self.tenant}-training"

    def spec(self, model: str, **changes: Any) -> Path:
        """A run spec on disk; the model's name says how its run behaves (stand_in.py)."""
        path = self.folder / f"{model}.yaml"
        path.write_text(yaml.safe_dump({"tenant": self.tenant, "model": model, **SPEC, **changes}))
        return path

    def variables(self, **more: str) -> dict[str, str]:
        return os.environ | {"KUBECONFIG": str(self.kubeconfig), "NO_COLOR": "1"} | more

    def workflow(self, spec: Path) -> dict[str, Any]:
        return get("workflow", prepare(spec).run, self.namespace)


class Process:
    """A command that runs beside the test; `said` grows as it prints."""

    def __init__(self, *words: str | Path, **variables: str) -> None:
        self.said = ""
        self._process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(self, words: str, seconds: float = 40) -> None:
        def said() -> bool:
            assert words in self.said or self._process.poll() is None, self.said
            return words in self.said

        try:
            wait_for(f"{words!r} in what it says", said, seconds)
        except AssertionError:
            self.kill()
            raise

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self, seconds: float = 150) -> int:
        try:
            return self._process.wait(seconds)
        finally:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.said += line


class Wire:
    """A port that leads to the API server until it is cut."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._whole = True
        self._start(self._accept)

    def cut(self) -> None:
        self._whole = False
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for end in (self._server, *self._ends):
            end.close()

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._server.accept()
                if not self._whole:
                    here.close()
                    continue
                there = socket.create_connection(self._target)
                self._ends += [here, there]
                self._start(self._pump, here, there)
                self._start(self._pump, there, here)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def kuznia(place: Place, *words: str | Path, **variables: str) -> Process:
    return Process("-m", "cli.main", *words, **place.variables(**variables))


def here(monkeypatch: pytest.MonkeyPatch, kubeconfig: Path, *words: str | Path) -> Result:
    """A command that ends at once, in this process."""
    with monkeypatch.context() as patch:
        patch.setenv("KUBECONFIG", str(kubeconfig))
        return CliRunner().invoke(main, [str(word) for word in words])


def write_kubeconfig(path: Path, namespace: str, account: str) -> Path:
    """A kubeconfig of a service account, as a person's would be."""
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    token = kubectl("create", "token", "-n", namespace, account).strip()
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path.write_text(yaml.safe_dump(config))
    return path


def objects(namespace: str, store: dict[str, str] | None) -> list[dict[str, Any]]:
    """A namespace with the accounts that its pods and people have, and its settings."""
    rights = [
        {
            "apiGroups": ["argoproj.io" if resource.startswith("workflow") else ""],
            "resources": [resource],
            "verbs": list(verbs),
        }
        for resource, verbs in RIGHTS.items()
    ]
    report = {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"]}
    roles = {"steps": [{**report, "verbs": ["create", "patch"]}], "person": rights, "stranger": []}
    made: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    ]
    for name, rules in roles.items():
        about = {"name": name, "namespace": namespace}
        group = "rbac.authorization.k8s.io"
        reference = {"kind": "Role", "name": name, "apiGroup": group}
        subjects = [{"kind": "ServiceAccount", **about}]
        made += [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about},
            {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": about, "rules": rules},
            {
                "apiVersion": f"{group}/v1",
                "kind": "RoleBinding",
                "metadata": about,
                "roleRef": reference,
                "subjects": subjects,
            },
        ]
    if store:
        about = {"name": "kuznia", "namespace": namespace}
        made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": store})
    return made


Make = Callable[..., Place]


@pytest.fixture(scope="module")
def make(mark: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes tenants; their namespaces are removed after the module."""
    need_api("workflows.argoproj.io", "Argo Workflows")
    made: list[Place] = []

    def place(
        name: str,
        store: dict[str, str] | None = None,
        template: str | None = None,
        runs: int | None = None,
    ) -> Place:
        """`template` is the template's name, empty for none; `runs` at once, any number."""
        tenant = f"{mark}-{name}"
        folder = tmp_path_factory.mktemp(name)
        tenants = Place(tenant, folder, folder / "kubeconfig")
        made.append(tenants)
        wanted = objects(tenants.namespace, store)
        about = {"name": "locks", "namespace": tenants.namespace}
        if template != "":
            lock = None if runs is None else {"name": "locks", "key": "runs"}
            compiled = yaml.safe_load(TEMPLATE.read_text("utf-8"))
            stand_in = stand_in_template(compiled, "steps", lock)
            named = {"name": template or template_name(), "namespace": tenants.namespace}
            wanted.append(stand_in | {"metadata": named})
        if runs is not None:
            data = {"runs": str(runs)}
            wanted.append(
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": data}
            )
        kubectl("apply", "-f", "-", text=yaml.safe_dump_all(wanted))
        write_kubeconfig(tenants.kubeconfig, tenants.namespace, "person")
        return tenants

    yield place
    for each in made:
        kubectl("delete", "namespace", each.namespace, "--wait=false")


@pytest.fixture(scope="module")
def place(make: Make) -> Place:
    """A tenant whose store is a volume of the cluster."""
    return make("sub", {"KUZNIA_STORE": "file:///storage"})


@pytest.fixture(scope="module")
def argo_server(mark: str) -> Iterator[str]:
    """Address of Argo's server on this machine."""
    if not get("service", "argo-server", "argo"):
        pytest.skip(f"the namespace argo has no argo-server; install it ({HOWTO})")
    with forwarded("argo", "service/argo-server", 2746) as url:
        yield url.replace("http://", "https://")


def with_hera(place: Place, argo_server: str, spec: Path) -> Process:
    config = yaml.safe_load(place.kubeconfig.read_text("utf-8"))
    variables = {
        "ARGO_SERVER": argo_server,
        "ARGO_TOKEN": config["users"][0]["user"]["token"],
        "ARGO_INSECURE": "true",
        "PYTHONPATH": str(ROOT),
    }
    example = ROOT / "examples/submit_with_hera.py"
    return Process(example, spec, place.namespace, **place.variables(**variables))


@pytest.fixture(scope="module")
def beside(place: Place, argo_server: str) -> Iterator[dict[str, Process]]:
    """Whole runs, begun first and looked at last: two people at once, and one with Hera."""
    spec = place.spec("works")
    words = ("run", spec, "--on", "cluster")
    begun = {
        "one": kuznia(place, *words, "--json"),
        "other": kuznia(place, *words),
        "hera": with_hera(place, argo_server, place.spec("works-with-hera")),
    }
    yield begun
    for process in begun.values():
        process.kill()


def test_what_is_missing_is_named(
    beside: dict[str, Process], make: Make, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = make("bare", template="kuznia-finetune-0-0-9")

    def refused(kubeconfig: Path, *words: str) -> tuple[int, list[str]]:
        done = here(monkeypatch, kubeconfig, "run", spec, "--on", "cluster", *words)
        return done.exit_code, done.stderr.splitlines()

    spec = place.spec("refused")
    admin = Path(os.environ["KUBECONFIG"])
    code, lines = refused(admin, "-n", "not-there")
    assert code == 2 and lines[0].startswith("error: namespace not-there: is not on https://")
    assert refused(admin, "-n", bare.namespace) == (
        2,
        [
            f"error: namespace {bare.namespace}: has no ConfigMap kuznia; install the tenant's "
            "workspace (chart helm/workspace)",
            f"error: namespace {bare.namespace}: has kuznia-finetune-0-0-9, not {template_name()}; "
            "install the workspace of this version, or the kuznia that fits",
        ],
    )
    stranger = write_kubeconfig(place.folder / "stranger", place.namespace, "stranger")
    assert refused(stranger) == (
        2,
        [
            f"error: namespace {place.namespace}: system:serviceaccount:{place.namespace}:stranger "
            "may not get configmaps; ask who runs the platform for the tenant's role there, or "
            "name another namespace with --namespace"
        ],
    )
    code, lines = refused(place.kubeconfig, "--context", "not-there")
    assert code == 3 and "not-there" in lines[0] and "set KUBECONFIG" in lines[0]
    (place.folder / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    spec = place.spec("local", data={"train": "train.jsonl", "format": "alpaca"})
    code, (line,) = refused(place.kubeconfig)
    assert code == 2 and f"name it file:///storage/datasets/{place.tenant}/train.jsonl" in line


def test_a_server_that_does_not_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(place.kubeconfig.read_text("utf-8"))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    path = place.folder / "away"
    path.write_text(yaml.safe_dump(config))
    done = here(monkeypatch, path, "run", place.spec("away"), "--on", "cluster")
    assert done.exit_code == 3
    assert done.stderr.startswith("error: https://127.0.0.1:1: the API server does not answer (")


def test_a_mistake_ends_the_run_and_a_repeat_starts_it_again(place: Place) -> None:
    spec = place.spec("faulty")
    process = kuznia(place, "run", spec, "--on", "cluster")
    assert process.end() == 2, process.said
    for line in MISTAKES:
        assert line.format(spec=spec) in process.said.splitlines()
    assert "error: step plan failed (exit code 2); its log: `kuznia logs" in process.said
    before = place.workflow(spec)["metadata"]["uid"]
    again = kuznia(place, "run", spec, "--on", "cluster", "--detach")
    assert again.end() == 0, again.said
    assert "ended before (Failed)" in again.said and "argo stop" in again.said
    after = place.workflow(spec)
    assert after["metadata"]["uid"] != before


def test_a_queue_is_not_the_end_and_a_deadline_leaves_the_run(make: Make) -> None:
    queue = make("queue", {"KUZNIA_STORE": "file:///storage"}, runs=1)
    first = kuznia(queue, "run", queue.spec("unplaceable"), "--on", "cluster", "--detach")
    assert first.end() == 0, first.said
    spec = queue.spec("waits-1")
    process = kuznia(queue, "run", spec, "--on", "cluster", "--deadline", "20s")
    assert process.end() == 3, process.said
    assert re.search(r"^Pending: Waiting for .* lock", process.said, re.M)
    assert "has not ended by the deadline and goes on" in process.said
    assert get("workflow", prepare(spec).run, queue.namespace)["status"]["phase"] == "Pending"


def test_ctrl_c_detaches_and_a_deleted_run_is_noticed(place: Place) -> None:
    spec = place.spec("unplaceable")
    process = kuznia(place, "run", spec, "--on", "cluster")
    process.until("plan: Unschedulable: ")
    process.interrupt()
    assert process.end() == 130
    run_name = prepare(spec).run
    assert f"detached; {run_name} goes on" in process.said
    assert f"stop it: argo stop -n {place.namespace} {run_name}" in process.said
    assert place.workflow(spec)["status"]["phase"] == "Running"
    attached = kuznia(place, "run", spec, "--on", "cluster")
    attached.until("plan: Unschedulable: ")
    kubectl("delete", "workflow", "-n", place.namespace, run_name, "--wait=false")
    assert attached.end() == 3
    assert "its Workflow was deleted" in attached.said and "Traceback" not in attached.said


def test_the_data_are_uploaded_to_the_store_that_the_cluster_names(
    make: Make, s3_bucket: str, s3_server: str, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where pods reach the store is not where this machine does: its own settings win.
    settings = {
        "KUZNIA_STORE": s3_bucket,
        "AWS_ENDPOINT_URL": "http://store.invalid:9000",
        "KUZNIA_TENANT": f"{mark}-far",
    }
    remote = make("far", settings)
    (remote.folder / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    data = {"train": "rows.jsonl", "format": "alpaca"}
    spec = remote.spec("others", data=data, tenant="globex")
    refused = here(
        monkeypatch, remote.kubeconfig, "run", spec, "--on", "cluster", "-n", remote.namespace
    )
    assert (refused.exit_code, refused.stderr) == (
        2,
        f"error: {spec}: tenant: globex, but this workspace is {remote.tenant}'s; set tenant: "
        f"{remote.tenant}, or submit it to globex-training\n",
    )
    spec = remote.spec("works", data=data)
    process = kuznia(remote, "run", spec, "--on", "cluster", "--detach", "--json", KUZNIA_STORE="x")
    assert process.end() == 0, process.said
    (key,) = [key for key, _ in open_store(s3_bucket).keys("datasets")]
    (workflow,) = json.loads(kubectl("get", "wf", "-n", remote.namespace, "-o", "json"))["items"]
    (config,) = workflow["spec"]["arguments"]["parameters"]
    assert yaml.safe_load(config["value"])["data"]["train"] == f"{s3_bucket}/{key}"
    assert workflow["metadata"]["labels"]["kuznia.model"] == "works"


def test_argo_submits_the_same_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    need_program("argo")
    spec = place.spec("waits-40")
    name = prepare(spec).run
    config = f"config={spec.read_text('utf-8')}"
    source = f"workflowtemplate/{template_name()}"
    person = ("-n", place.namespace, "--kubeconfig", str(place.kubeconfig))
    run("argo", "submit", *person, "--from", source, "--name", name, "-p", config)
    process = kuznia(place, "run", spec, "--on", "cluster")
    process.until("runs already")
    found = here(monkeypatch, place.kubeconfig, "runs", "--on", "cluster", "-n", place.namespace)
    assert re.search(rf"^{name} +{place.tenant} ", found.stdout, re.M), found.output
    run("argo", "stop", *person, name)
    assert process.end() == 130, process.said
    assert "was stopped; `kuznia run" in process.said


def test_a_controller_and_a_connection_that_fail_are_waited_for(
    place: Place, request: pytest.FixtureRequest
) -> None:
    """The only test that restarts Argo's controller; the runs beside go through it too."""
    config = yaml.safe_load(place.kubeconfig.read_text("utf-8"))
    cluster = config["clusters"][0]["cluster"]
    server = urlsplit(cluster["server"])
    wire = Wire((server.hostname or "", server.port or 443))
    request.addfinalizer(wire.close)
    cluster |= {"server": f"https://127.0.0.1:{wire.port}", "tls-server-name": server.hostname}
    wired = Place(place.tenant, place.folder, place.folder / "wired")
    wired.kubeconfig.write_text(yaml.safe_dump(config))
    process = kuznia(wired, "run", place.spec("waits-12"), "--on", "cluster")
    process.until("plan: Running")
    process.until("plan: 2/2 parts")
    kubectl("-n", "argo", "rollout", "restart", "deployment", "workflow-controller")
    wire.cut()
    process.until("the API server does not answer")
    wire.mend()
    process.until("the API server answers again")
    assert process.end() == 2, process.said
    for line in MISTAKES:
        assert line.format(spec=place.folder / "waits-12.yaml") in process.said.splitlines()
    lines = process.said.splitlines()
    assert lines.count("plan: this is plan of waits-12") == 1
    assert "plan: error: config: data.train: is wrong; correct it" in lines
    kubectl("-n", "argo", "rollout", "status", "deployment", "workflow-controller")


def test_two_people_who_submit_at_once_follow_one_run(
    beside: dict[str, Process], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = beside["one"], beside["other"]
    assert (one.end(), other.end()) == (0, 0), one.said + other.said
    said = one.said + other.said
    for lines in (one.said.splitlines(), other.said.splitlines()):
        # What a step says, once and as it comes, without what Argo says in the same container.
        ended = next(n for n, line in enumerate(lines) if line.startswith("train: Succeeded"))
        assert lines.count("train: this is train of works") == 1
        assert lines.index("train: this is train of works") < ended
    assert "progress: {" not in said and "argo=true" not in said
    assert said.count("submitted to namespace") == said.count("runs already in namespace") == 1
    report = json.loads(one.said[one.said.index("\n{") :])
    spec = place.spec("works")
    assert (report["phase"], report["exit_code"]) == ("Succeeded", 0)
    assert report["run"] == prepare(spec).run and report["config"] == prepare(spec).config
    assert report["outputs"]["evaluate"]["verdict"] == "promote"
    assert {step["phase"] for step in report["steps"].values()} == {"Succeeded"}
    assert f"version   0123456789ab of {place.tenant}/works" in other.said
    began = time.monotonic()
    again = kuznia(place, "run", spec, "--on", "cluster")
    assert again.end() == 0 and "nothing is repeated" in again.said
    assert time.monotonic() - began < 15
    where = ("works-", "--on", "cluster", "-n", place.namespace)
    name = report["run"]
    status = here(monkeypatch, place.kubeconfig, "status", name, *where[1:])
    assert status.stdout.startswith(f"{name}: Succeeded") and "model-card" in status.stdout
    logs = here(monkeypatch, place.kubeconfig, "logs", name, *where[1:])
    assert "train: this is train of works" in logs.stdout.splitlines(), logs.output
    pods = ("pods", "-n", place.namespace, "-l", f"workflows.argoproj.io/workflow={name}")
    kubectl("delete", *pods)
    gone = here(monkeypatch, place.kubeconfig, "logs", name, *where[1:], "--step", "train")
    assert gone.stdout == ""
    assert f"results: runs/{place.tenant}/{name}/train in the store" in gone.stderr


def test_the_example_with_hera_sees_its_run_to_the_end(beside: dict[str, Process]) -> None:
    hera = beside["hera"]
    assert hera.end() == 0, hera.said
    assert re.search(r"^works-with-hera-[0-9a-f]{10}: Succeeded$", hera.said, re.M)


def test_the_example_with_hera_starts_a_failed_run_again(place: Place, argo_server: str) -> None:
    spec = place.spec("faulty-with-hera")
    first = with_hera(place, argo_server, spec)
    assert first.end() == 1, first.said
    before = place.workflow(spec)["metadata"]["uid"]
    again = with_hera(place, argo_server, spec)
    assert again.end() == 1, again.said
    assert "ended before (Failed); what is done is kept, the rest starts again" in again.said
    assert place.workflow(spec)["metadata"]["uid"] != before
