"""One pass: every alias that moved becomes a commit (staging) or a proposal (production).

An alias is a wish, git is the truth, and absence is no opinion (docs/adr/0010): a move is answered
once and remembered in git, so a rollback or a declined proposal stays as people left it; no
release is ever removed here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from kuznia.contracts.release import STAGES, Stage
from kuznia.contracts.runspec import NAME
from kuznia.contracts.tenant import Tenant
from kuznia.errors import DependencyError, InputError
from kuznia.forges import Forge
from kuznia.git import Conflict
from kuznia.registry import ModelVersion, RegisteredModel
from kuznia.releases import (
    Lines,
    card_files,
    change_message,
    lines_of,
    objections,
)
from kuznia.tree import release_path
from services.sync import metrics
from services.sync.proposals import Proposals
from services.sync.registries import FAILURES, Models, Registries
from services.sync.repository import PROPOSALS, STATE, Answered, Repository

TRIES = 5
"""How often a pass begins again because somebody else pushed."""


@dataclass(frozen=True)
class Move:
    """An alias that points to where it has not pointed before."""

    tenant: str
    model: str
    stage: Stage
    pointer: str
    """The version's number and the model's creation: a model made anew counts from 1 again."""
    version: ModelVersion

    @property
    def path(self) -> str:
        return str(release_path(self.tenant, self.model, self.stage))

    @property
    def place(self) -> str:
        return f"{self.tenant}/{self.model} {self.stage}, MLflow's number {self.version.number}"


class Sync:
    """What turns aliases into git; `one_pass` is all it does."""

    def __init__(
        self,
        repository: Repository,
        registries: Registries,
        forge: Forge,
        say: Callable[[str], None] = lambda line: print(f"sync: {line}", flush=True),
    ) -> None:
        self._repository, self._registries, self._print = repository, registries, say
        self._proposals = Proposals(repository, forge, say)
        self._said: dict[str, str] = {}

    def one_pass(self) -> bool:
        """Look once and do what is to do; False if something failed, of which a line says what."""
        start = time.monotonic()
        for _ in range(TRIES):
            try:
                whole = self._pass()
            except Conflict:
                metrics.CONFLICTS.inc()
                continue
            except DependencyError as error:
                self._fault("git", str(error))
                return False
            break
        else:
            self._fault("git", f"others pushed {TRIES} times in between; tried again later")
            return False
        self._said.pop("git", None)
        metrics.PASSES.observe(time.monotonic() - start)
        if whole:
            metrics.LAST.set_to_current_time()
        return whole

    def _pass(self) -> bool:
        self._repository.fetch()
        problems: list[str] = []
        tenants = self._repository.tenants(problems.append)
        awake = {name: tenant for name, tenant in tenants.items() if tenant.state == "active"}
        looked = self._registries.look(awake, self._print)
        whole = len(looked) == len(awake) and not problems
        self._once("registry", "; ".join(problems), "registry")
        for name, models in looked.items():
            try:
                self._tenant(name, awake[name], models)
            except Conflict:
                raise
            except FAILURES as error:
                whole = False
                self._once(name, f"{name}: {error}", "git")
            else:
                self._said.pop(name, None)
        unseen = self._proposals.see_to_all()
        self._once("forge", "; ".join(unseen), "forge")
        return whole and not unseen

    def _tenant(self, name: str, tenant: Tenant, models: Models) -> None:
        """Answer the moves of one tenant, with one push."""
        answered = self._repository.answered(name)
        withheld = dict.fromkeys(STAGES, 0)
        main = self._repository.main
        branches: dict[str, str | None] = {}
        done: list[tuple[Move, str]] = []
        for move in self._moves(name, models, answered):
            try:
                lines, files = self._wanted(move, tenant, main)
                outcome, commits = self._answer(move, lines, files, main)
            except (InputError, DependencyError) as error:
                # Not answered: the next pass asks again, since a card or a verdict may come yet.
                withheld[move.stage] += 1
                why = error.problems if isinstance(error, InputError) else [str(error)]
                self._once(move.place, f"{move.place}: not released: {'; '.join(why)}")
                continue
            self._said.pop(move.place, None)
            branches |= commits
            main = commits.get(self._repository.branch) or main
            answered.setdefault(move.model, {})[move.stage] = move.pointer
            done.append((move, outcome))
        for stage, count in withheld.items():
            metrics.WITHHELD.labels(name, stage).set(count)
        if not done:
            return
        text = json.dumps(answered, indent=1, sort_keys=True) + "\n"
        changes = {f"{name}.json": text.encode()}
        branches[STATE] = self._repository.commit(
            self._repository.tips.get(STATE), changes, f"{name}: {len(done)} moves answered\n"
        )
        self._repository.push(branches)
        for move, outcome in done:
            metrics.MOVES.labels(name, move.stage, outcome).inc()
            if outcome != "none":
                self._print(f"{move.place}: {move.version.version}: {outcome}")

    def _moves(self, tenant: str, models: Models, answered: Answered) -> list[Move]:
        """The aliases that moved, staging first; only their versions are asked for."""
        found = []
        for model, registered in sorted(models.items()):
            for stage in STAGES:
                number = registered.aliases.get(stage)
                pointer = f"{number}@{registered.created}"
                if number is None or answered.get(model, {}).get(stage) == pointer:
                    continue
                if not re.fullmatch(NAME, model):
                    self._once(registered.name, f"{registered.name}: is no name of a model")
                elif version := self._version(tenant, registered, number):
                    found.append(Move(tenant, model, stage, pointer, version))
        return found

    def _version(self, tenant: str, model: RegisteredModel, number: int) -> ModelVersion | None:
        return model.newest.get(number) or self._registries.of(tenant).version(model.name, number)

    def _wanted(self, move: Move, tenant: Tenant, main: str) -> tuple[Lines, dict[str, bytes]]:
        """The version lines and the files that come with them; InputError if it must not be."""
        version = move.version
        problems = objections(version)
        own = f"{tenant.storage.store.rstrip('/')}/models/{move.tenant}/{move.model}/"
        if version.uri != own + version.version:
            problems.append(f"it is at {version.uri}, not in the tenant's {own}")
        if problems:
            raise InputError(problems)
        lines = lines_of(version)
        files = card_files(move.tenant, move.model, lines)
        if files is None and self._repository.git.read(main, lines["card"]) is None:
            del lines["card"]
        return lines, files or {}

    def _answer(
        self, move: Move, lines: Lines, files: dict[str, bytes], main: str
    ) -> tuple[str, dict[str, str | None]]:
        """What comes of a move, and where branches go for it."""
        proposals = self._proposals
        branch = f"{PROPOSALS}{move.tenant}/{move.model}"
        if proposals.has(main, move.path, lines):
            # Back to what is served: an open proposal of something else is no longer wished.
            gone = move.stage == "production" and proposals.withdraw(branch)
            return "none", ({branch: None} if gone else {})
        message = change_message(
            move.tenant,
            move.model,
            move.stage,
            lines,
            f"MLflow's alias {move.stage} of {move.version.name} points to version "
            f"{move.version.number}.{_scores(move.version)}",
            self._repository.author,
        )
        if move.stage == "staging":
            return "commit", {
                self._repository.branch: proposals.commit(main, move.path, lines, files, message)
            }
        tip = self._repository.tips.get(branch)
        if tip and proposals.has(tip, move.path, lines):
            return "none", {}
        return "proposal", {branch: proposals.propose(branch, lines, files, message)}

    def _fault(self, part: str, line: str) -> None:
        self._once(part, line, part)

    def _once(self, key: str, line: str, part: str = "") -> None:
        """Say a line unless it was the last one about `key`; nothing for an empty one."""
        if line and part:
            metrics.FAULTS.labels(part).inc()
        if line and self._said.get(key) != line:
            self._print(line)
        if line:
            self._said[key] = line
        else:
            self._said.pop(key, None)


def _scores(version: ModelVersion) -> str:
    scores = ", ".join(f"{name} {value:.3f}" for name, value in version.scores.items())
    return f" Scores: {scores}." if scores else ""
