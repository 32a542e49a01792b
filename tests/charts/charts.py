"""A chart as Argo CD would render it: `helm template` on values, and what Kubernetes says to it."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from workflows.environments import ROOT

Objects = dict[str, dict[str, Any]]
"""Rendered objects by `Kind/name`, with the namespace before it where two have the same name."""
KUBERNETES = "1.36"
"""Its schemas are those of the newest version that we support."""
OTHERS = {"HTTPRoute", "ScaledObject", "ExternalSecret", "WorkflowTemplate", "LocalQueue"}
"""Kinds of other projects; tests/e2e/test_charts_on_cluster.py asks an API server that has them."""


def folder(chart: str) -> Path:
    return ROOT / "helm" / chart


def examples(chart: str) -> list[str]:
    """Names of the chart's example values."""
    return sorted(path.name for path in folder(chart).glob("ci/*-values.yaml"))


def load(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return value


def example(chart: str, name: str) -> dict[str, Any]:
    return load(folder(chart) / "ci" / f"{name}-values.yaml")


def lint(chart: str, *names: str) -> str:
    """What helm's strictest look at a chart finds wrong, empty where it passes."""
    given = [word for name in names for word in ("--values", str(folder(chart) / "ci" / name))]
    done = _helm("lint", "--strict", str(folder(chart)), *given)
    return done.stdout + done.stderr if done.returncode else ""


def text(chart: str, values: dict[str, Any]) -> str:
    done = _template(chart, values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(chart: str, values: dict[str, Any]) -> Objects:
    """Every object of a chart with these values."""
    found: Objects = {}
    for each in yaml.safe_load_all(text(chart, values)):
        if each:
            name = f"{each['kind']}/{each['metadata']['name']}"
            if name in found:
                name = f"{each['metadata']['namespace']}/{name}"
            assert name not in found
            found[name] = each
    return found


def refusal(chart: str, values: dict[str, Any]) -> list[str]:
    """Lines in which a chart refuses values, without what helm says around them."""
    done = _template(chart, values)
    assert done.returncode, done.stdout
    mark = f"{chart} {values['tenant']}"
    lines = [line for line in done.stderr.splitlines() if mark in line]
    return [line[line.index(mark) :] for line in lines] or done.stderr.splitlines()


def check(made: Objects) -> None:
    """Hold every object against Kubernetes' own schemas, in which no key is unknown."""
    for name, each in made.items():
        if each["kind"] not in OTHERS:
            try:
                kubernetes_validate.validate(each, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                raise AssertionError(f"{name}: {list(error.path)}: {error.message}") from None


def _template(chart: str, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return _rendered(chart, json.dumps(values))


@functools.cache
def _rendered(chart: str, values: str) -> subprocess.CompletedProcess[str]:
    return _helm("template", "test", str(folder(chart)), "--values", "-", given=values)


def _helm(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["helm", *arguments], input=given, capture_output=True, text=True, check=False
    )
