"""What the guard found in one request, and how it refuses."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from typing import Any

from kuznia.guard.rules import Compiled
from kuznia.guard.scanner import Block, Emit, Naming, Outcome

_ORDER = ("pass", "flag", "mask", "pseudonymise", "block")


class Refusal(Exception):
    """An answer in place of the model's: status, OpenAI's code and field, one line of message."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass(slots=True)
class Verdict:
    """What was found, by direction and rule; `text` goes into headers and audit records."""

    compiled: Compiled
    input: dict[str, int] = field(default_factory=dict)
    output: dict[str, int] = field(default_factory=dict)
    blocked: bool = False
    content: dict[str, str] | None = None
    """Where the content is kept, and its digest."""

    @property
    def action(self) -> str:
        """The strongest thing that was done."""
        done = {"pass"}
        for rule in self.compiled.policy.rules:
            if (rule.applies_to("input") and rule.name in self.input) or (
                rule.applies_to("output") and rule.name in self.output
            ):
                done.add(rule.action)
        return "block" if self.blocked else max(done - {"block"}, key=_ORDER.index)

    def text(self) -> str:
        """Compact JSON, ASCII."""
        value: dict[str, Any] = {"policy": self.compiled.digest, "action": self.action}
        value |= {"in": self.input, "out": self.output}
        if self.content:
            value["content"] = self.content
        return json.dumps(value, separators=(",", ":"))


def pseudonyms(key: bytes) -> Naming:
    """Names by the tenant's key, as <PESEL:3f9a1c2b04de>: the same value has the same name."""

    def name(label: str, value: bytes) -> str:
        mac = hmac.new(key, label.encode() + b"\0" + value, hashlib.sha256)
        return f"<{label}:{mac.hexdigest()[:12]}>"

    return name


def text_of(outcomes: list[Outcome]) -> tuple[str, Block | None]:
    """What may leave, and the Block if nothing more may."""
    if not outcomes:
        return "", None
    text = "".join([each.text for each in outcomes if isinstance(each, Emit)])
    last = outcomes[-1]
    return text, last if isinstance(last, Block) else None
