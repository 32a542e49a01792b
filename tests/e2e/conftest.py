"""Fixtures of the cluster tests. They need a KUBECONFIG whose cluster has Argo Workflows and the
images of this version; `make e2e` says how."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuznia import settings
from kuznia.contracts.catalogue import load_catalogue
from kuznia.contracts.runspec import RunSpec
from kuznia.manifest import MANIFEST, manifest_digest
from kuznia.store import open_store
from tests.e2e.cluster import S3, Tenant, s3_server, workspace
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
S3_SETTINGS = {"AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is for a cluster."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def mark() -> str:
    """Tells this session's namespaces from another's on the same cluster."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip(
            "set KUBECONFIG to a cluster with Argo Workflows (docs/howto/test-on-a-cluster.md)"
        )
    return f"e{secrets.token_hex(2)}"


@pytest.fixture(scope="session")
def s3(mark: str) -> Iterator[S3]:
    with s3_server(f"{mark}-store") as server:
        yield server


@pytest.fixture(scope="session")
def deployed(mark: str, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The platform as Argo CD makes it of a registry in git, with two tenants."""
    names = [f"{mark}-acme", f"{mark}-globex"]
    folder = tmp_path_factory.mktemp("platform")
    with forge(f"{mark}-forge") as server, platform(folder, names, server, s3) as made:
        yield made


@pytest.fixture(scope="module")
def tenants(mark: str, s3: S3) -> Iterator[MakeTenant]:
    """Makes tenants with a workspace and a bucket each; all are removed after the module."""
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
