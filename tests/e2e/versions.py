"""Versions of a tiny model in a tenant's store, signed or not, as a chain would have left them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kuznia.manifest import manifest_digest
from kuznia.signing import sign_folder
from kuznia.store import open_store
from tests.e2e.cluster import Tenant
from tests.e2e.conftest import variables
from workflows.environments import ROOT, python_of, variables_of

MODEL = "bot"
PROGRAM = ROOT / "tests" / "fixtures" / "make_versions.py"
SMALL = {"cpu": 0.25, "memory_gib": 4, "disk_gib": 1, "context_length": 256}
"""What a release of it needs."""


@dataclass(frozen=True)
class Version:
    """A version as a folder here."""

    folder: Path
    answers: Path

    @property
    def digest(self) -> str:
        return manifest_digest(self.folder)


def make(base: Path, folder: Path, *seeds: int) -> list[Version]:
    """Versions that answer otherwise than their base and than each other."""
    folder.mkdir()
    subprocess.run(
        [python_of("train"), PROGRAM, base, folder, *map(str, seeds)],
        check=True,
        env=os.environ | variables_of("train"),
    )
    return [Version(folder / str(seed), folder / f"{seed}.json") for seed in seeds]


def store(
    tenant: Tenant,
    version: Version,
    key: Path | None,
    spoil: Callable[[Path], Any] | None = None,
) -> dict[str, Any]:
    """Put a version into the tenant's store; the lines of a release file that serve it.

    `key` signs it, None leaves it unsigned; `spoil` changes the folder after that.
    """
    digest, name = version.digest, version.digest[:12]
    copy = version.folder.with_name(f"{version.folder.name}-{name}-{tenant.name}")
    shutil.copytree(version.folder, copy, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        if key:
            patch.setenv("KUZNIA_SIGNING_KEY", str(key))
            sign_folder(copy)
    if spoil:
        spoil(copy)
    answers = f"runs/{tenant.name}/{name}/verify/answers.json"
    folder = f"models/{tenant.name}/{MODEL}/{name}"
    with variables(tenant):
        place = open_store(tenant.store)
        for path in sorted(copy.rglob("*")):
            if path.is_file():
                place.put_file(path, f"{folder}/{path.relative_to(copy)}")
        place.put_file(version.answers, answers)
    return {
        "version": name,
        "digest": digest,
        "uri": f"{tenant.store}/{folder}",
        "base": "smollm2-135m-instruct",
        "answers_uri": f"{tenant.store}/{answers}",
        "answers_sha256": hashlib.sha256(version.answers.read_bytes()).hexdigest(),
    }
