"""Pull requests on the forge where the registry lives: Gitea, GitHub, GitLab, or git alone.

| variable           | meaning                                                                     |
|--------------------|-----------------------------------------------------------------------------|
| KUZNIA_FORGE       | gitea, github, gitlab, or plain: a branch with a file in reviews/ to read   |
| KUZNIA_FORGE_URL   | the repository's page, as https://git.example.org/team/models               |
| KUZNIA_FORGE_TOKEN | a token that may read and write pull requests (and, for the sync, push)     |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import quote, urlsplit

import httpx

from kuznia.errors import DependencyError, InputError

TIMEOUT = 15.0
"""Seconds that the forge has for each answer."""
State = Literal["open", "merged", "closed"]


@dataclass(frozen=True)
class Pull:
    """A pull request."""

    number: int
    branch: str
    commit: str
    """The branch's commit that it shows."""
    state: State
    url: str
    title: str
    body: str


class Forge(Protocol):
    """What a forge must be able to do. Everything raises DependencyError if it does not answer."""

    def open_pulls(self) -> dict[str, Pull]:
        """The open ones, by branch."""

    def newest(self, branch: str) -> Pull | None:
        """The last one of a branch, in whatever state."""

    def open_or_update(self, branch: str, title: str, body: str, base: str) -> Pull:
        """One open pull request of `branch` into `base` with this text."""

    def close(self, pull: Pull) -> None:
        """Close without merging."""

    def files(self, branch: str, title: str, body: str) -> dict[str, bytes]:
        """Files that the branch itself must carry for people to review it."""


class _Web:
    """What the three have in common: JSON over https, lists by page."""

    def __init__(self, api: str, headers: dict[str, str], transport: httpx.BaseTransport | None):
        self._client = httpx.Client(
            base_url=api,
            headers=headers,
            timeout=TIMEOUT,
            transport=transport or httpx.HTTPTransport(retries=2),
        )

    def _ask(self, method: str, path: str, **given: Any) -> Any:
        place = f"{str(self._client.base_url).rstrip('/')}/{path.lstrip('/')}"
        try:
            answer = self._client.request(method, path, **given)
        except httpx.HTTPError as error:
            raise DependencyError(
                f"{place}: the forge does not answer ({error or type(error).__name__}); check "
                "KUZNIA_FORGE_URL and the network"
            ) from error
        spent = answer.headers.get("x-ratelimit-remaining") == "0"
        if answer.status_code == 429 or (answer.status_code == 403 and spent):
            raise DependencyError(
                f"{place}: the forge takes no more questions for now ({answer.status_code}); it "
                "is asked again later"
            )
        if answer.is_redirect:
            raise DependencyError(
                f"{place}: is at {answer.headers.get('location')} now; correct KUZNIA_FORGE_URL"
            )
        if answer.status_code in (401, 403, 404):
            raise DependencyError(
                f"{place}: the forge refuses ({answer.status_code}); check KUZNIA_FORGE_URL and "
                "what KUZNIA_FORGE_TOKEN may do"
            )
        if answer.is_error:
            raise DependencyError(
                f"{place}: the forge answers {answer.status_code} "
                f"({' '.join(answer.text.split())[:200]}); try again later"
            )
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise DependencyError(
                f"{place}: answers with something else than JSON, as a page to log in is; check "
                "KUZNIA_FORGE_URL"
            ) from error

    def _pages(self, path: str, size: int, sizes: str, **given: Any) -> Iterator[Any]:
        page = 1
        while True:
            found = self._ask("GET", path, params={**given, sizes: size, "page": page})
            yield from found
            if not found:  # A forge may give fewer than asked for.
                return
            page += 1

    def files(self, branch: str, title: str, body: str) -> dict[str, bytes]:
        return {}


class _Pulls(_Web):
    """Gitea's and GitHub's pull requests, which look alike."""

    _path: str
    _most: tuple[int, str]
    """How many a page, and how to ask for that."""

    def open_pulls(self) -> dict[str, Pull]:
        return {pull.branch: pull for pull in self._ours(state="open")}

    def open_or_update(self, branch: str, title: str, body: str, base: str) -> Pull:
        text = {"title": title, "body": body}
        if old := self.open_pulls().get(branch):
            return _pull(self._ask("PATCH", f"{self._path}/{old.number}", json=text))
        return _pull(self._ask("POST", self._path, json={**text, "head": branch, "base": base}))

    def close(self, pull: Pull) -> None:
        self._ask("PATCH", f"{self._path}/{pull.number}", json={"state": "closed"})

    def _ours(self, **asked: Any) -> Iterator[Pull]:
        """Not those of forks, whose branches may have any name."""
        for found in self._pages(self._path, *self._most, **asked):
            if (found["head"]["repo"] or {}).get("id") == found["base"]["repo"]["id"]:
                yield _pull(found)


def _pull(found: Any) -> Pull:
    head = found["head"]
    return Pull(
        number=found["number"],
        branch=head["ref"],
        commit=head["sha"],
        state="merged" if found["merged_at"] else found["state"],
        url=found["html_url"],
        title=found["title"],
        body=found["body"] or "",
    )


