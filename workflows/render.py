"""What the renderings share: the compiled template with other images, the run spec they carry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from kuznia import __version__
from kuznia.contracts.base import load_yaml
from kuznia.errors import InputError
from workflows.submit import Submission, check, compiled, prepare

_OURS = re.compile(rf"kuznia/([a-z]+):{re.escape(__version__)}")
_REFERENCE = re.compile(r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+|@sha256:[0-9a-f]{64})+")
OTHER_IMAGES = ("gateway", "mlflow")
"""Images that no step uses; the map that `make images` prints has them, too."""


def template(
    replaced: Iterable[str] = (), namespace: str | None = None, file: Path | None = None
) -> dict[str, Any]:
    """The compiled WorkflowTemplate with images from elsewhere, as `images_of` reads them."""
    document = deepcopy(compiled())
    images = images_of(replaced, file)
    for container in _containers(document):
        if (found := _OURS.fullmatch(container["image"])) and found[1] in images:
            container["image"] = images[found[1]]
    if namespace:
        document["metadata"]["namespace"] = namespace
    return document


def images_of(replaced: Iterable[str], file: Path | None) -> dict[str, str]:
    """Where the steps' images come from, by name.

    `file` is the map `images:` that `make images` prints and the chart takes; `replaced` holds
    `NAME=REF` and wins. Raises InputError for a NAME that no step uses, for a REF that is no image
    reference, and for a file without such a map.
    """
    found = {_OURS.fullmatch(each["image"]) for each in _containers(compiled())}
    names = sorted({match[1] for match in found if match})
    given = [(f"{file}: images.{name}", name, ref) for name, ref in _map_of(file).items()]
    for pair in replaced:
        name, _, reference = pair.partition("=")
        given.append((f"--image {pair}", name, reference))
    images: dict[str, str] = {}
    problems = []
    for place, name, reference in given:
        if name not in names:
            problems.append(f"{place}: no step uses {name!r}; name {', '.join(names)}")
        elif not _REFERENCE.fullmatch(reference):
            problems.append(f"{place}: is no image with a tag or digest; write HOST/PATH:TAG")
        elif reference.endswith(":latest"):
            problems.append(f"{place}: latest is another image every day; name a version")
        images[name] = reference
    if problems:
        raise InputError(problems)
    return images


def _map_of(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        value = load_yaml(file.read_text("utf-8"), str(file))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{file}: no such file; `make images` prints it") from None
    images = value.get("images") if isinstance(value, dict) else None
    if not isinstance(images, dict):
        raise InputError(f"{file}: has no map images; give what `make images` printed")
    return {str(name): str(ref) for name, ref in images.items() if name not in OTHER_IMAGES}


def _containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [t["container"] for t in document["spec"]["templates"] if "container" in t]


def submission(path: Path) -> Submission:
    """The run spec at `path`, ready for a cluster.

    Raises InputError for a spec that is wrong, and for data that a cluster cannot reach.
    """
    _, _, files = check(path)
    if files:
        raise InputError(
            f"{path}: data.{key}: {file} is a file on this machine, which a cluster cannot read; "
            "copy it into the tenant's store and name it by its URI there"
            for key, file in files.items()
        )
    return prepare(path)


def namespace_of(submitted: Submission, given: str | None) -> str:
    """Where the tenant trains, unless another namespace is given."""
    return given or f"{submitted.spec.tenant}-training"


def labels_of(submitted: Submission) -> dict[str, str]:
    """Labels of everything that belongs to a run."""
    return {"kuznia.tenant": submitted.spec.tenant, "kuznia.model": submitted.spec.model}
