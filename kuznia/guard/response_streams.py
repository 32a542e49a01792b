"""Where texts are in the events of a streamed Response."""

from __future__ import annotations

from kuznia.guard.inspector import Blocked, Inspector
from kuznia.guard.replies import REPEATS, scrub
from kuznia.guard.rules import RuleSet
from kuznia.guard.scanner import Naming
from kuznia.guard.streams import Event, Path, Stopped, Stream
from kuznia.guard.verdict import text_of


class ResponseStream(Stream):
    """Events of the Responses API, which repeat every text when it is done and at the end."""

    def __init__(self, rules: RuleSet, naming: Naming | None) -> None:
        super().__init__(rules, naming)
        self._number = -1
        self._last: dict[Path, Event] = {}

    def event(self, event: Event) -> list[Event]:
        """What goes out for an event that came, numbered anew; raises Stopped."""
        kind = str(event.get("type", ""))
        family, _, act = kind.rpartition(".")
        if act == "delta" and isinstance(event.get("delta"), str):
            return self._delta(event, self._path(event, family))
        events = self._rest(event, family) if act == "done" else []
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            events = self.end()
        look = Inspector(self._rules, self._naming)
        try:
            seen = scrub(event, look, "answer")
        except Blocked as blocked:
            raise Stopped(blocked.block, events) from None
        finally:
            for rule, count in look.hits.items():
                self._repeated[rule] = max(self._repeated.get(rule, 0), count)
        return [*events, self._numbered(seen)]

    def end(self) -> list[Event]:
        """What is held back of texts whose end did not come."""
        events: list[Event] = []
        for path in list(self._last):
            events += self._flush(path, events)
        return events

    def _path(self, event: Event, family: str) -> Path:
        kind = ("arguments",) if "arguments" in family else ()
        names = ("item_id", "output_index", "content_index", "summary_index")
        return (family, *kind, *(str(event.get(name)) for name in names))

    def _delta(self, event: Event, path: Path) -> list[Event]:
        text, stop = text_of(self._scanner(path).feed(event["delta"]))
        event = {key: [] if key in REPEATS else value for key, value in event.items()}
        self._last[path] = event
        events = [self._numbered({**event, "delta": self._out(text)})] if text else []
        if stop:
            raise Stopped(stop, events)
        return events

    def _rest(self, event: Event, family: str) -> list[Event]:
        if family in ("response.output_item", "response.content_part"):
            place = str(event.get("output_index"))
            paths = [path for path in self._last if path[-3] == place]
        else:
            paths = [self._path(event, family)] if self._path(event, family) in self._last else []
        events: list[Event] = []
        for path in paths:
            events += self._flush(path, events)
        return events

    def _flush(self, path: Path, before: list[Event]) -> list[Event]:
        like = self._last.pop(path)
        text, stop = text_of(self._scanners[path].finish())
        events = [self._numbered({**like, "delta": self._out(text)})] if text else []
        if stop:
            raise Stopped(stop, [*before, *events])
        return events

    def next_number(self) -> int:
        """The number of one more event."""
        return self._number + 1

    def _numbered(self, event: Event) -> Event:
        self._number += 1
        return {**event, "sequence_number": self._number}
