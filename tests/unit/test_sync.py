"""The sync on real git repositories, a real MLflow database and a real S3 server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from kuznia.errors import DependencyError, InputError
from kuznia.forges import Plain, Pull
from kuznia.git import Conflict
from kuznia.registry import Registry
from services.sync import metrics, proposals
from services.sync.__main__ import main
from services.sync.passes import Sync
from services.sync.registries import Registries
from services.sync.repository import Repository
from services.sync.server import serve
from services.sync.settings import from_environment
from tests.conftest import make_mlflow_database, s3_bucket_at
from tests.fixtures.released import (
    add_version,
    digest_of,
    git,
    make_remote,
    put_card,
    save,
    version_of,
)

STAGING = "argocd/registry/acme/support/staging.yaml"
PRODUCTION = "argocd/registry/acme/support/production.yaml"
BRANCH = "sync/acme/support"


class Desk:
    """A forge that remembers what is asked of it; heads are read from the real repository."""

    def __init__(self, remote: Path) -> None:
        self.remote, self.pulls = remote, list[dict[str, Any]]()

    def _pull(self, number: int) -> Pull:
        found = self.pulls[number - 1]
        if found["state"] == "open":
            found["commit"] = git(self.remote, "rev-parse", found["branch"])
        return Pull(number=number, url=f"https://git.test/pulls/{number}", **found)

    def open_pulls(self) -> dict[str, Pull]:
        every = (self._pull(number + 1) for number in range(len(self.pulls)))
        return {pull.branch: pull for pull in every if pull.state == "open"}

    def newest(self, branch: str) -> Pull | None:
        numbers = [n for n, each in enumerate(self.pulls, 1) if each["branch"] == branch]
        return self._pull(numbers[-1]) if numbers else None

    def open_or_update(self, branch: str, title: str, body: str, base: str) -> Pull:
        text = {"title": title, "body": body}
        if old := self.open_pulls().get(branch):
            self.pulls[old.number - 1] |= text
            return self._pull(old.number)
        self.pulls.append({"branch": branch, "commit": "", "state": "open", **text})
        return self._pull(len(self.pulls))

    def close(self, pull: Pull) -> None:
        self.pulls[pull.number - 1]["state"] = "closed"

    def files(self, branch: str, title: str, body: str) -> dict[str, bytes]:
        return {}


@dataclass
class World:
    """Everything around the sync."""

    folder: Path
    remote: Path
    here: Path
    store: str
    database: str
    registry: Registry
    desk: Desk
    said: list[str] = field(default_factory=list)
    syncs: int = 0

    def sync(self, **more: Any) -> Sync:
        """A sync that starts with nothing, as after a restart elsewhere."""
        self.syncs += 1
        repository = Repository(
            str(self.remote), "main", self.folder / f"sync-{self.syncs}", "", "kuznia-sync <k@s>"
        )
        registries = more.get("registries") or Registries(self.database)
        return Sync(repository, registries, more.get("forge", self.desk), self.said.append)

    def add(self, seed: str, name: str = "acme.support", **more: Any) -> int:
        return add_version(self.registry, self.store, name, seed, **more)

    def point(self, alias: str, number: int, name: str = "acme.support") -> None:
        self.registry.client.set_registered_model_alias(name, alias, str(number))

    def read(self, path: str, branch: str = "main") -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(git(self.remote, "show", f"{branch}:{path}"))
        return found

    def version(self, path: str, branch: str = "main") -> str:
        return str(self.read(path, branch)["version"])

    def branches(self) -> set[str]:
        return set(git(self.remote, "branch", "--format=%(refname:short)").split())

    def commits(self, branch: str = "main") -> int:
        return int(git(self.remote, "rev-list", "--count", branch))

    def merge(self) -> None:
        """What a reviewer does on a forge: squash, so that no commit of the sync is in main."""
        git(self.here, "pull", "-q")
        git(self.here, "fetch", "-q", "origin", BRANCH)
        git(self.here, "merge", "-q", "--squash", "FETCH_HEAD")
        save(self.here, "Merged")
        self.desk.pulls[-1]["state"] = "merged"


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory, shared_folder: Path, s3_server: str
) -> Callable[[str, Path], World]:
    """Copies of an empty world, and of one whose acme/support serves version `one` in both."""
    empty, used = (tmp_path_factory.mktemp(name) for name in ("empty", "used"))
    with pytest.MonkeyPatch.context() as patch:
        store = f"{s3_bucket_at(s3_server, patch)}/store"
        make_remote(empty, store, "acme", "beta")
        make_mlflow_database(shared_folder, empty)
        shutil.copytree(empty, used, dirs_exist_ok=True)
        world = world_in(used, store)
        number = world.add("one")
        for alias in ("staging", "production"):
            world.point(alias, number)
        sync = world.sync()
        assert sync.one_pass()
        world.merge()
        assert sync.one_pass()
        assert (world.version(STAGING), world.version(PRODUCTION)) == (version_of("one"),) * 2
        assert world.branches() == {"main", "sync-state"}
    copies = {"empty": empty, "used": used}

    def copy(which: str, target: Path) -> World:
        shutil.copytree(copies[which], target, dirs_exist_ok=True)
        made = world_in(target, store)
        made.desk.pulls += world.desk.pulls if which == "used" else []
        return made

    return copy


def world_in(folder: Path, store: str) -> World:
    remote, here, database = folder / "remote.git", folder / "checkout", folder / "mlflow.db"
    git(here, "remote", "set-url", "origin", str(remote))
    registry = Registry(f"sqlite:///{database}")
    return World(folder, remote, here, store, registry.uri, registry, Desk(remote))


@pytest.fixture
def world(tmp_path: Path, s3_bucket: str, template: Callable[[str, Path], World]) -> World:
    """Nothing released yet."""
    return template("empty", tmp_path / "world")


@pytest.fixture
def served(
    tmp_path: Path, s3_bucket: str, template: Callable[[str, Path], World]
) -> tuple[World, Sync]:
    """acme/support with version `one` in staging and production, by the sync's own hand."""
    world = template("used", tmp_path / "world")
    return world, world.sync()


