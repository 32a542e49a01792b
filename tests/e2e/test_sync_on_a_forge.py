"""The sync as a process beside a real Gitea and a real MLflow server; it needs no cluster.

Gitea: `gitea` in PATH; shared/cluster/addons/build gitea makes one for the test cluster.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from kuznia.forges import Gitea
from kuznia.registry import Registry
from tests.fixtures.forge_contract import BRANCHES, check_forge
from tests.fixtures.released import TENANT, add_version, git, save, version_of
from workflows.environments import ROOT, python_of

pytestmark = pytest.mark.long
INTERVAL = 15
"""Seconds between the sync's passes here; a webhook must be quicker."""
STAGING = "argocd/registry/acme/support/staging.yaml"
PRODUCTION = "argocd/registry/acme/support/production.yaml"
BRANCH = "sync/acme/support"
ADA = "ada"
APP_INI = """\
APP_NAME = forge
RUN_MODE = prod
[server]
PROTOCOL = http
HTTP_ADDR = 127.0.0.1
HTTP_PORT = {port}
ROOT_URL = http://127.0.0.1:{port}/
STATIC_ROOT_PATH = {static}
OFFLINE_MODE = true
DISABLE_SSH = true
[database]
DB_TYPE = sqlite3
PATH = {folder}/gitea.db
[repository]
ROOT = {folder}/repositories
[security]
INSTALL_LOCK = true
[log]
LEVEL = warn
[service]
DISABLE_REGISTRATION = true
"""


def free_port() -> int:
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return int(here.getsockname()[1])


def wait_for(what: str, is_so: Callable[[], bool], seconds: float = 60) -> float:
    """Seconds until `is_so`."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if is_so():
            return time.monotonic() - start
        time.sleep(0.2)
    pytest.fail(f"not within {seconds} s: {what}")


def answers(url: str) -> Callable[[], bool]:
    def asked() -> bool:
        try:
            return httpx.get(url).is_success
        except httpx.TransportError:
            return False

    return asked


@contextmanager
def process(log: Path, *words: object, **how: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block."""
    with log.open("ab") as out:
        running = subprocess.Popen(
            [str(word) for word in words],
            stdout=out,
            stderr=out,
            cwd=ROOT,
            **how,  # type: ignore[call-overload]
        )
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30)


@dataclass
class Repository:
    """A repository on the forge."""

    url: str
    page: str
    token: str
    here: Path
    """A person's checkout of it."""
    forge: Gitea

    @property
    def api(self) -> str:
        base, owner, name = self.page.rsplit("/", 2)
        return f"{base}/api/v1/repos/{owner}/{name}"

    def merge(self, number: int, how: str = "squash") -> None:
        wait_for(
            "Gitea checks whether a pull request may be merged",
            lambda: httpx.get(f"{self.api}/pulls/{number}", headers=self.headers).json()[
                "mergeable"
            ],
        )
        httpx.post(
            f"{self.api}/pulls/{number}/merge", headers=self.headers, json={"Do": how}
        ).raise_for_status()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}"}

    def version(self, path: str, branch: str = "main") -> str:
        """The version that a release on the forge names; empty where there is none."""
        git(self.here, "fetch", "-q", "--prune")
        try:
            text = git(self.here, "show", f"origin/{branch}:{path}")
        except subprocess.CalledProcessError:
            return ""
        return str(yaml.safe_load(text)["version"])

    def branches(self) -> set[str]:
        git(self.here, "fetch", "-q", "--prune")
        return set(git(self.here, "branch", "-r", "--format=%(refname:lstrip=3)").split())


