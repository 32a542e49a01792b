"""Prove that the version is what was trained and answers as it should.

Reads: the version's, the base's and the trained folder; train and test rows.
Writes: runs/<tenant>/<run>/verify/answers.json: what the version answers, for pods that serve it.
Fails when: a folder is missing or damaged, or a GPU has too little memory (2); the store does not
    answer (3). A version that does not pass is a result with `passed: false`, not a failure.
Safe to repeat because: rows, order and decoding are fixed, so what it writes is the same again.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from kuznia.contracts.base import canonical_json
from kuznia.contracts.steps import PlanOutputs, SmokeAnswer, VerifyInputs, VerifyOutputs
from kuznia.machine import GIB
from kuznia.progress import progress
from steps import models
from steps.answers import ask, record
from steps.context import Context
from steps.parity import Parity, compare, distributions
from steps.templates import compare_templates

TEMPLATE_ROWS, PARITY_ROWS, SMOKE_ROWS = 100, 16, 3
SHOWN = 500
"""Characters of a smoke prompt or answer in the result, which travels as one argument of a command,
at most 128 KiB of it."""

TOP1_LIMIT = 0.97
"""Least share of positions with the same first token. Rounding weights to bfloat16 flips only near
ties, 0.2 to 0.7 % of positions on SmolLM2-135M; with all arithmetic in bfloat16 0.9 %."""
MEAN_KL_LIMITS = {"float32": 0.005, "bfloat16": 0.01}
"""Highest mean divergence, nats, by the format of the comparison. Rounding the weights to bfloat16
alone costs 0.0001 to 0.0008 on SmolLM2-135M, with all arithmetic in it 0.0033. An adapter that is
left out or scaled wrongly costs what it was trained to change, 0.02 and more; one that had changed
1.1 nats cost 0.014 at nine tenths of its scale."""
MAX_KL_LIMIT = 0.5
"""Highest divergence at one position: one row answered differently must not hide in the mean."""
DIFFERENCE_FACTOR = 5.0
"""How many times farther the version must be from the base than from what was trained."""
DIFFERENCE_LIMIT = 1e-6
"""Divergence from the base below which nothing was learnt: float32's own noise is under it,
and equal weights give equal numbers in any format."""

FORMAT = "float32"
"""Number format of all comparisons, so that only the weights' rounding differs. Where a GPU has no
room for it, the planned one: then the arithmetic's rounding differs as well."""
ROOM = 1.2
"""Memory for each byte of weights, with activations, logits and what CUDA takes."""


