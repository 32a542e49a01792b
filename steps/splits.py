"""One split of the rows while data-check reads it."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from kuznia.contracts.steps import SplitReport
from steps.messages import Messages, content_key

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_EXAMPLES = 10
"""Dropped rows that are named."""


@dataclass
class Split:
    """One split while it is read, and what was found in it."""

    name: str
    path: Path
    out: IO[bytes]
    read: int = 0
    kept: int = 0
    empty: int = 0
    over_long: int = 0
    duplicates: int = 0
    tokens: array[int] = field(default_factory=lambda: array("I"))
    examples: list[str] = field(default_factory=list)
    seen: dict[bytes, str] = field(default_factory=dict)
    """Where each row that is kept was first read."""
    prompts: dict[bytes, str] = field(default_factory=dict)
    """Where each prompt that is kept was first read."""

    def take(
        self, place: str, messages: Messages, prompt: bytes, tokens: int, least: int, cutoff: int
    ) -> None:
        """Keep a row of about `tokens`, at `least` fewer, or count why not."""
        self.read += 1
        content = content_key(messages)
        if empty := [m["role"] for m in messages if not m["content"]]:
            self.empty += 1
            self._example(place, f"empty {'answer' if 'assistant' in empty else 'question'}")
        elif content in self.seen:
            self.duplicates += 1
            self._example(place, f"the same as {self.seen[content]}")
        elif least > cutoff:
            self.over_long += 1
            self._example(place, f"about {least} tokens, cutoff_len is {cutoff}")
        else:
            self.out.write(_encode({"messages": messages}).encode() + b"\n")
            self.kept += 1
            self.tokens.append(tokens)
            self.seen[content] = place
            self.prompts.setdefault(prompt, place)

    def _example(self, place: str, reason: str) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{place}: {reason}")

    def report(self) -> SplitReport:
        ordered = sorted(self.tokens)
        last = len(ordered) - 1
        return SplitReport(
            rows_read=self.read,
            rows=self.kept,
            empty=self.empty,
            over_long=self.over_long,
            duplicates=self.duplicates,
            tokens_p50=ordered[last // 2],
            tokens_p95=ordered[last * 95 // 100],
            tokens_max=ordered[last],
            examples=tuple(self.examples),
        )

    def __str__(self) -> str:
        dropped = f"{self.empty} empty, {self.over_long} over-long, {self.duplicates} duplicate"
        return f"{self.name}: {self.kept} of {self.read} rows kept; dropped {dropped}"