@pytest.fixture(scope="module")
def gitea(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of a Gitea and a token of its user ada."""
    program = shutil.which("gitea")
    if not program:
        pytest.skip("put the program gitea (1.26, https://about.gitea.com) into PATH")
    # Gitea refuses to be root, and a folder below root's would be closed to others.
    who = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path("/tmp") / f"kuznia-gitea-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o755)
    try:
        shutil.copy(program, folder / "gitea")
        static = Path(os.environ.get("CLUSTER_ADDONS") or Path(program).parents[1] / "addons")
        shutil.copytree(static / "gitea", folder / "static")
        port = free_port()
        config = folder / "app.ini"
        config.write_text(APP_INI.format(port=port, folder=folder, static=folder / "static"))
        if who:
            subprocess.run(["chown", "-R", "65534:65534", str(folder)], check=True)
        variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "USER": "git"}
        how = {"env": variables | {"GITEA_WORK_DIR": str(folder)}, **who}
        words = (folder / "gitea", "--config", config)

        def admin(*more: str) -> str:
            done = subprocess.run(
                [*(str(word) for word in words), "admin", "user", *more],
                check=True,
                capture_output=True,
                text=True,
                cwd=folder,
                **how,  # type: ignore[call-overload]
            )
            return str(done.stdout)

        with process(folder / "gitea.log", *words, "web", **how):
            url = f"http://127.0.0.1:{port}"
            wait_for("Gitea is up", answers(f"{url}/api/v1/version"))
            password = secrets.token_hex(8)
            account = ("--username", ADA, "--password", password, "--email", "ada@example.org")
            admin("create", *account, "--admin", "--must-change-password=false")
            scopes = "write:repository,write:user"
            said = admin("generate-access-token", "--username", ADA, "--scopes", scopes)
            (token,) = re.findall(r"\b[0-9a-f]{40}\b", said)
            yield url, token
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def repository(gitea: tuple[str, str], tmp_path: Path) -> Iterator[Repository]:
    """An empty repository with a branch main."""
    url, token = gitea
    name = f"models-{secrets.token_hex(3)}"
    headers = {"Authorization": f"token {token}"}
    asked = {"name": name, "auto_init": True, "default_branch": "main"}
    httpx.post(f"{url}/api/v1/user/repos", headers=headers, json=asked).raise_for_status()
    remote = f"{url}/{ADA}/{name}.git"
    known = remote.replace("://", f"://{ADA}:{token}@")
    here = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", known, str(here)], check=True, capture_output=True)
    git(here, "config", "user.name", "Ada")
    git(here, "config", "user.email", "ada@example.org")
    forge = Gitea(f"{url}/{ADA}/{name}", token)
    yield Repository(remote, f"{url}/{ADA}/{name}", token, here, forge)
    forge._client.close()


def test_the_contract_on_a_real_gitea(repository: Repository) -> None:
    for branch in BRANCHES:
        git(repository.here, "switch", "-q", "-c", branch, "main")
        (repository.here / branch).write_text(branch)
        save(repository.here, branch)
    forge = repository.forge
    check_forge(
        forge,
        "main",
        lambda branch, commit: None,
        lambda branch: repository.merge(forge.open_pulls()[branch].number),
    )


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real MLflow server that may call this machine's webhooks."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    variables = os.environ | {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{python_of('mlflow').parent}{os.pathsep}{os.environ['PATH']}",
    }
    words = (python_of("mlflow"), "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}")
    store = f"--backend-store-uri=sqlite:///{folder}/mlflow.db"
    artifacts = f"--artifacts-destination={folder}/artifacts"
    log = folder / "log"
    with process(log, *words, "--workers=1", store, artifacts, env=variables):
        wait_for("MLflow is up", answers(f"http://127.0.0.1:{port}/health"), 120)
        yield f"http://127.0.0.1:{port}"


def test_an_alias_becomes_a_commit_and_a_pull_request(
    repository: Repository, mlflow: str, s3_bucket: str, tmp_path: Path
) -> None:
    store, port, log = f"{s3_bucket}/store", free_port(), tmp_path / "sync.log"
    tenant = repository.here / "argocd/registry/acme/tenant.yaml"
    tenant.parent.mkdir(parents=True)
    tenant.write_text(TENANT.format(store=store))
    save(repository.here, "A registry")
    registry = Registry(mlflow)
    for seed in ("one", "two", "three"):
        add_version(registry, store, "acme.support", seed)

    def point(alias: str, number: int) -> None:
        registry.client.set_registered_model_alias("acme.support", alias, str(number))

    settings = {
        "KUZNIA_SYNC_REPOSITORY": repository.url,
        "KUZNIA_SYNC_MLFLOW": mlflow,
        "KUZNIA_SYNC_INTERVAL": str(INTERVAL),
        "KUZNIA_SYNC_PORT": str(port),
        "KUZNIA_SYNC_WEBHOOK_URL": f"http://127.0.0.1:{port}/webhook",
        "KUZNIA_SYNC_WEBHOOK_SECRET": "a secret",
        "KUZNIA_FORGE": "gitea",
        "KUZNIA_FORGE_URL": repository.page,
        "KUZNIA_FORGE_TOKEN": repository.token,
    }

    @contextmanager
    def sync(number: int, **more: str) -> Iterator[str]:
        variables = os.environ | settings | {"KUZNIA_SYNC_FOLDER": str(tmp_path / f"s{number}")}
        words = (sys.executable, "-m", "services.sync")
        with process(log, *words, env=variables | more):
            url = f"http://127.0.0.1:{more.get('KUZNIA_SYNC_PORT', port)}"
            wait_for("the sync is up", answers(f"{url}/healthz"))
            yield url

    def metric(url: str, name: str) -> float:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    with sync(1) as first:
        wait_for("the first pass", lambda: metric(first, "kuznia_sync_last_success") > 0)
        # A webhook of a real MLflow wakes it, well before the next pass by the clock.
        wait_for("the clock", lambda: metric(first, "kuznia_sync_pass_seconds_count") >= 2)
        point("staging", 1)
        spent = wait_for("a commit", lambda: repository.version(STAGING) == version_of("one"))
        assert spent < INTERVAL * 2 / 3
        assert metric(first, 'kuznia_sync_webhooks_total{outcome="taken"}') >= 1
        point("production", 1)
        wait_for("a pull request", lambda: BRANCH in repository.forge.open_pulls())
        pull = repository.forge.open_pulls()[BRANCH]
        assert pull.title == f"Release acme/support {version_of('one')} to production"
        # A second move while the first is open.
        point("production", 2)
        wait_for(
            "a new title", lambda: version_of("two") in repository.forge.open_pulls()[BRANCH].title
        )
        assert repository.version(PRODUCTION, BRANCH) == version_of("two")
        assert repository.forge.open_pulls()[BRANCH].number == pull.number
        repository.merge(pull.number)
        wait_for("the branch is gone", lambda: BRANCH not in repository.branches())
        assert repository.version(PRODUCTION) == version_of("two")

    # Webhooks lost, and two replicas at once.
    lost = {"KUZNIA_SYNC_WEBHOOK_URL": "", "KUZNIA_SYNC_WEBHOOK_SECRET": ""}
    with sync(2, **lost) as one, sync(3, **lost, KUZNIA_SYNC_PORT=str(free_port())):
        before = int(git(repository.here, "rev-list", "--count", "origin/main"))
        point("staging", 3)
        point("production", 3)
        wait_for("the clock", lambda: repository.version(STAGING) == version_of("three"))
        wait_for("a pull request", lambda: BRANCH in repository.forge.open_pulls())
        declined = repository.forge.open_pulls()[BRANCH]
        repository.forge.close(declined)
        wait_for("the branch is gone", lambda: BRANCH not in repository.branches())
        passes = metric(one, "kuznia_sync_pass_seconds_count")
        wait_for(
            "two more passes",
            lambda: metric(one, "kuznia_sync_pass_seconds_count") >= passes + 2,
        )
        assert BRANCH not in repository.branches()
        assert int(git(repository.here, "rev-list", "--count", "origin/main")) == before + 1
    said = log.read_text()
    assert "Traceback" not in said and repository.token not in said


def test_promote_opens_a_pull_request(
    repository: Repository, s3_bucket: str, mlflow_database: str, tmp_path: Path
) -> None:
    store = f"{s3_bucket}/store"
    registry = repository.here / "argocd/registry"
    (registry / "acme").mkdir(parents=True)
    (registry / "acme/tenant.yaml").write_text(TENANT.format(store=store))
    (registry / "platform.yaml").write_text("repository: https://git.test/models.git\n")
    save(repository.here, "A registry")
    add_version(Registry(mlflow_database), store, "acme.support", "one")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cli.main", "promote", "acme/support@1", "--pull-request"),
            *("--root", str(repository.here)),
        ],
        cwd=ROOT,
        env=os.environ
        | {
            "MLFLOW_TRACKING_URI": mlflow_database,
            "KUZNIA_FORGE": "gitea",
            "KUZNIA_FORGE_URL": repository.page,
            "KUZNIA_FORGE_TOKEN": repository.token,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (pull,) = repository.forge.open_pulls().values()
    assert pull.branch == f"promote/acme/support/{version_of('one')}"
    assert f"asked for: {pull.url}" in done.stdout
    repository.merge(pull.number)
    assert repository.version(PRODUCTION) == version_of("one")
