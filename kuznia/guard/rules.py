"""A policy made ready to use: what to look for in each direction, compiled once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import re2  # type: ignore[import-untyped]

from kuznia.contracts.base import FAST, digest_of
from kuznia.contracts.guard import Action, Direction, Policy, Rule
from kuznia.errors import InputError, collected
from kuznia.guard.detectors import DETECTORS, Check, Detector
from kuznia.guard.folding import Folding
from kuznia.guard.patterns import Pattern

LONGEST = 65_536
"""Bytes of a key or token with no end; what goes on for longer is blocked."""
ENDING = 96
"""Characters that the end of a key block can have."""
_SENTENCE = re.compile(r"[.!?…。！？]+[\"')\]”»]*\s+|\n+")


def _compiled(pattern: str, place: str) -> Any:
    options = re2.Options()
    options.longest_match = True
    options.log_errors = False
    options.max_mem = 64 << 20
    try:
        return re2.compile(pattern.encode(), options)
    except re2.error as error:
        why = error.args[0] if error.args else "not RE2"
        why = why.decode() if isinstance(why, bytes) else why
        raise InputError(f"{place}: {why}; correct the pattern") from None


@dataclass(frozen=True, slots=True)
class Finder:
    """One shape of one rule."""

    rule: str
    label: str
    action: Action
    pattern: Any
    check: Check | None
    ending: Any
    """For what goes on until this matches; None otherwise."""
    ending_belongs: bool


class RuleSet:
    """The rules of a policy for one direction.

    `any_of` finds the first place where some rule could match; `begun` where, at the end of a
    text, a match of some rule could have begun.
    """

    def __init__(
        self, policy: Policy, direction: Direction, deny_words: tuple[str, ...], folding: Folding
    ) -> None:
        self.mode = policy.mode
        self.folding = folding
        self.unreadable = policy.unreadable
        self.finders: list[Finder] = []
        self.longest = 1
        wholes: list[str] = []
        beginnings: list[str] = []
        problems: list[str] = []
        for rule in _with_words(policy, deny_words):
            if not rule.applies_to(direction):
                continue
            place = f"policy {policy.name}: rule {rule.name}"
            for detector in _detectors(rule, folding):
                with collected(problems):
                    pattern = Pattern(detector.pattern, place, policy.window)
                    self.finders.append(_finder(rule, detector, pattern, place))
                    wholes.append(pattern.whole)
                    beginnings.append(pattern.begun)
                    # A character of the text can take four bytes.
                    self.longest = max(self.longest, pattern.most * 4)
        if problems:
            raise InputError(problems)
        self.any_of = self.begun = None
        if wholes:
            place = f"policy {policy.name}"
            self.any_of = _compiled("|".join(wholes), place)
            self.begun = _compiled(rf"(?:{'|'.join(beginnings)})\z", place)

    def __bool__(self) -> bool:
        return bool(self.finders)

    def is_clean(self, text: str) -> bool:
        """Whether nothing in `text` has the shape of anything that is looked for."""
        if self.any_of is None:
            return True
        return self.any_of.search(self.folding(text).encode()) is None


@dataclass(frozen=True)
class Compiled:
    """A policy with the words of a release; `digest` names both."""

    policy: Policy
    digest: str
    input: RuleSet
    output: RuleSet


@lru_cache(maxsize=4096)
def compile_policy(policy: Policy, deny_words: tuple[str, ...] = ()) -> Compiled:
    """`policy` ready to use; InputError names every pattern that does not work."""
    folding = Folding(policy.lookalikes)
    digest = digest_of({"policy": policy.model_dump(mode="json"), "words": sorted(deny_words)})
    return Compiled(
        policy,
        digest[:12],
        RuleSet(policy, "input", deny_words, folding),
        RuleSet(policy, "output", deny_words, folding),
    )


@cache
def built_in() -> dict[str, Policy]:
    """The policies off, default and strict."""
    import yaml

    text = (Path(__file__).parent / "policies.yaml").read_text("utf-8")
    return {
        name: Policy.model_validate({"name": name, **value})
        for name, value in yaml.load(text, FAST).items()
    }


def sentence_end(text: str) -> int:
    """Where the last whole sentence of `text` ends; 0 if none does."""
    end = 0
    for found in _SENTENCE.finditer(text):
        end = found.end()
    return end


def _with_words(policy: Policy, words: tuple[str, ...]) -> list[Rule]:
    """The rules, a release's own words added to the first that denies words."""
    rules = list(policy.rules)
    if not words:
        return rules
    for position, rule in enumerate(rules):
        if rule.kind == "deny":
            rules[position] = rule.model_copy(update={"words": (*rule.words, *words)})
            return rules
    return [*rules, Rule(name="deny", kind="deny", action="block", words=words)]


def _detectors(rule: Rule, folding: Folding) -> tuple[Detector, ...]:
    if rule.kind == "pattern":
        return (Detector(rule.pattern),)
    if rule.kind == "deny":
        if not rule.words:
            return ()
        return (Detector("|".join(_word(word, folding) for word in sorted(set(rule.words)))),)
    return DETECTORS[rule.kind]


def _word(word: str, folding: Folding) -> str:
    """A pattern for a word in any case, as its letters fold; white space may be wider."""
    parts: list[set[str]] = []
    for character in " ".join(word.split()):
        every = (character, character.lower(), character.upper())
        if forms := {folding(each) for each in every} - {""}:
            parts.append(forms)
    if not parts:
        raise InputError(f"{word!r}: is a denied word with nothing to see; remove it")
    pattern = "".join(
        r"\s{1,8}" if forms == {" "} else f"(?:{'|'.join(map(re.escape, sorted(forms)))})"
        for forms in parts
    )
    # RE2 knows the edges of ASCII words only.
    before, after = (
        r"\b" if all(form.isascii() and form.isalnum() for form in forms) else ""
        for forms in (parts[0], parts[-1])
    )
    return f"(?i:{before}{pattern}{after})"


def _finder(rule: Rule, detector: Detector, pattern: Pattern, place: str) -> Finder:
    label = (rule.name if rule.kind in ("pattern", "deny") else rule.kind).upper()
    ending = None
    if detector.ending and rule.action in ("mask", "pseudonymise"):
        ending = _compiled(Pattern(detector.ending, place, ENDING).whole, place)
    return Finder(
        rule.name,
        label,
        rule.action,
        _compiled(pattern.whole, place),
        detector.check,
        ending,
        detector.ending_belongs,
    )
