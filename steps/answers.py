"""What a version answers, recorded, so that a pod can show that it serves this version.

answers.json holds token ids, the version's greedy answers, and how likely version and base find
each of their tokens. `steps/prove.py` asks a served model for the same figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from kuznia.contracts.base import Contract
from kuznia.contracts.catalogue import Sha256
from steps import models
from steps.parity import log_probabilities

ROWS = 8
"""Test rows that are recorded: asked in a few seconds, also on a CPU."""
ANSWER_TOKENS = 24
PROMPT_TOKENS = 1024
"""Longer prompts are left out where there are others: a release may serve a short context."""

MEAN_DIFFERENCE_LIMIT = 0.1
"""Highest mean difference of log-probabilities, nats, from what was recorded in float32, or in
the planned format where verify's GPU had no room for that. Serving in bfloat16 costs 0.03 on
SmolLM2-135M, in float16 0.003; another model's answers cost whole nats."""


class Row(Contract):
    """One test row."""

    prompt: tuple[int, ...]
    """Token ids up to where the model is to answer."""
    answer: tuple[int, ...]
    """Token ids of the version's greedy answer, with the token that ends it if it came so far."""
    logprobs: tuple[float, ...]
    """Log-probability of each token of the answer under the version, in verify's format."""
    base_logprobs: tuple[float, ...]
    """The same under the base."""


class Limits(Contract):
    """When a served model counts as the recorded one. Besides, it must be nearer to the version
    than to the base."""

    mean_difference: float = MEAN_DIFFERENCE_LIMIT


class Answers(Contract):
    """answers.json"""

    schema_version: Literal[1] = 1
    version_digest: Sha256
    rows: tuple[Row, ...]
    limits: Limits = Limits()


Asked = tuple[list[int], list[int], list[float]]
"""Token ids of prompt and answer, and the answer's log-probabilities."""


def ask(model: Any, tokenizer: Any, rows: Sequence[models.Messages]) -> list[Asked]:
    """What `model` answers to the first rows, greedily, and how likely it finds that."""
    prompts = [(row[:-1], models.prompt_ids(tokenizer, row[:-1])) for row in rows]
    fitting = [pair for pair in prompts if len(pair[1]) <= PROMPT_TOKENS]
    chosen = (fitting or sorted(prompts, key=lambda pair: len(pair[1]))[:1])[:ROWS]
    answers = models.answer_ids(model, tokenizer, [row for row, _ in chosen], ANSWER_TOKENS)
    return [
        (prompt, answer, _logprobs(model, prompt, answer))
        for (_, prompt), answer in zip(chosen, answers, strict=True)
    ]


def record(asked: Sequence[Asked], base: Any, digest: str) -> Answers:
    """The answers of the version with this digest, and how likely `base` finds them."""
    rows = tuple(
        Row.model_validate(
            {
                "prompt": prompt,
                "answer": answer,
                "logprobs": logprobs,
                "base_logprobs": _logprobs(base, prompt, answer),
            }
        )
        for prompt, answer, logprobs in asked
    )
    return Answers(version_digest=digest, rows=rows)


def _logprobs(model: Any, prompt: list[int], answer: list[int]) -> list[float]:
    """Log-probability of each token of the answer, all asked at once and without padding."""
    following = log_probabilities(model, prompt + answer)[-len(answer) - 1 : -1]
    return [round(float(p[token]), 6) for p, token in zip(following, answer, strict=True)]
