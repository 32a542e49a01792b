"""The init container of a pod that serves: every kind of source, and everything it refuses."""

from __future__ import annotations

import json
import os
import shutil
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from kuznia.manifest import MANIFEST, SIGNATURE, file_digest, verify_folder, write_manifest
from kuznia.progress import parse_progress
from kuznia.signing import fingerprint, sign_folder, signing_key
from kuznia.store import open_store
from steps.fetch_model import main
from tests.fixtures.web import Web, serve

ANSWERS = b'{"rows":[]}'


@dataclass
class Case:
    """A signed version, its base and recorded answers in a folder, and a release of them."""

    folder: Path
    keys: Path
    into: Path
    release: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> Path:
        return self.folder / "models" / "v"

    def at(self, uri: str) -> None:
        """Let the release name `uri` as the place of everything."""
        self.release |= {
            "uri": f"{uri}/models/v",
            "base_uri": f"{uri}/bases/b",
            "answers_uri": f"{uri}/runs/answers.json",
        }

    def describe(self) -> None:
        """Let the release say what is there."""
        self.release |= {
            "version": write_manifest(self.version, "version")[:12],
            "digest": file_digest(self.version / MANIFEST),
            "base_digest": write_manifest(self.folder / "bases" / "b", "base"),
            "answers_sha256": file_digest(self.folder / "runs" / "answers.json"),
        }
        sign_folder(self.version)

    def run(self, *more: str) -> int:
        release = self.into.with_name("release.json")
        release.write_text(json.dumps(self.release))
        arguments = ["--release", str(release), "--keys", str(self.keys), "--into", str(self.into)]
        return main([*arguments, *more])

    def is_there(self) -> bool:
        """Whether all of the release is at its final place."""
        verify_folder(self.into / "version", self.release["digest"])
        verify_folder(self.into / "base", self.release["base_digest"])
        assert (self.into / "answers.json").read_bytes() == ANSWERS
        return sorted(path.name for path in self.into.iterdir()) == [
            "answers.json",
            "base",
            "version",
        ]


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setenv("KUZNIA_TERMINATION_LOG", str(log))
    case = Case(tmp_path / "origin", tmp_path / "keys", tmp_path / "models")
    (case.version / "sub").mkdir(parents=True)
    (case.version / "adapter.safetensors").write_bytes(os.urandom(300_000))
    (case.version / "sub" / "config.json").write_text("{}")
    (case.folder / "bases" / "b").mkdir(parents=True)
    (case.folder / "bases" / "b" / "model.safetensors").write_bytes(b"base")
    (case.folder / "runs").mkdir()
    (case.folder / "runs" / "answers.json").write_bytes(ANSWERS)
    signing_key()
    case.keys.mkdir()
    shutil.copy(tmp_path / "home" / "keys" / "signing.pub", case.keys / "0.pem")
    case.release = {"tenant": "acme", "model": "support", "release": "staging", "mode": "adapter"}
    case.describe()
    case.at(case.folder.as_uri())
    return case


