"""What the cluster tests stand on: kubectl and helm, an S3 server, a tenant's workspace."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from kuznia import __version__
from workflows.environments import ROOT
from workflows.finetune import NAME
from workflows.nodes import ENDED

HERE = Path(__file__).parent
HOWTO = "docs/howto/test-on-a-cluster.md"
IMAGES: dict[str, str] = {}
"""Images other than kuznia/<name>:<version>: the map that `make images PUSH=...` prints."""
if _map := os.environ.get("KUZNIA_E2E_IMAGES"):
    IMAGES = yaml.safe_load(Path(_map).read_text("utf-8"))["images"]
CHART_IMAGES = {name: image for name, image in IMAGES.items() if name != "noop"}
"""The same as the charts' value `images`; no chart has the image of steps that do nothing."""
S3_IMAGE = os.environ.get("KUZNIA_E2E_S3_IMAGE", "versity/versitygw:v1.8.0")
S3_PROGRAM = os.environ.get("KUZNIA_E2E_S3_PROGRAM", "/app/versitygw")
PODS = {
    "heavy": {
        "requests": {"cpu": "500m", "memory": "2Gi", "ephemeral-storage": "1Gi"},
        "limits": {"cpu": "2", "memory": "10Gi", "ephemeral-storage": "10Gi"},
    },
    "light": {
        "requests": {"cpu": "50m", "memory": "256Mi", "ephemeral-storage": "100Mi"},
        "limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"},
    },
}
"""Small enough for a cluster of one node with two cores."""
REACHES = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def reached(target):
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        return False
    return True
with ThreadPoolExecutor(8) as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(reached, sys.argv[1:])))))
"""


def run(*command: str, text: str | None = None, check: bool = True) -> str:
    """Standard output of a command; an AssertionError with what it said where it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert not (check and done.returncode), f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def kubectl(*arguments: str, text: str | None = None, check: bool = True) -> str:
    return run("kubectl", *arguments, text=text, check=check)


def get(kind: str, name: str, namespace: str) -> dict[str, Any]:
    """An object as Kubernetes has it; empty where there is none."""
    found = kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
    return json.loads(found) if found.strip() else {}


def image_of(name: str) -> str:
    """Where the nodes find one of our images."""
    return IMAGES.get(name, f"kuznia/{name}:{__version__}")


def need_program(*names: str) -> None:
    """Skip where a command is not on this machine."""
    if missing := [name for name in names if shutil.which(name) is None]:
        pytest.skip(f"put {', '.join(missing)} into PATH ({HOWTO})")