@models.memory_faults()
def run(inputs: VerifyInputs, context: Context) -> VerifyOutputs:
    plan, train = inputs.plan, inputs.train
    version = context.folder(inputs.export.folder)
    base = context.folder(inputs.fetch_base.base)
    weights = context.folder(train.weights)
    models.prepare(plan.hardware)
    memory = models.gpu_memory(plan.hardware) if plan.hardware.device == "cuda" else None
    form = format_for(plan, memory)
    _say(0)
    rows = models.read_rows(context.file(inputs.data_check.train), TEMPLATE_ROWS)
    equal, difference = compare_templates(rows, base, version, plan.base.template, plan.trainer)
    _say(1)
    tests = models.read_rows(context.file(inputs.data_check.test), PARITY_ROWS)
    tokenizer = models.load_tokenizer(version)
    ids = [models.row_ids(tokenizer, row) for row in tests]

    def load(folder: Path, adapter: bool) -> Any:
        if adapter:
            return models.load_adapted(base, folder, plan.hardware, form)
        return models.load_model(folder, plan.hardware, form)

    trained = load(weights, train.kind == "adapter")
    reference = distributions(trained, ids)
    _say(2)
    if train.kind == "adapter":
        with trained.disable_adapter():
            plain = compare(reference, trained, ids)
        del trained
    else:
        del trained
        plain = compare(reference, load(base, False), ids)
    gc.collect()
    _say(3)
    model = load(version, inputs.export.mode == "adapter")
    parity = compare(reference, model, ids)
    _say(4)
    prompts = [row[:-1] for row in tests[:SMOKE_ROWS]]
    limit = plan.spec.evaluation.max_new_tokens
    answers = models.answer_all(model, tokenizer, prompts, limit)
    asked, digest = ask(model, tokenizer, tests), inputs.export.folder.digest
    _say(5)
    if inputs.export.mode == "adapter":
        with model.disable_adapter():
            recorded = record(asked, model, digest)
    else:
        del model
        gc.collect()
        recorded = record(asked, load(base, False), digest)
    context.workdir.mkdir(parents=True, exist_ok=True)
    place = context.workdir / "answers.json"
    place.write_bytes(canonical_json(recorded))
    _say(6)
    failures, findings = _judge(len(rows), equal, difference, parity, plain, answers, form)
    for line in (*failures, *findings):
        print(f"verify: {line}", flush=True)
    return VerifyOutputs(
        passed=not failures,
        reasons=tuple(failures or findings),
        template_rows=len(rows),
        template_equal=equal,
        parity_positions=parity.positions,
        top1_agreement=parity.top1,
        mean_kl=parity.mean_kl,
        max_kl=parity.max_kl,
        base_mean_kl=plain.mean_kl,
        smoke=tuple(
            SmokeAnswer(prompt=_shown(prompt[-1]["content"]), answer=_shown(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ),
        answers=context.put(place, f"{plan.prefix}/verify/answers.json"),
    )


def format_for(plan: PlanOutputs, memory: int | None) -> str:
    """The format to compare in with `memory` bytes on the GPUs; None: without a GPU."""
    wanted = ROOM * 4 * plan.base.parameters
    if memory is None or wanted <= memory:
        return FORMAT
    dtype = plan.hardware.dtype
    print(
        f"verify: compared in {dtype}: in {FORMAT} the model wants {wanted / GIB:.1f} GiB of "
        f"{memory / GIB:.1f} GiB GPU memory",
        flush=True,
    )
    return dtype


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _judge(
    rows: int,
    equal: int,
    difference: str | None,
    parity: Parity,
    plain: Parity,
    answers: list[str],
    form: str,
) -> tuple[list[str], list[str]]:
    """What speaks against the version, and what speaks for it, one sentence each."""
    against: list[str] = []
    speaks_for: list[str] = []

    def check(holds: bool, good: str, bad: str) -> None:
        (speaks_for if holds else against).append(good if holds else bad)

    check(
        equal == rows,
        f"the served chat template writes all {rows} rows as they were trained on",
        f"the served chat template writes {rows - equal} of {rows} rows otherwise than they were "
        f"trained on ({difference}); correct template or default_system of the base in the "
        "catalogue",
    )
    seen = (
        f"on {parity.positions} positions {parity.top1:.1%} have the same first token as what was "
        f"trained, divergence {parity.mean_kl:.2g} on average and {parity.max_kl:.2g} at most"
    )
    mean_limit = MEAN_KL_LIMITS[form]
    check(
        parity.top1 >= TOP1_LIMIT
        and parity.mean_kl <= mean_limit
        and parity.max_kl <= MAX_KL_LIMIT,
        seen,
        f"{seen}; allowed are {TOP1_LIMIT:.0%}, {mean_limit:g} and {MAX_KL_LIMIT:g}",
    )
    wanted = max(DIFFERENCE_FACTOR * parity.mean_kl, DIFFERENCE_LIMIT)
    check(
        plain.mean_kl >= wanted,
        f"what was trained differs from the base by {plain.mean_kl:.2g}",
        f"what was trained differs from the base by {plain.mean_kl:.2g} only, below {wanted:.2g}: "
        "it is lost in rounding; train longer or with a higher learning_rate",
    )
    check(
        any(answers),
        f"{sum(map(bool, answers))} of {len(answers)} smoke prompts are answered",
        f"none of {len(answers)} smoke prompts is answered; look at the training data's answers",
    )
    return against, speaks_for


def _say(done: int) -> None:
    progress("verify", done, 6, "checks")
