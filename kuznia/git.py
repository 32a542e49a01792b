"""The git program in one repository: reading revisions, commits without a working tree, pushing.

A push names what it expects the remote to have (compare and swap), all its branches or none: of
two that push at once one wins, and the other hears of it as a Conflict.
"""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from kuznia.errors import DependencyError, InputError

TIMEOUT = 120
"""Seconds that git may take over the network."""
REJECTED = ("[rejected]", "cannot lock ref", "failed to update ref", "incorrect old value")
REMOTE = "refs/remotes/origin/"
MADE = "refs/kuznia/made"
"""Where the last commit made here is, so that git does not collect it."""


class Conflict(DependencyError):
    """Somebody else pushed in between; fetch, look again, and push again."""


class Git:
    """One repository on this machine. Every method raises DependencyError if git fails."""

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        """`variables`: more environment variables, as those of `access`."""
        self.folder = folder
        self._variables = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        self._variables |= dict(variables or {})

    def text(self, *words: str, given: bytes | None = None) -> str:
        """What `git words...` says, without white space around it."""
        done = self._run(words, given)
        if done.returncode:
            raise DependencyError(_failure(self.folder, words, done))
        return done.stdout.decode(errors="replace").strip()

    def tip(self, name: str) -> str | None:
        """The commit that a branch, tag or other name means; None if there is none."""
        done = self._run(("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"))
        return done.stdout.decode().strip() if done.returncode == 0 else None

    def remote_tips(self) -> dict[str, str]:
        """The branches of the remote as last fetched, with their commits."""
        lines = self.text("for-each-ref", "--format=%(refname) %(objectname)", REMOTE).splitlines()
        return dict(line.removeprefix(REMOTE).split() for line in lines)

    def files(self, revision: str, *paths: str) -> dict[str, str]:
        """Every file of a revision, below `paths` if any are given: path and blob."""
        found = {}
        for entry in self.text("ls-tree", "-r", "-z", revision, "--", *paths).split("\0"):
            if entry:
                facts, path = entry.split("\t", 1)
                found[path] = facts.split()[2]
        return found

    def read(self, revision: str, path: str) -> str | None:
        """A file of a revision; None if there is none."""
        done = self._run(("cat-file", "blob", f"{revision}:{path}"))
        return done.stdout.decode() if done.returncode == 0 else None

    def blob(self, name: str) -> str:
        """The text of a blob by its digest."""
        done = self._run(("cat-file", "blob", name))
        if done.returncode:
            raise DependencyError(_failure(self.folder, ("cat-file", "blob", name), done))
        return done.stdout.decode()

    def commit(
        self, parent: str | None, changes: Mapping[str, bytes], message: str, author: str
    ) -> str:
        """A commit on top of `parent` (None: without one) with files written; no branch moves.

        `author` as `Name <mail>`. Returns its digest.
        """
        said = message.encode()
        parts = [b"commit %s\ncommitter %s now\n" % (MADE.encode(), author.encode())]
        parts.append(b"data %d\n%s\n" % (len(said), said))
        if parent:
            parts.append(b"from %s\n" % parent.encode())
        for path, content in changes.items():
            parts.append(b"M 100644 inline %s\n" % path.encode())
            parts.append(b"data %d\n%s\n" % (len(content), content))
        self._run(("update-ref", "-d", MADE))
        self.text("fast-import", "--quiet", "--force", "--date-format=now", given=b"".join(parts))
        return self.text("rev-parse", MADE)

    def fetch(self, remote: str, *branches: str) -> None:
        """Bring branches (or patterns with *) as they are now; forget those that are gone."""
        wanted = [f"+refs/heads/{each}:{REMOTE}{each}" for each in branches]
        self._over_network(
            remote, ("fetch", "--quiet", "--prune", "--no-tags", "--force", remote, *wanted)
        )

    def push(self, remote: str, moves: Mapping[str, tuple[str | None, str | None]]) -> None:
        """Move branches, each from what it is to what it shall be; None: it does not exist.

        All move or none. Raises Conflict if one is no longer what was expected, also where it is
        already what it shall be: two can make the same commit in the same second, and only one of
        them has pushed it.
        """
        leases, wanted = [], []
        for branch, (was, new) in moves.items():
            leases.append(f"--force-with-lease=refs/heads/{branch}:{was or ''}")
            wanted.append(f"{new or ''}:refs/heads/{branch}")
        said = self._over_network(
            remote, ("push", "--porcelain", "--atomic", *leases, remote, *wanted)
        )
        if any(line.startswith("=") for line in said.splitlines()):
            raise _conflict(remote)
        for branch, (_, new) in moves.items():
            here = f"{REMOTE}{branch}"
            self.text("update-ref", *((here, new) if new else ("-d", here)))

    def _over_network(self, remote: str, words: tuple[str, ...]) -> str:
        done = self._run(words)
        if not done.returncode:
            return done.stdout.decode(errors="replace")
        said = (done.stdout + done.stderr).decode(errors="replace")
        place = _without_password(remote)
        if any(word in said for word in REJECTED) and "hook declined" not in said:
            raise _conflict(remote)
        raise DependencyError(
            f"{place}: git {words[0]} failed ({_reason(said)}); check the address, the account "
            "and what it may push to"
        )

    def _run(
        self, words: tuple[str, ...], given: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                ("git", *words),
                cwd=self.folder,
                env=self._variables,
                input=given,
                stdin=subprocess.DEVNULL if given is None else None,
                capture_output=True,
                check=False,
                timeout=TIMEOUT,
            )
        except FileNotFoundError:
            raise DependencyError(
                f"git in {self.folder}: no such program or folder; install git"
            ) from None
        except subprocess.TimeoutExpired:
            raise DependencyError(
                f"git {words[0]} in {self.folder}: no answer in {TIMEOUT} s; try again"
            ) from None


