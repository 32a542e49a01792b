"""The registry in git as the sync sees it: a bare copy, fetched anew for every pass.

Nothing is remembered between passes but what the remote has: the branch that is deployed, one
branch `sync/<tenant>/<model>` for each proposal, and `sync-state`, one JSON file a tenant with the
alias moves that have been answered: {model: {release: "<number>@<model's creation>"}}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from kuznia.contracts.base import load_yaml, parse
from kuznia.contracts.tenant import Tenant
from kuznia.errors import DependencyError, InputError
from kuznia.git import Git, access
from kuznia.tree import REGISTRY

STATE = "sync-state"
PROPOSALS = "sync/"
ADDED = "On-top-of"
"""Trailer of a proposal that stands on what a person added to the one before."""
Answered = dict[str, dict[str, str]]
"""By model and release: the pointer that has been answered."""


class Repository:
    """The remote repository. Raises DependencyError if git or the remote does not work."""

    def __init__(self, remote: str, branch: str, folder: Path, token: str, author: str) -> None:
        self.remote, self.branch, self.author = remote, branch, author
        folder.mkdir(parents=True, exist_ok=True)
        self.git = Git(folder, access(remote, token))
        self.git.text("init", "--quiet", "--bare")
        self.tips: dict[str, str] = {}
        self.pushed: set[str] = set()
        """Commits at the tip of a branch that were pushed from here."""
        self._tenants: dict[str, Tenant | InputError] = {}

    def fetch(self) -> None:
        """See every branch as it is now."""
        self.git.fetch(self.remote, self.branch, "sync*")
        self.tips = self.git.remote_tips()
        self.pushed &= set(self.tips.values())
        if self.branch not in self.tips:
            raise DependencyError(f"{self.remote}: has no branch {self.branch}; make it")

    @property
    def main(self) -> str:
        """The commit that is deployed."""
        return self.tips[self.branch]

    def proposals(self) -> list[str]:
        """Branches that the sync proposes."""
        return sorted(
            name for name in self.tips if name.startswith(PROPOSALS) and name.count("/") == 2
        )

    def tenants(self, fault: Callable[[str], None]) -> dict[str, Tenant]:
        """Every tenant whose file is right; each line of what is wrong goes to `fault`."""
        found = {}
        seen: dict[str, Tenant | InputError] = {}
        for path, blob in self.git.files(self.main, str(REGISTRY)).items():
            parts = Path(path).relative_to(REGISTRY).parts
            if len(parts) != 2 or parts[1] != "tenant.yaml":
                continue
            # A blob is named by its content: what was read once is right for ever.
            tenant = seen[blob] = self._tenants.get(blob) or self._read_tenant(blob, path)
            if isinstance(tenant, InputError):
                for problem in tenant.problems:
                    fault(problem)
            else:
                found[parts[0]] = tenant
        self._tenants = seen
        return found

    def answered(self, tenant: str) -> Answered:
        """The moves of a tenant that have been answered; none where nothing can be read."""
        text = self.git.read(self.tips[STATE], f"{tenant}.json") if STATE in self.tips else None
        if text is None:
            return {}
        try:
            found: Answered = json.loads(text)
        except ValueError:
            return {}
        return found

    def is_ours(self, commit: str) -> bool:
        """Whether a proposal is the sync's alone, without commits that people added."""
        asked = f"--format=%cn <%ce> %(trailers:key={ADDED},valueonly)"
        return self.git.text("log", "-1", asked, commit) == self.author

    def commit(self, parent: str | None, changes: Mapping[str, bytes], message: str) -> str:
        return self.git.commit(parent, changes, message, self.author)

    def push(self, moves: Mapping[str, str | None]) -> None:
        """Move branches from what they were at the last fetch, all or none; None: delete.

        Raises Conflict if one of them has moved.
        """
        self.git.push(
            self.remote, {name: (self.tips.get(name), new) for name, new in moves.items()}
        )
        self.tips = self.git.remote_tips()
        self.pushed |= {new for new in moves.values() if new}

    def _read_tenant(self, blob: str, path: str) -> Tenant | InputError:
        try:
            tenant: Tenant = parse(Tenant, load_yaml(self.git.blob(blob), path), path)
        except InputError as error:
            return error
        return tenant
