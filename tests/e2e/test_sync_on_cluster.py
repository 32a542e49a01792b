"""The chart helm/sync on a cluster: a tenant's aliases in MLflow become commits and pull requests
on a forge, from behind a wall, and once only, whatever becomes of its pods."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import yaml

from kuznia.forges import Gitea
from kuznia.registry import Registry
from kuznia.tree import release_path
from tests.e2e.cluster import (
    S3,
    Tenant,
    forwarded,
    image_of,
    kubectl,
    reaches,
    run,
    wait_for,
)
from tests.e2e.conftest import S3_SETTINGS, MakeTenant, variables
from tests.e2e.forge import USER, Forge, forge
from tests.e2e.gateway import manifest, namespace
from tests.fixtures import checkouts
from tests.fixtures.released import add_version, version_of
from workflows.environments import ROOT

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]
AUTHOR = "kuznia-sync"
PODS = ("-l", "app.kubernetes.io/name=kuznia-sync")
MANY = 6
"""Models whose aliases move at once."""


@dataclass
class World:
    """The sync's namespace and what it works on, seen from this machine."""

    place: str
    tenant: Tenant
    forge: Forge
    pulls: Gitea
    registry: Registry
    values: dict[str, Any]

    def add(self, model: str, *seeds: str) -> None:
        """Register a version for each seed; MLflow counts them from 1."""
        with variables(self.tenant):
            for seed in seeds:
                add_version(self.registry, self.tenant.store, f"{self.tenant.name}.{model}", seed)

    def point(self, model: str, alias: str, number: int) -> float:
        """Move an alias; when that was done."""
        name = f"{self.tenant.name}.{model}"
        self.registry.client.set_registered_model_alias(name, alias, str(number))
        return time.monotonic()

    def released(self, model: str, stage: Any, branch: str = "main") -> str:
        """The version that a release on the forge names; empty where there is none."""
        path = release_path(self.tenant.name, model, stage)
        place = f"repos/{USER}/models/raw/{path}"
        found = self.forge.ask("GET", place, missing=True, params={"ref": branch})
        return str(yaml.safe_load(found.text)["version"]) if found.is_success else ""

    def branch(self, model: str) -> str:
        return f"sync/{self.tenant.name}/{model}"

    def title(self, model: str) -> str:
        """The title of a model's open pull request; empty where there is none."""
        pull = self.pulls.open_pulls().get(self.branch(model))
        return pull.title if pull else ""

    def commits(self) -> list[str]:
        """What the sync has committed to main: the first lines, oldest first."""
        listed = self.forge.ask("GET", f"repos/{USER}/models/commits?sha=main&limit=50").json()
        said = [each["commit"] for each in reversed(listed)]
        return [each["message"].split("\n")[0] for each in said if each["author"]["name"] == AUTHOR]

    def asked(self) -> list[str]:
        """The branch of every pull request that ever was."""
        listed = self.forge.ask("GET", f"repos/{USER}/models/pulls?state=all&limit=50").json()
        return sorted(each["head"]["label"] for each in listed)

    def logs(self) -> str:
        """What every pod of it has said, in order of time."""
        said = kubectl("-n", self.place, "logs", *PODS, "--prefix", "--timestamps", "--tail=-1")
        return "\n".join(sorted(said.splitlines(), key=lambda line: line.split(" ", 1)[1]))

    def committer(self) -> str:
        """The pod that says it made the last commit; empty where none does."""
        pods = re.findall(r"^\[pod/([^/]+)/.*: commit$", self.logs(), re.M)
        return str(pods[-1]) if pods else ""


def install(place: str, values: dict[str, Any]) -> None:
    chart = str(ROOT / "helm" / "sync")
    asked = ("upgrade", "--install", "sync", chart, "--namespace", place)
    run("helm", *asked, "--values", "-", text=yaml.safe_dump(values))
    kubectl("-n", place, "rollout", "status", "deploy/kuznia-sync", "--timeout=120s")


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", trust_env=False, timeout=30).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def to(namespace: str, port: int) -> dict[str, Any]:
    """A rule of network.egress."""
    labels = {"kubernetes.io/metadata.name": namespace}
    peer = {"namespaceSelector": {"matchLabels": labels}}
    return {"to": [peer], "ports": [{"protocol": "TCP", "port": port}]}


