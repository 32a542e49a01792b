"""The base of all contracts: frozen, unknown keys forbidden, one canonical JSON form."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from kuznia.errors import InputError

FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml, ten times as fast; not in every build of PyYAML."""


class Contract(BaseModel):
    """A value that crosses a border: a file, a step, a card."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no white space: equal values give equal bytes."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(value: Any) -> str:
    """sha256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def problems_of(error: ValidationError, place: str) -> list[str]:
    """One line a fault, with the dotted path of the key: `train.yaml: data.train: ...`."""
    lines = []
    for fault in error.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"])
        start = f"{place}: {path}: " if path else f"{place}: "
        lines += [start + line for line in _fault(fault).splitlines()]
    return lines


def _fault(fault: Any) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    value = fault.get("input")
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        return "is not a key here; remove it or correct its name"
    if kind in ("literal_error", "enum"):
        return f"{value!r} is not one of {context['expected']}; choose one of them"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        (bound,) = context.values()
        words = {
            "greater_than_equal": "is below",
            "greater_than": "is not above",
            "less_than_equal": "is above",
            "less_than": "is not below",
        }
        return f"{value!r} {words[kind]} {bound}; choose a value within the bound"
    if kind == "string_pattern_mismatch":
        return f"{value!r} does not match {context['pattern']}; correct it"
    message = fault["msg"]
    return f"{message[0].lower()}{message[1:]}, not {value!r}; correct the value"


def load_yaml(text: str, place: str) -> Any:
    """The value that YAML `text` holds; InputError with the line if it is not YAML."""
    try:
        return yaml.load(text, FAST)
    except yaml.YAMLError:
        pass  # Read again by the slow one, whose words people understand.
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        fault = str(getattr(error, "problem", error)).splitlines()[0]
        raise InputError(f"{place}: {line}not YAML ({fault}); correct the syntax") from None


def parse(model: type[Contract], value: Any, place: str) -> Any:
    """`value` as a `model`.

    Raises InputError with every fault at once, each line beginning with `place`.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InputError(problems_of(error, place)) from None
