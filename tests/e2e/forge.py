"""A forge in the cluster: real git over HTTP, pull requests, webhooks."""

from __future__ import annotations

import os
import secrets
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.cluster import HERE, forwarded, kubectl
from tests.fixtures.checkouts import git

IMAGE = os.environ.get("KUZNIA_E2E_FORGE_IMAGE", "gitea/gitea:1.26.0-rootless")
USER = "platform"


@dataclass(frozen=True)
class Forge:
    """A forge with one user: its address for pods and for this machine."""

    inside: str
    here: str
    password: str

    def repository(self, name: str, *, private: bool = False) -> str:
        """Make an empty repository; its address for pods."""
        made = {"name": name, "private": private, "default_branch": "main"}
        self.ask("POST", "user/repos", json=made)
        return f"{self.inside}/{USER}/{name}.git"

    def account(self, name: str, repository: str) -> str:
        """Make an account that may write to one repository and no more; a token of it."""
        who = {"username": name, "password": secrets.token_hex(16), "email": f"{name}@example.org"}
        self.ask("POST", "admin/users", json=who | {"must_change_password": False})
        place = f"repos/{USER}/{repository}/collaborators/{name}"
        self.ask("PUT", place, json={"permission": "write"})
        asked = {"name": "token", "scopes": ["write:repository"]}
        made = self.ask(
            "POST", f"users/{name}/tokens", json=asked, auth=(name, who["password"])
        ).json()
        return str(made["sha1"])

    def ask(self, method: str, path: str, missing: bool = False, **given: Any) -> httpx.Response:
        """What the forge's API answers, to its administrator unless `auth` says otherwise;
        `missing`: it may be that there is no such thing."""
        given = {"auth": (USER, self.password), "trust_env": False, "timeout": 30} | given
        answer = httpx.request(method, f"{self.here}/api/v1/{path}", **given)
        assert answer.is_success or (missing and answer.status_code == 404), answer.text
        return answer

    def push(self, checkout: Path, name: str, *arguments: str) -> None:
        """Push the branch that is checked out."""
        address = self.here.replace("http://", f"http://{USER}:{self.password}@")
        git(checkout, "push", "--quiet", *arguments, f"{address}/{USER}/{name}.git", "HEAD:main")


@contextmanager
def forge(namespace: str) -> Iterator[Forge]:
    """A forge in a namespace of its own, removed at the end."""
    password = secrets.token_hex(16)
    manifest = string.Template((HERE / "manifests" / "forge.yaml").read_text("utf-8"))
    values = {"IMAGE": IMAGE, "NAMESPACE": namespace}
    kubectl("create", "namespace", namespace)
    try:
        kubectl("-n", namespace, "apply", "-f", "-", text=manifest.substitute(values))
        kubectl("-n", namespace, "rollout", "status", "deploy/forge", "--timeout=180s")
        kubectl(
            *("-n", namespace, "exec", "deploy/forge", "--"),
            *("gitea", "--config", "/data/app.ini", "admin", "user", "create"),
            *("--username", USER, "--password", password, "--email", "platform@example.org"),
            *("--admin", "--must-change-password=false"),
        )
        with forwarded(namespace, "service/forge", 3000) as here:
            yield Forge(f"http://forge.{namespace}:3000", here, password)
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")