@pytest.fixture(scope="module")
def world(
    mark: str, s3: S3, tenants: MakeTenant, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    place, git = f"{mark}-sync", f"{mark}-git"
    walls = {"enabled": True, "egress": [], "shared": place}
    with namespace(place), forge(git) as server:
        tenant = tenants("released", network=walls)
        address = server.repository("models", private=True)
        checkout = tmp_path_factory.mktemp("models") / "checkout"
        own = checkouts.tenant(tenant.name, storage={"store": tenant.store})
        checkouts.checkout(checkout, **{tenant.name: own})
        checkouts.commit(checkout, "A registry")
        server.push(checkout, "models")
        keys = {name: tenant.variables[name] for name in tenant.variables if "KEY" in name}
        secret = {
            "KUZNIA_FORGE_TOKEN": server.account(AUTHOR, "models"),
            "KUZNIA_SYNC_WEBHOOK_SECRET": "a secret of the test's",
        }
        literals = [f"--from-literal={name}={value}" for name, value in (secret | keys).items()]
        kubectl("-n", place, "create", "secret", "generic", "kuznia-sync", *literals)
        values = {
            "repository": address,
            "image": image_of("platform"),
            "forge": {"kind": "gitea", "url": address.removesuffix(".git")},
            "settings": S3_SETTINGS | {"AWS_ENDPOINT_URL": s3.inside},
            "network": {
                "egress": [to(git, 3000), to(s3.namespace, 7070)],
                "scrapers": [{"podSelector": {"matchLabels": {"app": "scraper"}}}],
            },
        }
        pulls = Gitea(f"{server.here}/{USER}/models", secret["KUZNIA_FORGE_TOKEN"])
        install(place, values)
        with forwarded(tenant.namespace, "service/mlflow", 5000) as mlflow:
            wait_for("a webhook", Registry(mlflow).client.list_webhooks, 60)
        # What MLflow was told outlives its pod.
        kubectl("-n", tenant.namespace, "rollout", "restart", "deploy/mlflow")
        kubectl("-n", tenant.namespace, "rollout", "status", "deploy/mlflow", "--timeout=120s")
        with forwarded(tenant.namespace, "service/mlflow", 5000) as mlflow:
            made = World(place, tenant, server, pulls, Registry(mlflow), values)
            made.add("support", "one", "two")
            yield made
            said = made.logs()
            assert "Traceback" not in said and secret["KUZNIA_FORGE_TOKEN"] not in said
        pulls._client.close()


def test_a_moved_alias_becomes_a_commit_and_a_pull_request(world: World) -> None:
    with forwarded(world.place, "deploy/kuznia-sync", 8080) as url:
        wait_for("a pass", lambda: metric(url, "kuznia_sync_last_success_timestamp") > 0, 60)
        faults = metric(url, "kuznia_sync_faults_total")
        moved = world.point("support", "staging", 1)
        wait_for("a commit", lambda: world.released("support", "staging") == version_of("one"), 60)
        spent = [time.monotonic() - moved]
        moved = world.point("support", "production", 1)
        wait_for("a pull request", lambda: version_of("one") in world.title("support"), 60)
        spent.append(time.monotonic() - moved)
        number = world.pulls.open_pulls()[world.branch("support")].number
        moved = world.point("support", "production", 2)
        wait_for("a new title", lambda: version_of("two") in world.title("support"), 60)
        spent.append(time.monotonic() - moved)
        print("seconds to the commit, the pull request, its update:", *(f"{s:.1f}" for s in spent))
        # MLflow told it of each, through the walls of both.
        assert metric(url, 'kuznia_sync_webhooks_total{outcome="taken"}') == 3
        assert metric(url, "kuznia_sync_faults_total") == faults
    pull = world.pulls.open_pulls()[world.branch("support")]
    assert pull.number == number
    assert pull.title == f"Release {world.tenant.name}/support {version_of('two')} to production"
    branch = world.branch("support")
    assert world.released("support", "production", branch) == version_of("two")
    assert world.released("support", "production") == ""


def test_it_reaches_what_it_needs_and_is_reached_by_whom_it_says(
    world: World, s3: S3, mark: str
) -> None:
    place, space = world.place, world.tenant.namespace
    needed = [f"forge.{mark}-git:3000", f"mlflow.{space}:5000", f"s3.{s3.namespace}:7070"]
    others = ["argo-server.argo:2746", "kubernetes.default:443", "argocd-server.argocd:443"]
    found = reaches(place, "deploy/kuznia-sync", *needed, *others, container="sync")
    assert found == dict.fromkeys(needed, True) | dict.fromkeys(others, False)

    webhook = f"kuznia-sync.{place}:8080"
    assert reaches(space, "deploy/mlflow", webhook, container="mlflow") == {webhook: True}
    image = image_of("platform")
    for elsewhere in (place, f"{mark}-git"):
        kubectl("-n", elsewhere, "apply", "-f", "-", text=manifest("caller.yaml", IMAGE=image))
        waiting = ("wait", "pod/caller", "--for=condition=Ready", "--timeout=60s")
        kubectl("-n", elsewhere, *waiting)
        # What the sync may not reach is there, and what may not reach the sync gets about.
        found = reaches(elsewhere, "caller", webhook, *others)
        assert found == {webhook: False} | dict.fromkeys(others, True)
    kubectl("-n", place, "label", "pod", "caller", "app=scraper")
    wait_for("a scraper gets in", lambda: reaches(place, "caller", webhook)[webhook], 15)


def test_two_replicas_and_a_deleted_pod_do_nothing_twice(world: World) -> None:
    """Six models' aliases move at once, and the pod that answers first is killed at once."""
    models = [f"model-{number}" for number in range(MANY)]
    for model in models:
        world.add(model, model)
    # A second, so that both look at the same time again and again.
    install(world.place, world.values | {"replicas": 2, "interval": 1})
    before, asked = world.commits(), world.asked()
    for model in models:
        for stage in ("staging", "production"):
            moved = world.point(model, stage, 1)
    wait_for("a commit", lambda: len(world.commits()) > len(before), 60)
    killed = wait_for("who made it", world.committer, 15)
    kubectl("-n", world.place, "delete", "pod", killed, "--grace-period=0", "--force")
    wait_for("all commits", lambda: len(world.commits()) >= len(before) + MANY, 60)
    wait_for("all pull requests", lambda: all(world.title(model) for model in models), 180)
    print(
        f"seconds to the last of {2 * MANY} answers, a pod killed: {time.monotonic() - moved:.1f}"
    )
    kubectl("-n", world.place, "rollout", "status", "deploy/kuznia-sync", "--timeout=120s")
    # Again and again, and by the new pod too, nothing more comes of it.
    with forwarded(world.place, "deploy/kuznia-sync", 8080) as url:
        count = "kuznia_sync_pass_seconds_count"
        seen = metric(url, count)
        wait_for("more passes", lambda: metric(url, count) >= seen + 5, 60)
    releases = [f"Release {world.tenant.name}/{each} {version_of(each)} to" for each in models]
    assert sorted(world.commits()[len(before) :]) == [f"{each} staging" for each in releases]
    assert [world.title(model) for model in models] == [f"{each} production" for each in releases]
    assert sorted({*world.asked()} - {*asked}) == [world.branch(model) for model in models]
    assert len(world.asked()) == len(asked) + MANY
    (hook,) = world.registry.client.list_webhooks()
    assert hook.url == f"http://kuznia-sync.{world.place}:8080/webhook"
