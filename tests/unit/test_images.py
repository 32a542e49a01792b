"""The Dockerfiles, the shared lock and the program that builds them; the builder is a recorder."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kuznia import __version__
from scripts import images, torch_lock

ROOT = images.ROOT
DOCKERFILES = {name: ROOT / "images" / name / "Dockerfile" for name in images.NAMES}
RECORDER = "import sys; open(sys.argv[1], 'a').write(' '.join(sys.argv[2:]) + chr(10))"


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that gets a line for every call of the builder."""
    calls = tmp_path / "calls"
    words = [sys.executable, "-c", RECORDER, str(calls)]
    monkeypatch.setenv("KUZNIA_IMAGE_BUILDER", shlex.join(words))
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_the_shared_layer_holds_what_every_image_on_it_pins() -> None:
    shared = torch_lock.pins(torch_lock.SHARED.read_text("utf-8"))
    assert {"torch", "torchvision", "torchaudio", "triton", "nvidia-cudnn-cu13"} <= set(shared)
    for lock in ("train/requirements", "serve/requirements", "serve/requirements-cuda"):
        text = (ROOT / "images" / f"{lock}.lock").read_text("utf-8")
        pinned = torch_lock.pins(text)
        differ = [name for name in shared if pinned.get(name) != shared[name]]
        assert differ == [], f"{lock}.lock: run `make lock`"


def test_images_share_their_first_layer_and_carry_their_labels() -> None:
    texts = {name: path.read_text("utf-8") for name, path in DOCKERFILES.items()}
    first = {re.search(r"^FROM debian.*?^FROM", text, re.S | re.M) for text in texts.values()}
    assert len({found[0] for found in first if found}) == 1
    for name, text in texts.items():
        assert f'org.opencontainers.image.title="kuznia/{name}"' in text
        assert 'org.opencontainers.image.licenses="Apache-2.0"' in text
        assert ":latest" not in text
        assert set(re.findall(r"^FROM (\S+)", text, re.M)) <= {
            "debian:${DEBIAN}",
            "kuznia/torch:${VERSION}",
            "python",
        }
        if name != "torch":
            assert text.count("USER 65532:65532\n") == 1
            assert 'version="${VERSION}"' in text


def test_all_images_are_built_in_order_with_what_each_declares(recorded: Path) -> None:
    assert images.main([]) == 0
    calls = recorded.read_text("utf-8").splitlines()
    assert [call.split()[-2:] for call in calls] == [
        [".", f"kuznia/{name}:{__version__}"] for name in images.NAMES
    ]
    for name, call in zip(images.NAMES, calls, strict=True):
        given = dict(re.findall(r"--build-arg (\w+)=(\S+)", call))
        declared = re.findall(r"^ARG (\w+)", DOCKERFILES[name].read_text("utf-8"), re.M)
        assert set(given) == set(declared) - {"PIP_INDEX_URL", "UV_DEFAULT_INDEX"}


def test_only_the_named_images_are_built(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.test/simple")
    assert images.main(["serve", "platform", "--variant", "cuda"]) == 0
    platform, serve = recorded.read_text("utf-8").splitlines()
    assert "images/platform/Dockerfile" in platform
    assert "--build-arg VARIANT=cuda" in serve
    assert "--build-arg PIP_INDEX_URL=https://packages.test/simple" in serve


def test_refusals_name_the_way_out(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert images.main(["trian"]) == 2
    assert images.main(["--push", "registry.test"]) == 2
    assert not recorded.exists()
    monkeypatch.setenv("KUZNIA_IMAGE_BUILDER", "false")
    assert images.main(["mlflow"]) == images.main(["train"]) == 3
    monkeypatch.setenv("KUZNIA_IMAGE_BUILDER", "no-such-builder --fast")
    assert images.main(["mlflow"]) == 2
    said = capfd.readouterr().err
    assert "KUZNIA_IMAGE_BUILDER: no-such-builder: no such command" in said
    assert "trian: is no image; give one of torch, platform" in said
    assert "unset it, so that docker or buildah builds and pushes" in said
    assert "images/mlflow/Dockerfile: false ended with exit code 1" in said
    assert "run `make images NAMES=mlflow`" in said
    assert "`make images NAMES=torch` if kuznia/torch is missing" in said


def test_without_a_builder_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUZNIA_IMAGE_BUILDER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert images.main([]) == 3
    assert "neither a running docker nor buildah is here" in capfd.readouterr().err


@pytest.mark.parametrize(("name", "suffix"), [("mlflow", ""), ("serve", "-cuda")])
def test_what_was_pushed_is_named_by_digest(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A docker that only notes what it is told; a registry is not at hand here."""
    digest, place = "sha256:" + "0" * 64, f"registry.test/team/kuznia-{name}"
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/sh\necho "$*" >>"{tmp_path}/calls"\n'
        f'[ "$1" != inspect ] || printf "other.test/x@sha256:1\\n{place}@{digest}\\n\\n"\n'
    )
    docker.chmod(0o755)
    monkeypatch.delenv("KUZNIA_IMAGE_BUILDER", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    make = [
        "make",
        "--silent",
        "images",
        f"NAMES={name}",
        "VARIANT=cuda",
        "PUSH=registry.test/team/",
    ]
    said = subprocess.run(make, cwd=images.ROOT, check=True, stdout=subprocess.PIPE).stdout
    assert yaml.safe_load(said) == {"images": {name: f"{place}@{digest}"}}
    calls = (tmp_path / "calls").read_text("utf-8").splitlines()
    assert f"push --quiet {place}:{__version__}{suffix}" in calls


def test_an_image_is_known_by_all_that_is_copied_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {name: images.inputs_digest(name, "cpu") for name in images.NAMES}
    assert len(set(digests.values())) == len(images.NAMES)
    copy = tmp_path / "copy"
    for folder in ("images", "kuznia", "steps", "cli", "services", "workflows", "model-cards"):
        shutil.copytree(images.ROOT / folder, copy / folder)
    monkeypatch.setattr(images, "ROOT", copy)
    assert {name: images.inputs_digest(name, "cpu") for name in images.NAMES} == digests
    (copy / "steps" / "train.py").write_text("changed")
    changed = {n for n in images.NAMES if images.inputs_digest(n, "cpu") != digests[n]}
    assert changed == {"platform", "gateway", "train", "serve"}
    (copy / "images" / "torch" / "shared.lock").write_text("changed")
    changed = {n for n in images.NAMES if images.inputs_digest(n, "cpu") != digests[n]}
    assert changed == {"torch", "platform", "gateway", "train", "serve"}


def test_what_was_built_for_a_place_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUZNIA_CACHE", str(tmp_path))
    images.Built("here").put("train", "1")
    assert images.Built("here").get("train") == "1"
    assert images.Built("elsewhere").get("train") is None