def lint(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Argo's own look at templates and schedules."""
    need_program("argo")
    (folder / "all.yaml").write_text(text)
    kinds = "--kinds=workflowtemplates,cronworkflows"
    return subprocess.run(
        ["argo", "lint", "--offline", "--strict", kinds, folder / "all.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )


def need_api(resource: str, owner: str) -> None:
    """Skip where the cluster lacks a resource, such as workflows.argoproj.io."""
    if not get("customresourcedefinition", resource, ""):
        pytest.skip(f"the cluster has no {owner}; install it ({HOWTO})")


def wait_for(what: str, ready: Callable[[], Any], seconds: float) -> Any:
    """What `ready` returns as soon as it is true; AssertionError after `seconds`."""
    until = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < until, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.5)
    return found


@contextmanager
def forwarded(namespace: str, target: str, port: int) -> Iterator[str]:
    """Address on this machine of a port of `target`, a Service or a Deployment."""
    process = subprocess.Popen(
        ["kubectl", "-n", namespace, "port-forward", target, f":{port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert "Forwarding from 127.0.0.1:" in line, line + process.stdout.read()
        yield f"http://127.0.0.1:{line.split('127.0.0.1:')[1].split()[0]}"
    finally:
        process.terminate()
        process.wait()
        if process.stdout:
            process.stdout.close()


def controller_metrics() -> str:
    """What Argo's controller exports."""
    with forwarded("argo", "deployment/workflow-controller", 9090) as address:
        # By TLS, with a certificate of its own.
        return httpx.get(f"{address.replace('http:', 'https:')}/metrics", verify=False).text


def reaches(space: str, pod: str, *targets: str, container: str = "main") -> dict[str, bool]:
    """Which of the targets (host:port) a pod can connect to."""
    line = ("exec", pod, "-c", container, "--", "python", "-c", REACHES, *targets)
    found: dict[str, bool] = json.loads(kubectl("-n", space, *line))
    return found


@dataclass(frozen=True)
class S3:
    """An S3 server in the cluster: its address for pods and for this machine."""

    inside: str
    here: str
    namespace: str
    root_secret: str

    def account(self, name: str, locked_days: int = 0) -> dict[str, str]:
        """Make an account with a bucket of its own; the variables that its owner sets.

        With `locked_days` nothing in the bucket can be changed for that long (S3 Object Lock).
        """
        secret = secrets.token_hex(16)
        self.admin("create-user", "--access", name, "--secret", secret, "--role", "userplus")
        variables = {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": secret}
        with closing(self.client(variables)) as client:
            client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=locked_days > 0)
            if locked_days:
                kept = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": locked_days}}
                client.put_object_lock_configuration(
                    Bucket=name,
                    ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": kept},
                )
        return variables

    def client(self, variables: dict[str, str]) -> Any:
        """A client of boto3 for an account, on this machine."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.here,
            region_name="us-east-1",
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        )

    def admin(self, *arguments: str) -> None:
        program = [S3_PROGRAM, "admin", "--allow-insecure", "--access", "root"]
        program += ["--secret", self.root_secret, "--endpoint-url", "http://127.0.0.1:7070"]
        kubectl("-n", self.namespace, "exec", "deploy/s3", "--", *program, *arguments)


@contextmanager
def s3_server(namespace: str) -> Iterator[S3]:
    """An S3 server in a namespace of its own, removed at the end."""
    secret = secrets.token_hex(16)
    manifest = string.Template((HERE / "manifests" / "s3.yaml").read_text("utf-8"))
    values = {"IMAGE": S3_IMAGE, "PROGRAM": S3_PROGRAM, "ROOT_SECRET": secret}
    kubectl("create", "namespace", namespace)
    try:
        kubectl("-n", namespace, "apply", "-f", "-", text=manifest.substitute(values))
        kubectl("-n", namespace, "rollout", "status", "deploy/s3", "--timeout=120s")
        with forwarded(namespace, "service/s3", 7070) as here:
            yield S3(f"http://s3.{namespace}:7070", here, namespace, secret)
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")


@dataclass
class Tenant:
    """A tenant's workspace on the cluster, and how this machine reaches its store."""

    name: str
    store: str
    variables: dict[str, str] = field(default_factory=dict)
    """What a person of the tenant has in the environment: keys and address of the store."""

    @property
    def namespace(self) -> str:
        return f"{self.name}-training"

    def kuznia(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run the command as a person of the tenant."""
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=cwd,
            env=os.environ | self.variables | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    def submit(self, run_name: str, config: str) -> None:
        """Start a run as the argo CLI would, under a given name."""
        labels = {"kuznia.tenant": self.name}
        workflow = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"name": run_name, "namespace": self.namespace, "labels": labels},
            "spec": {
                "workflowTemplateRef": {"name": NAME},
                "arguments": {"parameters": [{"name": "config", "value": config}]},
            },
        }
        kubectl("create", "-f", "-", text=json.dumps(workflow))

    def workflow(self, run_name: str) -> dict[str, Any]:
        return get("workflow", run_name, self.namespace)

    def ended(self, run_name: str, seconds: float) -> dict[str, Any]:
        """The Workflow once it has ended."""

        def status() -> Any:
            found = self.workflow(run_name)
            return found if found.get("status", {}).get("phase") in ENDED else None

        ended: dict[str, Any] = wait_for(f"the end of {run_name}", status, seconds)
        return ended

    def pods(self, run_name: str, step: str) -> list[dict[str, Any]]:
        """Pods of a step, the newest last."""
        listed = kubectl(
            *("get", "pods", "-n", self.namespace, "-o", "json"),
            *("-l", f"workflows.argoproj.io/workflow={run_name}"),
        )
        pods = [pod for pod in json.loads(listed)["items"] if step_of(pod) == step]
        return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def log(self, pod: str) -> str:
        return kubectl("logs", "-n", self.namespace, pod, "-c", "main", check=False)


def step_of(pod: dict[str, Any]) -> str:
    """The step that a pod runs: `<run>.<step>(<attempt>)` is its node's name."""
    name: str = pod["metadata"]["annotations"]["workflows.argoproj.io/node-name"]
    return name.rpartition(".")[2].partition("(")[0]


def nodes(workflow: dict[str, Any], step: str) -> list[dict[str, Any]]:
    """Attempts of a step in the Workflow's status, the oldest first."""
    found = [
        node
        for node in workflow["status"].get("nodes", {}).values()
        if node["type"] == "Pod" and node.get("templateName") == step
    ]
    return sorted(found, key=lambda node: node["startedAt"])


def outputs(workflow: dict[str, Any], step: str) -> dict[str, Any]:
    """What a step that succeeded gave on."""
    (node,) = (n for n in nodes(workflow, step) if n["phase"] == "Succeeded")
    (text,) = (p["value"] for p in node["outputs"]["parameters"] if p["name"] == "outputs")
    found: dict[str, Any] = json.loads(text)
    return found


def why(tenant: Tenant, workflow: dict[str, Any]) -> str:
    """What to print where a run did not end as it should."""
    lines = [f"{workflow['metadata']['name']}: {workflow['status'].get('phase')}"]
    for node in workflow["status"].get("nodes", {}).values():
        if node["type"] == "Pod" and node["phase"] != "Succeeded":
            lines.append(f"{node['displayName']}: {node['phase']} {node.get('message', '')}")
            pods = tenant.pods(workflow["metadata"]["name"], node.get("templateName", ""))
            lines += [tenant.log(pod["metadata"]["name"])[-3000:] for pod in pods[-1:]]
    return "\n".join(lines)


@contextmanager
def workspace(tenant: Tenant, values: dict[str, Any], secret: dict[str, str]) -> Iterator[Tenant]:
    """Install the chart for a tenant as a platform team would; all of it is removed at the end."""
    kubectl("create", "namespace", tenant.namespace)
    try:
        restricted = "pod-security.kubernetes.io/enforce=restricted"
        kubectl("label", "namespace", tenant.namespace, restricted)
        literals = [f"--from-literal={key}={value}" for key, value in secret.items()]
        kubectl("-n", tenant.namespace, "create", "secret", "generic", "kuznia", *literals)
        base = {
            "tenant": tenant.name,
            "store": tenant.store,
            "namespace": {"create": False},
            "images": CHART_IMAGES,
            "pods": PODS,
        }
        run(
            *("helm", "install", tenant.name, str(ROOT / "helm" / "workspace")),
            *("--namespace", tenant.namespace, "--values", "-"),
            text=yaml.safe_dump(base | values),
        )
        # Not by Helm, which would wait for claims that nothing uses yet.
        if (base | values).get("mlflow", {}).get("enabled", True):
            kubectl("-n", tenant.namespace, "rollout", "status", "deploy/mlflow", "--timeout=180s")
        yield tenant
    finally:
        kubectl("delete", "namespace", tenant.namespace, "--wait=false")
