"""Everything that a cluster would apply, made here without one: registry to Applications to charts.

Each Application is rendered as Argo CD's repo-server would: a chart by `helm template` with its
value files, a folder by its files.
"""

from __future__ import annotations

import difflib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kuznia.applications import GENERATED
from kuznia.contracts.base import FAST
from kuznia.errors import DependencyError
from kuznia.tree import Tree


@dataclass(frozen=True)
class Rendered:
    """One Application and what it would apply."""

    name: str
    tenant: str
    source: str
    """Folder in the checkout."""
    objects: tuple[tuple[str, str], ...] = ()
    """`Kind/name` and its manifest, in order."""
    failure: str = ""
    """Why it cannot be rendered."""


def picture(tree: Tree) -> list[Rendered]:
    """Every Application of every tenant, rendered from the files in the checkout as they are.

    Raises DependencyError if the program `helm` is not here.
    """
    if shutil.which("helm") is None:
        raise DependencyError("helm: is not on this machine; install Helm 4, then run it again")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda each: _render(tree.root, *each), _applications(tree)))


def lines(rendered: Sequence[Rendered]) -> Iterator[str]:
    """The picture as a tree, failures marked."""
    tenant = ""
    for each in rendered:
        if each.tenant != tenant:
            tenant = each.tenant
            yield tenant
        mark = "[FAILED] " if each.failure else ""
        yield f"  {mark}{each.name} ({each.source})"
        yield from (f"    {line}" for line in each.failure.splitlines())
        yield from (f"    {name}" for name, _ in each.objects)


def difference(old: Sequence[Rendered], new: Sequence[Rendered]) -> Iterator[str]:
    """What would change on the cluster from `old` to `new`, object by object, as a unified diff."""
    before = {(each.name, name): text for each in old for name, text in each.objects}
    after = {(each.name, name): text for each in new for name, text in each.objects}
    for key in sorted(before.keys() | after.keys()):
        place = "/".join(key)
        yield from difflib.unified_diff(
            before.get(key, "").splitlines(),
            after.get(key, "").splitlines(),
            f"a/{place}" if key in before else "/dev/null",
            f"b/{place}" if key in after else "/dev/null",
            lineterm="",
        )


def _applications(tree: Tree) -> Iterator[tuple[str, str, str, str, Path, list[str]]]:
    """For each Application: name, tenant, namespace, release, its folder, arguments of helm."""
    for tenant in tree.tenants:
        folder = GENERATED / tenant
        yield f"{tenant}-namespaces", tenant, "default", "", folder / "namespaces", []
        values = folder / "values" / "workspace.yaml"
        yield (
            *(f"{tenant}-workspace", tenant, f"{tenant}-training", tenant),
            *(Path("helm/workspace"), ["--values", str(values)]),
        )
        for each in tree.of(tenant):
            files = [str(folder / "values" / "vllm.yaml"), str(each.path)]
            given = [argument for file in files for argument in ("--values", file)]
            given += ["--set", f"model={each.model},release={each.stage}"]
            yield (
                *(each.name, tenant, f"{tenant}-inference", f"{each.model}-{each.stage}"),
                *(Path("helm/vllm"), given),
            )
    if tree.platform.entry:
        values = GENERATED / "platform" / "values" / "gateway.yaml"
        yield (
            *("kuznia-gateway", "platform", tree.platform.gateway, "gateway"),
            *(Path("helm/gateway"), ["--values", str(values)]),
        )


def _render(
    root: Path,
    name: str,
    tenant: str,
    namespace: str,
    release: str,
    source: Path,
    arguments: list[str],
) -> Rendered:
    if release:
        line = ["helm", "template", release, str(source), "--namespace", namespace, *arguments]
        done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            return Rendered(name, tenant, str(source), failure=done.stderr.strip())
        text = done.stdout
    else:
        files = sorted((root / source).glob("*.yaml"))
        text = "\n---\n".join(file.read_text("utf-8") for file in files)
    objects = [each for each in yaml.load_all(text, FAST) if each]
    return Rendered(name, tenant, str(source), tuple(map(_named, objects)))


def _named(found: dict[str, Any]) -> tuple[str, str]:
    text: str = yaml.safe_dump(found, sort_keys=False, allow_unicode=True)
    return f"{found['kind']}/{found['metadata']['name']}", text
