"""Files of training data, in the formats that people have, read as chat messages.

What is wrong with a file is collected, not raised, so that a person sees all of it at once.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from kuznia.contracts.runspec import Columns, Data, data_suffix
from steps.messages import Messages

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_OPENAI_ROLES = {"user": "user", "assistant": "assistant"}
_ORDER = "a row is an optional system message, then user and assistant in turn"
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_FIELD = 2**27
"""Characters of a CSV field; longer ones point to a quote that is never closed."""


class Faults:
    """What is wrong with one file: the first `limit` faults in words, the others counted."""

    limit = 20

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self._lines: list[str] = []

    def add(self, place: str, fault: str) -> None:
        self.count += 1
        if len(self._lines) < self.limit:
            self._lines.append(f"{place}: {fault}")

    def lines(self) -> list[str]:
        """One line a fault, and one that counts those left out."""
        more = self.count - len(self._lines)
        rest = [f"{self.name}: and {more} more faults like these"] if more else []
        return self._lines + rest


def read_rows(path: Path, name: str, data: Data, faults: Faults) -> Iterator[tuple[str, Messages]]:
    """(place, messages) of every row that has the declared form; the others go to `faults`.

    `place` is `<name>:<line>`, or `<name>: row <n>` in a JSON array. Contents are as they stand.
    """
    suffix = data_suffix(name)
    expected = (".csv",) if data.format == "csv" else (".jsonl", ".json")
    if suffix not in expected:
        faults.add(
            name,
            f"format {data.format} is read from {' or '.join(expected)}, not from "
            f"{suffix or 'a name without an ending'}; convert the file or correct data.format",
        )
        return
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
        file.seek(0)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            faults.add(name, "is UTF-16; save it as UTF-8")
        elif not start:
            faults.add(name, "is empty; put at least two rows into it")
        elif data.columns:
            yield from _csv_rows(file, name, data.columns, faults)
        else:
            convert = _CONVERTERS[data.format]
            source = _json_array if start.startswith(b"[") else _json_lines
            for place, value in source(file, name, faults):
                try:
                    yield place, convert(value)
                except ValueError as error:
                    faults.add(place, str(error))


def _json_lines(file: BinaryIO, name: str, faults: Faults) -> Iterator[tuple[str, Any]]:
    for number, raw in enumerate(file, 1):
        place = f"{name}:{number}"
        text = _decoded(raw, place, faults)
        if text is None or not text.strip():
            continue
        try:
            yield place, json.loads(text.rstrip())
        except json.JSONDecodeError as error:
            faults.add(place, f"is not JSON ({error.msg} at column {error.colno}); {_ONE_OBJECT}")
        except RecursionError:
            faults.add(place, f"is nested too deep; {_ONE_OBJECT}")


_ONE_OBJECT = "write one JSON object a line"


def _json_array(file: BinaryIO, name: str, faults: Faults) -> Iterator[tuple[str, Any]]:
    text = _decoded(file.read(), name, faults)
    if text is None:
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        faults.add(
            f"{name}:{error.lineno}",
            f"is not JSON ({error.msg} at column {error.colno}); close the array or write JSONL",
        )
        return
    except RecursionError:
        faults.add(name, "is nested too deep; write one JSON object a row")
        return
    for number, value in enumerate(values, 1):
        yield f"{name}: row {number}", value


def _csv_rows(
    file: BinaryIO, name: str, columns: Columns, faults: Faults
) -> Iterator[tuple[str, Messages]]:
    first = _decoded(file.readline(), f"{name}:1", faults)
    if first is None:
        return
    wanted = [column for column in (columns.prompt, columns.response, columns.system) if column]
    headers = {mark: next(csv.reader([first], delimiter=mark), []) for mark in ",;\t"}
    delimiter = max(headers, key=lambda mark: len(set(wanted) & set(headers[mark])))
    header = headers[delimiter]
    missing = [column for column in wanted if column not in header]
    for column in missing:
        near = difflib.get_close_matches(column, header, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(header)}"
        faults.add(f"{name}:1", f"has no column {column!r}; {hint}")
    if missing:
        return

    def texts() -> Iterator[str]:
        for number, raw in enumerate(file, 2):
            text = _decoded(raw, f"{name}:{number}", faults)
            yield "" if text is None else text

    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    line = 2
    try:
        for fields in reader:
            place, line = f"{name}:{line}", reader.line_num + 2
            if not fields:
                continue
            if len(fields) != len(header):
                faults.add(
                    place,
                    f"has {len(fields)} fields, the first line {len(header)}; "
                    "put quotes around texts that hold the separator",
                )
                continue
            yield place, _from_columns(dict(zip(header, fields, strict=True)), columns)
    except csv.Error as error:
        faults.add(f"{name}:{line}", f"is not CSV ({error}); close the quotes of this row")


def _decoded(raw: bytes, place: str, faults: Faults) -> str | None:
    try:
        text = raw.decode("utf-8-sig" if raw.startswith(codecs.BOM_UTF8) else "utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start)
        at = f"byte 0x{raw[error.start]:02x}" + (f" on line {line + 1}" if line else "")
        faults.add(place, f"is not UTF-8 ({at}); save the file as UTF-8")
        return None
    return text


def _from_columns(row: dict[str, str], columns: Columns) -> Messages:
    system = [{"role": "system", "content": row[columns.system]}] if columns.system else []
    return [
        *system,
        {"role": "user", "content": row[columns.prompt]},
        {"role": "assistant", "content": row[columns.response]},
    ]


def _alpaca(row: Any) -> Messages:
    _has_keys(row, "alpaca", "instruction", "output")
    question = [_text(row.get("instruction"), "instruction"), _text(row.get("input"), "input")]
    messages = [{"role": "system", "content": _text(row.get("system"), "system")}]
    for turn in row.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise ValueError("history holds something else than [question, answer]; correct it")
        messages.append({"role": "user", "content": _text(turn[0], "history")})
        messages.append({"role": "assistant", "content": _text(turn[1], "history")})
    messages.append({"role": "user", "content": "\n".join(text for text in question if text)})
    messages.append({"role": "assistant", "content": _text(row.get("output"), "output")})
    return messages


def _sharegpt(row: Any) -> Messages:
    _has_keys(row, "sharegpt", "conversations")
    messages = _turns(row["conversations"], "conversations", "from", "value", _SHAREGPT_ROLES)
    if not row.get("system"):
        return messages
    if messages[0]["role"] == "system":
        raise ValueError("has a system prompt twice, as a key and as a turn; keep one")
    return [{"role": "system", "content": _text(row["system"], "system")}, *messages]


def _openai(row: Any) -> Messages:
    _has_keys(row, "openai", "messages")
    return _turns(row["messages"], "messages", "role", "content", _OPENAI_ROLES)


_CONVERTERS: dict[str, Callable[[Any], Messages]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "openai": _openai,
}


def _turns(turns: Any, key: str, role: str, content: str, roles: dict[str, str]) -> Messages:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{key} is not a list of objects; write [{{{role!r}: ..., ...}}]")
    messages: Messages = []
    for turn in turns:
        said = turn.get(role)
        if said == "system" and not messages:
            messages.append({"role": "system", "content": _text(turn.get(content), content)})
            continue
        if said not in roles and said != "system":
            known = ", ".join(["system", *roles])
            raise ValueError(f"{role} {said!r} is not a role; choose one of {known}")
        messages.append(
            {"role": roles.get(said, said), "content": _text(turn.get(content), content)}
        )
    order = [m["role"] for m in messages if m is not messages[0] or m["role"] != "system"]
    if not order or len(order) % 2 or order != ["user", "assistant"] * (len(order) // 2):
        found = ", ".join(m["role"] for m in messages) or "none"
        raise ValueError(f"roles are {found}; {_ORDER}")
    return messages


def _has_keys(row: Any, form: str, *keys: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"is not a JSON object; {_ONE_OBJECT}")
    missing = [key for key in keys if key not in row]
    if missing:
        found = ", ".join(map(str, row)) or "none"
        raise ValueError(
            f"has no key {missing[0]!r} (it has {found}); format {form} needs {' and '.join(keys)}"
        )


def _text(value: Any, key: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key} is not text but {json.dumps(value)[:40]}; write it in quotes")
    if not value.isascii() and _SURROGATE.search(value):
        raise ValueError(f"{key} holds half of a character (a lone surrogate); remove it")
    return value
