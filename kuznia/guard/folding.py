"""Undo look-alikes: every character becomes what it stands for, one by one, so streams can too."""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

REMEMBERED = 20_000
"""Characters whose folding is kept; a hostile text could name a million."""

_CYRILLIC = dict(
    zip(
        "АВЕКМНОРСТХУІЈЅЗкаеорсухіјѕԁԛԝһӏАѵҮүЬ",
        "ABEKMHOPCTXYIJS3kaeopcyxijsdqwhlAvYyb",
        strict=True,
    )
)
_GREEK = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυχϲϳγ", "ABEZHIKMNOPTYXaikvopuxcjy", strict=True))
_MARKED = dict(zip("łŁøØđĐħĦıŧŦ", "lLoOdDhHitT", strict=True))
"""Letters with a stroke, which Unicode does not take apart."""
_HIDDEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
"""Invisible, though Unicode does not count them as format characters."""


_FOREIGN = re.compile(r"[^\x00-\x7f]")


class Folding:
    """Folds as a policy asks. ASCII stands for itself; nothing depends on its neighbours."""

    def __init__(self, undone: Iterable[str]) -> None:
        self._known: dict[str, str] = {}
        self._undone = frozenset(undone)
        self._letters: dict[str, str] = {}
        for name, table in (("cyrillic", _CYRILLIC), ("greek", _GREEK), ("marks", _MARKED)):
            if name in self._undone:
                self._letters |= table

    def __call__(self, text: str) -> str:
        """What `text` stands for; it can be written as UTF-8 even where `text` cannot."""
        return text if text.isascii() else _FOREIGN.sub(self._of, text)

    def _of(self, found: re.Match[str]) -> str:
        character = found[0]
        folded = self._known.get(character)
        if folded is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            folded = self._known[character] = self._folded(character)
        return folded

    def _folded(self, character: str) -> str:
        category = unicodedata.category(character)
        if category == "Cs":
            return "\ufffd"  # Half a pair: it cannot be written as UTF-8.
        invisible = category == "Cf" or character in _HIDDEN or "\ufe00" <= character <= "\ufe0f"
        if "invisible" in self._undone and (invisible or 0xE0000 <= ord(character) <= 0xE01EF):
            return ""
        digit = unicodedata.decimal(character, None)
        if "digits" in self._undone and digit is not None:
            return str(digit)
        whole = unicodedata.normalize("NFKD", character) if self._parts(character) else character
        return "".join(map(self._plain, whole))

    def _parts(self, character: str) -> bool:
        compatible = unicodedata.decomposition(character).startswith("<")
        return ("width" if compatible else "marks") in self._undone

    def _plain(self, character: str) -> str:
        if character < "\x80":
            return character
        category = unicodedata.category(character)
        if "marks" in self._undone and category in ("Mn", "Me"):
            return ""
        if "width" in self._undone:
            if category == "Pd" or character == "\u2212":
                return "-"
            if category in ("Zs", "Zl", "Zp") or character == "\x85":
                return " "
        return self._letters.get(character, character)


_PAIR = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_UNIT = re.compile(rf"{_PAIR}|\\u[0-9a-fA-F]{{4}}|\\.|[^\x00-\x7f]", re.DOTALL)
"""What may fold to something else in JSON text."""
_BEGUN = re.compile(
    r"\\(?:u[0-9a-fA-F]{0,3}|u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?)?\Z"
)


def fold_json(text: str, folding: Folding) -> str:
    """What JSON text stands for, its escape sequences undone."""
    return _UNIT.sub(lambda found: folding(_meaning(found[0])), text)


def _meaning(unit: str) -> str:
    if len(unit) == 1:
        return unit
    try:
        return str(json.loads(f'"{unit}"'))
    except ValueError:
        return unit


def quotes(text: str) -> int:
    """How many quotes that are not escaped JSON text has."""
    return (_UNIT.sub("", text) if "\\" in text else text).count('"')


class Places:
    """Where what was folded came from: positions in the text by positions in its folded UTF-8."""

    def __init__(self, text: str, folding: Folding, margin: int, in_json: bool) -> None:
        # In turn: where a stretch begins that folded to itself, and a unit that may not have.
        self._raws, self._offsets = [0], [margin]
        moved = margin
        for found in (_UNIT if in_json else _FOREIGN).finditer(text):
            unit, begin = found[0], found.start() + moved
            length = len(folding(_meaning(unit) if in_json else unit).encode())
            self._raws += found.span()
            self._offsets += begin, begin + length
            moved += length - len(unit)

    def begin(self, position: int) -> tuple[int, int]:
        """Where the unit at a position of the folded text begins, in the text and there."""
        index = bisect_right(self._offsets, position) - 1
        raw, offset = self._raws[index], self._offsets[index]
        return (raw, offset) if index % 2 else (raw + position - offset, position)

    def end(self, position: int) -> int:
        """Where the unit before a position of the folded text ends, in the text."""
        index = bisect_left(self._offsets, position) - 1
        if index < 0:
            return 0
        if index % 2:
            return self._raws[index + 1]
        return self._raws[index] + position - self._offsets[index]


def begun_escape(text: str) -> int:
    """Where an escape sequence begins that is not complete at the end of JSON text; or its end."""
    start = 0
    while found := _BEGUN.search(text, start):
        before = len(text[: found.start()]) - len(text[: found.start()].rstrip("\\"))
        if before % 2 == 0:
            return found.start()
        start = found.start() + 1
    return len(text)
