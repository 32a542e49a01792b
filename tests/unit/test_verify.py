"""The verify step as the engine starts it: versions that are what was trained, and some not."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kuznia.contracts.steps import Folder
from kuznia.manifest import manifest_digest, read_manifest, write_manifest
from steps.answers import Answers
from steps.verify import format_for
from tests.fixtures.evidence import register_inputs
from tests.fixtures.model_case import Case, make_case, progress_of
from tests.fixtures.train_case import ROWS
from workflows.environments import ROOT

pytestmark = pytest.mark.xdist_group("models")


def publish(case: Case, folder: Path, mode: str = "merged") -> Path:
    """Publish `folder` as the version that export made; returns its place in the store."""
    digest = write_manifest(folder, "version")
    key = f"models/acme/support/{digest[:12]}"
    case.store.put_folder(folder, key)
    described = Folder(key=key, digest=digest, bytes=read_manifest(folder).bytes)
    case.inputs["export"] = {
        "version": digest[:12],
        "folder": described.model_dump(),
        "mode": mode,
        "unchanged_share": 0.0,
    }
    place = case.store.local_path(key)
    assert place is not None
    return place


def version_of(base: Path, weights: Path, target: Path) -> Path:
    """A folder of the base's tokenizer and `weights`."""
    target.mkdir()
    for path in base.iterdir():
        if path.name not in ("manifest.json", "model.safetensors"):
            (target / path.name).write_bytes(path.read_bytes())
    for path in weights.glob("*.safetensors"):
        (target / path.name).write_bytes(path.read_bytes())
    return target


def verified(case: Case) -> dict[str, Any]:
    outputs, done = case.run("verify")
    assert done.returncode == 0, done.stderr
    said = progress_of(done)
    assert (said[-1]["done"], said[-1]["total"]) == (6, 6)
    return outputs


def ask_at_length(case: Case, rows: Path) -> list[dict[str, str]]:
    """Make the first question of the test rows too long for a step's result; returns that row."""
    first, *others = rows.read_text("utf-8").splitlines()
    messages: list[dict[str, str]] = json.loads(first)["messages"]
    messages[0]["content"] *= 600 // len(messages[0]["content"]) + 1
    text = "\n".join((json.dumps({"messages": messages}), *others)) + "\n"
    case.store.write("long.jsonl", text.encode())
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    case.inputs["data_check"]["test"] = {
        "key": "long.jsonl",
        "sha256": sha256,
        "bytes": len(text.encode()),
    }
    return messages


def recorded(case: Case, outputs: dict[str, Any]) -> Answers:
    """What the step recorded for the pods that serve the version."""
    answers = outputs["answers"]
    data = case.store.read(answers["key"])
    assert hashlib.sha256(data).hexdigest() == answers["sha256"]
    assert answers["key"].endswith("/verify/answers.json")
    return Answers.model_validate_json(data)


def distance(answers: Answers) -> float:
    """Mean difference of version and base, nats a token."""
    pairs = [
        pair for row in answers.rows for pair in zip(row.logprobs, row.base_logprobs, strict=True)
    ]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def test_passes_what_was_trained(
    tmp_path: Path, tiny_base: Path, trained_weights: Path, train_python: Path
) -> None:
    case = make_case(tmp_path / "case", tiny_base, trained_weights, "plain", train_python)
    publish(case, version_of(tiny_base, trained_weights / "merged" / "plain", tmp_path / "version"))
    outputs = verified(case)
    assert outputs["passed"] is True, outputs["reasons"]
    assert outputs["template_equal"] == outputs["template_rows"] == len(ROWS)
    assert outputs["parity_positions"] > 300
    assert outputs["top1_agreement"] > 0.97
    assert 0 < outputs["mean_kl"] < outputs["base_mean_kl"] / 5
    assert outputs["max_kl"] >= outputs["mean_kl"]
    rows = (trained_weights / "test.jsonl").read_text("utf-8").splitlines()
    prompts = [json.loads(row)["messages"][0]["content"] for row in rows[:3]]
    assert [each["prompt"] for each in outputs["smoke"]] == prompts
    assert all(each["answer"] for each in outputs["smoke"])
    found = recorded(case, outputs)
    assert found.version_digest == case.inputs["export"]["folder"]["digest"]
    assert len(found.rows) == 8
    for row in found.rows:
        assert 1 <= len(row.answer) == len(row.logprobs) == len(row.base_logprobs) <= 24
        # The system prompt's and the question's tokens, and the one that begins the answer.
        assert len(row.prompt) > 50
    assert distance(found) > 2 * found.limits.mean_difference


