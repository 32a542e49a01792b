"""How alike two models answer: next-token distributions on fixed rows, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

POSITIONS = 256
"""Positions of a row that are compared: its last ones, the answer and the end of the prompt.
Bounds what is kept in memory: rows x positions x vocabulary x 4 bytes."""


@dataclass(frozen=True)
class Parity:
    """What a comparison found, over all positions of all rows."""

    positions: int
    top1: float
    """Share of positions where both put the same token first."""
    mean_kl: float
    max_kl: float
    """Kullback-Leibler divergence of the second from the first, nats."""


def distributions(model: Any, rows: Sequence[list[int]]) -> list[Any]:
    """For each row of token ids the log-probabilities of the next token, [positions, vocabulary],
    float32, in main memory."""
    return [log_probabilities(model, ids).cpu() for ids in rows]


def compare(reference: Sequence[Any], model: Any, rows: Sequence[list[int]]) -> Parity:
    """How far `model` is from the `reference` that `distributions` gave on the same rows."""
    positions, agreed, total, highest = 0, 0, 0.0, 0.0
    for known, ids in zip(reference, rows, strict=True):
        found = log_probabilities(model, ids)
        known = known.to(found.device)
        divergence = (known.exp() * (known - found)).sum(-1).clamp(min=0)
        positions += len(ids[-POSITIONS:])
        agreed += int((known.argmax(-1) == found.argmax(-1)).sum())
        total += float(divergence.sum())
        highest = max(highest, float(divergence.max()))
    return Parity(positions, agreed / positions, total / positions, highest)


def log_probabilities(model: Any, ids: list[int]) -> Any:
    """The log-probabilities after each of the last POSITIONS of `ids`, [positions, vocabulary]."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([ids], device=model.device)).logits[0, -POSITIONS:]
        return logits.float().log_softmax(-1)
