"""What the renderings share: the compiled template with other images, the run spec they carry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from kuznia import __version__
from kuznia.errors import InputError
from workflows.submit import Submission, check, compiled, prepare


def template(replaced: Iterable[str] = (), namespace: str | None = None) -> dict[str, Any]:
    """The compiled WorkflowTemplate; `replaced` holds `NAME=REF`: image NAME comes from REF.

    Raises InputError for a NAME that no step uses and for a REF that is no image reference.
    """
    document = deepcopy(compiled())
    containers = [t["container"] for t in document["spec"]["templates"] if "container" in t]
    ours = re.compile(rf"kuznia/([a-z]+):{re.escape(__version__)}")
    names = sorted({found[1] for c in containers if (found := ours.fullmatch(c["image"]))})
    images: dict[str, str] = {}
    problems = []
    for pair in replaced:
        name, _, reference = pair.partition("=")
        if name not in names:
            problems.append(f"--image {pair}: no step uses {name!r}; name {', '.join(names)}")
        elif not re.fullmatch(
            r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+|@sha256:[0-9a-f]{64})+", reference
        ):
            problems.append(
                f"--image {pair}: is no image with a tag or digest; write {name}=HOST/PATH:TAG"
            )
        elif reference.endswith(":latest"):
            problems.append(f"--image {pair}: latest is another image every day; name a version")
        images[name] = reference
    if problems:
        raise InputError(problems)
    for container in containers:
        if (found := ours.fullmatch(container["image"])) and found[1] in images:
            container["image"] = images[found[1]]
    if namespace:
        document["metadata"]["namespace"] = namespace
    return document


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
