"""Training on a CPU without idle work: the rows of a batch as one sequence.

What all rows begin with, as a rule the system prompt, is computed once, nothing is padded, and the
language model's head sees only the places whose answer is learnt. Each row attends to the common
beginning and to itself, at the positions it would have alone, so losses and gradients are those of
the padded batch, but for rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from steps.trainer_settings import joins_rows

IGNORED = -100
"""Label of a token that is not learnt: torch's, transformers' and LLaMA-Factory's."""
_MODELS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Kinds of model whose every layer attends as the mask says, and nothing else mixes tokens."""
_PAIR = 3
"""A pair of tokens in attention costs what this many of its multiplications cost elsewhere."""

Batch = dict[str, torch.Tensor]
Collate = Callable[[list[dict[str, Any]]], Batch]


def possible(settings: dict[str, Any]) -> bool:
    """Whether a training with these settings of LLaMA-Factory comes out the same this way."""
    config = json.loads(Path(settings["model_name_or_path"], "config.json").read_text("utf-8"))
    return (
        joins_rows(settings)
        and config["model_type"] in _MODELS
        and not (config.get("use_sliding_window") or config.get("sliding_window"))
    )


class OneSequence(TrainerCallback):  # type: ignore[misc]
    """Has the trainer's batches put together by `joined`, where that is less to compute."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any, train_dataloader: Any, **_: Any
    ) -> None:
        config, loader = model.config, train_dataloader.base_dataloader
        if config._attn_implementation != "sdpa":
            return  # Only there a mask is true and false.
        padded: Collate = loader.collate_fn
        weights = sum(each.numel() for each in model.parameters())
        # What a pair of tokens costs in attention, in what a token costs in the layers.
        pair = _PAIR * 2 * config.hidden_size * config.num_hidden_layers / weights

        def collate(rows: list[dict[str, Any]]) -> Batch:
            # Decided by lengths: the mask of a long batch alone could fill the memory.
            lengths = [len(row["input_ids"]) for row in rows]
            tokens, longest = sum(lengths) - common(rows) * (len(rows) - 1), max(lengths)
            shorter = tokens + pair * tokens**2 < len(rows) * (longest + pair * longest**2)
            batch = joined(rows) if shorter else None
            return padded(rows) if batch is None else batch

        loader.collate_fn = collate


def joined(rows: list[dict[str, Any]]) -> Batch | None:
    """The inputs of a causal language model for these rows; None if nothing in them is learnt.

    `input_ids` and `position_ids` are (1, tokens), `attention_mask` is (1, 1, tokens, tokens) and
    true where a token sees another; `logits_to_keep` has the places that predict what is learnt,
    `shift_labels` (and `labels`, which the trainer counts) what each should predict.
    """
    inputs = [row["input_ids"] for row in rows]
    labels = [row["labels"] for row in rows]
    shared = common(rows)
    tokens = list(inputs[0][:shared])
    places = list(range(shared))
    owners = [0] * shared
    keep: list[int] = []
    learnt: list[int] = []
    for number, (row, wanted) in enumerate(zip(inputs, labels, strict=True), start=1):
        for place in range(shared, len(row)):
            if place + 1 < len(row) and wanted[place + 1] != IGNORED:
                keep.append(len(tokens))
                learnt.append(wanted[place + 1])
            tokens.append(row[place])
            places.append(place)
            owners.append(number)
    if not learnt:
        return None
    owner = torch.tensor(owners)
    seen = (owner[:, None] == owner[None, :]) | (owner == 0)
    return {
        "input_ids": torch.tensor([tokens]),
        "position_ids": torch.tensor([places]),
        "attention_mask": seen.tril()[None, None],
        "logits_to_keep": torch.tensor(keep),
        "labels": torch.tensor([learnt]),
        "shift_labels": torch.tensor([learnt]),
    }


def common(rows: list[dict[str, Any]]) -> int:
    """Tokens that all rows begin with, short of the first place that predicts what is learnt."""
    first, *others = (row["input_ids"] for row in rows)
    count = max(min(_learnt_from(row["labels"]) for row in rows) - 1, 0)
    for other in others:
        count = next((i for i in range(count) if first[i] != other[i]), count)
    return count


def _learnt_from(labels: list[int]) -> int:
    """Index of the first label that is learnt, or the row's length."""
    return next((i for i, label in enumerate(labels) if i and label != IGNORED), len(labels))
