"""Make the immutable version: a Hugging Face folder with its manifest, named by its content.

Reads: the base's folder and the trained weights.
Writes: models/<tenant>/<model>/<version>: merged weights in the base's number format and files,
    or with export.merge false the adapter alone; with tokenizer, chat template and licence, and
    the manifest's signature where there is a key (kuznia/signing.py).
Fails when: the weights do not fit the base, cannot be merged exactly or are not finite, or the
    signing key is none (2); the disk has no room or the store does not answer (3).
Safe to repeat because: equal inputs give equal bytes and so the same version; the store shows it
    only when it is whole, and one that is there is never touched.
"""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Literal

from kuznia import machine
from kuznia.contracts.base import canonical_json
from kuznia.contracts.steps import ExportInputs, ExportOutputs
from kuznia.errors import DependencyError
from kuznia.manifest import write_manifest
from kuznia.progress import progress
from kuznia.signing import sign_folder
from steps.context import Context
from steps.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS, cast_weights, merge_adapter

TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
    "*preprocessor_config.json",
    "LICENSE*",
    "NOTICE*",
)
MODEL = (*TOKENIZER, "config.json", "generation_config.json", "*.safetensors.index.json")
"""What is taken from the base as it is."""
SPARE = 2**26
"""Bytes of room wanted beyond the weights, for tokenizer and manifest."""


def run(inputs: ExportInputs, context: Context) -> ExportOutputs:
    spec, train = inputs.plan.spec, inputs.train
    merged = train.kind == "full" or spec.export.merge
    wanted = inputs.fetch_base.base.bytes if merged else train.weights.bytes
    _check_room(context, wanted + SPARE)
    base, weights = context.folder(inputs.fetch_base.base), context.folder(train.weights)
    target = context.workdir / "version"
    shutil.rmtree(target, ignore_errors=True)
    try:
        target.mkdir(parents=True)
        _copy(base, target, MODEL if merged else TOKENIZER)
        unchanged = 0.0
        if train.kind == "full":
            unchanged = cast_weights(base, weights, target, _say)
        elif merged:
            unchanged = merge_adapter(base, weights, target, _say)
        else:
            _copy_adapter(weights, target, spec.base)
        mode: Literal["merged", "adapter"] = "merged" if merged else "adapter"
        about = {
            "base": spec.base,
            "base_digest": inputs.fetch_base.base.digest,
            "method": spec.method,
            "mode": mode,
        }
        digest = write_manifest(target, "version", about)
        signed = sign_folder(target)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DependencyError(
            f"{target}: no space left; free some and run the same command again"
        ) from error
    version = digest[:12]
    folder = context.publish(target, f"models/{spec.tenant}/{spec.model}/{version}")
    shutil.rmtree(target)
    print(f"export: version {version}, {signed}", flush=True)
    return ExportOutputs(version=version, folder=folder, mode=mode, unchanged_share=unchanged)


def _copy(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)


def _copy_adapter(weights: Path, target: Path, base: str) -> None:
    """The adapter, its configuration without what differs from machine to machine."""
    shutil.copyfile(weights / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS)
    config = json.loads((weights / ADAPTER_CONFIG).read_text("utf-8"))
    config["base_model_name_or_path"] = base
    if isinstance(config.get("target_modules"), list):
        # PEFT writes a set, in another order every time.
        config["target_modules"] = sorted(config["target_modules"])
    (target / ADAPTER_CONFIG).write_bytes(canonical_json(config))


def _check_room(context: Context, wanted: int) -> None:
    """Refuse before any work where the version would not fit.

    It is made in the workdir and then copied to the store, so on one disk it needs room twice.
    """
    here = context.workdir
    store = context.store.local_path("")
    needs = {here: wanted}
    if store is not None and here.stat().st_dev == store.stat().st_dev:
        needs = {here: 2 * wanted}
    elif store is not None:
        needs[store] = wanted
    problems = [
        f"{place}: export needs {need / machine.GIB:.2f} GiB, has {free:.2f} GiB; free some space "
        "and run the same command again"
        for place, need in needs.items()
        if (free := machine.free_disk_gib(place)) < need / machine.GIB
    ]
    if problems:
        raise DependencyError("\n".join(problems))


def _say(done: int, total: int) -> None:
    progress("export", done, total, "bytes")
