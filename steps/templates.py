"""Whether the chat template that is served writes what the trainer's template wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steps.models import Messages, load_tokenizer, prompt_ids, row_ids

_TRAINER_KEYS = (
    "train_on_prompt",
    "tool_format",
    "default_system",
    "enable_thinking",
    "preserve_thinking",
)
"""Trainer settings that change what LLaMA-Factory's template writes."""

Pair = tuple[list[int], list[int]]
"""Token ids of the prompt, and of the answer with what ends it."""


def compare_templates(
    rows: list[Messages], base: Path, served: Path, template: str, trainer: dict[str, Any]
) -> tuple[int, str | None]:
    """How many rows are equal under both templates, and how the first unequal one differs.

    Equal means: the same token ids for all before the last answer, and the same for the answer up
    to and with the token that ends it. What a template writes after that (SmolLM2 a line break)
    is neither generated nor read in the last turn; in earlier turns it is part of the prompt.
    """
    trained_ids = _trainer(base, template, trainer)
    tokenizer = load_tokenizer(served)
    stop = tokenizer.eos_token_id
    equal, difference = 0, None
    for number, row in enumerate(rows, 1):
        prompt, answer = trained_ids(row)
        served_prompt, served_answer = _served_ids(tokenizer, row)
        if prompt == served_prompt and _until(stop, answer) == _until(stop, served_answer):
            equal += 1
        elif difference is None:
            trained, given = prompt + answer, served_prompt + served_answer
            place = _first_difference(trained, given)
            around = slice(max(0, place - 5), place + 5)
            difference = (
                f"row {number}, token {place}: trained on {tokenizer.decode(trained[around])!r}, "
                f"served {tokenizer.decode(given[around])!r}"
            )
    return equal, difference


def _trainer(base: Path, template: str, trainer: dict[str, Any]) -> Any:
    """A function from a row to the ids that LLaMA-Factory trains on."""
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    given = {key: trainer[key] for key in _TRAINER_KEYS if key in trainer}
    tokenizer = load_tokenizer(base)
    form = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=template, **given))

    def ids(row: Messages) -> Pair:
        system = row[0]["content"] if row[0]["role"] == "system" else None
        turns = row[1:] if system is not None else row
        pairs = form.encode_multiturn(tokenizer, turns, system)
        earlier = [token for pair in pairs[:-1] for half in pair for token in half]
        question, answer = pairs[-1]
        end = [tokenizer.eos_token_id] if form.efficient_eos else []
        return earlier + question, answer + end

    return ids


def _served_ids(tokenizer: Any, row: Messages) -> Pair:
    prompt, whole = prompt_ids(tokenizer, row[:-1]), row_ids(tokenizer, row)
    # A template whose prompt is no beginning of the whole cannot be served as trained.
    return prompt, whole[len(prompt) :] if whole[: len(prompt)] == prompt else []


def _until(stop: int, ids: list[int]) -> list[int]:
    return ids[: ids.index(stop) + 1] if stop in ids else ids


def _first_difference(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
