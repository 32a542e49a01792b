"""Looks at whole texts and JSON trees, as requests and whole replies have them."""

from __future__ import annotations

import json
from typing import Any

from kuznia.guard.rules import RuleSet
from kuznia.guard.scanner import Block, Naming, Scanner
from kuznia.guard.verdict import text_of


class Blocked(Exception):
    """A rule blocks the text at `where`."""

    def __init__(self, where: str, block: Block) -> None:
        super().__init__(f"{where}: rule {block.rule}: {block.why}")
        self.where, self.block = where, block


class Inspector:
    """One direction of one request. `hits` counts by rule, `texts` keeps what was let through."""

    def __init__(self, rules: RuleSet, naming: Naming | None, keep: bool = False) -> None:
        self.rules, self._naming = rules, naming
        self.hits: dict[str, int] = {}
        self.texts: list[str] | None = [] if keep else None

    def text(self, text: str, where: str, in_json: bool = False) -> str:
        """What of `text` may pass; raises Blocked."""
        if self.rules and not (self.rules.is_clean(text) and not (in_json and "\\" in text)):
            scanner = Scanner(self.rules, self._naming, in_json=in_json)
            text, block = text_of([*scanner.feed(text), *scanner.finish()])
            for rule, count in scanner.hits.items():
                self.hits[rule] = self.hits.get(rule, 0) + count
            if block:
                raise Blocked(where, block)
        if self.texts is not None and text:
            self.texts.append(text)
        return text

    def whole(self, texts: list[str], where: str) -> None:
        """Refuse what is split over texts that a model reads as one; raises Blocked."""
        if len(texts) < 2 or not self.rules or self.rules.is_clean("".join(texts)):
            return
        scanner = Scanner(self.rules, self._naming)
        together, block = text_of([*scanner.feed("".join(texts)), *scanner.finish()])
        if block is None and together != "".join(texts):
            block = Block(next(iter(scanner.hits)), "split over parts")
        if block:
            self.hits[block.rule] = self.hits.get(block.rule, 0) + 1
            raise Blocked(where, block)

    def arguments(self, text: str, where: str) -> str:
        """The same for JSON text."""
        return self.text(text, where, in_json=True)

    def tree(self, value: Any, where: str) -> Any:
        """Every text, number and key in a JSON value; raises Blocked, also where a key matches."""
        if isinstance(value, str):
            return self.text(value, where)
        if isinstance(value, list):
            return [self.tree(each, f"{where}[{place}]") for place, each in enumerate(value)]
        if isinstance(value, dict):
            for key in value:
                if self.text(key, where) != key:
                    raise Blocked(where, Block(next(iter(self.hits)), "is in the name of a field"))
            return {key: self.tree(each, f"{where}.{key}") for key, each in value.items()}
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = json.dumps(value)
            seen = self.text(text, where)
            return value if seen == text else seen
        return value
