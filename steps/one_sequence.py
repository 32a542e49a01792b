"""Training on a CPU without idle work: the rows of a batch as one sequence.

What all rows begin with, as a rule the system prompt, is computed once, nothing is padded, nothing
follows what predicts a row's last learnt token, and the language model's head sees only the places
whose answer is learnt. Each row attends to the common beginning and to itself, at the positions it
would have alone, so losses and gradients are those of the padded batch, but for rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, TrainerCallback
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from steps.trainer_settings import joins_rows

IGNORED = -100
"""Label of a token that is not learnt: torch's, transformers' and LLaMA-Factory's."""
_MODELS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Kinds of model whose every layer attends as the mask says, and nothing else mixes tokens."""
_ATTENTION = "rows_apart"
_GROUP = 4
"""Rows of about one length that are attended to together."""

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
    """Has the trainer's batches put together by `joined`."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any, train_dataloader: Any, **_: Any
    ) -> None:
        config, loader = model.config, train_dataloader.base_dataloader
        if config._attn_implementation != "sdpa":
            return  # What another kind of attention does with a mask is not known.
        AttentionInterface.register(_ATTENTION, rows_apart)
        AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
        config._attn_implementation = _ATTENTION
        padded: Collate = loader.collate_fn

        def collate(rows: list[dict[str, Any]]) -> Batch:
            batch = joined(rows)
            return padded(rows) if batch is None else batch

        loader.collate_fn = collate


def joined(rows: list[dict[str, Any]]) -> Batch | None:
    """The inputs of a causal language model for these rows; None if nothing in them is learnt.

    `input_ids` and `position_ids` are (1, tokens); `logits_to_keep` has the places that predict
    what is learnt, `shift_labels` (and `labels`, which the trainer counts) what each should
    predict. `attention_mask` and the rest are for `rows_apart`.
    """
    rows = [
        {key: row[key][: _learnt_to(row["labels"])] for key in ("input_ids", "labels")}
        for row in rows
    ]
    rows = sorted((row for row in rows if row["labels"]), key=lambda row: len(row["labels"]))
    if not rows:
        return None
    shared = common(rows)
    tokens = list(rows[0]["input_ids"][:shared])
    positions = list(range(shared))
    keep: list[int] = []
    learnt: list[int] = []
    for row in rows:
        for place in range(shared, len(row["labels"]) - 1):
            if row["labels"][place + 1] != IGNORED:
                keep.append(len(tokens))
                learnt.append(row["labels"][place + 1])
            tokens.append(row["input_ids"][place])
            positions.append(place)
    lengths = [len(row["labels"]) - 1 - shared for row in rows]
    longest = lengths[-1]
    return {
        "input_ids": torch.tensor([tokens]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": torch.ones(1, 1, longest, shared + longest, dtype=torch.bool).tril(
            shared
        ),
        **_layout(shared, lengths),
        "logits_to_keep": torch.tensor(keep),
        "labels": torch.tensor([learnt]),
        "shift_labels": torch.tensor([learnt]),
    }


def _layout(shared: int, lengths: list[int]) -> Batch:
    """How `rows_apart` lays out the common beginning and rows of these lengths, in this order."""
    beginning = torch.arange(shared)[None]
    groups = [(beginning, beginning)] if shared else []
    valid = [torch.ones(1, shared, dtype=torch.bool)]
    start = shared
    for first in range(0, len(lengths), _GROUP):
        own = torch.tensor(lengths[first : first + _GROUP])
        starts = start + own.cumsum(0) - own
        places = torch.arange(int(own.max()))
        start += int(own.sum())
        valid.append(places < own[:, None])
        queries = (starts[:, None] + places).clamp(max=start - 1)
        groups.append((queries, torch.cat([beginning.expand(len(own), -1), queries], 1)))
    return {
        "shapes": torch.tensor([[*queries.shape, keys.shape[1]] for queries, keys in groups]),
        "queries": torch.cat([queries.flatten() for queries, _ in groups]),
        "keys": torch.cat([keys.flatten() for _, keys in groups]),
        "places": torch.cat([each.flatten() for each in valid]).nonzero().flatten(),
    }


def rows_apart(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    shapes: torch.Tensor | None = None,
    queries: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a joined batch, in transformers' form; of any other batch, transformers' own.

    `query`, `key` and `value` are (1, heads, tokens, size). Each of `shapes` is a group of rows of
    about one length: how many, tokens of the longest, and tokens these see. `queries` and `keys`
    say which tokens those are, group by group; a row is filled up with what comes after it, which
    it does not see. `places` are those of `queries` that are not filling, in the order of tokens.
    `attention_mask` is that of the longest row. Returns (1, tokens, heads, size).
    """
    if shapes is None:
        theirs: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return theirs
    sizes = shapes.tolist()

    def grouped(states: torch.Tensor, index: torch.Tensor, column: int) -> list[torch.Tensor]:
        # In pieces this small torch attends in bfloat16 a quarter as fast as in float32.
        taken = states[0].float().index_select(1, index)
        return [
            each.unflatten(1, (size[0], -1)).transpose(0, 1)
            for size, each in zip(
                sizes, taken.split([size[0] * size[column] for size in sizes], 1), strict=True
            )
        ]

    groups = zip(
        *(sizes, grouped(query, queries, 1), grouped(key, keys, 2), grouped(value, keys, 2)),
        strict=True,
    )
    found = []
    with torch.autocast("cpu", enabled=False):
        for (_, length, sees), *states in groups:
            group = scaled_dot_product_attention(
                *states,
                attn_mask=None if length == sees else attention_mask[..., :length, :sees],
                is_causal=length == sees,
                scale=options["scaling"],
                enable_gqa=True,
            )
            found.append(group.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, places)[None].to(query.dtype), None


def common(rows: list[dict[str, Any]]) -> int:
    """Tokens that all rows begin with, short of the first place that predicts what is learnt."""
    first, *others = (row["input_ids"] for row in rows)
    count = max(min(_learnt_from(row["labels"]) for row in rows) - 1, 0)
    for other in others:
        count = next((i for i in range(count) if first[i] != other[i]), count)
    return count


def _learnt_to(labels: list[int]) -> int:
    """Length of a row up to the last label that is learnt; 0 if none is."""
    return next((i + 1 for i in range(len(labels) - 1, 0, -1) if labels[i] != IGNORED), 0)


def _learnt_from(labels: list[int]) -> int:
    """Index of the first label that is learnt, or the row's length."""
    return next((i for i, label in enumerate(labels) if i and label != IGNORED), len(labels))
