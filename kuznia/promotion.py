"""Changing a release by hand, in a checkout: from staging, from MLflow, or back to what was."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kuznia.card_views import read_card
from kuznia.contracts.base import load_yaml, parse
from kuznia.contracts.release import Stage
from kuznia.contracts.tenant import Platform
from kuznia.errors import InputError
from kuznia.forges import Forge
from kuznia.git import Git
from kuznia.registry import ModelVersion
from kuznia.releases import (
    Lines,
    card_files,
    change_message,
    lines_in,
    lines_of,
    objections,
    read_release,
    version_lines,
    write_release,
)
from kuznia.tree import PLATFORM, REGISTRY, release_path, tenant_file


@dataclass(frozen=True)
class Change:
    """A release that is to serve another version."""

    tenant: str
    model: str
    stage: Stage
    was: str | None
    """The version it serves now; None: nothing."""
    lines: Lines
    why: str
    kind: str
    """promote, stage or rollback: how its branch begins."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Every file that changes; empty if nothing is to do."""

    @property
    def path(self) -> Path:
        return release_path(self.tenant, self.model, self.stage)

    @property
    def version(self) -> str:
        return str(self.lines["version"])

    @property
    def branch(self) -> str:
        """The branch it is proposed on unless another is named."""
        return f"{self.kind}/{self.tenant}/{self.model}/{self.version}"


def promote(root: Path, tenant: str, model: str, source: Stage, target: Stage) -> Change:
    """What `source` serves is to be served by `target` too.

    Raises InputError if there is no such release, its card is not to be had, or says no.
    """
    path = release_path(tenant, model, source)
    lines = _lines_here(root, tenant, model, source)
    if lines is None:
        raise InputError(f"{path}: is not here; {_known(root, tenant, source)}")
    return _change(root, tenant, model, target, lines, f"As {source} serves it.", "promote")


def promote_version(root: Path, version: ModelVersion, target: Stage) -> Change:
    """A registered version is to be served by `target`; InputError if it must not be."""
    if found := objections(version):
        raise InputError(f"{version.name}@{version.version}: {why}" for why in found)
    why = f"MLflow's {version.name} version {version.number}."
    kind = "stage" if target == "staging" else "promote"
    return _change(root, version.tenant, version.model, target, lines_of(version), why, kind)


def roll_back(git: Git, tenant: str, model: str, stage: Stage, to: str | None) -> Change:
    """The release is to serve what it served before its last change, or version `to`.

    The version lines become what `git revert` would make them; cards of versions that were
    served stay, since they are evidence. Raises InputError if there is nothing to go back to.
    """
    path = release_path(tenant, model, stage)
    now = _lines_here(git.folder, tenant, model, stage)
    if now is None:
        raise InputError(f"{path}: is not here; {_known(git.folder, tenant, stage)}")
    changes = git.text("log", "--first-parent", "-m", "--format=%H %s", "--", str(path))
    served = [now["version"]]
    for change in changes.splitlines():
        commit, _, subject = change.partition(" ")
        before = lines_in(git.read(f"{commit}^", str(path)), f"{commit}^:{path}")
        if before is None:
            continue
        if before["version"] != served[-1]:
            served.append(before["version"])
        if before["digest"] == now["digest"] or not before["version"].startswith(to or ""):
            continue
        why = f'Back to what was served before "{subject}".\n\nThis reverts commit {commit}.'
        if to:
            why = f"Back to what was served before {commit[:12]}."
        return _change(git.folder, tenant, model, stage, before, why, "rollback")
    asked = f"never served {to}; it served {', '.join(served)}" if to else "served no other version"
    raise InputError(f"{path}: {asked}; `kuznia promote` brings one that is registered")


