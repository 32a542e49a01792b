"""Proposals: a branch a model, `sync/<tenant>/<model>`, and the pull request that shows it.

The branch is the whole memory: its last commit holds the title and the text, and it is removed
when its release is in, was declined, or is no longer wished. A forge that two ask at once opens two
pull requests, so only the process that pushed a branch asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kuznia.errors import DependencyError, KuzniaError
from kuznia.forges import Forge, Plain, Pull
from kuznia.git import Conflict
from kuznia.releases import Lines, lines_in, write_release
from kuznia.tree import release_path
from services.sync import metrics
from services.sync.repository import ADDED, Repository

PATIENCE = 25.0
"""Seconds that a branch of another process may wait for its pull request: more than a forge has to
answer in."""


class Proposals:
    """What waits for people. Raises Conflict and DependencyError, as its repository and forge."""

    def __init__(self, repository: Repository, forge: Forge, say: Callable[[str], None]) -> None:
        self._repository, self._forge, self._say = repository, forge, say
        self._waiting: dict[str, float] = {}
        """Commits of others without a pull request, and since when."""

    def has(self, commit: str, path: str, lines: Lines) -> bool:
        """Whether the release at `commit` means the same weights as `lines`."""
        found = self._lines_at(commit, path)
        return found is not None and found["digest"] == lines["digest"]

    def commit(
        self, parent: str, path: str, lines: Lines, files: dict[str, bytes], message: str
    ) -> str:
        """A commit on `parent` that releases `lines`; InputError if the file there forbids it."""
        text = write_release(self._repository.git.read(parent, path), lines, path)
        return self._repository.commit(parent, {path: text.encode(), **files}, message)

    def propose(self, branch: str, lines: Lines, files: dict[str, bytes], message: str) -> str:
        """The commit that `branch` shall be: on top of what is deployed, or of what people added
        to the proposal before."""
        parent, tip = self._repository.main, self._repository.tips.get(branch)
        if tip and not self._repository.is_ours(tip):
            parent, message = tip, f"{message}{ADDED}: {tip}\n"
        more = self._forge.files(branch, *_title_and_text(message))
        return self.commit(parent, _path_of(branch), lines, files | more, message)

    def withdraw(self, branch: str) -> bool:
        """Close the pull request; whether the branch is the sync's to remove."""
        tip = self._repository.tips.get(branch)
        if tip is None or not self._repository.is_ours(tip):
            return False
        if pull := self._forge.open_pulls().get(branch):
            self._forge.close(pull)
        return True

    def see_to_all(self) -> list[str]:
        """Every proposal is asked for, fits what is deployed, and is gone when it is answered.

        Returns what failed; one that fails holds up no other.
        """
        branches, problems = self._repository.proposals(), []
        metrics.PROPOSALS.set(len(branches))
        tips = {self._repository.tips[branch] for branch in branches}
        self._waiting = {tip: since for tip, since in self._waiting.items() if tip in tips}
        try:
            pulls = self._forge.open_pulls() if branches else {}
        except DependencyError as error:
            return [str(error)]
        for branch in branches:
            try:
                self._see_to(branch, pulls.get(branch))
            except Conflict:
                raise
            except KuzniaError as error:
                problems.append(f"{branch}: {error}")
        return problems

    def _see_to(self, branch: str, pull: Pull | None) -> None:
        repository, path = self._repository, _path_of(branch)
        tip = repository.tips[branch]
        ours, is_in = repository.is_ours(tip), not self._commits(tip)
        lines = self._lines_at(tip, path)
        if is_in or (ours and (lines is None or self.has(repository.main, path, lines))):
            if pull:
                self._forge.close(pull)
            self._end(branch, "is in, or says nothing")
            return
        words = self._commits(tip, f"--committer={_mail_of(repository.author)}")
        if ours and lines and self._is_stale(tip, path):
            tip = self._make_anew(branch, lines, words)
        if not words or isinstance(self._forge, Plain):
            return
        if pull is None:
            last = self._forge.newest(branch)
            if last and last.state != "open" and last.commit == tip:
                self._end(branch, f"was {last.state}: {last.url}")
                return
            if not self._may_ask(branch, lines, words):
                return
        title, text = _title_and_text(words)
        if pull is None or pull.title != title:
            pull = self._forge.open_or_update(branch, title, text, repository.branch)
            self._say(f"{branch}: {pull.url}")

    def _commits(self, tip: str, *which: str) -> str:
        """The message of the last commit that is proposed; empty if there is none of these."""
        asked = ("log", "-1", "--format=%B", "--fixed-strings", *which)
        return self._repository.git.text(*asked, f"{self._repository.main}..{tip}")

    def _may_ask(self, branch: str, lines: Lines | None, words: str) -> bool:
        """Whether this process pushed the branch; it does so anew where nobody has asked for it in
        time. Of two that do, one push wins."""
        tip, now = self._repository.tips[branch], time.monotonic()
        if tip in self._repository.pushed:
            return True
        if now - self._waiting.setdefault(tip, now) < PATIENCE:
            return False
        if lines:
            self._make_anew(branch, lines, words)
        return True

    def _make_anew(self, branch: str, lines: Lines, message: str) -> str:
        git, tip = self._repository.git, self._repository.tips[branch]
        names = git.text("diff", "--name-only", f"{tip}^", tip, "--", "model-cards").splitlines()
        files = {name: (git.read(tip, name) or "").encode() for name in names}
        made = self.propose(branch, lines, files, f"{message}\n")
        self._repository.push({branch: made})
        self._say(f"{branch}: made anew on top of {self._repository.main[:12]}")
        return made

    def _lines_at(self, commit: str, path: str) -> Lines | None:
        """The version lines of a release; None if there is none, or no valid one."""
        return lines_in(self._repository.git.read(commit, path), path)

    def _is_stale(self, tip: str, path: str) -> bool:
        """Whether the release has changed on the deployed branch since the proposal was made."""
        git = self._repository.git
        return git.read(f"{tip}^", path) != git.read(self._repository.main, path)

    def _end(self, branch: str, why: str) -> None:
        self._repository.push({branch: None})
        self._say(f"{branch}: {why}; the branch is removed")


def _mail_of(author: str) -> str:
    return author.partition("<")[2].rstrip(">")


def _path_of(branch: str) -> str:
    """The file that a proposal changes."""
    _, tenant, model = branch.split("/")
    return str(release_path(tenant, model, "production"))


def _title_and_text(message: str) -> tuple[str, str]:
    title, _, text = message.partition("\n")
    return title, text.strip()
