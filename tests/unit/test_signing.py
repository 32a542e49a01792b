"""Signatures over the manifest: keys, what is refused, and what openssl says of them."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kuznia import signing
from kuznia.errors import DependencyError, InputError
from kuznia.manifest import MANIFEST, SIGNATURE, write_manifest
from kuznia.registry import ModelVersion
from kuznia.store import Store, open_store
from kuznia.weights import fetch_weights

IN_A_POD = "KUZNIA_POD_CPU"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"weights")
    write_manifest(folder, "version")
    return folder


def keys_in(folder: Path, *names: str) -> Path:
    """A folder of public keys, one for each private key made below `folder`."""
    keys = folder / "trusted"
    keys.mkdir()
    for name in names:
        shutil.copy(new_key(folder, name).with_suffix(".pub"), keys / f"{name}.pem")
    return keys


def new_key(folder: Path, name: str) -> Path:
    """A key of its own, as a laptop makes it."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in (IN_A_POD, "KUZNIA_SIGNING_KEY"):
            patch.delenv(variable, raising=False)
        patch.setenv("KUZNIA_HOME", str(folder / name))
        signing.signing_key()
    return folder / name / "keys" / "signing.pem"


def test_a_laptop_signs_with_a_key_of_its_own(folder: Path, tmp_path: Path) -> None:
    said = signing.sign_folder(folder)
    private = tmp_path / "home" / "keys" / "signing.pem"
    assert private.stat().st_mode & 0o777 == 0o600
    signature = (folder / SIGNATURE).read_bytes()
    assert signing.sign_folder(folder) == said
    assert (folder / SIGNATURE).read_bytes() == signature
    keys = tmp_path / "trusted"
    keys.mkdir()
    shutil.copy(private.with_suffix(".pub"), keys / "laptop.pem")
    (key,) = signing.public_keys(keys)
    found = signing.verify((folder / MANIFEST).read_bytes(), signature, [key])
    assert re.fullmatch("[0-9a-f]{12}", found or "")
    assert said == f"signed by key {found}"
    assert signing.verify(b"other", signature, [key]) is None


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not here; apt install openssl")
def test_openssl_agrees(folder: Path, tmp_path: Path) -> None:
    signing.sign_folder(folder)
    public = tmp_path / "home" / "keys" / "signing.pub"
    (tmp_path / "sig").write_bytes(base64.b64decode((folder / SIGNATURE).read_bytes()))
    command = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", tmp_path / "sig"]
    done = subprocess.run([*command, folder / MANIFEST], capture_output=True, check=False)
    assert done.stdout == b"Verified OK\n"
    command = ["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"]
    der = subprocess.run(command, capture_output=True, check=True).stdout
    assert signing.sign_folder(folder) == f"signed by key {hashlib.sha256(der).hexdigest()[:12]}"


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not here; apt install openssl")
def test_what_openssl_signs_is_taken(folder: Path, tmp_path: Path) -> None:
    """As the how-to page says, for a key that no step may hold."""
    commands = f"""
    openssl ecparam -name prime256v1 -genkey -noout -out {tmp_path}/signing.pem
    mkdir {tmp_path}/trusted
    openssl ec -in {tmp_path}/signing.pem -pubout -out {tmp_path}/trusted/1.pem
    openssl dgst -sha256 -sign {tmp_path}/signing.pem {folder}/{MANIFEST} | base64 -w 0 \\
        >{folder}/{SIGNATURE}
    """
    subprocess.run(["sh", "-ec", commands], check=True, capture_output=True)
    data, signature = (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes()
    assert signing.check("here", data, signature, signing.public_keys(tmp_path / "trusted"))


def test_in_a_pod_only_a_given_key_signs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(IN_A_POD, "1")
    assert signing.sign_folder(folder) == "not signed: no KUZNIA_SIGNING_KEY"
    assert not (folder / SIGNATURE).exists()
    assert not (tmp_path / "home" / "keys").exists()
    path = new_key(tmp_path, "given")
    monkeypatch.setenv("KUZNIA_SIGNING_KEY", str(path))
    by_path = signing.sign_folder(folder)
    monkeypatch.setenv("KUZNIA_SIGNING_KEY", path.read_text("utf-8"))
    assert signing.sign_folder(folder) == by_path != "not signed: no KUZNIA_SIGNING_KEY"


def test_what_is_no_key_is_refused_without_being_shown(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
    monkeypatch.setenv("KUZNIA_SIGNING_KEY", text)
    with pytest.raises(InputError) as caught:
        signing.sign_folder(folder)
    assert str(caught.value) == (
        "KUZNIA_SIGNING_KEY: is not a private ECDSA P-256 key in PEM form without a password; make "
        "one with `openssl ecparam -name prime256v1 -genkey -noout -out signing.pem`"
    )
    monkeypatch.setenv("KUZNIA_SIGNING_KEY", str(tmp_path / "none.pem"))
    with pytest.raises(InputError, match=r"none.pem: No such file or directory; give the path"):
        signing.sign_folder(folder)
    keys = keys_in(tmp_path, "one")
    (keys / "two.pem").write_text(text)
    (keys / "three.pem").write_text("three")
    with pytest.raises(InputError) as caught:
        signing.public_keys(keys)
    assert [line.partition(": is not")[0] for line in caught.value.problems] == [
        str(keys / "three.pem"),
        str(keys / "two.pem"),
    ]


def test_a_home_that_cannot_be_written_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(DependencyError, match="Not a directory; make room or rights for"):
        signing.sign_folder(folder)


def test_two_first_uses_at_once_get_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: signing.signing_key(), range(8)))
    assert len({signing.fingerprint(key.public_key()) for key in keys if key}) == 1
    assert len(list((tmp_path / "home" / "keys").iterdir())) == 2


