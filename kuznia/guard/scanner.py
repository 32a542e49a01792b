"""The core: text goes in piece by piece, what may leave comes out, and nothing of a match does.

What comes out is the same however the text is cut into pieces. A match is known once text follows
that cannot belong to it; so what could be the beginning of a match is kept back, and no more.

Longer than other modules, since one state machine read in two files is harder to trust.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kuznia.guard.folding import Places, begun_escape, fold_json, quotes
from kuznia.guard.rules import ENDING, LONGEST, Finder, RuleSet, sentence_end

Naming = Callable[[str, bytes], str]
"""A label and a value to the pseudonym that takes the value's place."""

SLICE = 16_384
"""Characters that are looked at in one go."""
KEPT = 8_192
"""Characters that may wait in one go: more are invisible characters, or hostile."""
SENTENCE = 4_096
"""Characters after which a sentence counts as ended."""
BUFFER = 4 << 20
"""Characters of an answer that are held back in mode buffer."""


@dataclass(frozen=True, slots=True)
class Emit:
    """Text that may leave."""

    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """Nothing more may leave, because of this rule."""

    rule: str
    why: str = "matched"


Outcome = Emit | Block


@dataclass(frozen=True, slots=True)
class _Hit:
    """Where a rule applies, in the folded buffer; without a value its end is yet to come."""

    begin: int
    end: int
    finder: Finder
    number: int
    value: bytes | None


@dataclass(slots=True)
class _Long:
    """A hit that has begun and not ended."""

    finder: Finder
    number: int
    named: bool
    """Whether something that it overlaps has been named in its place."""
    bare: bool
    """Whether it is a bare value in JSON."""
    value: bytes = b""
    """What of it is gone from the buffer."""


