"""Measure the candidate against the base on the test rows, and judge by the run spec's gate.

Reads: the test rows, the base's folder and the trained weights.
Writes: runs/<tenant>/<run>/evaluate/answers.jsonl and the metrics to the run's MLflow run.
Fails when: the base has no chat template, or a GPU too little memory (2); the store or MLflow does
    not answer (3).
Safe to repeat because: decoding is greedy and the bootstrap seeded; answers that are in the cache
    of this machine are not generated again, and MLflow gets each metric once.
"""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from kuznia.contracts.base import canonical_json, digest_of
from kuznia.contracts.steps import EvaluateInputs, EvaluateOutputs, File, MetricResult
from kuznia.progress import progress
from kuznia.registry import mlflow_answers, mlflow_client
from steps import models
from steps.context import Context
from steps.metrics import SCORES, judge, measure

LIBRARIES = ("torch", "transformers", "peft")


@models.memory_faults()
def run(inputs: EvaluateInputs, context: Context) -> EvaluateOutputs:
    spec = inputs.plan.spec
    rows = models.read_rows(context.file(inputs.data_check.test))
    base, candidate = _answers(inputs, context, rows)
    expected = [row[-1]["content"] for row in rows]
    metrics, scores = {}, {}
    for name in spec.evaluation.metrics:
        score = SCORES[name]
        before, after = (
            [score(wanted, answer) for wanted, answer in zip(expected, arm, strict=True)]
            for arm in (base, candidate)
        )
        scores[str(name)] = [before, after]
        metrics[name] = measure(before, after, spec.seed)
    verdict, reasons = judge(metrics, spec.evaluation.gate, len(rows))
    for reason in reasons:
        print(f"evaluate: {reason}", flush=True)
    print(f"evaluate: {verdict}", flush=True)
    answers = _keep(rows, base, candidate, scores, inputs, context)
    _log(inputs.train.mlflow_run_id, metrics, context)
    return EvaluateOutputs(
        test_rows=len(rows), metrics=metrics, verdict=verdict, reasons=reasons, answers=answers
    )


def _answers(
    inputs: EvaluateInputs, context: Context, rows: list[models.Messages]
) -> tuple[list[str], list[str]]:
    """Answers of base and candidate, in order of the rows; both under the same settings."""
    hardware, train = inputs.plan.hardware, inputs.train
    prompts, limit = [row[:-1] for row in rows], inputs.plan.spec.evaluation.max_new_tokens
    settings = {
        "base": inputs.fetch_base.base.digest,
        "test": inputs.data_check.test.sha256,
        "max_new_tokens": limit,
        "batch": models.BATCH,
        "hardware": hardware.facts(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }
    places = [
        context.cache / "answers" / f"{digest_of(settings | {'weights': weights})}.json"
        for weights in ("base", train.weights.digest)
    ]
    missing = [place for place in places if not place.exists()]
    if missing:
        models.prepare(hardware)
        folders = context.folder(inputs.fetch_base.base), context.folder(train.weights)
        tokenizer = models.load_tokenizer(folders[0])
        model = models.load_adapted(*folders, hardware) if train.kind == "adapter" else None
        for number, place in enumerate(missing):
            arm = places.index(place)
            say = partial(_say, number * len(rows), len(missing) * len(rows))
            # An adapter shares the base's weights in memory; full weights take their turn.
            with model.disable_adapter() if model and arm == 0 else nullcontext():
                asked = model or models.load_model(folders[arm], hardware)
                _save(place, models.answer_all(asked, tokenizer, prompts, limit, say))
    base, candidate = (json.loads(place.read_text("utf-8")) for place in places)
    return base, candidate


def _say(before: int, total: int, done: int) -> None:
    progress("evaluate", before + done, total, "answers")


def _save(place: Path, answers: list[str]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    half = place.with_suffix(f".{os.getpid()}")
    half.write_bytes(canonical_json(answers))
    half.replace(place)


def _keep(
    rows: list[models.Messages],
    base: list[str],
    candidate: list[str],
    scores: dict[str, list[list[float]]],
    inputs: EvaluateInputs,
    context: Context,
) -> File:
    """The per-row answers in the store."""
    path = context.workdir / "answers.jsonl"
    with path.open("wb") as file:
        for index, row in enumerate(rows):
            line = {
                "prompt": row[:-1],
                "expected": row[-1]["content"],
                "base": base[index],
                "candidate": candidate[index],
                "scores": {
                    name: {"base": before[index], "candidate": after[index]}
                    for name, (before, after) in scores.items()
                },
            }
            file.write(canonical_json(line) + b"\n")
    return context.put(path, f"{inputs.plan.prefix}/evaluate/answers.jsonl")


def _log(run_id: str, metrics: dict[Any, MetricResult], context: Context) -> None:
    """Send what MLflow's run does not have yet."""
    with mlflow_answers(context.tracking_uri):
        client = mlflow_client(context.tracking_uri)
        known = client.get_run(run_id).data.metrics
        for name, found in metrics.items():
            for key, value in {
                f"eval_{name}": found.candidate,
                f"eval_{name}_base": found.base,
                f"eval_{name}_difference_low": found.low,
                f"eval_{name}_difference_high": found.high,
            }.items():
                if key not in known:
                    client.log_metric(run_id, key, value)
