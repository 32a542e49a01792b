"""From the lines about one request to its record, as quickly as Python can.

Fields are checked and cut here by hand: a pydantic model a request would cost as much as all else.
tests/unit/test_audit_collector.py holds the result against the contract.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from kuznia.audit.chain import moment
from kuznia.contracts.audit import UNKNOWN
from kuznia.contracts.runspec import NAME

Line = dict[str, Any]
LONGEST = 200
"""Characters of a text in a record."""
LARGEST = 2**53
BOTH = ("method", "host")
HEAD = ("key", "model", "release", "version", "digest", "mode", "reason")
LAST = ("flags", "details", "arm")
COUNTS = ("tokens_in", "tokens_out", "bytes_in", "bytes_out")
"""Fields that are taken as they are, by the lines that have them."""
_TENANT = re.compile(NAME)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LENIENT = json.JSONDecoder(strict=False)
_scan: Any = vars(json.JSONDecoder())["scan_once"]
"""json.loads without its checks of what it is given, which take as long as the rest."""


class Request:
    """The lines about one request so far."""

    __slots__ = ("end", "head", "raw", "start", "stored")

    def __init__(self) -> None:
        self.start: Line | None = None
        self.head: Line | None = None
        self.end: Line | None = None
        self.raw: list[bytes] = []
        self.stored = False

    @property
    def began(self) -> float:
        """When it began, as far as its lines tell; Unix seconds."""
        for line in (self.start, self.head):
            if line and (found := seconds(line.get("t"))) is not None:
                return found
        return 0.0


def parse(raw: bytes) -> list[Line]:
    """The line's value; nothing if it is torn.

    Of a torn line with a whole one behind it (the writer died in the middle, its successor
    appended) every whole one is found.
    """
    try:
        text = raw.decode()
        value, end = _scan(text, 0)
    except (ValueError, RecursionError, StopIteration):
        return _salvage(raw.decode("utf-8", "replace"))
    return [value] if end == len(text) and _is_line(value) else _salvage(text)


def _salvage(text: str) -> list[Line]:
    found = []
    at = text.find('{"')
    while at >= 0:
        try:
            value, end = _LENIENT.raw_decode(text, at)
        except (ValueError, RecursionError):
            value, end = None, at + 1
        if _is_line(value):
            found.append(value)
        at = text.find('{"', end)
    return found


def _is_line(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    kind, name = value.get("e"), value.get("id")
    # Of what was no valid HTTP there is only the end, without an id.
    return kind == "end" or (kind in ("in", "out") and isinstance(name, str) and name != "")


def seconds(value: Any) -> float | None:
    """Unix seconds of a number or of Envoy's text; None for neither."""
    if isinstance(value, float | int):
        return float(value) if abs(value) < LARGEST else None
    try:
        return datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError):
        return None


def record(
    identity: str, began: Line | None, head: Line | None, end: Line | None
) -> tuple[Line, str]:
    """The record without its place in the chain and without its caller, and the caller's name.

    Of `began`, `head` and `end` (lines "in", "out" and "end") one at least is not None.
    """
    began, last = began or {}, end or {}
    head = head or _who(last.get("who"))
    ms = _number(last.get("ms"))
    start = seconds(began.get("t"))
    if start is None:
        start = seconds(last.get("t"))
    answered = seconds(head.get("t"))
    if start is None:
        start = answered or 0.0
    tenant = head.get("tenant")
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        tenant = UNKNOWN
    path = began.get("path") or last.get("path")
    value: Line = {
        "kind": "request",
        "tenant": tenant,
        "id": _text(identity),
        "start": moment(start),
    }
    if isinstance(path, str) and (path := _text(path.partition("?")[0])):
        value["path"] = path
    for names, first, second in ((BOTH, began, last), (HEAD, head, head), (LAST, last, last)):
        for name in names:
            text = first.get(name) or second.get(name)
            if text and text != "-":
                # Most are short and plain, and a call for each costs more than all of the rest.
                plain = type(text) is str and len(text) <= LONGEST and text.isascii()
                if plain or (text := _text(text)):
                    value[name] = text
    if (risk := head.get("risk")) in ("minimal", "limited", "high"):
        value["risk"] = risk
    status = _number(last.get("status")) or _number(head.get("status"))
    if status:
        value["status"] = status
    for name in COUNTS:
        if (count := _number(last.get(name))) is not None:
            value[name] = count
    if answered is not None:
        value["answered"] = moment(answered)
    if end is None:
        value["ended"] = "lost"
    elif ms is not None:
        value["ms"] = ms
        value["end"] = moment(start + ms / 1000)
    if verdict := last.get("guard") or head.get("guard"):
        _judge(value, verdict, head.get("guard"))
    caller = head.get("caller")
    return value, caller if isinstance(caller, str) else ""


def _who(value: Any) -> Line:
    """Who asked what, as the end tells it: without it, one who hung up would have no tenant."""
    if not isinstance(value, str) or not value:
        return {}
    found = parse(b'{"e":"end",%b}' % value.encode("utf-8", "replace"))
    return found[0] if found else {}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    text = value[:LONGEST]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _number(value: Any) -> int | None:
    if type(value) is int:
        return value if 0 <= value < LARGEST else None
    if isinstance(value, str) and value.isdecimal() and len(value) < 16:
        return int(value)
    if isinstance(value, float) and 0 <= value < LARGEST:
        return int(value)
    return None


def _judge(value: Line, *verdicts: Any) -> None:
    """Put in the guard's verdict, the first of these that is one."""
    for verdict in verdicts:
        if isinstance(verdict, str):
            try:
                verdict = json.loads(verdict)
            except (ValueError, RecursionError):
                continue
        if not isinstance(verdict, dict):
            continue
        if policy := _text(verdict.get("policy")):
            value["policy"] = policy
        guard: Line = {}
        if action := _text(verdict.get("action")):
            guard["action"] = action
        for theirs, ours in (("in", "input"), ("out", "output")):
            if hits := _hits(verdict.get(theirs)):
                guard[ours] = hits
        value["guard"] = guard
        content = verdict.get("content")
        if isinstance(content, dict) and _DIGEST.fullmatch(str(content.get("sha256"))):
            value["content"] = {"ref": _text(content.get("ref")), "sha256": content["sha256"]}
        return


def _hits(value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        return {}
    return {_text(k): n for k, v in value.items() if (n := _number(v)) is not None}


def numbered(value: Line, seq: int, prev: str, caller: str) -> Line:
    """The record in its place."""
    value["seq"], value["prev"] = seq, prev
    if caller:
        value["caller"] = caller
    return value