def test_reports_a_wrong_merge_and_a_wrong_template(
    tmp_path: Path, tiny_base: Path, trained_weights: Path, train_python: Path
) -> None:
    case = make_case(tmp_path / "case", tiny_base, trained_weights, "plain", train_python)
    version = version_of(tiny_base, trained_weights / "merged" / "rslora", tmp_path / "version")
    place = version / "chat_template.jinja"
    place.write_text(place.read_text("utf-8").replace("Hugging Face", "nobody"), "utf-8")
    publish(case, version)
    outputs = verified(case)
    assert outputs["passed"] is False
    template, parity = outputs["reasons"][:2]
    # The one row that says its own system prompt is equal under both.
    assert outputs["template_equal"] == 1
    assert (
        f"writes {len(ROWS) - 1} of {len(ROWS)} rows otherwise than they were trained" in template
    )
    assert "correct template or default_system of the base in the catalogue" in template
    assert parity.endswith("allowed are 97%, 0.005 and 0.5")
    assert outputs["mean_kl"] > 0.005


def test_full_weights_and_a_version_that_is_the_base(
    tmp_path: Path, tiny_base: Path, trained_weights: Path, train_python: Path
) -> None:
    case = make_case(
        tmp_path / "case", tiny_base, trained_weights, "full", train_python, method="full"
    )
    publish(case, version_of(tiny_base, tiny_base, tmp_path / "version"))
    outputs = verified(case)
    assert outputs["passed"] is False
    assert outputs["mean_kl"] == pytest.approx(outputs["base_mean_kl"])
    assert distance(recorded(case, outputs)) == 0
    assert any("it is lost in rounding; train longer" in reason for reason in outputs["reasons"])


def test_adapter_version_is_base_and_adapter(
    tmp_path: Path, tiny_base: Path, trained_weights: Path, train_python: Path
) -> None:
    case = make_case(tmp_path / "case", tiny_base, trained_weights, "plain", train_python)
    version = version_of(tiny_base, trained_weights / "adapters" / "plain", tmp_path / "version")
    (version / "config.json").unlink()
    config = (trained_weights / "adapters" / "plain" / "adapter_config.json").read_bytes()
    (version / "adapter_config.json").write_bytes(config)
    publish(case, version, "adapter")
    tests = ask_at_length(case, trained_weights / "test.jsonl")
    outputs = verified(case)
    assert outputs["smoke"][0]["prompt"] == tests[0]["content"][:499] + "…"
    assert all(len(each["answer"]) <= 500 for each in outputs["smoke"])
    assert outputs["passed"] is True, outputs["reasons"]
    assert (outputs["top1_agreement"], outputs["mean_kl"]) == (1.0, 0.0)
    assert distance(recorded(case, outputs)) > 0.2


def test_refuses_a_missing_or_damaged_version(
    tmp_path: Path, tiny_base: Path, trained_weights: Path, train_python: Path
) -> None:
    case = make_case(tmp_path / "case", tiny_base, trained_weights, "plain", train_python)
    place = publish(
        case, version_of(tiny_base, trained_weights / "merged" / "plain", tmp_path / "version")
    )
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    outputs, done = case.run("verify")
    assert (done.returncode, outputs) == (2, {})
    assert "model.safetensors: differs from the manifest; do not use it" in done.stderr

    write_manifest(place, "version")
    assert manifest_digest(place) != case.inputs["export"]["folder"]["digest"]
    assert "do not use it, run the step that makes it again" in case.run("verify")[1].stderr

    (place / "manifest.json").unlink()
    assert "is not in the store; run the step that makes it" in case.run("verify")[1].stderr


def test_what_a_gpu_cannot_hold_in_float32_is_compared_as_planned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = register_inputs().plan
    assert format_for(plan, None) == "float32"
    hardware = plan.hardware.model_copy(update={"device": "cuda", "dtype": "bfloat16"})
    base = plan.base.model_copy(update={"parameters": 8_030_000_000})
    plan = plan.model_copy(update={"hardware": hardware, "base": base})
    assert format_for(plan, 80 * 2**30) == "float32"
    assert capsys.readouterr().out == ""
    assert format_for(plan, 24 * 2**30) == "bfloat16"
    assert capsys.readouterr().out == (
        "verify: compared in bfloat16: in float32 the model wants 35.9 GiB of 24.0 GiB GPU memory\n"
    )


def test_a_gpu_without_room_is_said_with_a_way_out(train_python: Path) -> None:
    code = """
import torch
from kuznia.errors import InputError
from steps import models
for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 1"),
              RuntimeError("shapes differ")):
    try:
        with models.memory_faults():
            raise error
    except (InputError, RuntimeError) as said:
        print(type(said).__name__, said)
"""
    done = subprocess.run(
        [train_python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "InputError config: hardware: the GPU has too little memory to ask the model (CUDA out of "
        "memory. Tried to allocate 2 GiB); run again on one with more, or set more gpus, a smaller "
        "base or evaluation.max_new_tokens lower",
        "RuntimeError shapes differ",
    ]
