"""The chain: what Hera makes of the table, and that it fits the steps' contracts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hera.workflows.models import WorkflowTemplate as Model

from kuznia.contracts.steps import DataCheckOutputs
from steps import __main__ as main_of_steps
from steps.__main__ import STEPS
from workflows import finetune
from workflows.environments import ROOT, images
from workflows.subset import Chain, load


@pytest.fixture(scope="module")
def chain() -> Chain:
    return load(ROOT / "workflows" / "compiled" / "finetune.yaml")


@pytest.fixture(scope="module")
def document() -> Any:
    return yaml.safe_load((ROOT / "workflows" / "compiled" / "finetune.yaml").read_text("utf-8"))


def test_the_chain_has_every_step_once(chain: Chain) -> None:
    assert sorted(step.name for step in chain.steps) == sorted(STEPS)


def test_only_config_must_be_given(chain: Chain) -> None:
    assert chain.parameters == {"config": None, "run": "{{workflow.name}}"}


def test_each_step_waits_for_what_it_reads(chain: Chain) -> None:
    order = {step.name: set(step.dependencies) for step in chain.steps}
    assert order["plan"] == set()
    assert order["data-check"] == order["fetch-base"] == {"plan"}
    assert order["train"] == {"plan", "data-check", "fetch-base"}
    assert order["export"] == {"plan", "fetch-base", "train"}
    assert "export" in order["verify"] and {"evaluate", "verify"} <= order["register"]
    assert "register" in order["model-card"]


def test_arguments_are_those_of_the_contract(chain: Chain) -> None:
    for step in chain.steps:
        model, _ = STEPS[step.name]
        assert set(step.arguments) == {name.replace("_", "-") for name in model.model_fields}
        assert step.argv[:4] == ("python", "-m", "steps", step.name)


def test_text_and_json_are_told_apart(chain: Chain) -> None:
    by_name = {step.name: step.argv for step in chain.steps}
    assert "--input" not in by_name["plan"] and "--text" not in by_name["train"]


def test_kubernetes_expands_nothing_in_what_people_and_steps_write(document: Any) -> None:
    """As it would `$(AWS_SECRET_ACCESS_KEY)` and `$$`; Argo's own values hold none."""
    containers = [t["container"] for t in document["spec"]["templates"] if "container" in t]
    words = [word for container in containers for word in container["args"] if "{{" in word]
    texts = ("inputs.", "workflow.parameters.", "workflow.failures")
    open_to_it = [word for word in words if any(f"{{{{{text}" in word for text in texts)]
    doubled = [word for word in words if "{{=sprig.replace('$', '$$', " in word]
    assert not open_to_it and len(doubled) > 20


def test_what_a_step_hands_on_holds_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of support desks have {{Order Number}} in them, which Argo would look up."""
    outputs = DataCheckOutputs.model_construct(fingerprint="{{{{Order Number}} {{{x}}")
    monkeypatch.setattr(main_of_steps, "run_step", lambda *_: outputs)
    path = tmp_path / "outputs.json"
    assert main_of_steps.main(["data-check", "--outputs", str(path)]) == 0
    text = path.read_text("utf-8")
    assert "{{" not in text
    assert json.loads(text)["fingerprint"] == "{{{{Order Number}} {{{x}}"


def test_every_step_is_retried_only_where_that_helps(chain: Chain) -> None:
    assert {step.retry.codes for step in chain.steps} == {frozenset({3, 75})}
    assert all(step.deadline for step in chain.steps)


def test_images_exist(chain: Chain) -> None:
    assert {step.image for step in chain.steps} <= set(images())


def test_names_are_unique(document: Any) -> None:
    # Hera merges templates of equal name without a word.
    names = [template["name"] for template in document["spec"]["templates"]]
    assert len(names) == len(set(names)) == len(finetune.CHAIN) + 2


def test_argo_knows_every_field(document: Any) -> None:
    """Hera's models drop what they do not know, so a round trip shows what Argo would not."""
    again = Model.model_validate(document).model_dump(by_alias=True, exclude_none=True, mode="json")
    assert again == document


def test_the_name_fits_kubernetes(document: Any) -> None:
    assert len(document["metadata"]["name"]) <= 63


def test_only_the_step_that_signs_gets_the_signing_key(document: Any) -> None:
    holders = {
        template["name"]: template["container"]["env"]
        for template in document["spec"]["templates"]
        if "kuznia-signing" in str(template)
    }
    secret = {"name": "kuznia-signing", "key": "signing.pem", "optional": True}
    assert holders == {
        "export": [{"name": "KUZNIA_SIGNING_KEY", "valueFrom": {"secretKeyRef": secret}}]
    }
