"""Where texts are in the events of a streamed answer, and how they are held back one by one.

Every text that grows (a choice's content, its reasoning, the arguments of each tool call) has a
scanner of its own. What is held back goes out with a later event of the same choice, with its last
one at the latest. The Responses API has its own: `response_streams`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kuznia.guard.inspector import Blocked, Inspector
from kuznia.guard.replies import MACHINE, REPEATS, scrub
from kuznia.guard.rules import RuleSet
from kuznia.guard.scanner import Block, Naming, Scanner
from kuznia.guard.verdict import text_of

Path = tuple[str | int, ...]
Event = dict[str, Any]


class Stopped(Exception):
    """A rule blocks the stream; `events` may still go out before the error."""

    def __init__(self, block: Block, events: list[Event]) -> None:
        super().__init__(block.rule)
        self.block, self.events = block, events


class Stream:
    """What all streams share. `fresh` collects what was let out since it was last emptied."""

    def __init__(self, rules: RuleSet, naming: Naming | None) -> None:
        self._rules, self._naming = rules, naming
        self._scanners: dict[Path, Scanner] = {}
        self._whole = Inspector(rules, naming)
        self._repeated: dict[str, int] = {}
        self.fresh: list[str] = []

    @property
    def hits(self) -> dict[str, int]:
        """Hits by rule, of everything up to now."""
        found = dict(self._whole.hits)
        for scanner in self._scanners.values():
            for rule, count in scanner.hits.items():
                found[rule] = found.get(rule, 0) + count
        for rule, count in self._repeated.items():
            found[rule] = max(found.get(rule, 0), count)
        return found

    def _scanner(self, path: Path) -> Scanner:
        scanner = self._scanners.get(path)
        if scanner is None:
            in_json = "arguments" in path
            scanner = self._scanners[path] = Scanner(self._rules, self._naming, in_json=in_json)
        return scanner

    def _out(self, text: str) -> str:
        if text:
            self.fresh.append(text)
        return text


class ChoiceStream(Stream):
    """Events of chat completions and completions."""

    def __init__(self, rules: RuleSet, naming: Naming | None) -> None:
        super().__init__(rules, naming)
        self._names: dict[Path, str] = {}
        self._open: set[int] = set()
        self.like: Event = {}
        """What all events of this stream have in common."""

    def event(self, event: Event) -> list[Event]:
        """What goes out for an event that came; raises Stopped."""
        choices = event.get("choices")
        if not isinstance(choices, list):
            try:
                return [scrub(event, self._whole, "answer")]
            except Blocked as blocked:
                raise Stopped(blocked.block, []) from None
        self.like = {key: event[key] for key in event if key in MACHINE and key != "usage"}
        was_empty = not any(map(_says, choices))
        stop: Block | None = None
        try:
            for key in event.keys() - MACHINE - {"choices"}:
                event |= scrub({key: event[key]}, self._whole, "answer")
        except Blocked as blocked:
            raise Stopped(blocked.block, []) from None
        for choice in choices:
            if stop:
                _silence(choice)
            else:
                stop = self._choice(choice)
        says = was_empty or any(map(_says, choices)) or event.get("usage") is not None
        if stop:
            raise Stopped(stop, [event] if any(map(_says, choices)) else [])
        return [event] if says else []

    def end(self) -> list[Event]:
        """What is held back of choices whose last event did not come."""
        events: list[Event] = []
        for index in sorted(self._open):
            choice: Event = {"index": index, "finish_reason": None}
            stop = self._flush(choice, index, self._of(index), last=True)
            if _says(choice):
                events.append({**self.like, "choices": [choice]})
            if stop:
                raise Stopped(stop, events)
        self._open.clear()
        return events

    def _choice(self, choice: Event) -> Block | None:
        index = choice.get("index", 0)
        self._open.add(index)
        for key in choice.keys() & REPEATS:
            choice[key] = None
        grown: list[tuple[Path, Event, str, str]] = []
        try:
            for key in list(choice):
                if key in ("delta", "message", "text"):
                    grown += self._texts(choice, key, (index,))
                elif key not in MACHINE and choice[key] is not None:
                    choice[key] = scrub(choice[key], self._whole, f"choices[{index}].{key}")
        except Blocked as blocked:
            for _, holder, key, _ in grown:
                holder[key] = ""
            _silence(choice)
            return blocked.block
        stop: Block | None = None
        for path, holder, key, text in grown:
            if stop:
                holder[key] = ""
                continue
            emitted, stop = text_of(self._scanner(path).feed(text))
            holder[key] = self._out(emitted)
        if stop:
            choice["finish_reason"] = None
            return stop
        if choice.get("finish_reason") is not None:
            self._open.discard(index)
            return self._flush(choice, index, self._of(index), last=True)
        highest = max((_rank(path) for path, _, _, text in grown if text), default=0)
        before = [path for path in self._of(index) if _rank(path) < highest]
        return self._flush(choice, index, before, last=False) if before else None

    def _of(self, index: int) -> list[Path]:
        return sorted((path for path in self._scanners if path[0] == index), key=_rank)

    def _texts(self, holder: Event, key: str, path: Path) -> Iterator[tuple[Path, Event, str, str]]:
        """Every text below `holder[key]` that grows: its path, and where it is."""
        value = holder[key]
        here = (*path, key)
        if isinstance(value, str):
            if key == "name":
                self._name(here, value)
            else:
                yield here, holder, key, value
        elif isinstance(value, dict):
            for name in list(value):
                if name in REPEATS:
                    value[name] = None
                elif name not in MACHINE:
                    yield from self._texts(value, name, here)
        elif isinstance(value, list):
            for place, each in enumerate(value):
                if isinstance(each, dict):
                    place = each.get("index", place)
                    for name in list(each):
                        if name not in MACHINE:
                            yield from self._texts(each, name, (*here, place))
                elif isinstance(each, str):
                    raise Blocked(key, Block("unknown", "a list of texts in a stream"))

    def _name(self, path: Path, text: str) -> None:
        """A tool's name comes whole and is needed at once: it passes as it is, or not at all."""
        name = self._names[path] = self._names.get(path, "") + text
        if text and self._whole.text(name, "name") != name:
            raise Blocked("name", Block(next(iter(self._whole.hits)), "in the name of a tool"))

    def _flush(self, choice: Event, index: int, paths: list[Path], *, last: bool) -> Block | None:
        """Add what these scanners hold back to the choice, in front of what comes after it."""
        for path in reversed(paths):
            text, stop = text_of(self._scanners[path].flush(last=last))
            if text:
                _put(choice, path[1:], self._out(text))
            if stop:
                choice["finish_reason"] = None
                return stop
        return None


