"""A run spec for somebody's own file of questions and answers, its columns guessed by name."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import yaml

from kuznia.errors import InputError

PAIRS = (
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("input", "output"),
    ("query", "response"),
    ("user", "assistant"),
    ("pytanie", "odpowiedź"),
    ("pytanie", "odpowiedz"),
)
"""Names of columns that hold what is asked and what is answered, in lower case."""
CONVERSATIONS = {"messages": "openai", "conversations": "sharegpt"}


def spec_for(data: Path, template: Path, folder: Path, epochs: float | None) -> Path:
    """Write a run spec for `data` into `folder`, with the training settings of `template`.

    Raises InputError if the file is not there, or its columns cannot be told.
    """
    if not data.is_file():
        raise InputError(f"{data}: no such file; correct the path")
    if not data.stat().st_size:
        raise InputError(f"{data}: is empty; put rows into it")
    folder.mkdir(parents=True, exist_ok=True)
    model = re.sub(r"[^a-z0-9]+", "-", data.stem.lower()).strip("-")[:40].strip("-") or "model"
    spec: dict[str, Any] = yaml.safe_load(template.read_text("utf-8"))
    spec["model"] = model
    spec["data"] = _data(data, folder)
    spec["evaluation"].pop("gate", None)
    spec["llamafactory"]["cutoff_len"] = 512
    spec["card"] = {
        "purpose": f"Answers questions like those in {data.name}; made to try Kuźnia.",
        "owner": "Kuźnia demo",
        "risk": "minimal",
    }
    return write_spec(spec, folder / f"{model}.yaml", epochs)


def write_spec(spec: dict[str, Any], path: Path, epochs: float | None) -> Path:
    """Write `spec` to `path`, with `epochs` if given."""
    if epochs is not None:
        spec["llamafactory"]["num_train_epochs"] = epochs
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True), "utf-8")
    return path


def _data(path: Path, folder: Path) -> dict[str, Any]:
    """The `data` part of the run spec."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return _csv(path, folder)
    if path.suffix.lower() not in (".jsonl", ".json"):
        raise InputError(f"{path}: is not .csv, .jsonl or .json; convert it to one of them")
    first = _first_row(path)
    for key, form in CONVERSATIONS.items():
        if key in first:
            return {"train": str(path.resolve()), "format": form}
    prompt, response = _pair(path, list(first))
    if (prompt, response) == ("instruction", "output"):
        return {"train": str(path.resolve()), "format": "alpaca"}
    return {"train": str(_renamed(path, prompt, response, folder)), "format": "alpaca"}


def _csv(path: Path, folder: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        line = file.readline()
    headers = [next(csv.reader([line], delimiter=mark), []) for mark in ",;\t"]
    prompt, response = _pair(path, max(headers, key=len))
    if path.suffix.lower() == ".tsv":
        copy = folder / f"{path.stem}.csv"
        copy.write_bytes(path.read_bytes())
        path = copy
    columns = {"prompt": prompt, "response": response}
    return {"train": str(path.resolve()), "format": "csv", "columns": columns}


def _pair(path: Path, names: list[str]) -> tuple[str, str]:
    known = {str(name).strip().casefold(): name for name in names}
    for prompt, response in PAIRS:
        if prompt in known and response in known:
            return known[prompt], known[response]
    raise InputError(
        f"{path}: columns are {', '.join(map(str, names)) or 'none'}, which do not say what is "
        "asked and what is answered; name them question and answer, or write a run spec with "
        "`kuznia init` that names yours"
    )


def _first_row(path: Path) -> dict[str, Any]:
    text = path.read_text("utf-8-sig", errors="replace").lstrip()
    try:
        row = json.loads(text)[0] if text.startswith("[") else json.loads(text.splitlines()[0])
    except (ValueError, IndexError):
        row = None
    if not isinstance(row, dict):
        raise InputError(
            f"{path}:1: is not a JSON object with columns; write one a line, or an array of them"
        )
    return row


def _renamed(path: Path, prompt: str, response: str, folder: Path) -> Path:
    """The rows under the names of the format alpaca; a line that is not JSON stays as it is,
    so that the data check names it."""
    text = path.read_text("utf-8-sig", errors="replace").lstrip()
    array = text.startswith("[")
    lines = [json.dumps(row) for row in json.loads(text)] if array else text.splitlines()
    target = folder / f"{path.stem}.jsonl"
    with target.open("w", encoding="utf-8") as out:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict) and prompt in row and response in row:
                renamed = {"instruction": row[prompt], "input": "", "output": row[response]}
                line = json.dumps(renamed, ensure_ascii=False)
            out.write(line + "\n")
    return target
