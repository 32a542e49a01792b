"""Fixtures of the cluster tests. They need a KUBECONFIG whose cluster has Argo Workflows and the
images of this version; `make e2e` says how."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import string
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuznia import settings
from kuznia.contracts.catalogue import load_catalogue
from kuznia.contracts.runspec import RunSpec
from kuznia.manifest import MANIFEST, manifest_digest
from kuznia.store import open_store
from tests.e2e.cluster import (
    HERE,
    HOWTO,
    S3,
    Tenant,
    image_of,
    kubectl,
    need_api,
    need_program,
    s3_server,
    workspace,
)
from tests.e2e.forge import forge
from tests.e2e.platform import Platform, platform
from tests.fixtures.plans import cpu_plan
from workflows.environments import ROOT, python_of, variables_of

MakeTenant = Callable[..., Tenant]
NUMBERS = itertools.count(1)
SPEC = {
    "tenant": "demo",
    "model": "guide",
    "base": "smollm2-135m-instruct",
    "data": {"train": "train.jsonl", "format": "alpaca"},
    "card": {"purpose": "Brings the base model.", "owner": "tests", "risk": "minimal"},
}
S3_SETTINGS = {"AWS_REGION": "us-east-1"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is for a cluster."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def mark() -> str:
    """Tells this session's namespaces from another's on the same cluster."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip(f"set KUBECONFIG to a cluster with Argo Workflows ({HOWTO})")
    need_program("kubectl", "helm")
    return f"e{secrets.token_hex(2)}"


@pytest.fixture(scope="session")
def s3(mark: str) -> Iterator[S3]:
    with s3_server(f"{mark}-store") as server:
        yield server


@pytest.fixture(scope="session")
def deployed(mark: str, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The platform as Argo CD makes it of a registry in git, with two tenants."""
    need_api("applications.argoproj.io", "Argo CD")
    names = [f"{mark}-acme", f"{mark}-globex"]
    folder = tmp_path_factory.mktemp("platform")
    with forge(f"{mark}-forge") as server, platform(folder, names, server, s3) as made:
        yield made


@pytest.fixture(scope="module")
def tenants(mark: str, s3: S3) -> Iterator[MakeTenant]:
    """Makes tenants with a workspace and a bucket each; all are removed after the module."""
    need_api("workflows.argoproj.io", "Argo Workflows")
    with ExitStack() as stack:

        def make(name: str, **values: Any) -> Tenant:
            # Modules share the S3 server, so the same name would be the same account.
            name = f"{mark}-{name}-{next(NUMBERS)}"
            keys = s3.account(name)
            settings = S3_SETTINGS | {"AWS_ENDPOINT_URL": s3.inside}
            # The store is reached by its Service's port, which is not 443.
            egress = [
                {"ports": [{"protocol": "TCP", "port": port} for port in (443, 6443, 7070)]},
            ]
            given = {"settings": settings, "network": {"enabled": True, "egress": egress}} | values
            here = S3_SETTINGS | keys | {"AWS_ENDPOINT_URL": s3.here}
            tenant = Tenant(name, f"s3://{name}", here)
            return stack.enter_context(workspace(tenant, given, keys))

        yield make


def catalogue_of(base: Path, **facts: Any) -> dict[str, Any]:
    """A catalogue with the tiny base as `tiny`."""
    shipped = yaml.safe_load((ROOT / "kuznia" / "catalogue.yaml").read_text("utf-8"))
    (real,) = shipped["bases"].values()
    tiny = real | {
        "source": "s3://nowhere/tiny",
        "digest": manifest_digest(base),
        "parameters": 99_000,
        "layers": 2,
        "hidden_size": 64,
        "vocabulary": 384,
        "context_length": 512,
    }
    return {"bases": {"tiny": tiny | facts}, "gpu_classes": shipped["gpu_classes"]}


@contextmanager
def variables(tenant: Tenant) -> Iterator[None]:
    """This process as a person of the tenant."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in tenant.variables.items():
            patch.setenv(key, value)
        yield


def put_base(tenant: Tenant, name: str, base: Path) -> None:
    """Put a base model into a tenant's store, where the chain finds it by its digest."""
    with variables(tenant):
        open_store(tenant.store).put_folder(base, f"bases/{name}/{manifest_digest(base)}")


@pytest.fixture(scope="module")
def volume(tenants: MakeTenant, tiny_base: Path) -> Tenant:
    """A tenant whose store is a volume, with the base model on it."""
    tenant = tenants(
        "volume",
        store="file:///storage/store",
        storage={"claim": True, "size": "1Gi", "accessModes": ["ReadWriteOnce"]},
        catalogue=catalogue_of(tiny_base),
    )
    tenant = replace(tenant, store="file:///storage/store")
    manifest = string.Template((HERE / "manifests" / "files.yaml").read_text("utf-8"))
    text = manifest.substitute(IMAGE=image_of("platform"))
    kubectl("-n", tenant.namespace, "apply", "-f", "-", text=text)
    kubectl("-n", tenant.namespace, "wait", "pod/files", "--for=condition=Ready", "--timeout=120s")
    put_on_volume(tenant, tiny_base, f"bases/tiny/{manifest_digest(tiny_base)}")
    return tenant


def put_on_volume(tenant: Tenant, source: Path, key: str) -> None:
    """Put a file or a folder into a store on a volume."""
    place = Path("/storage/store", key)
    here = ("exec", "files", "-n", tenant.namespace, "--")
    kubectl(*here, "mkdir", "-p", str(place.parent))
    kubectl("cp", str(source), f"{tenant.namespace}/files:{place}")


def from_volume(tenant: Tenant, key: str) -> bytes:
    """A text file of a store on a volume."""
    there = ("exec", "files", "-n", tenant.namespace, "--", "cat", f"/storage/store/{key}")
    return kubectl(*there).encode()


@pytest.fixture(scope="session")
def real_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SmolLM2-135M-Instruct; made once a machine, as `fetch-base` makes it."""
    entry = load_catalogue().base("smollm2-135m-instruct", "tests")
    folder = settings.cache() / "folders" / entry.digest
    if not (folder / MANIFEST).exists():
        work = tmp_path_factory.mktemp("base")
        spec = RunSpec.model_validate(SPEC)
        inputs = {"plan": cpu_plan("base", spec, entry, {}).model_dump(mode="json")}
        (work / "inputs.json").write_text(json.dumps(inputs))
        subprocess.run(
            [
                *(python_of("serve"), "-m", "steps", "fetch-base"),
                *("--inputs", "inputs.json", "--outputs", "outputs.json"),
            ],
            check=True,
            cwd=work,
            env=os.environ | variables_of("serve") | {"KUZNIA_STORE": str(work / "store")},
        )
    return folder
