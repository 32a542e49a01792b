"""Bring a release's weights into a pod, checked: `python -m steps.fetch_model --release FILE ...`.

Not a step of the chain: the init container of a pod that serves. Nothing appears under its final
name before every check has passed: the manifest's digest is the release's, one of the keys signed
it, and every file is as it says. A file that is whole is not fetched again, and one that broke off
is fetched from there. Exit codes: 0 all is there, 2 refused, 3 a store or the disk failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Literal

from kuznia.contracts.base import Contract, parse
from kuznia.contracts.catalogue import Sha256
from kuznia.errors import InputError, KuzniaError
from kuznia.manifest import MANIFEST, SIGNATURE
from kuznia.progress import progress
from kuznia.signing import check, public_keys
from kuznia.store import Source, open_source
from kuznia.store.download import Say, download
from kuznia.termination import report_bugs, report_failure

SAY_EVERY = 2.0
"""Seconds between two lines of progress."""


class Wanted(Contract):
    """What the pod is to serve: release.json, as the chart helm/vllm writes it."""

    tenant: str
    model: str
    release: str
    version: str
    digest: Sha256
    uri: str
    mode: Literal["merged", "adapter"]
    base_uri: str | None
    base_digest: Sha256 | None
    answers_uri: str | None
    answers_sha256: Sha256 | None


def main(argv: list[str] | None = None) -> int:
    """Fetch, and turn failures into exit codes."""
    arguments = _parser().parse_args(argv)
    try:
        fetch(arguments.release, arguments.keys, arguments.into, arguments.manifest_only)
    except KuzniaError as error:
        return report_failure(error)
    return 0


def fetch(release: Path, keys: Path, into: Path, manifest_only: bool = False) -> None:
    """Put version, base and answers of `release` below `into`: version/, base/, answers.json.

    With `manifest_only` manifests and signature are checked and only the answers are put there.
    Raises InputError for what must not be served and DependencyError for what does not answer.
    """
    wanted = parse(Wanted, json.loads(release.read_text("utf-8")), str(release))
    trusted = public_keys(keys)
    source = open_source(wanted.uri)
    manifest = _checked(source, MANIFEST, wanted.digest, "digest")
    signature = _signature(source) if trusted else None
    if trusted:
        signer = check(wanted.uri, manifest, signature, trusted)
        print(f"fetch-model: {wanted.version} is signed by key {signer}", flush=True)
    else:
        print("fetch-model: no signature is asked for: the tenant has no signing_keys", flush=True)
    folders = [("version", source, manifest, signature)]
    if wanted.base_uri and wanted.base_digest:
        base = open_source(wanted.base_uri)
        data = _checked(base, MANIFEST, wanted.base_digest, "base_digest")
        folders.append(("base", base, data, None))
    into.mkdir(parents=True, exist_ok=True)
    if wanted.answers_uri and wanted.answers_sha256:
        folder, _, name = wanted.answers_uri.rpartition("/")
        data = _checked(open_source(folder), name, wanted.answers_sha256, "answers_sha256")
        (into / "answers.json").write_bytes(data)
    if manifest_only:
        return
    for name, place, data, signed in folders:
        download(place, data, signed, into / name, _say_now_and_then())
    print(f"fetch-model: {wanted.tenant}/{wanted.model} {wanted.version} is there", flush=True)


def _checked(source: Source, name: str, sha256: str, key: str) -> bytes:
    """A small file whose digest the release states under `key`."""
    place = source.uri_of(name)
    try:
        data = source.read(name)
    except FileNotFoundError:
        raise InputError(
            f"{place}: is missing; correct the release's uri or choose another version"
        ) from None
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise InputError(
            f"{place}: has digest {found}, the release's {key} is {sha256}; do not serve it: "
            "correct the release, or find out who changed the file"
        )
    return data


def _signature(source: Source) -> bytes | None:
    try:
        return source.read(SIGNATURE)
    except FileNotFoundError:
        return None


def _say_now_and_then() -> Say:
    said = 0.0

    def say(done: int, total: int, name: str) -> None:
        nonlocal said
        if time.monotonic() - said >= SAY_EVERY or done == total:
            said = time.monotonic()
            progress("fetch-model", done, total, "bytes", doing=name)

    return say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m steps.fetch_model", description=__doc__)
    parser.add_argument("--release", type=Path, required=True, help="release.json of the chart")
    parser.add_argument("--keys", type=Path, required=True, help="folder of public keys, *.pem")
    parser.add_argument("--into", type=Path, required=True, help="where the weights go")
    parser.add_argument(
        "--manifest-only", action="store_true", help="check manifest and signature alone"
    )
    return parser


if __name__ == "__main__":
    report_bugs()
    sys.exit(main())