def _rank(path: Path) -> int:
    """Texts come one after the other: reasoning, content, one tool call after another."""
    name = str(path[2]) if len(path) > 2 else ""
    if name.startswith("reasoning"):
        return 0
    return 2 + int(path[3]) if name == "tool_calls" else 1


def _put(holder: Event, path: Path, text: str) -> None:
    """Append `text` to the text at `path`, which may not be there."""
    key, *rest = path
    if not rest:
        holder[str(key)] = (holder.get(str(key)) or "") + text
    elif isinstance(rest[0], int):
        entries = holder.get(str(key)) or []
        entry = next((each for each in entries if each.get("index") == rest[0]), None)
        if entry is None:
            entry = {"index": rest[0]}
            entries.insert(0, entry)
        holder[str(key)] = entries
        _put(entry, tuple(rest[1:]), text)
    else:
        holder[str(key)] = holder.get(str(key)) or {}
        _put(holder[str(key)], tuple(rest), text)


def _says(choice: Event) -> bool:
    """Whether a choice of an event says anything."""
    return choice.get("finish_reason") is not None or any(
        _full(choice.get(key)) for key in ("delta", "message", "text")
    )


def _full(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_full(each) for key, each in value.items() if key not in ("index", "type"))
    if isinstance(value, list):
        return any(map(_full, value))
    return value is not None and value != ""


def _silence(choice: Event) -> None:
    for key in ("delta", "message"):
        if key in choice:
            choice[key] = {}
    if "text" in choice:
        choice["text"] = ""
    choice["finish_reason"] = None