def apply(
    git: Git, change: Change, *, commit: bool = True, branch: str | None = None, forge: Forge | None
) -> dict[str, Any]:
    """Write the change into the checkout and commit it on a new branch, which is then current.

    With a forge the branch is pushed to `origin` and its pull request opened. Returns what was
    done, for JSON. Raises InputError if what it would write has changes that are not committed,
    or the branch exists.
    """
    branch, files = branch or change.branch, dict(change.files)
    base = _platform(git.folder).revision
    actor = git.text("var", "GIT_AUTHOR_IDENT").rpartition(">")[0] + ">" if commit else ""
    text = change_message(
        change.tenant, change.model, change.stage, change.lines, change.why, actor
    )
    title, _, body = text.partition("\n")
    if forge:
        files |= forge.files(change.branch, title, body)
    if commit:
        if dirty := git.text("status", "--porcelain", "--", *files):
            raise InputError(
                f"{line[3:] if len(line) > 3 else line}: has changes that are not committed; "
                "commit them or put them aside"
                for line in dirty.splitlines()
            )
        if git.tip(f"refs/heads/{branch}"):
            raise InputError(
                f"{branch}: exists already; remove it by `git branch -D {branch}`, or name another "
                "by --branch"
            )
        git.text("switch", "--quiet", "--create", branch)
    for name, content in files.items():
        path = git.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    done = {
        "model": f"{change.tenant}/{change.model}",
        "release": change.stage,
        "was": change.was,
        "version": change.version,
        "files": sorted(files),
        "base": base,
        "branch": branch if commit else None,
        "commit": None,
        "pull_request": None,
    }
    if commit:
        git.text("add", "--", *files)
        git.text("commit", "--quiet", "--message", text, "--only", "--", *files)
        done["commit"] = git.tip("HEAD")
    if forge:
        git.text("push", "--quiet", "--set-upstream", "origin", branch)
        done["pull_request"] = forge.open_or_update(branch, title, body.strip(), base).url
    return done


def since(git: Git) -> dict[str, str]:
    """When each release got its version: path and the date of the commit, ISO 8601."""
    found: dict[str, str] = {}
    date = ""
    said = git.text(
        *("log", "--first-parent", "-m", "--format=commit %cI", "--name-only", "-G^version:"),
        *("--", str(REGISTRY)),
    )
    for line in said.splitlines():
        if line.startswith("commit "):
            date = line.removeprefix("commit ")
        elif line:
            found.setdefault(line, date)
    return found


def _change(
    root: Path, tenant: str, model: str, stage: Stage, lines: Lines, why: str, kind: str
) -> Change:
    if not (root / tenant_file(tenant)).exists():
        raise InputError(f"{tenant_file(tenant)}: is missing; {_known(root, tenant, stage)}")
    now = _lines_here(root, tenant, model, stage)
    was = str(now["version"]) if now else None
    files: dict[str, bytes] = {}
    if now is None or now["digest"] != lines["digest"]:
        path = release_path(tenant, model, stage)
        lines, files = _with_card(root, tenant, model, stage, lines)
        old = (root / path).read_text("utf-8") if now else None
        files = {str(path): write_release(old, lines, str(path)).encode(), **files}
    return Change(tenant, model, stage, was, lines, why, kind, files)


def _with_card(
    root: Path, tenant: str, model: str, stage: Stage, lines: Lines
) -> tuple[Lines, dict[str, bytes]]:
    """The lines and the card's files that are not here yet; InputError if its verdict says no."""
    files: dict[str, bytes] = {}
    card = lines.get("card")
    if card is None or not (root / card).exists():
        found = card_files(tenant, model, lines)
        if found is None and stage == "production":
            raise InputError(
                f"{lines['uri']}: its card is on a volume that is not here; run this where it is"
            )
        files = found or {}
        card = next(iter(files), None)
    if card:
        text = files[card].decode() if card in files else (root / card).read_text("utf-8")
        verdict = read_card(text, card).evaluation.verdict.value
        if stage == "production" and verdict != "promote":
            raise InputError(f"{card}: the verdict is {verdict}; promote a version that passed")
    kept = {key: value for key, value in lines.items() if key != "card"}
    return kept | ({"card": card} if card else {}), files


def _lines_here(root: Path, tenant: str, model: str, stage: Stage) -> Lines | None:
    path = release_path(tenant, model, stage)
    try:
        text = (root / path).read_text("utf-8")
    except FileNotFoundError:
        return None
    return version_lines(read_release(text, str(path)))


def _known(root: Path, tenant: str, stage: Stage) -> str:
    """The way out where a tenant or release is not there: those that are."""
    here = sorted((root / REGISTRY).glob(f"*/*/{stage}.yaml"))
    names = ", ".join(f"{path.parts[-3]}/{path.parts[-2]}" for path in here)
    if names:
        return f"choose one of {names}"
    return f"no model is in {stage} here; look at --root, or promote a version of MLflow's"


def _platform(root: Path) -> Platform:
    try:
        text = (root / PLATFORM).read_text("utf-8")
    except FileNotFoundError:
        raise InputError(f"{root / PLATFORM}: is missing; name a registry by --root") from None
    platform: Platform = parse(Platform, load_yaml(text, str(PLATFORM)), str(PLATFORM))
    return platform
