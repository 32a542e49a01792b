"""The whole platform as Argo CD brings it up: a registry in git, two tenants, nothing by hand.

By hand, because no secret store is here: the Secrets that External Secrets would fill.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuznia.generated import BOOTSTRAP
from kuznia.signing import signing_key
from tests.e2e.cluster import CHART_IMAGES, PODS, S3, Tenant, get, kubectl, run, wait_for
from tests.e2e.forge import Forge
from tests.fixtures.checkouts import commit, git, write
from workflows.environments import ROOT

ARGO_CD = "argocd"
S3_PORTS = [{"ports": [{"protocol": "TCP", "port": port} for port in (443, 6443, 7070)]}]
SHARED = "llm-shared"


@dataclass
class Platform:
    """A checkout whose main branch Argo CD deploys, and the tenants in it."""

    checkout: Path
    forge: Forge
    key: Path
    """Private key that signs versions; every tenant trusts its public part."""
    tenants: dict[str, Tenant] = field(default_factory=dict)

    def write(self, files: dict[str, Any]) -> None:
        """Change files of the registry; None removes one."""
        write(self.checkout, files)

    def push(self, message: str) -> tuple[str, float]:
        """Render, check, commit and push; the commit, and when it was there."""
        for command in ("check", "render"):
            run(sys.executable, "-m", "cli.main", command, "--root", str(self.checkout))
        made = commit(self.checkout, message)
        self.forge.push(self.checkout, "kuznia")
        return made, time.time()

    def revert(self) -> tuple[str, float]:
        """Take the last commit back, as anyone would; the commit, and when it was there."""
        git(self.checkout, "revert", "--no-edit", "HEAD")
        self.forge.push(self.checkout, "kuznia")
        return git(self.checkout, "rev-parse", "HEAD").strip(), time.time()

    def application(self, name: str) -> dict[str, Any]:
        return get("application", name, ARGO_CD)

    def root_at(self, revision: str) -> None:
        """Wait until Argo CD has looked at `revision` of the generated files."""

        def there() -> bool:
            sync = self.application("kuznia").get("status", {}).get("sync", {})
            return bool(sync.get("revision") == revision)

        wait_for(f"the root at {revision[:7]}", there, 120)

    def healthy(self, name: str, revision: str, seconds: float) -> dict[str, Any]:
        """The Application once `revision` is synced and runs."""

        def there() -> Any:
            found = self.application(name).get("status", {})
            sync = found.get("sync", {})
            done = (sync.get("status"), sync.get("revision"), found.get("health", {}).get("status"))
            return found if done == ("Synced", revision, "Healthy") else None

        try:
            found: dict[str, Any] = wait_for(f"Application {name}", there, seconds)
        except AssertionError as error:
            status = self.application(name).get("status", {})
            shown = {key: status.get(key) for key in ("sync", "health", "conditions")}
            operation = status.get("operationState", {})
            raise AssertionError(
                f"{error}\n{json.dumps(shown)[:3000]}\n{operation.get('message', '')[:2000]}"
            ) from None
        return found


def tenant_file(name: str, s3: S3, public_key: str) -> dict[str, Any]:
    """tenant.yaml of a tenant of these tests."""
    share = {"cpu": 16, "memory_gib": 64}
    return {
        "quota": {"training": share, "inference": share},
        "people": {"data_scientists": [f"{name}-scientists"], "mlops": [f"{name}-mlops"]},
        "storage": {
            "store": f"s3://{name}",
            "settings": {
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": s3.inside,
            },
        },
        "signing_keys": [public_key],
    }


@contextmanager
def platform(folder: Path, names: list[str], forge: Forge, s3: S3) -> Iterator[Platform]:
    """Tenants `names` from one bootstrap.yaml; everything is removed at the end."""
    checkout = folder / "kuznia"
    for part in ("argocd/platform", "helm"):
        shutil.copytree(ROOT / part, checkout / part)
    address = forge.repository("kuznia")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUZNIA_HOME", str(folder))
        signing_key()
    key = folder / "keys" / "signing.pem"
    public_key = key.with_suffix(".pub").read_text("utf-8")
    made = Platform(checkout, forge, key)
    settings = {
        "repository": address,
        "images": CHART_IMAGES,
        "shared": {"common": {"enabled": True}},
        "workspace": {
            "pods": PODS,
            "network": {"enabled": True, "egress": S3_PORTS},
        },
        # Two replicas and a load share two cores.
        "serving": {
            "network": {"egress": S3_PORTS},
            "cpu_burst": 4,
            "shm_gib": 0.5,
            "drain": {"wait_seconds": 5, "finish_seconds": 60},
            "progress_deadline_seconds": 300,
        },
    }
    made.write({"platform.yaml": settings})
    accounts = {name: s3.account(name) for name in names}
    made.write({f"{name}/tenant.yaml": tenant_file(name, s3, public_key) for name in names})
    try:
        revision, _ = made.push("Two tenants")
        kubectl("apply", "--server-side", "-f", str(checkout / BOOTSTRAP))
        for name in names:
            for namespace in (f"{name}-training", f"{name}-inference"):
                wait_for(namespace, lambda n=namespace: get("namespace", n, ""), 180)
                literals = [f"--from-literal={k}={v}" for k, v in accounts[name].items()]
                kubectl("-n", namespace, "create", "secret", "generic", "kuznia", *literals)
            kubectl(
                *("-n", f"{name}-training", "create", "secret", "generic", "kuznia-signing"),
                f"--from-file=signing.pem={key}",
            )
            here = accounts[name] | {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": s3.here}
            made.tenants[name] = Tenant(name, f"s3://{name}", here)
        for name in names:
            made.healthy(f"{name}-workspace", revision, 300)
        yield made
    finally:
        remove(names)


def remove(names: list[str]) -> None:
    """Remove what a bootstrap made: the root first, so that nothing brings the others back."""
    mine = "app.kubernetes.io/part-of=kuznia"
    for name in ("kuznia", "kuznia-platform"):
        kubectl("-n", ARGO_CD, "delete", "application", name, "--ignore-not-found")
    for kind in ("applicationset", "application", "appproject"):
        kubectl("-n", ARGO_CD, "delete", kind, "-l", mine, "--ignore-not-found")
    spaces = [f"{name}-{what}" for name in names for what in ("training", "inference")]
    for namespace in (*spaces, SHARED):
        kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")


def read_yaml(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found