class Scanner:
    """Looks at one text. `hits` counts by rule; after a Block nothing more comes out.

    With `in_json` the text is JSON, as the arguments of tools are: escape sequences count as the
    characters that they stand for, and what takes the place of a bare number is quoted.
    """

    __slots__ = (
        "_ahead", "_blocked", "_buffer", "_counted", "_done", "_held", "_in_json", "_in_string",
        "_long", "_margin", "_naming", "_out", "_out_length", "_plain", "_raw", "_rules", "_sent",
        "_tail", "hits",
    )  # fmt: skip

    def __init__(
        self, rules: RuleSet, naming: Naming | None = None, *, in_json: bool = False
    ) -> None:
        self._rules, self._naming, self._in_json = rules, naming, in_json
        self.hits: dict[str, int] = {}
        self._raw = ""  # Text that is not done with, as it came,
        self._buffer = b""  # and folded, after `_margin` bytes of what was before it.
        self._margin = 0
        self._plain = True  # Positions in both agree but for the margin.
        self._done = 0  # Up to here `_raw` has been given out or replaced,
        self._sent = 0  # and up to here, in `_buffer`, before its end was known: see flush.
        self._ahead: dict[int, int] = {}  # Where finders go on, by number, if not at the margin.
        self._counted: dict[str, int] = {}  # Where the last hit of a rule ends.
        self._long: _Long | None = None
        self._tail = ""  # A begun escape sequence.
        self._in_string = False  # In JSON: whether `_raw` begins within a string.
        self._out: list[str] = []  # What the rules have let through,
        self._out_length = 0
        self._held = ""  # and what of it waits for the end of its sentence.
        self._blocked = False

    def feed(self, text: str) -> list[Outcome]:
        """More text; what may leave now."""
        if not self._rules:
            return [Emit(text)] if text else []
        for start in range(0, len(text), SLICE):
            if self._blocked:
                return []
            if block := self._piece(text[start : start + SLICE]):
                return self._stop(block)
        return self._let_out(False)

    def flush(self, *, last: bool = False) -> list[Outcome]:
        """Give out what is held back, as if the text ended; more may follow.

        A match that then turns out to have begun before is a Block: part of it is gone.
        """
        if not self._rules or self._blocked:
            return []
        if self._tail:
            self._take(self._tail)
            self._tail = ""
        if block := self._run(True, last):
            return self._stop(block)
        return self._let_out(True)

    def finish(self) -> list[Outcome]:
        """The text has ended: everything that may leave."""
        return self.flush(last=True)

    def _piece(self, text: str) -> Block | None:
        if self._in_json:
            text = self._tail + text
            cut = begun_escape(text)
            text, self._tail = text[:cut], text[cut:]
        self._take(text)
        block = self._run(False, False)
        if block is None and len(self._raw) > KEPT:
            return Block("overflow", f"more than {KEPT} characters stand for too few")
        return block

    def _take(self, text: str) -> None:
        if self._in_json and "\\" in text:
            self._plain = False
            self._buffer += fold_json(text, self._rules.folding).encode()
        elif text.isascii():
            self._buffer += text.encode()
        else:
            self._plain = False
            self._buffer += self._rules.folding(text).encode()
        self._raw += text

    def _run(self, final: bool, last: bool) -> Block | None:
        """Decide what can be decided; with `final` everything."""
        rules = self._rules
        assert rules.begun is not None and rules.any_of is not None  # Or nothing runs.
        if self._long is not None:
            self._go_on(self._long)
        sure = len(self._buffer)
        if not final:
            sure = rules.begun.search(self._buffer, self._margin).start()
        first = rules.any_of.search(self._buffer, self._margin)
        if first is not None and first.start() < sure:
            block = self._replace(self._hits(first.start(), sure))
            if block is not None:
                return block
        if self._long is not None and not last:
            return self._take_long(self._long, sure)
        if self._long is not None:
            self._end_long(self._long, len(self._buffer))
        if not final:
            self._forget(*self._cut(sure))
            return None
        self._put(self._raw[self._done :])
        self._done, self._sent = len(self._raw), len(self._buffer)
        if not last and len(self._buffer) - self._margin > rules.longest:
            self._forget(*self._cut(len(self._buffer) - rules.longest))
        return None

    def _hits(self, start: int, sure: int) -> list[_Hit]:
        """What begins before `sure`; a finder looks as if alone, so pieces make no difference."""
        hits: list[tuple[int, int, int, _Hit]] = []
        buffer = self._buffer
        for number, finder in enumerate(self._rules.finders):
            position = max(start, self._ahead.get(number, 0))
            while position < sure:
                found = finder.pattern.search(buffer, position)
                if found is None or found.start() >= sure:
                    break
                begin, end = found.span()
                value: bytes | None = buffer[begin:end]
                if finder.check is not None:
                    checked = finder.check(buffer, begin, end)
                    if isinstance(checked, int):
                        position = checked
                        continue
                    end, value = checked
                elif finder.ending is not None:
                    ending = finder.ending.search(buffer, end)
                    if ending is None:
                        end, value = len(buffer), None
                    else:
                        end = ending.end() if finder.ending_belongs else ending.start()
                        value = buffer[begin:end]
                hits.append((begin, -end, number, _Hit(begin, end, finder, number, value)))
                position = end
            if position > sure:
                self._ahead[number] = position
        hits.sort(key=lambda hit: hit[:3])
        return [hit[3] for hit in hits]

    def _replace(self, hits: list[_Hit]) -> Block | None:
        """Give out the text between hits and what takes their place; one for those that overlap."""
        begun: tuple[int, int] | None = None
        places = self._places() if hits else None
        for hit in hits:
            if hit.end <= self._sent:
                continue  # Seen when it was flushed.
            finder = hit.finder
            if hit.begin >= self._counted.get(finder.rule, 0):
                self.hits[finder.rule] = self.hits.get(finder.rule, 0) + 1
            self._counted[finder.rule] = max(hit.end, self._counted.get(finder.rule, 0))
            if finder.action == "flag":
                continue
            if hit.begin < self._sent:
                return Block(finder.rule, "part of it was already sent")
            if places is None:
                begin, end = hit.begin - self._margin, hit.end - self._margin
            else:
                begin, end = places.begin(hit.begin)[0], places.end(hit.end)
            fresh = begin >= self._done
            self._put(self._raw[self._done : begin])
            if finder.action == "block":
                return Block(finder.rule)
            if hit.value is not None and fresh:
                self._put(self._name(finder, hit.value, self._is_bare(begin)))
            elif hit.value is None and self._long is None:
                self._long = _Long(finder, hit.number, not fresh, self._is_bare(begin))
                begun = begin, hit.begin
            self._done = max(self._done, end)
        if begun is not None:
            self._forget(*begun)
        return None

    def _go_on(self, long: _Long) -> None:
        """Look for the end of the hit that has begun; till then all that is here belongs to it."""
        finder = long.finder
        found = finder.ending.search(self._buffer, self._margin)
        if found is not None:
            self._end_long(long, found.end() if finder.ending_belongs else found.start())
        else:
            self._done = len(self._raw)
            self._ahead[long.number] = len(self._buffer)

    def _take_long(self, long: _Long, sure: int) -> Block | None:
        """Keep what is needed to see its end, and what begins within it and goes on after."""
        raw_cut, cut = self._cut(max(self._margin, min(sure, len(self._buffer) - ENDING)))
        long.value += self._buffer[self._margin : cut]
        self._forget(raw_cut, cut)
        if len(long.value) <= LONGEST:
            return None
        return Block(long.finder.rule, f"began and did not end within {LONGEST} bytes")

    def _end_long(self, long: _Long, end: int) -> None:
        if not long.named:
            value = long.value + self._buffer[self._margin : end]
            self._put(self._name(long.finder, value, long.bare))
        places = self._places()
        self._done = max(self._done, places.end(end) if places else end - self._margin)
        self._ahead[long.number] = end
        self._long = None

    def _places(self) -> Places | None:
        """None where positions in both agree."""
        if self._plain:
            return None
        return Places(self._raw, self._rules.folding, self._margin, self._in_json)

    def _cut(self, position: int) -> tuple[int, int]:
        """Where in `_raw` what is at `position` of the buffer begins, and where there."""
        tail = len(self._buffer) - position
        if not tail or (not self._in_json and self._raw[-tail:].isascii()):
            return len(self._raw) - tail, position
        places = self._places()
        return places.begin(position) if places else (position - self._margin, position)

    def _forget(self, raw_cut: int, cut: int) -> None:
        """Give out what is before the cut, unless that is done, and keep the rest."""
        self._put(self._raw[self._done : raw_cut])
        if self._in_json and raw_cut:
            self._in_string ^= quotes(self._raw[:raw_cut]) % 2 == 1
        self._done = max(self._done - raw_cut, 0)
        self._raw = self._raw[raw_cut:]
        margin = min(cut, 1)
        self._buffer = self._buffer[cut - margin :]
        moved = cut - margin
        self._margin = margin
        self._sent = max(self._sent - moved, 0)
        if self._ahead:
            ahead = {number: place - moved for number, place in self._ahead.items()}
            self._ahead = {number: place for number, place in ahead.items() if place > margin}
        if self._counted:
            self._counted = {rule: place - moved for rule, place in self._counted.items()}
        self._plain = self._raw.isascii() and not (self._in_json and "\\" in self._raw)

    def _is_bare(self, begin: int) -> bool:
        return self._in_json and self._in_string == (quotes(self._raw[:begin]) % 2 == 1)

    def _name(self, finder: Finder, value: bytes, bare: bool) -> str:
        name = f"[{finder.label}]"
        if finder.action == "pseudonymise":
            assert self._naming is not None, "a policy that pseudonymises needs the tenant's key"
            name = self._naming(finder.label, value)
        return f'"{name}"' if bare else name

    def _put(self, text: str) -> None:
        if text:
            self._out.append(text)
            self._out_length += len(text)

    def _let_out(self, final: bool) -> list[Outcome]:
        mode = self._rules.mode
        if mode == "buffer" and not final:
            if self._out_length > BUFFER:
                return self._stop(Block("overflow", f"more than {BUFFER} characters to hold back"))
            return []
        if not self._out and not (final and self._held):
            return []
        text = self._held + "".join(self._out)
        self._out.clear()
        self._out_length = 0
        if mode == "sentence" and not final:
            end = len(text) if len(text) > SENTENCE else sentence_end(text)
            text, self._held = text[:end], text[end:]
        else:
            self._held = ""
        return [Emit(text)] if text else []

    def _stop(self, block: Block) -> list[Outcome]:
        self._blocked = True
        text = "".join(self._out) if self._rules.mode == "window" else ""
        self._out, self._raw, self._buffer, self._held = [], "", b"", ""
        return [Emit(text), block] if text else [block]