class Gitea(_Pulls):
    """Gitea, and Forgejo."""

    _most = 50, "limit"

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        host, owner, name = _repository(url)
        self._path = f"/repos/{owner}/{name}/pulls"
        super().__init__(f"{host}/api/v1", {"Authorization": f"token {token}"}, transport)

    def newest(self, branch: str) -> Pull | None:
        every = self._ours(state="all", sort="recentupdate")
        return next((pull for pull in every if pull.branch == branch), None)


class GitHub(_Pulls):
    """GitHub, here or on a server of one's own."""

    _most = 100, "per_page"

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        host, self._owner, name = _repository(url)
        self._path = f"/repos/{self._owner}/{name}/pulls"
        parts = urlsplit(host)
        public = parts.netloc == "github.com"
        api = f"{parts.scheme}://api.{parts.netloc}" if public else f"{host}/api/v3"
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"}
        super().__init__(api, headers, transport)

    def newest(self, branch: str) -> Pull | None:
        asked = {"state": "all", "head": f"{self._owner}:{branch}"}
        found = map(_pull, self._ask("GET", self._path, params=asked))
        return max(found, key=lambda pull: pull.number, default=None)


class GitLab(_Web):
    """GitLab, whose pull requests are merge requests."""

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        parts = urlsplit(url.rstrip("/").removesuffix(".git"))
        project = quote(parts.path.strip("/"), safe="")
        self._path = f"/projects/{project}/merge_requests"
        api = f"{parts.scheme}://{parts.netloc}/api/v4"
        super().__init__(api, {"PRIVATE-TOKEN": token}, transport)

    def open_pulls(self) -> dict[str, Pull]:
        every = self._pages(self._path, 100, "per_page", state="opened")
        return {pull.branch: pull for pull in map(_gitlab, filter(_is_ours, every))}

    def newest(self, branch: str) -> Pull | None:
        asked = {"state": "all", "source_branch": branch}
        found = filter(_is_ours, self._ask("GET", self._path, params=asked))
        return max(map(_gitlab, found), key=lambda pull: pull.number, default=None)

    def open_or_update(self, branch: str, title: str, body: str, base: str) -> Pull:
        text = {"title": title, "description": body}
        if old := self.open_pulls().get(branch):
            return _gitlab(self._ask("PUT", f"{self._path}/{old.number}", json=text))
        branches = {"source_branch": branch, "target_branch": base}
        return _gitlab(self._ask("POST", self._path, json={**text, **branches}))

    def close(self, pull: Pull) -> None:
        self._ask("PUT", f"{self._path}/{pull.number}", json={"state_event": "close"})


def _is_ours(found: Any) -> bool:
    """Not of a fork."""
    return bool(found["source_project_id"] == found["target_project_id"])


def _gitlab(found: Any) -> Pull:
    states: dict[str, State] = {"opened": "open", "locked": "open", "merged": "merged"}
    return Pull(
        number=found["iid"],
        branch=found["source_branch"],
        commit=found["sha"] or "",
        state=states.get(found["state"], "closed"),
        url=found["web_url"],
        title=found["title"],
        body=found["description"] or "",
    )


class Plain:
    """Git alone: the branch is the request, a file in it the text, merging it the approval."""

    def open_pulls(self) -> dict[str, Pull]:
        return {}

    def newest(self, branch: str) -> Pull | None:
        return None

    def open_or_update(self, branch: str, title: str, body: str, base: str) -> Pull:
        return Pull(0, branch, "", "open", f"branch {branch}", title, body)

    def close(self, pull: Pull) -> None:
        """Nothing to do: whoever closes it deletes the branch."""

    def files(self, branch: str, title: str, body: str) -> dict[str, bytes]:
        name = "-".join(branch.split("/")[1:3])
        return {f"reviews/{name}.md": f"# {title}\n\n{body.strip()}\n".encode()}


def _repository(url: str) -> tuple[str, str, str]:
    """The forge's address, the owner and the repository's name."""
    host, _, rest = url.rstrip("/").removesuffix(".git").partition("://")
    parts = rest.split("/")
    if not rest or len(parts) < 3:
        raise InputError(
            f"KUZNIA_FORGE_URL: {url!r} is not a repository's page; set it as "
            "https://git.example.org/owner/name"
        )
    return f"{host}://{'/'.join(parts[:-2])}", parts[-2], parts[-1]


KINDS: dict[str, Callable[[str, str], Forge]] = {"gitea": Gitea, "github": GitHub, "gitlab": GitLab}


def token() -> str:
    """The token for the forge; empty for none."""
    return os.environ.get("KUZNIA_FORGE_TOKEN", "")


def forge() -> Forge:
    """The forge that the environment names; InputError if it does so wrongly."""
    kind = os.environ.get("KUZNIA_FORGE", "plain")
    if kind == "plain":
        return Plain()
    if kind not in KINDS:
        raise InputError(
            f"KUZNIA_FORGE: {kind!r} is not one of {', '.join(KINDS)}, plain; choose one of them"
        )
    if not token():
        raise InputError("KUZNIA_FORGE_TOKEN: is not set; set a token for pull requests")
    return KINDS[kind](os.environ.get("KUZNIA_FORGE_URL", ""), token())
