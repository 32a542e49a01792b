"""From a run spec on disk to a run: check it, put its data into the store, name it, start it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kuznia import __version__, settings
from kuznia.contracts.base import digest_of
from kuznia.contracts.catalogue import load_catalogue
from kuznia.contracts.runspec import RunSpec, is_uri, parse_run_spec
from kuznia.errors import InputError, collected
from kuznia.manifest import file_digest
from kuznia.store import open_store
from workflows.environments import ROOT
from workflows.local import Result, Watcher, execute
from workflows.subset import load

TEMPLATE = ROOT / "workflows" / "compiled" / "finetune.yaml"


@dataclass(frozen=True)
class Submission:
    """A run spec that is ready to run anywhere."""

    run: str
    """`<model>-<digest>` of spec, data and Kuźnia's version: a repeat is the same run."""
    spec: RunSpec
    """With data as URIs in the store."""
    config: str
    """`spec` as YAML, every default written out."""
    text: str
    """What the person wrote."""


@cache
def compiled() -> dict[str, Any]:
    """The compiled WorkflowTemplate, read once; to change it, change a copy."""
    document: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text("utf-8"))
    return document


def prepare(path: Path) -> Submission:
    """Check the run spec at `path`, upload the files it names, and name the run.

    Raises InputError with every fault of the spec and its files.
    """
    text, spec, files = check(path)
    keys = {
        key: f"datasets/{spec.tenant}/{file_digest(file)[:12]}/"
        + re.sub(r"[^A-Za-z0-9._-]+", "-", file.name)
        for key, file in files.items()
    }
    uris: dict[str, str] = {}
    if files:
        # Opened only for an upload: a cluster's volume is not here.
        store = open_store(settings.store_uri())
        uris = {key: store.uri_of(value) for key, value in keys.items()}
        for key, file in files.items():
            if not store.exists(keys[key]):
                store.put_file(file, keys[key])
    # Named by keys, not URIs: the same run has the same name in every store. Another version of
    # Kuźnia may make another model of them.
    asked = {"kuznia": __version__, "spec": _with_data(spec, keys).model_dump(mode="json")}
    name = f"{spec.model}-{digest_of(asked)[:10]}"
    stored = _with_data(spec, uris)
    config = yaml.safe_dump(
        stored.model_dump(mode="json", exclude_none=True), sort_keys=True, allow_unicode=True
    )
    return Submission(name, stored, config, text)


def check(path: Path, base: bool = True) -> tuple[str, RunSpec, dict[str, Path]]:
    """The text at `path`, the run spec in it, and the data files beside it, by their key.

    Without `base`, the catalogue is not asked for the base model yet.
    Raises InputError with every fault of the spec and its files.
    """
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file; `kuznia init` writes one to start from") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    problems: list[str] = []
    spec = None
    with collected(problems):
        spec = parse_run_spec(text, str(path))
        if base:
            load_catalogue().base(spec.base, str(path))
    files = {key: path.parent / name for key, name in _data_paths(text).items()}
    for key, file in files.items():
        if not file.is_file():
            problems.append(f"{path}: data.{key}: {file}: no such file; correct the path")
        elif not file.stat().st_size:
            problems.append(f"{path}: data.{key}: {file}: is empty; put rows into it")
    if problems or spec is None:
        raise InputError(problems)
    return text, spec, files


def submit(path: Path, watcher: Watcher | None = None) -> tuple[Submission, Result]:
    """Run the spec at `path` on this machine to its end; a repeat finishes what was left."""
    submission = prepare(path)
    about = {
        "tenant": submission.spec.tenant,
        "model": submission.spec.model,
        "spec": submission.text,
        "spec_path": str(path.resolve()),
    }
    parameters = {"config": submission.config, "run": submission.run}
    return submission, execute(load(TEMPLATE), submission.run, parameters, about, watcher)


def in_place(spec: RunSpec, files: dict[str, Path]) -> RunSpec:
    """The spec with its data files as file:// URIs: for a look at them before a run."""
    return _with_data(spec, {key: file.resolve().as_uri() for key, file in files.items()})


def _with_data(spec: RunSpec, places: dict[str, str]) -> RunSpec:
    return spec.model_copy(update={"data": spec.data.model_copy(update=places)})


def _data_paths(text: str) -> dict[str, str]:
    """Data files named in the text, whether or not the rest of it is right."""
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, dict):
        return {}
    named = {key: data.get(key) for key in ("train", "test")}
    return {key: name for key, name in named.items() if isinstance(name, str) and not is_uri(name)}
