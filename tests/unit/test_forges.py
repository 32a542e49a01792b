"""One contract for all forges: against stand-ins here, against real ones where the environment
names them, and against a real Gitea in tests/e2e/test_sync_on_a_forge.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from kuznia.errors import DependencyError, InputError
from kuznia.forges import Forge, Gitea, GitHub, GitLab, Plain, forge
from tests.fixtures.forge_contract import check_forge

URL = "https://git.test/team/models"


class StandIn(httpx.BaseTransport):
    """Speaks as a forge does, from a list of pull requests: the edge of these tests."""

    page = 2

    def __init__(self) -> None:
        self.pulls: list[dict[str, Any]] = []
        self.heads: dict[str, str] = {}
        self.asked: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        number = request.url.path.rsplit("/", 1)[-1]
        given = json.loads(request.content) if request.content else {}
        if request.method == "POST":
            self.pulls.append({"state": "open", **given})
            return self._answer(201, self._show(len(self.pulls)))
        if number.isdigit():
            self.change(self.pulls[int(number) - 1], given)
            return self._answer(200, self._show(int(number)))
        asked = dict(request.url.params)
        found = [self._show(n) for n in range(len(self.pulls), 0, -1)]
        found = [each for each in found if self.matches(each, asked)]
        start = (int(asked.get("page", 1)) - 1) * self.page
        return self._answer(200, found[start : start + self.page])

    def _answer(self, status: int, value: Any) -> httpx.Response:
        return httpx.Response(status, json=value)

    def _show(self, number: int) -> dict[str, Any]:
        raise NotImplementedError

    def change(self, pull: dict[str, Any], given: dict[str, Any]) -> None:
        pull |= given

    def matches(self, shown: dict[str, Any], asked: dict[str, str]) -> bool:
        head = asked.get("head", "").partition(":")[2]
        return asked["state"] in ("all", shown["state"]) and head in ("", shown["head"]["ref"])


class AsGitea(StandIn):
    def _show(self, number: int) -> dict[str, Any]:
        pull = self.pulls[number - 1]
        # A fork that is gone has no repository.
        branch, _, fork = pull["head"].partition("@")
        head = {"ref": branch, "sha": self.heads.get(branch, "")}
        head["repo"] = None if fork else {"id": 7}
        merged = pull["state"] == "merged"
        state = "closed" if merged else pull["state"]
        url = f"{URL}/pulls/{number}"
        more = {"number": number, "head": head, "html_url": url, "state": state}
        more["base"] = {"repo": {"id": 7}}
        return pull | more | {"merged_at": "now" if merged else None}


class AsGitLab(StandIn):
    def _show(self, number: int) -> dict[str, Any]:
        pull = self.pulls[number - 1]
        state = {"open": "opened"}.get(pull["state"], pull["state"])
        branch, _, fork = pull["source_branch"].partition("@")
        url = f"{URL}/-/merge_requests/{number}"
        more = {"iid": number, "state": state, "sha": self.heads.get(branch, ""), "web_url": url}
        projects = {"source_project_id": 8 if fork else 7, "target_project_id": 7}
        return pull | more | projects | {"source_branch": branch}

    def change(self, pull: dict[str, Any], given: dict[str, Any]) -> None:
        if given.pop("state_event", "") == "close":
            pull["state"] = "closed"
        pull |= given

    def matches(self, shown: dict[str, Any], asked: dict[str, str]) -> bool:
        branch = asked.get("source_branch", shown["source_branch"])
        return asked["state"] in ("all", shown["state"]) and branch == shown["source_branch"]


KINDS: dict[str, tuple[Callable[..., Any], type[StandIn]]] = {
    "gitea": (Gitea, AsGitea),
    "github": (GitHub, AsGitea),
    "gitlab": (GitLab, AsGitLab),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_on_a_stand_in(kind: str) -> None:
    make, stand_in = KINDS[kind]
    server = stand_in()

    def merge(branch: str) -> None:
        (pull,) = (
            each for each in server.pulls if branch in (each.get("head"), each.get("source_branch"))
        )
        pull["state"] = "merged"

    check_forge(make(URL, "secret", server), "main", server.heads.__setitem__, merge)
    head = "source_branch" if kind == "gitlab" else "head"
    text = {"title": "A fork's", "description": "", "body": ""}
    server.pulls.append({"state": "open", **text, head: "theirs@fork"})
    assert "theirs" not in make(URL, "secret", server).open_pulls()
    told = {"Authorization": server.asked[0].headers.get("Authorization")}
    told["PRIVATE-TOKEN"] = server.asked[0].headers.get("PRIVATE-TOKEN")
    assert "secret" in str(told) and "secret" not in str(server.asked[0].url)


@pytest.mark.parametrize(
    ("make", "url", "asked"),
    [
        (Gitea, "https://git.test/code/team/models.git", "/code/api/v1/repos/team/models/pulls"),
        (GitHub, "https://git.test/team/models", "/api/v3/repos/team/models/pulls"),
        (GitHub, "https://github.com/team/models/", "/repos/team/models/pulls"),
        (GitLab, "https://git.test/a/b/c", "/api/v4/projects/a%2Fb%2Fc/merge_requests"),
    ],
)
def test_where_a_forge_is_asked(make: Any, url: str, asked: str) -> None:
    server = AsGitea()
    make(url, "secret", server).open_pulls()
    assert server.asked[0].url.raw_path.decode().partition("?")[0] == asked
    assert server.asked[0].url.host == ("api.github.com" if "github.com" in url else "git.test")


@pytest.fixture(params=["GITHUB", "GITLAB"])
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forge]:
    kind = request.param
    url, token = (os.environ.get(f"KUZNIA_TEST_{kind}_{what}", "") for what in ("URL", "TOKEN"))
    if not (url and token):
        pytest.skip(
            f"set KUZNIA_TEST_{kind}_URL to a repository of your own, with branches main and "
            f"contract, and KUZNIA_TEST_{kind}_TOKEN"
        )
    monkeypatch.setenv("KUZNIA_FORGE", kind.lower())
    monkeypatch.setenv("KUZNIA_FORGE_URL", url)
    monkeypatch.setenv("KUZNIA_FORGE_TOKEN", token)
    yield forge()


def test_the_contract_on_a_real_forge(real: Forge) -> None:
    check_forge(real, "main", lambda branch, commit: None, None)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (httpx.Response(401), "the forge refuses (401); check KUZNIA_FORGE_URL and what"),
        (httpx.Response(502, text="bad\ngateway"), "the forge answers 502 (bad gateway)"),
        (
            httpx.Response(301, headers={"location": "https://git.test/other"}),
            "is at https://git.test/other now; correct KUZNIA_FORGE_URL",
        ),
        (httpx.Response(200, text="<html>log in"), "answers with something else than JSON"),
        (httpx.Response(403, headers={"x-ratelimit-remaining": "0"}), "no more questions for now"),
        (httpx.ConnectError("refused"), "the forge does not answer (refused)"),
    ],
)
def test_a_forge_that_fails_is_one_line(answer: Any, fault: str) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(
            answer.status_code, content=answer.content, headers=answer.headers.items()
        )

    with pytest.raises(DependencyError) as caught:
        Gitea(URL, "secret", httpx.MockTransport(handle)).open_pulls()
    assert str(caught.value).startswith("https://git.test/api/v1/repos/team/models/pulls: ")
    assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_settings_of_a_forge(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(forge(), Plain)
    monkeypatch.setenv("KUZNIA_FORGE", "gitea")
    with pytest.raises(InputError, match="KUZNIA_FORGE_TOKEN: is not set"):
        forge()
    monkeypatch.setenv("KUZNIA_FORGE_TOKEN", "secret")
    with pytest.raises(InputError, match="KUZNIA_FORGE_URL: '' is not a repository's page"):
        forge()
    monkeypatch.setenv("KUZNIA_FORGE", "sourcehut")
    with pytest.raises(InputError, match="'sourcehut' is not one of gitea, github, gitlab, plain"):
        forge()
