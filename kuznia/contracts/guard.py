"""What the guard does: its policies, and for each release which policy and where its model is.

The gateway's compiler writes one GuardConfig as JSON; `services/guard` watches that file.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kuznia.contracts.base import Contract
from kuznia.contracts.catalogue import Sha256
from kuznia.contracts.release import Stage
from kuznia.contracts.runspec import Name, Risk

Kind = Literal[
    "pesel",
    "nip",
    "regon",
    "iban",
    "card",
    "email",
    "phone",
    "secret",
    "injection",
    "pattern",
    "deny",
]
Action = Literal["flag", "mask", "pseudonymise", "block"]
Mode = Literal["window", "sentence", "buffer"]
Direction = Literal["input", "output"]
Lookalike = Literal["width", "digits", "invisible", "marks", "cyrillic", "greek"]
LOOKALIKES: tuple[Lookalike, ...] = ("width", "digits", "invisible", "marks", "cyrillic", "greek")
RuleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]


class Rule(Contract):
    """One thing that is looked for, and what happens where it is found."""

    name: RuleName
    """In metrics, audit records and, in capitals, in place of what is masked."""
    kind: Kind
    side: Literal["input", "output", "both"] = "both"
    action: Action
    pattern: str = ""
    """Of kind pattern: RE2 syntax without anchors, every repetition with an upper bound."""
    words: tuple[Annotated[str, Field(min_length=2, max_length=200)], ...] = ()
    """Of kind deny: words or phrases, whole words only, in any case; a release adds its own."""

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Rule:
        if (self.kind == "pattern") != bool(self.pattern):
            raise ValueError("pattern belongs to rules of kind pattern, and only there; correct it")
        if self.words and self.kind != "deny":
            raise ValueError("words belong to rules of kind deny; set kind: deny or remove them")
        return self

    def applies_to(self, direction: Direction) -> bool:
        """Whether it looks at what goes in, or at what comes out."""
        return self.side in (direction, "both")


class Judge(Contract):
    """A chat model on vLLM that is asked whether a text may pass."""

    url: str = Field(pattern=r"^https?://[^\s/]+$")
    model: str
    question: str = (
        "Does the following text give help with violence, crime, self-harm or abuse of children?"
    )
    """A question whose answer yes means that the text must not pass."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """Probability of yes from which it counts as one."""
    seconds: float = Field(default=10, gt=0)
    """How long it may take; after that the text does not pass."""


class Policy(Contract):
    """What is looked for in what goes in and comes out of a model."""

    name: Name
    mode: Mode = "window"
    """What of an answer is held back: what may yet become a match, a sentence, or all of it."""
    rules: tuple[Rule, ...] = ()
    judge: Judge | None = None
    lookalikes: tuple[Lookalike, ...] = LOOKALIKES
    """What is undone before the rules look: other widths, other digits, invisible characters,
    accents, Cyrillic and Greek letters that look like Latin ones."""
    unreadable: Literal["refuse", "pass"] = "refuse"
    """What happens to images, sounds, files and token numbers where a rule looks at the input."""
    window: int = Field(default=1024, ge=64, le=4096)
    """Characters that a match may have at most; a longer pattern is refused."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Policy:
        problems = []
        if self.judge and self.mode == "window":
            problems.append("a judge reads sentences; set mode to sentence or buffer")
        for direction in ("input", "output"):
            named = Counter(rule.name for rule in self.rules if rule.applies_to(direction))
            for name, count in sorted(named.items()):
                if count > 1:
                    problems.append(f"{count} rules for {direction} are named {name}; rename them")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def pseudonymises(self) -> bool:
        """Whether it needs the tenant's key."""
        return any(rule.action == "pseudonymise" for rule in self.rules)


class GuardedRelease(Contract):
    """One release behind the guard."""

    tenant: Name
    model: Name
    stage: Stage
    version: str = Field(pattern=r"^[0-9a-f]{12}$")
    digest: Sha256
    risk: Risk
    url: str = Field(pattern=r"^https?://[^\s/]+$")
    """Where the model answers, as http://host:port."""
    policy: Name
    served: tuple[str, ...] = Field(min_length=1)
    """Names that the body's `model` may have."""
    system_prompt: str | None = None
    """Goes before the messages of every conversation."""
    deny_words: tuple[Annotated[str, Field(min_length=2, max_length=200)], ...] = ()
    notice: str | None = Field(default=None, pattern=r"^[\x20-\x7e]{1,300}$")
    """The header `x-ai-notice` of every answer (AI Act, Art. 50); ASCII, as headers are."""
    capture: bool = False
    """Whether prompts and answers are kept, pseudonymised and encrypted."""


class GuardConfig(Contract):
    """Everything the guard knows; releases by id, as acme/support@production."""

    policies: dict[Name, Policy] = {}
    """Besides those built in: off, default, strict."""
    releases: dict[str, GuardedRelease] = {}
