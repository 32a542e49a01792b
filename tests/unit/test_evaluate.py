"""The evaluate step as the engine starts it, on weights whose answers are known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kuznia.manifest import write_manifest
from kuznia.registry import mlflow_client
from steps.metrics import exact_match, token_f1
from tests.fixtures.model_case import Case, make_case, progress_of

pytestmark = pytest.mark.xdist_group("models")


def with_run(case: Case, uri: str) -> Any:
    """MLflow's client, after starting the run that the train step would have started."""
    client = mlflow_client(uri)
    run = client.create_run("0")
    case.inputs["train"]["mlflow_run_id"] = run.info.run_id
    case.tracking = uri
    return client


def lines(case: Case, outputs: dict[str, Any]) -> list[dict[str, Any]]:
    text = case.store.read(outputs["answers"]["key"]).decode()
    return [json.loads(line) for line in text.splitlines()]


def test_adapter_against_base(
    tmp_path: Path,
    tiny_base: Path,
    trained_weights: Path,
    train_python: Path,
    mlflow_database: str,
) -> None:
    case = make_case(
        tmp_path / "case",
        tiny_base,
        trained_weights,
        "plain",
        train_python,
        evaluation={
            "max_new_tokens": 8,
            "gate": {"exact_match": {"at_least": 0.7, "not_worse_than": "base"}},
        },
    )
    client = with_run(case, mlflow_database)
    outputs, done = case.run("evaluate")
    assert done.returncode == 0, done.stderr
    rows = lines(case, outputs)
    expected = [
        json.loads(line)["messages"]
        for line in (trained_weights / "test.jsonl").read_text("utf-8").splitlines()
    ]
    assert [(row["prompt"], row["expected"]) for row in rows] == [
        (messages[:-1], messages[-1]["content"]) for messages in expected
    ]
    # The expected answers are what the candidate said alone and unpadded, so batching is honest.
    assert [row["candidate"] for row in rows] == [row["expected"] for row in rows]
    for row in rows:
        assert row["scores"]["exact_match"]["base"] == exact_match(row["expected"], row["base"])
        assert row["scores"]["token_f1"]["base"] == token_f1(row["expected"], row["base"])
    exact = outputs["metrics"]["exact_match"]
    assert (exact["base"], exact["candidate"], exact["difference"]) == (0.0, 1.0, 1.0)
    assert outputs["metrics"]["token_f1"]["candidate"] == 1.0
    assert outputs["test_rows"] == len(rows)
    assert outputs["verdict"] == "promote"
    assert outputs["reasons"][0].startswith("exact_match: 1.000 on 12 rows (95 % interval 0.735")
    said = progress_of(done)
    assert (said[-1]["done"], said[-1]["total"]) == (2 * len(rows), 2 * len(rows))
    logged = client.get_run(case.inputs["train"]["mlflow_run_id"]).data.metrics
    assert (logged["eval_exact_match"], logged["eval_exact_match_base"]) == (1.0, 0.0)
    assert logged["eval_exact_match_difference_low"] == exact["low"]

    # After a failure of MLflow nothing is generated anew.
    case.store.remove_folder("runs/acme/try-1/evaluate")
    case.tracking = "http://127.0.0.1:9"
    outputs, done = case.run("evaluate")
    assert (done.returncode, outputs) == (3, {})
    assert "error: MLflow at http://127.0.0.1:9 does not answer" in done.stderr
    assert progress_of(done) == []


def test_full_weights_against_base(
    tmp_path: Path,
    tiny_base: Path,
    trained_weights: Path,
    train_python: Path,
    mlflow_database: str,
) -> None:
    case = make_case(
        tmp_path / "case", tiny_base, trained_weights, "full", train_python, method="full"
    )
    with_run(case, mlflow_database)
    outputs, done = case.run("evaluate")
    assert done.returncode == 0, done.stderr
    rows = lines(case, outputs)
    assert any(row["base"] != row["candidate"] for row in rows)
    assert outputs["metrics"]["exact_match"]["candidate"] == 0.0
    assert outputs["verdict"] == "not enough evidence"
    assert outputs["reasons"][0].endswith("is not shown to be worse than the base; no gate is set")
    assert outputs["reasons"][-1].startswith("no metric is shown to be better than the base; ")


def test_needs_a_chat_template(
    tmp_path: Path, tiny_base: Path, trained_weights: Path, train_python: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base.iterdir():
        if path.name not in ("chat_template.jinja", "manifest.json"):
            (base / path.name).write_bytes(path.read_bytes())
    write_manifest(base, "base")
    case = make_case(tmp_path / "case", base, trained_weights, "plain", train_python)
    outputs, done = case.run("evaluate")
    assert (done.returncode, outputs) == (2, {})
    assert "the tokenizer has no chat template; choose an instruction-tuned base" in done.stderr
