"""A tenant whose `cluster:` is another one: everything of it goes there, nothing stays here.

The other cluster is a second API server of this machine, registered in Argo CD: objects, no nodes.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from kuznia.tree import PLATFORM
from tests.e2e.cluster import get, kubectl, run, wait_for
from tests.e2e.platform import ARGO_CD, Platform, read_yaml
from tests.fixtures.checkouts import release, tenant

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]
PORT, ETCD_PORT = 7443, 12379


@dataclass(frozen=True)
class Cluster:
    """Where it is, and how to talk to it."""

    address: str
    token: str

    def kubectl(self, *arguments: str) -> str:
        access = ("--server", self.address, "--token", self.token, "--insecure-skip-tls-verify")
        return kubectl(*access, *arguments, check=False)


@pytest.fixture(scope="module")
def far(mark: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    for program in ("etcd", "kube-apiserver"):
        if shutil.which(program) is None:
            pytest.skip(f"put the program {program} into PATH, where the nodes reach this machine")
    folder = tmp_path_factory.mktemp("far")
    node = json.loads(kubectl("get", "nodes", "-o", "json"))["items"][0]
    (here,) = (
        each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP"
    )
    cluster = Cluster(f"https://{here}:{PORT}", secrets.token_hex(16))
    (folder / "tokens.csv").write_text(f"{cluster.token},argocd,argocd,system:masters\n", "utf-8")
    key = str(folder / "sa.key")
    run("openssl", "genrsa", "-out", key, "2048")
    with ExitStack() as stack:
        start(stack, folder, "etcd", *etcd(folder))
        start(stack, folder, "kube-apiserver", *apiserver(folder, here, key))
        wait_for("the second API server", lambda: cluster.kubectl("get", "--raw", "/readyz"), 90)
        access = {"bearerToken": cluster.token, "tlsClientConfig": {"insecure": True}}
        kubectl(
            *("-n", ARGO_CD, "create", "secret", "generic", f"{mark}-far"),
            *("--from-literal=name=far", f"--from-literal=server={cluster.address}"),
            f"--from-literal=config={json.dumps(access)}",
        )
        stack.callback(kubectl, "-n", ARGO_CD, "delete", "secret", f"{mark}-far")
        label = "argocd.argoproj.io/secret-type=cluster"
        kubectl("-n", ARGO_CD, "label", "secret", f"{mark}-far", label)
        yield cluster


def etcd(folder: Path) -> list[str]:
    client, peer = f"http://127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PORT + 1}"
    return [
        *("--data-dir", str(folder / "etcd"), "--unsafe-no-fsync"),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"default={peer}"),
    ]


def apiserver(folder: Path, address: str, key: str) -> list[str]:
    return [
        *("--etcd-servers", f"http://127.0.0.1:{ETCD_PORT}", "--secure-port", str(PORT)),
        *("--advertise-address", address, "--cert-dir", str(folder / "certificates")),
        *("--token-auth-file", str(folder / "tokens.csv"), "--authorization-mode", "RBAC"),
        *("--service-account-key-file", key, "--service-account-signing-key-file", key),
        *("--service-account-issuer", "https://kubernetes.default.svc"),
        *("--service-cluster-ip-range", "10.97.0.0/16"),
        *("--disable-admission-plugins", "ServiceAccount"),
    ]


def start(stack: ExitStack, folder: Path, program: str, *arguments: str) -> None:
    """Run a program until the end of the module."""
    log = stack.enter_context((folder / f"{program}.log").open("wb"))
    process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)


def test_a_tenant_of_another_cluster_lives_there(
    deployed: Platform, far: Cluster, mark: str
) -> None:
    name = f"{mark}-initech"
    settings = read_yaml(deployed.checkout / PLATFORM)
    clusters = {"in-cluster": "https://kubernetes.default.svc", "far": far.address}
    deployed.write(
        {
            PLATFORM.name: settings | {"clusters": clusters},
            f"{name}/tenant.yaml": tenant(name, cluster="far"),
            f"{name}/bot/staging.yaml": release(name, "bot"),
        }
    )
    revision, _ = deployed.push(f"{name} on another cluster")
    try:
        deployed.healthy(f"{name}-namespaces", revision, 180)

        def deployment() -> bool:
            found = far.kubectl(
                "-n", f"{name}-inference", "get", "deploy", "bot-staging", "-o", "name"
            )
            return "bot-staging" in found

        wait_for("the release on the other cluster", deployment, 180)
        for what in ("training", "inference"):
            assert f"{name}-{what}" in far.kubectl("get", "namespaces", "-o", "name")
            assert get("namespace", f"{name}-{what}", "") == {}
    finally:
        revision, _ = deployed.revert()
        deployed.root_at(revision)
        kubectl(
            *("-n", ARGO_CD, "delete", "applicationset,application,appproject"),
            *("-l", f"kuznia.tenant={name}"),
        )