def checkout_of(folder: Path) -> Git:
    """The checkout that `folder` lies in; InputError if it lies in none."""
    try:
        return Git(Path(Git(folder).text("rev-parse", "--show-toplevel")))
    except DependencyError:
        raise InputError(f"{folder}: is in no git checkout; name one that is by --root") from None


def access(remote: str, token: str) -> dict[str, str]:
    """Environment variables with which git shows `token` to the remote's host, and to no other.

    Not in the address and not among the arguments, where others could read it.
    """
    if not token:
        return {}
    parts = urlsplit(remote)
    words = base64.b64encode(f"oauth2:{token}".encode()).decode()
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{parts.scheme}://{parts.netloc}/.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Basic {words}",
    }


def message(subject: str, body: str, trailers: Mapping[str, str]) -> str:
    """A commit message that ends in trailers (`git interpret-trailers` reads them)."""
    ends = "\n".join(f"{key}: {' '.join(value.split())}" for key, value in trailers.items())
    return "\n\n".join(part for part in (subject, body.strip(), ends) if part) + "\n"


def _conflict(remote: str) -> Conflict:
    place = _without_password(remote)
    return Conflict(f"{place}: somebody else pushed in between; fetch and try again")


def _failure(folder: Path, words: tuple[str, ...], done: subprocess.CompletedProcess[bytes]) -> str:
    said = _reason(done.stderr.decode(errors="replace") or done.stdout.decode(errors="replace"))
    return f"{folder}: git {words[0]} failed ({said}); see `git status` there"


def _reason(said: str) -> str:
    """The line of git's output that says why."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for start in ("remote: error:", "fatal:", "error:", "!"):
        if found := [line for line in lines if line.startswith(start)]:
            return found[0]
    return lines[-1] if lines else "it said nothing"


def _without_password(remote: str) -> str:
    account, at, _ = urlsplit(remote).netloc.rpartition("@")
    return remote.replace(account + at, "", 1) if at else remote
