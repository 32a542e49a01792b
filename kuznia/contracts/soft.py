"""Soft configuration: what may change from day to day, within what git allows.

argocd/registry/soft.yaml, or a file that a content management system fills.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from kuznia.contracts.base import Contract
from kuznia.contracts.guard import LOOKALIKES
from kuznia.contracts.limits import Limits
from kuznia.guard.folding import Folding


def _seen(word: str) -> str:
    """`word`, if there is something to see of it; else it would be found everywhere or nowhere."""
    if not Folding(LOOKALIKES)(word).strip():
        raise ValueError(f"{word!r} has nothing to see; remove it")
    return word


Line = Annotated[str, Field(max_length=500, pattern=r"^[^\r\n\x00]*$")]
Word = Annotated[str, Field(min_length=2, max_length=200), AfterValidator(_seen)]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]


class SoftModel(Contract):
    """One model's words and softer limits."""

    title: Line = ""
    """Its name for people, in GET /v1/models."""
    description: Line = ""
    notice: str = Field(default="", pattern=r"^[\x20-\x7e]{0,300}$")
    """What people are told about it (AI Act, Article 50), in the header x-ai-notice: ASCII."""
    system_prompt: str = Field(default="", max_length=20_000)
    """Put before every conversation; the tenant needs a guard."""
    deny_words: tuple[Word, ...] = Field(default=(), max_length=1000)
    """Refused by the guard, besides what its policy refuses."""
    limits: Limits = Limits()
    """Of all callers of its releases; never above what git sets."""


class Soft(Contract):
    """Everything soft, by model: acme/support."""

    models: dict[ModelName, SoftModel] = {}