def test_a_staging_alias_becomes_a_commit_with_card_and_trailers(world: World) -> None:
    world.point("staging", world.add("one"))
    assert world.sync().one_pass()
    card = f"model-cards/acme/support/{version_of('one')}"
    assert world.read(STAGING) == {
        "version": version_of("one"),
        "digest": digest_of("one"),
        "uri": f"{world.store}/models/acme/support/{version_of('one')}",
        "base": "smollm2-135m-instruct",
        "mode": "merged",
        "card": f"{card}.yaml",
    }
    assert world.read(f"{card}.yaml")["identity"]["version"]["value"] == version_of("one")
    assert "# " in git(world.remote, "show", f"main:{card}.md")
    trailers = git(world.remote, "log", "-1", "--format=%(trailers:only,unfold)", "main")
    assert trailers.splitlines() == [
        "Tenant: acme",
        "Model: support",
        "Release: staging",
        f"Version: {version_of('one')}",
        f"Digest: {digest_of('one')}",
        "Actor: kuznia-sync <k@s>",
    ]
    assert world.branches() == {"main", "sync-state"} and not world.desk.pulls


def test_nothing_moves_where_no_alias_moved(served: tuple[World, Sync]) -> None:
    world, sync = served
    before = git(world.remote, "for-each-ref")
    assert sync.one_pass() and world.sync().one_pass()
    assert git(world.remote, "for-each-ref") == before
    assert world.said == []


def test_a_production_alias_becomes_one_pull_request_that_a_second_move_updates(
    served: tuple[World, Sync],
) -> None:
    world, sync = served
    for seed in ("two", "three"):
        world.point("production", world.add(seed))
        assert sync.one_pass()
    assert world.version(PRODUCTION) == version_of("one")
    assert world.version(PRODUCTION, BRANCH) == version_of("three")
    (_, pull) = world.desk.pulls
    assert pull["title"] == f"Release acme/support {version_of('three')} to production"
    assert "points to version 3" in pull["body"]
    assert world.commits(f"main..{BRANCH}") == 1
    world.merge()
    assert sync.one_pass()
    assert world.version(PRODUCTION) == version_of("three")
    assert BRANCH not in world.branches()


