"""The export step as the engine starts it: what it publishes, and what interrupts it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kuznia.manifest import (
    MANIFEST,
    SIGNATURE,
    manifest_digest,
    read_manifest,
    verify_folder,
    write_manifest,
)
from kuznia.signing import check, public_keys
from tests.fixtures.model_case import Case, make_case, progress_of
from workflows.environments import ROOT

VERSIONS = "models/acme/support"
MIB = 2**20


@pytest.fixture
def case(tmp_path: Path, tiny_base: Path, trained_weights: Path, train_python: Path) -> Case:
    return make_case(tmp_path / "case", tiny_base, trained_weights, "plain", train_python)


@pytest.fixture
def large(tmp_path: Path, tiny_base: Path, trained_weights: Path, train_python: Path) -> Case:
    """A case whose base has 96 MiB more, so that an export lasts a while."""
    base = tmp_path / "large-base"
    shutil.copytree(tiny_base, base)
    size = 96 * MIB
    entry = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}
    header = json.dumps({"ballast": entry}).encode()
    with (base / "ballast.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    write_manifest(base, "base")
    return make_case(tmp_path / "case", base, trained_weights, "plain", train_python)


def test_publishes_a_merged_version(case: Case, tiny_base: Path) -> None:
    outputs, done = case.run("export")
    assert done.returncode == 0, done.stderr
    folder = case.store.local_path(f"{VERSIONS}/{outputs['version']}")
    assert folder is not None
    manifest = verify_folder(folder, outputs["folder"]["digest"])
    assert outputs["version"] == manifest_digest(folder)[:12]
    assert outputs["mode"] == "merged"
    assert 0 <= outputs["unchanged_share"] < 0.01
    assert manifest.kind == "version"
    assert manifest.about == {
        "base": "tiny",
        "base_digest": manifest_digest(tiny_base),
        "method": "lora",
        "mode": "merged",
    }
    names = {entry.path for entry in manifest.files}
    assert names == {entry.path for entry in read_manifest(tiny_base).files}
    for name in names - {"model.safetensors"}:
        assert (folder / name).read_bytes() == (tiny_base / name).read_bytes()
    assert progress_of(done)[-1]["done"] == progress_of(done)[-1]["total"]
    assert not (case.folder / "work" / "export" / "version").exists()
    home = Path(os.environ["KUZNIA_HOME"])
    (home / "trusted").mkdir()
    shutil.copy(home / "keys" / "signing.pub", home / "trusted" / "1.pem")
    data, signature = (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes()
    key = check(str(folder), data, signature, public_keys(home / "trusted"))
    assert f"export: version {outputs['version']}, signed by key {key}" in done.stdout


def test_keeps_an_adapter_apart_where_asked(
    tmp_path: Path, tiny_base: Path, trained_weights: Path, train_python: Path
) -> None:
    versions = []
    for name in ("one", "other"):
        case = make_case(
            tmp_path / name,
            tiny_base,
            trained_weights,
            "plain",
            train_python,
            export={"merge": False},
        )
        if name == "other":
            place = case.folder / "trained" / "adapter_config.json"
            config = json.loads(place.read_text())
            config["base_model_name_or_path"] = "/elsewhere"
            config["target_modules"].reverse()
            place.write_text(json.dumps(config))
            digest = write_manifest(case.folder / "trained", "adapter")
            weights = case.inputs["train"]["weights"]
            weights |= {"key": weights["key"] + "-other", "digest": digest}
            case.store.put_folder(case.folder / "trained", weights["key"])
        outputs, done = case.run("export")
        assert done.returncode == 0, done.stderr
        assert outputs["mode"] == "adapter"
        versions.append(outputs["version"])
    folder = case.store.local_path(outputs["folder"]["key"])
    assert folder is not None
    assert versions[0] == versions[1]
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "manifest.json",
        "manifest.json.sig",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


def test_says_what_cannot_be_merged(
    tmp_path: Path, tiny_base: Path, trained_weights: Path, train_python: Path
) -> None:
    case = make_case(tmp_path / "case", tiny_base, trained_weights, "dora", train_python)
    outputs, done = case.run("export")
    assert (done.returncode, outputs) == (2, {})
    assert "use_dora: true cannot be merged; train without it or set export.merge: false" in (
        done.stderr
    )
    assert case.store.folders(VERSIONS) == []


def in_workdir(name: str) -> Callable[[Case], bool]:
    return lambda case: (case.folder / "work" / "export" / "version" / name).exists()


def half_published(case: Case) -> bool:
    place = case.store.local_path(VERSIONS)
    return place is not None and any(place.glob(".partial-*/ballast.safetensors"))


@pytest.mark.parametrize(
    "moment",
    [in_workdir("ballast.safetensors"), in_workdir("manifest.json"), half_published],
    ids=["merging", "publishing", "copying"],
)
def test_killed_at_any_moment_shows_no_half_version(
    moment: Callable[[Case], bool], large: Case
) -> None:
    outputs = large.folder / "killed.json"
    command, environment = large.command("export", outputs)
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL) as running:
        while not moment(large):
            assert running.poll() is None, "the step ended before the moment came"
            time.sleep(0.001)
        running.send_signal(signal.SIGKILL)
    assert not outputs.exists()
    assert large.store.folders(VERSIONS) == []
    found, done = large.run("export")
    assert done.returncode == 0, done.stderr
    assert large.store.folders(VERSIONS) == [found["version"]]
    place = large.store.local_path(found["folder"]["key"])
    assert place is not None
    verify_folder(place, found["folder"]["digest"])


def on_small_disk(case: Case, size: int) -> subprocess.CompletedProcess[str]:
    """The step with its workdir on a disk of `size` MiB, in a mount namespace of its own."""
    disk = case.folder / "work"
    disk.mkdir(exist_ok=True)
    command, environment = case.command("export", case.folder / "out.json")
    mount = f'mount -t tmpfs -o size={size}m tmpfs "$0"'
    probe = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    tried = subprocess.run([*probe, mount, str(disk)], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(
            f"cannot mount a small disk here ({tried.stderr.strip()}); allow unprivileged user "
            "namespaces (sysctl kernel.unprivileged_userns_clone=1) or run as root"
        )
    return subprocess.run(
        [*probe, f'{mount} && exec "$@"', str(disk), *command],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_refuses_before_any_work_where_there_is_no_room(case: Case) -> None:
    done = on_small_disk(case, 16)
    assert done.returncode == 3
    assert done.stderr == (
        f"error: {case.folder}/work/export: export needs 0.06 GiB, has 0.02 GiB; free some space "
        "and run the same command again\n"
    )


def test_disk_full_in_the_middle_leaves_nothing_behind(large: Case) -> None:
    # Told too small a size, the step begins and finds out as it writes.
    large.inputs["fetch_base"]["base"]["bytes"] = 0
    done = on_small_disk(large, 80)
    assert done.returncode == 3
    assert done.stderr == (
        f"error: {large.folder}/work/export/version: no space left; free some and run the same "
        "command again\n"
    )
    assert large.store.folders(VERSIONS) == []
    _, done = large.run("export")
    assert done.returncode == 0, done.stderr
