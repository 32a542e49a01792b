"""The registry in git: every tenant and every release, as people wrote them.

argocd/registry/platform.yaml, soft.yaml where there is one, <tenant>/tenant.yaml,
<tenant>/<model>/{staging,production}.yaml.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from kuznia.contracts.base import Contract, load_yaml, parse
from kuznia.contracts.release import STAGES, Release, Stage
from kuznia.contracts.runspec import NAME, Risk
from kuznia.contracts.soft import Soft
from kuznia.contracts.tenant import Platform, Tenant
from kuznia.errors import InputError

if TYPE_CHECKING:
    from kuznia.contracts.card import Card

REGISTRY = Path("argocd/registry")
PLATFORM = REGISTRY / "platform.yaml"
SOFT = REGISTRY / "soft.yaml"
"""Words and lower limits of models; it need not be there."""


@dataclass(frozen=True)
class Deployed:
    """A release and where it is written."""

    tenant: str
    model: str
    stage: Stage
    release: Release

    @property
    def path(self) -> Path:
        """Its file, relative to the checkout."""
        return release_path(self.tenant, self.model, self.stage)

    @property
    def asked(self) -> str:
        """As clients ask for it: `acme/support`."""
        return f"{self.tenant}/{self.model}"

    @property
    def name(self) -> str:
        """Its Argo CD Application."""
        return f"{self.tenant}-{self.model}-{self.stage}"


@dataclass(frozen=True)
class Tree:
    """The whole registry, read."""

    root: Path
    """The checkout."""
    platform: Platform
    tenants: dict[str, Tenant]
    releases: tuple[Deployed, ...]
    soft: Soft = field(default_factory=Soft)

    def of(self, tenant: str) -> list[Deployed]:
        """The releases of a tenant, by model and stage."""
        return [each for each in self.releases if each.tenant == tenant]

    def card_of(self, release: Release) -> Card | None:
        """The card that a release names; None where it names none.

        Raises FileNotFoundError if it is not here, InputError if it is none.
        """
        from kuznia.card_views import read_card

        if release.card is None:
            return None
        return read_card((self.root / release.card).read_text("utf-8"), release.card)

    def risk_of(self, release: Release) -> Risk | None:
        """The risk class on the release's card; None where there is no card to read."""
        try:
            card = self.card_of(release)
        except (FileNotFoundError, InputError):
            return None  # `problems_of_tree` says so.
        return card.purpose.risk.value if card else None


def tenant_file(tenant: str) -> Path:
    """Where a tenant is written, relative to the checkout."""
    return REGISTRY / tenant / "tenant.yaml"


def release_path(tenant: str, model: str, stage: Stage) -> Path:
    """Where a release is written, relative to the checkout."""
    return REGISTRY / tenant / model / f"{stage}.yaml"


def load_tree(root: Path) -> Tree:
    """Read the registry of the checkout `root`; InputError with every fault of every file."""
    tree, problems = read_tree(root)
    if tree is None or problems:
        raise InputError(problems)
    return tree


def read_tree(root: Path) -> tuple[Tree | None, list[str]]:
    """What can be read of the registry, None without platform.yaml, and every fault of it."""
    problems: list[str] = []
    read = _Reader(root, problems)
    platform = read.file(Platform, PLATFORM)
    tenants: dict[str, Tenant] = {}
    releases: list[Deployed] = []
    soft = read.file(Soft, SOFT) if (root / SOFT).exists() else None
    for folder in read.folders(REGISTRY, "tenant", {"platform.yaml", "soft.yaml"}):
        if found := read.file(Tenant, tenant_file(folder)):
            tenants[folder] = found
        for model in read.folders(REGISTRY / folder, "model", {"tenant.yaml"}):
            here = REGISTRY / folder / model
            known = {f"{stage}.yaml" for stage in STAGES}
            list(read.folders(here, "", known))
            for stage in STAGES:
                if (root / here / f"{stage}.yaml").exists():
                    release = read.file(Release, here / f"{stage}.yaml")
                    if release:
                        releases.append(Deployed(folder, model, stage, release))
    if platform is None:
        return None, problems
    return Tree(root, platform, tenants, tuple(releases), soft or Soft()), problems


@contextmanager
def tree_at(root: Path, revision: str) -> Iterator[Path]:
    """What deploys, as `revision` of the checkout `root` has it, in a folder for as long as needed.

    Raises InputError if there is no such revision.
    """

    def git(*arguments: str) -> bytes:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
        if done.returncode:
            why = done.stderr.decode(errors="replace").strip().splitlines()[-1]
            raise InputError(
                f"{revision}: git cannot read it ({why}); name a branch, tag or commit"
            )
        return done.stdout

    parts = git("ls-tree", "--name-only", revision, "argocd", "helm").decode().split()
    with TemporaryDirectory() as folder:
        if parts:
            archived = git("archive", "--format=tar", revision, *parts)
            with tarfile.open(fileobj=BytesIO(archived)) as archive:
                archive.extractall(folder, filter="data")
        yield Path(folder)


T = TypeVar("T", bound=Contract)


class _Reader:
    """Reads files and keeps what is wrong with them."""

    def __init__(self, root: Path, problems: list[str]) -> None:
        self.root, self.problems = root, problems

    def file(self, model: type[T], path: Path) -> T | None:
        try:
            text = (self.root / path).read_text("utf-8")
            found: T = parse(model, load_yaml(text, str(path)), str(path))
        except FileNotFoundError:
            self.problems.append(f"{path}: is missing; add it")
        except InputError as error:
            self.problems += error.problems
        else:
            return found
        return None

    def folders(self, path: Path, what: str, files: Iterable[str]) -> Iterator[str]:
        """Names of the folders in `path`; anything that is neither these nor `files` is a fault."""
        for entry in sorted((self.root / path).iterdir()) if (self.root / path).is_dir() else []:
            if entry.is_dir() and what:
                if re.fullmatch(NAME, entry.name):
                    yield entry.name
                else:
                    self.problems.append(
                        f"{path / entry.name}: is no name of a {what}; use small letters, digits "
                        "and -, 40 at most"
                    )
            elif entry.name not in files:
                expected = ", ".join([*sorted(files), *([f"a folder a {what}"] if what else [])])
                self.problems.append(
                    f"{path / entry.name}: does not belong here; only {expected} may be here"
                )