def test_only_version_lines_move(served: tuple[World, Sync]) -> None:
    world, sync = served
    git(world.here, "pull", "-q")
    path = world.here / STAGING
    path.write_text(f"# Ours.\n{path.read_text()}replicas: 3   # for the fair\n")
    save(world.here, "More replicas")
    before = git(world.remote, "show", f"main:{STAGING}").splitlines()
    world.point("staging", world.add("two"))
    assert sync.one_pass()
    after = git(world.remote, "show", f"main:{STAGING}").splitlines()
    changed = [old.split(":")[0] for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["version", "digest", "uri", "card"]


def test_a_release_that_people_broke_holds_up_no_other(served: tuple[World, Sync]) -> None:
    world, sync = served
    world.point("production", world.add("two"))
    assert sync.one_pass()
    git(world.here, "pull", "-q")
    for path in (STAGING, PRODUCTION):
        (world.here / path).write_text("version: [\n")
    save(world.here, "Oh")
    for name in ("acme.support", "acme.sales"):
        world.point("staging", world.add("three", name), name)
    assert sync.one_pass() is False
    assert world.version(STAGING.replace("support", "sales")) == version_of("three")
    assert [line.split(": ")[0] for line in world.said if "not YAML" in line] == [
        "acme/support staging, MLflow's number 3",
        BRANCH,
    ]


@pytest.mark.parametrize("how", ["revert", "decline"])
def test_what_people_undid_stays_undone(served: tuple[World, Sync], how: str) -> None:
    """The alias still points there: it was answered, and a rollback is not a wish to go back."""
    world, sync = served
    world.point("production", world.add("two"))
    assert sync.one_pass()
    if how == "revert":
        world.merge()
        git(world.here, "revert", "--no-edit", "HEAD")
        git(world.here, "push", "-q")
    else:
        world.desk.pulls[-1]["state"] = "closed"
    for each in (sync, world.sync()):
        assert each.one_pass()
    assert world.version(PRODUCTION) == version_of("one")
    assert BRANCH not in world.branches() and len(world.desk.pulls) == 2
    world.point("production", world.add("three"))
    assert sync.one_pass()
    assert world.version(PRODUCTION, BRANCH) == version_of("three")


def test_an_alias_that_goes_back_takes_its_proposal_along(served: tuple[World, Sync]) -> None:
    world, sync = served
    world.point("production", world.add("two"))
    assert sync.one_pass()
    world.point("production", 1)
    assert sync.one_pass() and sync.one_pass()
    assert BRANCH not in world.branches()
    assert world.desk.pulls[-1]["state"] == "closed" and len(world.desk.pulls) == 2


def test_what_a_person_added_to_a_proposal_stays(served: tuple[World, Sync]) -> None:
    world, sync = served
    world.point("production", world.add("two"))
    assert sync.one_pass()
    git(world.here, "fetch", "-q")
    git(world.here, "switch", "-q", BRANCH)
    path = world.here / PRODUCTION
    path.write_text(path.read_text() + "replicas: 2\n")
    save(world.here, "Two replicas")
    world.point("production", world.add("three"))
    assert sync.one_pass()
    found = world.read(PRODUCTION, BRANCH)
    assert (found["version"], found["replicas"]) == (version_of("three"), 2)
    assert world.desk.pulls[-1]["title"].split()[2] == version_of("three")


def test_a_branch_of_a_person_in_the_place_of_a_proposal_is_left_alone(
    served: tuple[World, Sync],
) -> None:
    world, sync = served
    git(world.here, "pull", "-q")
    git(world.here, "switch", "-q", "-c", "sync/acme/idea")
    (world.here / "idea").write_text("mine")
    tip = save(world.here, "An idea")
    assert sync.one_pass()
    assert git(world.remote, "rev-parse", "sync/acme/idea") == tip
    assert len(world.desk.pulls) == 1 and world.said == []


def test_a_proposal_that_no_longer_fits_is_made_anew(served: tuple[World, Sync]) -> None:
    world, sync = served
    world.point("production", world.add("two"))
    assert sync.one_pass()
    git(world.here, "pull", "-q")
    path = world.here / PRODUCTION
    path.write_text(path.read_text() + "replicas: 4\n")
    tip = save(world.here, "Four replicas")
    assert sync.one_pass()
    assert git(world.remote, "rev-parse", f"{BRANCH}^") == tip
    found = world.read(PRODUCTION, BRANCH)
    assert (found["version"], found["replicas"]) == (version_of("two"), 4)
    card = f"model-cards/acme/support/{version_of('two')}.md"
    assert git(world.remote, "show", f"{BRANCH}:{card}")


def test_what_is_absent_has_no_opinion(served: tuple[World, Sync]) -> None:
    world, _ = served
    client, folder = world.registry.client, world.folder
    git(world.here, "pull", "-q")
    path = world.here / "argocd/registry/acme/tenant.yaml"
    awake = path.read_text()
    path.write_text(awake.replace("state: active", "state: hibernated"))
    save(world.here, "Sleep")
    world.point("staging", world.add("two"))
    before = git(world.remote, "for-each-ref")
    assert world.sync().one_pass()
    assert git(world.remote, "for-each-ref") == before, "asleep"
    world.point("staging", 1)
    path.write_text(awake)
    save(world.here, "Wake")
    before = git(world.remote, "for-each-ref")
    (folder / "bad.db").write_text("no database")
    registries = Registries(f"sqlite:///{folder / 'bad.db'}")
    assert not world.sync(registries=registries).one_pass()
    for what, take_away in {
        "alias": lambda: client.delete_registered_model_alias("acme.support", "production"),
        "version": lambda: client.delete_model_version("acme.support", "1"),
        "model": lambda: client.delete_registered_model("acme.support"),
    }.items():
        take_away()
        assert world.sync().one_pass()
        assert git(world.remote, "for-each-ref") == before, what


WITHHELD: dict[str, tuple[dict[str, Any], str]] = {
    "hold": ({"eval__verdict": "hold"}, "its verdict is hold, not promote"),
    "unknown": ({"eval__verdict": ""}, "its verdict is not known, not promote"),
    "unverified": ({"verify__passed": "false"}, "its tag verify.passed is not true"),
    "undigested": ({"digest__sha256": ""}, "it has no tag digest.sha256"),
    "half": ({"mode": "adapter"}, "mode adapter needs base_uri, base_digest, lora_rank"),
    "elsewhere": ({"version": "0123456789ab"}, "it is at s3://"),
    "carded": ({"card": False}, "card.yaml: is not written yet"),
}


def test_what_must_not_be_released_is_withheld_until_it_may(world: World) -> None:
    for model, (tags, _) in WITHHELD.items():
        world.point("staging", world.add(model, f"acme.{model}", **tags), f"acme.{model}")
    sync = world.sync()
    before = git(world.remote, "for-each-ref")
    assert sync.one_pass() and sync.one_pass()
    assert git(world.remote, "for-each-ref") == before
    assert len(world.said) == len(WITHHELD)
    for model, (_, why) in WITHHELD.items():
        start = f"acme/{model} staging, MLflow's number 1: not released: "
        assert [line for line in world.said if line.startswith(start) and why in line], model
    assert metrics.WITHHELD.labels("acme", "staging")._value.get() == len(WITHHELD)
    put_card(world.store, "acme", "carded", digest_of("carded"))
    world.registry.client.set_model_version_tag("acme.hold", "1", "eval.verdict", "promote")
    assert sync.one_pass()
    for model in ("carded", "hold"):
        path = STAGING.replace("support", model)
        assert world.version(path) == version_of(model)
    assert metrics.WITHHELD.labels("acme", "staging")._value.get() == len(WITHHELD) - 2


def test_an_adapter_brings_its_base_and_its_answers(world: World) -> None:
    tags = {"mode": "adapter", "lora_rank": "8"}
    tags |= {"answers_key": "runs/acme/r/verify/answers.json", "answers_sha256": "d" * 64}
    world.point("staging", world.add("one", **tags))
    assert world.sync().one_pass()
    found = world.read(STAGING)
    assert found["base_uri"] == f"{world.store}/bases/smollm2/{'b' * 64}"
    assert (found["base_digest"], found["lora_rank"]) == ("b" * 64, 8)
    assert found["answers_uri"] == f"{world.store}/runs/acme/r/verify/answers.json"
    assert found["answers_sha256"] == "d" * 64


def test_nobody_speaks_for_another_tenant(world: World) -> None:
    """acme's own MLflow speaks of beta, and of a model with a name that is none."""
    foreign = world.add("one", "beta.support")
    world.point("staging", foreign, "beta.support")
    odd = world.registry.client.create_registered_model("acme.Up").name
    source = f"{world.store}/models/acme/Up/{version_of('one')}"
    world.registry.client.create_model_version(odd, source)
    world.point("staging", 1, odd)
    looked = Registries("sqlite:///" + str(world.folder / "mlflow.db"))
    assert set(looked.look(["acme"], world.said.append)["acme"]) == {"Up"}
    git(world.here, "rm", "-q", "argocd/registry/beta/tenant.yaml")
    save(world.here, "No beta")
    before = git(world.remote, "for-each-ref")
    assert world.sync().one_pass()
    assert git(world.remote, "for-each-ref") == before
    assert world.said == ["acme.Up: is no name of a model"]


def test_a_broken_tenant_and_a_silent_mlflow_hold_up_nobody(world: World) -> None:
    folder = world.folder
    for name, text in (("broken", "state: asleep\n"), ("away", None)):
        path = world.here / f"argocd/registry/{name}/tenant.yaml"
        path.parent.mkdir()
        acme = (world.here / "argocd/registry/acme/tenant.yaml").read_text()
        path.write_text(acme if text is None else text)
    save(world.here, "Two more")
    for tenant in ("acme", "beta"):
        (folder / f"{tenant}.db").symlink_to(folder / "mlflow.db")
    (folder / "away.db").write_text("no database")
    now = [0.0]
    registries = Registries(f"sqlite:///{folder}/{{tenant}}.db", 30, lambda: now[0])
    sync = world.sync(registries=registries)
    world.point("staging", world.add("one"))
    assert sync.one_pass() is False
    assert world.version(STAGING) == version_of("one")
    assert any("broken/tenant.yaml: state: 'asleep'" in line for line in world.said)
    assert sum("asked again in 30 s" in line for line in world.said) == 1
    now[0] = 20
    assert sync.one_pass() is False
    now[0] = 31
    assert sync.one_pass() is False
    assert sum("asked again in" in line for line in world.said) == 2
    assert any("asked again in 60 s" in line for line in world.said)
    assert metrics.MLFLOW_UP.labels("away")._value.get() == 0
    shutil.copyfile(folder / "mlflow.db", folder / "away.db")
    now[0] = 100
    sync.one_pass()
    assert world.said[-1].endswith("answers again")


def test_a_push_in_between_and_a_force_push_are_met_by_looking_again(world: World) -> None:
    sync = world.sync()
    fetch, pushed = sync._repository.fetch, list[str]()

    def fetch_and_lose_the_race() -> None:
        fetch()
        if not pushed:
            (world.here / "note").write_text("first")
            pushed.append(save(world.here, "In between"))

    sync._repository.fetch = fetch_and_lose_the_race  # type: ignore[method-assign]
    world.point("staging", world.add("one"))
    assert sync.one_pass()
    assert git(world.remote, "rev-parse", "main^") == pushed[0]
    git(world.here, "fetch", "-q")
    git(world.here, "commit", "-q", "--amend", "--message", "Rewritten")
    git(world.here, "push", "-q", "--force", "origin", "HEAD:main")
    world.point("staging", world.add("two"))
    assert sync.one_pass()
    assert git(world.remote, "log", "-1", "--format=%s", "main^") == "Rewritten"
    assert world.version(STAGING) == version_of("two")


def test_two_at_once_make_one_commit(world: World) -> None:
    """Both have looked before either pushes."""
    syncs, start = [world.sync(), world.sync()], threading.Barrier(2)
    for sync in syncs:
        _meet_after_first_fetch(sync._repository, start)
    world.point("staging", world.add("one"))
    world.point("production", 1)
    threads = [threading.Thread(target=sync.one_pass) for sync in syncs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert world.commits() == 2
    assert world.commits(f"main..{BRANCH}") == 1
    assert world.commits("sync-state") == 1


def test_the_same_commit_of_two_is_pushed_by_one(world: World) -> None:
    """As two make it in the same second: for git the second push is up to date."""
    repository = world.sync()._repository
    repository.fetch()
    made = repository.commit(repository.main, {"file": b"text"}, "the same\n")
    seen = repository.main
    for expected in (contextlib.nullcontext(), pytest.raises(Conflict)):
        with expected:
            repository.git.push(repository.remote, {"main": (seen, made)})
    assert git(world.remote, "rev-parse", "main") == made


def test_a_pull_request_is_opened_by_whoever_pushed_its_branch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forge may open two for two that ask at once."""
    number, first, second = world.add("one"), world.sync(), world.sync()
    world.point("production", number)
    closed = Closed(world.remote)
    assert not world.sync(forge=closed).one_pass()
    pushed = git(world.remote, "rev-parse", BRANCH)
    assert first.one_pass() and second.one_pass()
    assert (world.desk.pulls, git(world.remote, "rev-parse", BRANCH)) == ([], pushed)
    # Its pod is gone for good: of two that take over, one does. A commit that is made anew within
    # the second would be the same one.
    time.sleep(1.1)
    monkeypatch.setattr(proposals, "PATIENCE", 0)
    assert first.one_pass()
    monkeypatch.undo()
    assert second.one_pass() and first.one_pass()
    (pull,) = world.desk.pulls
    assert pull["title"] == f"Release acme/support {version_of('one')} to production"
    assert git(world.remote, "rev-parse", BRANCH) != pushed
    assert world.commits(f"main..{BRANCH}") == 1


class Closed(Desk):
    """A forge that takes no pull request at the moment."""

    def open_or_update(self, branch: str, title: str, body: str, base: str) -> Pull:
        raise DependencyError("the forge answers 503; try again later")


def _meet_after_first_fetch(repository: Repository, barrier: threading.Barrier) -> None:
    fetch, met = repository.fetch, list[bool]()

    def fetch_and_wait() -> None:
        fetch()
        if not met:
            met.append(True)
            barrier.wait(30)

    repository.fetch = fetch_and_wait  # type: ignore[method-assign]


def test_git_alone_is_a_forge_with_a_file_to_read(world: World) -> None:
    world.point("production", world.add("one"))
    sync = world.sync(forge=Plain())
    assert sync.one_pass() and sync.one_pass()
    review = git(world.remote, "show", f"{BRANCH}:reviews/acme-support.md")
    assert review.startswith(f"# Release acme/support {version_of('one')} to production")
    assert world.commits(f"main..{BRANCH}") == 1
    git(world.here, "fetch", "-q")
    git(world.here, "merge", "-q", f"origin/{BRANCH}")
    git(world.here, "push", "-q")
    assert sync.one_pass()
    assert BRANCH not in world.branches()
    assert world.version(PRODUCTION) == version_of("one")


def test_an_unreachable_repository_is_one_line_and_the_next_pass_goes_on(world: World) -> None:
    sync = world.sync()
    world.remote.rename(world.folder / "away.git")
    assert not sync.one_pass() and not sync.one_pass()
    (line,) = world.said
    assert str(world.remote) in line and "git fetch failed" in line
    (world.folder / "away.git").rename(world.remote)
    assert sync.one_pass()


# the process around it


def signed(secret: str, body: bytes, when: float) -> dict[str, str]:
    """Headers as MLflow makes them."""
    content = f"delivery.{int(when)}.".encode() + body
    mac = hmac.new(secret.encode(), content, hashlib.sha256).digest()
    return {
        "X-MLflow-Delivery-Id": "delivery",
        "X-MLflow-Timestamp": str(int(when)),
        "X-MLflow-Signature": f"v1,{base64.b64encode(mac).decode()}",
    }


def test_only_a_signed_webhook_wakes() -> None:
    wake = threading.Event()
    server = serve(0, "secret", wake)
    try:
        url, body, now = f"http://127.0.0.1:{server.server_port}", b'{"entity": "x"}', time.time()
        with httpx.Client(base_url=url) as client:
            for headers in ({}, signed("wrong", body, now), signed("secret", body, now - 3600)):
                assert client.post("/webhook", content=body, headers=headers).status_code == 401
            large = b"x" * 70000
            headers = signed("secret", large, now)
            assert client.post("/webhook", content=large, headers=headers).status_code == 413
            assert not wake.is_set()
            headers = signed("secret", body, now)
            assert client.post("/webhook", content=body, headers=headers).status_code == 204
            assert wake.is_set()
            assert client.get("/healthz").text == "ok\n"
            assert 'kuznia_sync_webhooks_total{outcome="refused"}' in client.get("/metrics").text
            assert client.get("/else").status_code == 404
    finally:
        server.shutdown()
        server.server_close()


def test_settings_name_all_that_is_wrong() -> None:
    given = {"KUZNIA_SYNC_INTERVAL": "soon", "KUZNIA_SYNC_WEBHOOK_URL": "http://sync/webhook"}
    with pytest.raises(InputError) as caught:
        from_environment(given)
    assert caught.value.problems == [
        "KUZNIA_SYNC_REPOSITORY: is not set; set the registry's git address",
        "KUZNIA_SYNC_INTERVAL: 'soon' is no whole number from 1; set one",
        "KUZNIA_SYNC_WEBHOOK_SECRET: is not set, and webhooks need it; set both",
    ]


def test_the_program_makes_one_pass(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUZNIA_SYNC_REPOSITORY", str(world.remote))
    monkeypatch.setenv("KUZNIA_SYNC_MLFLOW", world.database)
    monkeypatch.setenv("KUZNIA_FORGE", "plain")
    world.point("staging", world.add("one"))
    assert main(["--once"]) == 0
    assert world.version(STAGING) == version_of("one")
    monkeypatch.setenv("KUZNIA_SYNC_REPOSITORY", str(world.folder / "nowhere"))
    assert main(["--once"]) == 3
    monkeypatch.setenv("KUZNIA_FORGE", "sourcehut")
    assert main(["--once"]) == 2
