"""What the local engine refuses to run, and how it says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuznia import __version__
from kuznia.errors import InputError
from tests.fixtures.chains import retry, step, template
from workflows.subset import FIELDS, Retry, load, reference, substitute

Change = Callable[[dict[str, Any]], None]


def at(document: dict[str, Any], path: str) -> Any:
    """The node at a dotted path; numbers are list positions."""
    node: Any = document
    for part in path.split("."):
        node = node[int(part)] if part.isdigit() else node[part]
    return node


def put(path: str, value: Any) -> Change:
    """A change that sets the field at `path`."""
    parent, _, key = path.rpartition(".")

    def change(document: dict[str, Any]) -> None:
        at(document, parent)[key] = value

    return change


def refusal(folder: Path, change: Change) -> list[str]:
    document = template(
        {"a": step("done()", retryStrategy=retry(duration="10s")), "b": step("done()", ("a",))}
    )
    change(document)
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    with pytest.raises(InputError) as error:
        load(path)
    return [problem.removeprefix(f"{path}: ") for problem in error.value.problems]


UNKNOWN = "is not a field that the local engine knows"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.hostNetwork", True),
        ("spec.templates.1.container.livenessProbe", {}),
        ("spec.templates.1.container.ports", []),
        ("spec.templates.1.retryStrategy.retryPolicy", "Always"),
        ("spec.templates.0.dag.tasks.1.when", "'1' == '1'"),
        ("spec.templates.0.dag.tasks.1.withItems", [1]),
        ("spec.templates.1.volumes.0.persistentVolumeClaim", {"claimName": "x"}),
    ],
)
def test_an_unknown_field_is_named_by_its_path(tmp_path: Path, path: str, value: Any) -> None:
    (problem,) = refusal(tmp_path, put(path, value))
    named = path.replace(".0", "[0]").replace(".1", "[1]")
    assert problem == (
        f"{named}: {UNKNOWN}; remove it or run on a cluster (docs/reference/local-engine.md)"
    )


def test_all_unknown_fields_are_named_at_once(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["spec"]["hooks"] = {}
        document["metadata"]["labels"] = {}

    assert len(refusal(tmp_path, change)) == 2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "spec.templates.1.container.image",
            "kuznia/platform:0.0.0",
            f"a: image: 'kuznia/platform:0.0.0' is not kuznia/<name>:{__version__}; compile again",
        ),
        (
            "spec.templates.1.container.image",
            f"kuznia/nothing:{__version__}",
            f"a: image: 'kuznia/nothing:{__version__}' is not kuznia/<name>:{__version__}; "
            "compile again",
        ),
        (
            "spec.templates.0.dag.tasks.1.dependencies",
            ["nobody"],
            "b: dependencies: name an unknown step or go in a circle; correct them",
        ),
        (
            "spec.templates.1.retryStrategy.expression",
            "lastRetry.exitCode != '0'",
            "a: retryStrategy: only 'asInt(lastRetry.exitCode) in [<codes>]' and durations such "
            "as 10s are known; use that form",
        ),
        (
            "spec.templates.0.dag.tasks.1.arguments.parameters.0.value",
            "{{tasks.c.outputs.parameters.outputs}}",
            "b: arguments: {{tasks.c.outputs.parameters.outputs}} is not known here; correct it",
        ),
        (
            "spec.templates.1.container.args",
            ["{{workflow.uid}}"],
            "a: args: {{workflow.uid}} is not known here; correct it",
        ),
        (
            "spec.templates.1.inputs.parameters.0.name",
            "konfig",
            "a: inputs and arguments differ in config, konfig; give each input",
        ),
        (
            "spec.templates.1.container.volumeMounts.0.name",
            "other",
            "a: volume 'other' is missing; add it",
        ),
        (
            "spec.templates.1.container.envFrom.0.configMapRef.name",
            "other",
            "a: envFrom: only ConfigMap kuznia is known; use it",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, path: str, value: Any, message: str) -> None:
    assert message in refusal(tmp_path, put(path, value))


def test_a_circle_is_refused(tmp_path: Path) -> None:
    problems = refusal(tmp_path, put("spec.templates.0.dag.tasks.0.dependencies", ["b"]))
    assert [problem.partition(":")[0] for problem in sorted(problems)] == ["a", "b"]


def test_retries_are_read(tmp_path: Path) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump(template({"a": step("", retryStrategy=retry(2, "1m"))})))
    (found,) = load(path).steps
    assert found.retry == Retry(2, frozenset({3, 75}), duration=60, factor=2)


def test_what_is_put_in_is_not_looked_at_again() -> None:
    assert substitute("{{ a }}-{{b}}", {"a": "{{b}}", "b": "x"}) == "{{b}}-x"


def test_the_reference_has_every_field() -> None:
    assert all(f"| `{field}` | " in reference() for field in FIELDS)
