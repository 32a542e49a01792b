"""Patterns as trees: how long a match can be, and which text could yet become one.

A stream may give out what no longer can become part of a match. RE2 finds matches, not beginnings
of matches; but the beginnings of what a bounded pattern matches are a pattern too, made here.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from kuznia.errors import InputError

_sre = import_module("re._parser")
_CLASSES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_PLACES = {"AT_BOUNDARY": r"\b", "AT_NON_BOUNDARY": r"\B"}
_CHARACTERS = ("LITERAL", "NOT_LITERAL", "IN", "ANY")


class Pattern:
    """One pattern: `whole` matches it, `begun` every beginning of a match, both in RE2 syntax."""

    def __init__(self, text: str, place: str, longest: int) -> None:
        """Raises InputError, its line beginning with `place`, for what RE2 or a stream cannot."""
        try:
            tree = _sre.parse(text)
        except (re.error, OverflowError) as error:
            raise InputError(f"{place}: {text!r}: {error}; correct the pattern") from None
        if tree.state.flags & ~re.UNICODE:
            raise InputError(f"{place}: {text!r}: flags are for a part; write (?i:...)")
        self.least, self.most = (int(width) for width in tree.getwidth())
        if self.least == 0:
            raise InputError(f"{place}: {text!r} matches the empty text; ask for a character")
        if self.most > longest:
            raise InputError(
                f"{place}: {text!r} can match more than {longest} characters; give every "
                "repetition an upper bound, as {1,20}, or widen the policy's window"
            )
        try:
            self.whole, self.begun = _whole(tree), _begun(tree)
        except _Unsupported as error:
            raise InputError(
                f"{place}: {text!r}: {error} does not work on streams; write it without"
            ) from None


class _Unsupported(Exception):
    pass


def _whole(tree: Any) -> str:
    return "".join(map(_node, tree))


def _node(node: Any) -> str:
    kind, value = str(node[0]), node[1]
    if kind == "LITERAL":
        return _literal(value)
    if kind == "NOT_LITERAL":
        return f"[^{_literal(value)}]"
    if kind == "ANY":
        return "."
    if kind == "IN":
        return f"[{''.join(map(_member, value))}]"
    if kind == "AT" and str(value) in _PLACES:
        return _PLACES[str(value)]
    if kind == "BRANCH":
        return f"(?:{'|'.join(map(_whole, value[1]))})"
    if kind == "SUBPATTERN":
        return _flagged(value, _whole(value[3]))
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, tree = value
        return f"(?:{_whole(tree)}){{{least},{most}}}"
    raise _Unsupported(kind.lower().replace("_", " "))


def _begun(tree: Any) -> str:
    """All beginnings of what `tree` matches, from nothing to the whole."""
    rest = ""
    for node in reversed(list(tree)):
        whole = _node(node)
        if str(node[0]) in (*_CHARACTERS, "AT"):
            rest = f"(?:{whole}{rest})?"
        else:
            rest = f"(?:{_begun_node(node)}|{whole}{rest})"
    return rest


def _begun_node(node: Any) -> str:
    kind, value = str(node[0]), node[1]
    if kind == "BRANCH":
        return f"(?:{'|'.join(map(_begun, value[1]))})"
    if kind == "SUBPATTERN":
        return _flagged(value, _begun(value[3]))
    _, most, tree = value
    if len(tree) == 1 and str(tree[0][0]) in _CHARACTERS:
        return f"{_whole(tree)}{{0,{most}}}"
    return f"(?:{_whole(tree)}){{0,{most - 1}}}{_begun(tree)}" if most else ""


def _flagged(value: Any, inner: str) -> str:
    _, added, removed, _ = value
    if removed or added & ~(re.IGNORECASE | re.DOTALL):
        raise _Unsupported("a flag other than i and s")
    letters = ("i" if added & re.IGNORECASE else "") + ("s" if added & re.DOTALL else "")
    return f"(?{letters}:{inner})"


def _literal(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\x{{{code:x}}}"


def _member(member: Any) -> str:
    kind, value = str(member[0]), member[1]
    if kind == "NEGATE":
        return "^"
    if kind == "LITERAL":
        return _literal(value)
    if kind == "RANGE":
        return f"{_literal(value[0])}-{_literal(value[1])}"
    return _CLASSES[str(value)]
