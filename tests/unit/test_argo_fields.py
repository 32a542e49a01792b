"""Everything compiled uses only fields that Argo has, in the oldest version that is meant too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import FIXTURES
from workflows.cron import cron
from workflows.environments import ROOT

VERSIONS = sorted((FIXTURES / "argo-fields").glob("*.json"))


def unknown(node: Any, known: Any, place: str) -> Iterator[str]:
    """Paths in `node` that are no fields of Argo's."""
    if known == "*":
        return
    if isinstance(node, list):
        for index, value in enumerate(node):
            yield from unknown(value, known, f"{place}[{index}]")
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in known:
                yield from unknown(value, known[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"


def template() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(
        (ROOT / "workflows" / "compiled" / "finetune.yaml").read_text("utf-8")
    )
    return found


SPEC = """
tenant: acme
model: support
base: smollm2-135m-instruct
data: {train: "s3://bucket/train.jsonl", format: alpaca}
card: {purpose: Answers questions of customers., owner: Support team, risk: minimal}
"""


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_argo_has_every_field(path: Path, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(SPEC)
    known = json.loads(path.read_text("utf-8"))
    scheduled = cron(tmp_path / "train.yaml", "0 3 * * 1", "Europe/Warsaw", None)
    for document in (template(), scheduled):
        assert not list(unknown(document["spec"], known[document["kind"]]["spec"], "spec"))


def test_the_oldest_and_the_newest_version_are_looked_at() -> None:
    assert [path.stem for path in VERSIONS] == ["3.7.18", "4.0.5", "4.1.2"]


@pytest.mark.parametrize(
    ("place", "field"),
    [
        (("templates", 1, "container"), "imagePullPolice"),
        (("templates", 1, "retryStrategy"), "retryOn"),
        ((), "pendingTimeOut"),
    ],
)
def test_a_field_that_argo_lacks_is_found(place: tuple[Any, ...], field: str) -> None:
    document = template()
    node: Any = document["spec"]
    for step in place:
        node = node[step]
    node[field] = "x"
    known = json.loads(VERSIONS[0].read_text("utf-8"))["WorkflowTemplate"]["spec"]
    (found,) = unknown(document["spec"], known, "spec")
    assert found.endswith(f".{field}")