def test_missing_foreign_and_broken_signatures_are_refused(folder: Path, tmp_path: Path) -> None:
    signing.sign_folder(folder)
    data, own = (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes()
    trusted = signing.public_keys(keys_in(tmp_path, "other"))
    with pytest.raises(InputError, match=r"^s3://b/v/manifest.json.sig: is missing, and only"):
        signing.check("s3://b/v", data, None, trusted)
    known = signing.fingerprint(trusted[0])
    for wrong in (own, b"not base64 !", b"", base64.b64encode(b"no signature")):
        with pytest.raises(
            InputError, match=rf"is by none of the trusted keys \({known}\); do not"
        ):
            signing.check("s3://b/v", data, wrong, trusted)


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("s3_bucket"))


def test_a_signature_is_published_added_once_and_never_replaced(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    key = f"models/v/{SIGNATURE}"
    store.put_folder(folder, "models/v")
    assert not store.exists(key)
    signing.sign_folder(folder)
    store.put_folder(folder, "models/v")
    first = store.read(key)
    assert first == (folder / SIGNATURE).read_bytes()
    store.put_folder(folder, "models/signed")
    assert store.read(f"models/signed/{SIGNATURE}") == first
    (folder / SIGNATURE).write_bytes(b"another")
    store.put_folder(folder, "models/v")
    assert store.read(key) == first
    copy = store.get_folder("models/v", tmp_path / "copy")
    assert (copy / SIGNATURE).read_bytes() == first


def test_a_signature_is_not_put_beside_other_content(store: Store, folder: Path) -> None:
    store.put_folder(folder, "models/v")
    (folder / "weights.bin").write_bytes(b"others")
    write_manifest(folder, "version")
    signing.sign_folder(folder)
    store.put_folder(folder, "models/v")
    assert not store.exists(f"models/v/{SIGNATURE}")


def test_trusted_keys_decide_what_is_served_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    digest = write_manifest(folder, "version")
    store.put_folder(folder, "models/acme/support/v")
    version = ModelVersion(
        name="acme.support",
        number=1,
        uri=store.uri_of("models/acme/support/v"),
        run_id=None,
        aliases=(),
        tags={"version": digest[:12], "digest.sha256": digest, "mode": "merged"},
        created=0,
    )
    assert fetch_weights(version, tmp_path).name == "acme/support"
    monkeypatch.setenv("KUZNIA_TRUSTED_KEYS", str(keys_in(tmp_path, "one", "other")))
    with pytest.raises(InputError, match=f"^{version.uri}/manifest.json.sig: is missing"):
        fetch_weights(version, tmp_path)
    monkeypatch.setenv("KUZNIA_SIGNING_KEY", str(tmp_path / "other" / "keys" / "signing.pem"))
    signing.sign_folder(folder)
    store.put_folder(folder, "models/acme/support/v")
    assert fetch_weights(version, tmp_path).name == "acme/support"
