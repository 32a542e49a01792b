from __future__ import annotations

import json
from pathlib import Path

import pytest

from kuznia.errors import InputError
from kuznia.manifest import (
    MANIFEST,
    SIGNATURE,
    manifest_digest,
    read_manifest,
    verify_folder,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"weights")
    (folder / "sub" / "config.json").write_bytes(b"{}")
    return folder


def test_a_manifest_lists_every_file_in_order(folder: Path) -> None:
    digest = write_manifest(folder, "adapter", {"base": "abc"})
    manifest = read_manifest(folder)
    assert [(entry.path, entry.size) for entry in manifest.files] == [
        ("sub/config.json", 2),
        ("weights.bin", 7),
    ]
    assert manifest.bytes == 9
    assert manifest.about == {"base": "abc"}
    assert digest == manifest_digest(folder)
    assert verify_folder(folder, digest) == manifest


def test_equal_content_has_an_equal_name(folder: Path, tmp_path: Path) -> None:
    first = write_manifest(folder, "base")
    other = tmp_path / "other"
    (other / "sub").mkdir(parents=True)
    (other / "sub" / "config.json").write_bytes(b"{}")
    (other / "weights.bin").write_bytes(b"weights")
    assert write_manifest(other, "base") == first
    assert write_manifest(folder, "base") == first
    assert write_manifest(folder, "full") != first


def test_every_difference_is_named_at_once(folder: Path) -> None:
    write_manifest(folder, "base")
    (folder / "weights.bin").write_bytes(b"WEIGHTS")
    (folder / "sub" / "config.json").unlink()
    (folder / "new.txt").write_text("new")
    with pytest.raises(InputError) as caught:
        verify_folder(folder, "0" * 64)
    assert [problem.removeprefix(f"{folder}/") for problem in caught.value.problems] == [
        f"{MANIFEST}: digest {manifest_digest(folder)[:12]} is not 000000000000; fetch it again",
        "sub/config.json: is missing; fetch the folder again",
        "weights.bin: differs from the manifest; do not use it, fetch it again",
        "new.txt: is not in the manifest; remove it",
    ]


def test_a_signature_is_no_part_of_the_content(folder: Path) -> None:
    digest = write_manifest(folder, "version")
    (folder / SIGNATURE).write_bytes(b"signature")
    verify_folder(folder, digest)
    assert write_manifest(folder, "version") == digest


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "sub/../../out", ""])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(folder: Path, path: str) -> None:
    entry = {"path": path, "size": 1, "sha256": "0" * 64}
    (folder / MANIFEST).write_text(json.dumps({"kind": "version", "files": [entry]}))
    with pytest.raises(InputError, match=r"files.0.path: .* leads out of the folder; do not use"):
        read_manifest(folder)


def test_progress_counts_bytes(folder: Path) -> None:
    write_manifest(folder, "base")
    said: list[tuple[int, int]] = []
    verify_folder(folder, progress=lambda done, total: said.append((done, total)))
    assert said == [(2, 9), (9, 9)]


def test_a_folder_without_a_manifest(folder: Path) -> None:
    with pytest.raises(InputError, match="is missing; this is not a published folder"):
        read_manifest(folder)


def test_a_manifest_that_is_none(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"kind": "poem", "files": []}))
    with pytest.raises(InputError, match=r"manifest.json: kind: 'poem' is not one of 'base'"):
        read_manifest(folder)
