"""The model card: what it says, what it marks as missing, and its README."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kuznia import settings
from kuznia.card_views import card_yaml, read_card, readme
from kuznia.cards import build_card, load_rules
from kuznia.contracts.card import VARYING, Card, Leaf
from kuznia.errors import InputError
from kuznia.manifest import file_digest
from kuznia.store import open_store
from steps.context import Context
from steps.model_card import run
from tests.fixtures.evidence import FULL_CARD, GOLDEN, card_inputs

HOW = "made on purpose? write it again with `python -m tests.fixtures.evidence`"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    store = open_store(str(tmp_path / "store"))
    return Context(store, settings.tracking_uri(), tmp_path / "work", tmp_path / "cache")


def card_of(**changes: object) -> Card:
    return build_card(card_inputs(**changes), load_rules())


def test_the_card_is_the_golden_one() -> None:
    assert card_yaml(card_of()) == (GOLDEN / "card.yaml").read_text("utf-8"), HOW


def test_the_readme_is_the_golden_one() -> None:
    assert readme(card_of()) == (GOLDEN / "README.md").read_text("utf-8"), HOW


def test_a_gpu_is_named_beside_its_class_and_only_where_it_is_known() -> None:
    inputs = card_inputs()
    assert "gpu" not in (build_card(inputs, load_rules()).training.hardware.value or {})
    found = {"device": "cuda", "gpu_class": "a100-40gb", "gpu": "NVIDIA RTX 6000 Ada Generation"}
    hardware = inputs.plan.hardware.model_copy(update=found)
    plan = inputs.plan.model_copy(update={"hardware": hardware})
    card = build_card(inputs.model_copy(update={"plan": plan}), load_rules())
    assert "gpu_class a100-40gb, gpu NVIDIA RTX 6000 Ada Generation, gpus 0" in readme(card)


def test_a_card_reads_back_as_it_was_written() -> None:
    card = card_of(card=FULL_CARD)
    assert read_card(card_yaml(card), "card.yaml") == card


def test_what_nobody_said_is_marked_and_listed_and_never_blank() -> None:
    card = card_of()
    assert card.missing == (
        "purpose.users",
        "purpose.out_of_scope",
        "purpose.limitations",
        "data.origin",
        "data.licence",
        "evaluation.metrics.token_f1.gate",
    )
    for path, leaf in card.leaves():
        assert (leaf.value is None) == (leaf.missing is not None), path
    assert readme(card).count("**MISSING: ") == len(card.missing)


def test_a_card_with_everything_said_is_complete() -> None:
    gate = {"exact_match": {"at_least": 0.8}, "token_f1": {"not_worse_than": "base"}}
    card = card_of(card=FULL_CARD, gate=gate)
    assert card.missing == ()
    assert "MISSING" not in readme(card)


def test_white_space_is_not_an_answer() -> None:
    assert "purpose.users" in card_of(card={**FULL_CARD, "users": "  "}).missing


def test_front_matter_is_what_hugging_face_reads() -> None:
    _, front, body = readme(card_of()).split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["license"] == "apache-2.0"
    assert matter["base_model"] == "smollm2-135m-instruct"
    assert matter["base_model_relation"] == "finetune"
    assert matter["language"] == ["en"]
    (index,) = matter["model-index"]
    (result,) = index["results"]
    assert result["task"] == {"type": "text-generation"}
    assert {m["type"]: m["value"] for m in result["metrics"]} == {
        "exact_match": 0.95,
        "token_f1": 0.97,
    }
    assert body.lstrip().startswith("# acme/support")


@pytest.mark.parametrize(
    ("flop_of_base", "threshold", "ratio"),
    [(1.62e21, 5.4e20, 2.18e13 / 1.62e21), (None, 1e23 / 3, None), (3e13, 1e13, 2.18e13 / 3e13)],
    ids=["known", "unknown falls back to the guideline's figure", "above one third"],
)
def test_one_third_of_the_base_s_compute_makes_a_provider(
    flop_of_base: float | None, threshold: float, ratio: float | None
) -> None:
    gpai = card_of(flop_of_base=flop_of_base).gpai
    assert gpai.threshold_flop.value == pytest.approx(threshold)
    assert gpai.ratio.value == (None if ratio is None else pytest.approx(ratio))
    assert gpai.above_threshold.value is (threshold < 2.18e13)
    assert ("unknown" in (gpai.basis.value or "")) is (flop_of_base is None)


def test_a_leaf_is_either_a_value_or_missing() -> None:
    for given in ({"value": None, "missing": None}, {"value": 1, "missing": "say it"}):
        with pytest.raises(ValueError, match="needs a value or"):
            Leaf[int](source="human", **given)


def test_a_card_of_somebody_s_own_making_is_refused_with_every_fault() -> None:
    text = (GOLDEN / "card.yaml").read_text("utf-8").replace("source: human", "source: guess")
    with pytest.raises(InputError) as caught:
        read_card(text, "card.yaml")
    faults = caught.value.problems
    assert len(faults) == 8
    assert faults[0].startswith("card.yaml: purpose.statement.source: 'guess' is not one of")


def test_the_varying_paths_are_paths_of_the_card() -> None:
    assert set(VARYING) <= {path for path, _ in card_of().leaves()}


def test_the_step_writes_card_and_readme_for_run_and_version(context: Context) -> None:
    outputs = run(card_inputs(), context)
    assert not outputs.complete
    assert outputs.missing == card_of().missing
    here = context.store.local_path(outputs.card.key)
    assert here is not None
    assert file_digest(here) == outputs.card.sha256
    for name in ("card.yaml", "README.md"):
        kept = context.store.read(f"cards/acme/support/abcdef012345/{name}")
        assert kept == (GOLDEN / name).read_bytes()


def test_a_repeat_writes_the_same_bytes_and_completes_half_a_card(context: Context) -> None:
    first = run(card_inputs(), context)
    half = context.store.local_path("cards/acme/support/abcdef012345/README.md")
    assert half is not None
    half.unlink()
    assert run(card_inputs(), context) == first
    assert half.read_bytes() == (GOLDEN / "README.md").read_bytes()