@pytest.fixture
def web(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """The case's folder behind https, with a token."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("KUZNIA_HTTP_TOKEN", "secret")
    with serve(Web(case.folder, token="secret"), context) as web:
        case.at(web.url)
        yield web


def error_of(capfd: pytest.CaptureFixture[str], case: Case) -> list[str]:
    """What was refused, which stands in the termination log, too."""
    said = capfd.readouterr().err
    assert case.into.with_name("termination-log").read_text() == said.rstrip("\n")
    return [line.removeprefix("error: ") for line in said.splitlines()]


def test_a_volume(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    assert case.run() == 0
    assert case.is_there()
    assert (case.into / "version" / SIGNATURE).exists()
    said = capfd.readouterr().out
    key = signing_key()
    assert key
    assert f"{case.release['version']} is signed by key {fingerprint(key.public_key())}" in said
    last = [line for line in map(parse_progress, said.splitlines()) if line][-1]
    assert (last["step"], last["done"], last["total"]) == ("fetch-model", 4, 4)
    before = {path: path.stat().st_mtime_ns for path in case.into.rglob("*.safetensors")}
    assert case.run() == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_bucket(case: Case, s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    for path in case.folder.rglob("*"):
        if path.is_file():
            store.put_file(path, path.relative_to(case.folder).as_posix())
    case.at(s3_bucket)
    half = case.into / f".partial-version-{case.release['version']}" / "adapter.safetensors"
    half.parent.mkdir(parents=True)
    half.write_bytes((case.version / "adapter.safetensors").read_bytes()[:100_000])
    assert case.run() == 0
    assert case.is_there()


def test_artifactory(
    case: Case, web: Web, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUZNIA_HTTP_TOKEN", "wrong")
    assert case.run() == 2
    assert error_of(capfd, case) == [
        f"{web.url}/models/v/manifest.json: may not be read (401); set KUZNIA_HTTP_TOKEN (HF_TOKEN "
        "for hf://) to a token that may"
    ]
    monkeypatch.setenv("KUZNIA_HTTP_TOKEN", "secret")
    assert case.run() == 0
    assert case.is_there()


def test_the_hub(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = case.folder / "acme" / "support" / "resolve" / "0a1b"
    tree.mkdir(parents=True)
    for name in ("models", "bases", "runs"):
        shutil.move(case.folder / name, tree / name)
    with serve(Web(case.folder, token="hub")) as web:
        monkeypatch.setenv("HF_ENDPOINT", web.url)
        monkeypatch.setenv("HF_TOKEN", "hub")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        case.at("hf://acme/support@0a1b")
        assert case.run() == 0
    assert case.is_there()


@pytest.mark.parametrize("ranges", [True, False])
def test_what_broke_off_goes_on_and_what_is_whole_stays(
    case: Case, web: Web, capfd: pytest.CaptureFixture[str], ranges: bool
) -> None:
    web.breaks_after, web.ranges = 200_000, ranges
    assert case.run() == 3
    (said,) = error_of(capfd, case)
    assert said.startswith(f"{web.url}/models/v/adapter.safetensors: does not answer (peer closed")
    assert not (case.into / "version").exists()
    web.breaks_after, web.asked = None, []
    assert case.run() == 0
    assert case.is_there()
    weights = [asked for asked in web.asked if asked[0].startswith("/models/v/")]
    assert ("/models/v/adapter.safetensors", "bytes=200000-") in weights
    assert not any(path.endswith("config.json") for path, _ in weights)


def test_a_wrong_beginning_is_fetched_anew(case: Case) -> None:
    partial = case.into / f".partial-version-{case.release['version']}"
    (partial / "sub").mkdir(parents=True)
    (partial / "adapter.safetensors").write_bytes(b"0" * 1000)
    (partial / "sub" / "config.json").write_text("longer than it is")
    assert case.run() == 0
    assert case.is_there()


def test_what_was_changed_in_its_place_is_fetched_anew(case: Case) -> None:
    assert case.run() == 0
    (case.into / "version" / "sub" / "config.json").write_text("[]")
    (case.into / "version" / "more.py").write_text("print()")
    assert case.run() == 0
    assert case.is_there()


def test_the_manifest_alone(case: Case) -> None:
    assert case.run("--manifest-only") == 0
    assert [path.name for path in case.into.iterdir()] == ["answers.json"]
    (case.version / SIGNATURE).unlink()
    assert case.run("--manifest-only") == 2


def test_a_merged_version_without_answers_and_without_keys(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    case.release["mode"] = "merged"
    for name in ("base_uri", "base_digest", "answers_uri", "answers_sha256"):
        case.release[name] = None
    (case.keys / "0.pem").unlink()
    (case.version / SIGNATURE).unlink()
    assert case.run() == 0
    assert [path.name for path in case.into.iterdir()] == ["version"]
    assert "no signature is asked for: the tenant has no signing_keys" in capfd.readouterr().out


def tampered_weights(case: Case) -> str:
    for name in ("adapter.safetensors", "sub/config.json"):
        (case.version / name).write_bytes(b"x" * (case.version / name).stat().st_size)
    differs = "differs from the manifest; do not use it, restore the file or choose another version"
    return "\n".join(
        f"{{at}}/models/v/{name}: {differs}" for name in ("adapter.safetensors", "sub/config.json")
    )


def cut_weights(case: Case) -> str:
    path = case.folder / "bases" / "b" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return (
        "{at}/bases/b/model.safetensors: differs from the manifest; do not use it, restore the "
        "file or choose another version"
    )


def lost_weights(case: Case) -> str:
    (case.version / "adapter.safetensors").unlink()
    return "{at}/models/v/adapter.safetensors: is missing; choose another version"


def other_manifest(case: Case) -> str:
    (case.version / "adapter.safetensors").write_bytes(b"others")
    found = write_manifest(case.version, "version")
    return (
        f"{{at}}/models/v/manifest.json: has digest {found}, the release's digest is "
        f"{case.release['digest']}; do not serve it: correct the release, or find out who "
        "changed the file"
    )


def other_base(case: Case) -> str:
    case.release["base_digest"] = "0" * 64
    found = file_digest(case.folder / "bases" / "b" / MANIFEST)
    return (
        f"{{at}}/bases/b/manifest.json: has digest {found}, the release's base_digest is "
        f"{'0' * 64}; do not serve it: correct the release, or find out who changed the file"
    )


def other_answers(case: Case) -> str:
    path = case.folder / "runs" / "answers.json"
    path.write_bytes(b"{}")
    return (
        f"{{at}}/runs/answers.json: has digest {file_digest(path)}, the release's "
        f"answers_sha256 is {case.release['answers_sha256']}; do not serve it: correct the "
        "release, or find out who changed the file"
    )


def no_version(case: Case) -> str:
    case.release["uri"] += "2"
    (case.folder / "models" / "v2").mkdir()
    return (
        "{at}/models/v2/manifest.json: is missing; correct the release's uri or choose another "
        "version"
    )


def no_folder(case: Case) -> str:
    case.release["uri"] += "3"
    return "{at}/models/v3: is not there; correct uri, or mount the volume that has it"


def no_signature(case: Case) -> str:
    (case.version / SIGNATURE).unlink()
    return (
        "{at}/models/v/manifest.json.sig: is missing, and only signed weights are served; export "
        "with KUZNIA_SIGNING_KEY or sign the version (docs/howto/sign-weights.md)"
    )


def other_signature(case: Case) -> str:
    signature = (case.version / SIGNATURE).read_bytes()
    (case.version / SIGNATURE).write_bytes(signature[:-8] + b"AAAAAAA=")
    key = signing_key()
    assert key
    return (
        "{at}/models/v/manifest.json.sig: is by none of the trusted keys "
        f"({fingerprint(key.public_key())}); do not use the weights unless you know who signed "
        "them, then trust that key (docs/howto/sign-weights.md)"
    )


def other_scheme(case: Case) -> str:
    case.release["uri"] = "ftp://host/v"
    return "ftp://host/v: cannot be read; use s3://, gs://, https://, hf:// or file://"


@pytest.mark.parametrize(
    "fault",
    [
        tampered_weights,
        cut_weights,
        lost_weights,
        other_manifest,
        other_base,
        other_answers,
        no_version,
        no_folder,
        no_signature,
        other_signature,
        other_scheme,
    ],
)
def test_refused_in_one_line_each_and_nothing_is_left_to_serve(
    case: Case, capfd: pytest.CaptureFixture[str], fault: Callable[[Case], str]
) -> None:
    wanted = fault(case).replace("{at}", case.folder.as_uri())
    assert case.run() == 2
    assert error_of(capfd, case) == wanted.splitlines()
    wrong = "base" if "/bases/" in wanted else "version"
    assert not (case.into / wrong).exists()


def test_a_store_that_is_away_is_a_dependency(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    case.at("https://127.0.0.1:9")
    assert case.run() == 3
    assert error_of(capfd, case) == [
        "https://127.0.0.1:9/models/v/manifest.json: does not answer ([Errno 111] Connection "
        "refused); check the address and the network and run the same command again"
    ]


def test_a_disk_that_is_too_small(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((case.version / MANIFEST).read_text())
    manifest["files"][0]["size"] = 2**60
    (case.version / MANIFEST).write_text(json.dumps(manifest))
    case.release["digest"] = file_digest(case.version / MANIFEST)
    sign_folder(case.version)
    assert case.run() == 3
    (said,) = error_of(capfd, case)
    assert said.startswith(f"{case.into}/version: needs 1073741824.00 GiB more, has ")
    assert said.endswith("GiB; free some space")
