"""Training on a schedule: a CronWorkflow that starts the compiled template."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from kuznia.errors import InputError, collected
from workflows.render import labels_of, namespace_of, submission
from workflows.submit import compiled

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: list[tuple[str, int, int, tuple[str, ...]]] = [
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _DAYS),
]
_PART = re.compile(r"(?:\*|\?|(\w+)(?:-(\w+))?)(?:/(\d+))?")


def cron(path: Path, schedule: str, timezone: str | None, namespace: str | None) -> dict[str, Any]:
    """The CronWorkflow for the run spec at `path`.

    Named after the model, so that applying a changed one replaces the schedule. Raises InputError
    with all that is wrong with spec, schedule and time zone.
    """
    problems = schedule_problems(schedule) + timezone_problems(timezone)
    with collected(problems):
        submitted = submission(path)
    if problems:
        raise InputError(problems)
    spec = {
        "schedules": [schedule],
        **({"timezone": timezone} if timezone else {}),
        "concurrencyPolicy": "Forbid",
        # A controller that was away for longer leaves that run out.
        "startingDeadlineSeconds": 3600,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "workflowMetadata": {"labels": labels_of(submitted)},
        "workflowSpec": {
            "workflowTemplateRef": {"name": compiled()["metadata"]["name"]},
            "arguments": {"parameters": [{"name": "config", "value": submitted.config}]},
        },
    }
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "CronWorkflow",
        "metadata": {
            "name": f"{submitted.spec.model}-retrain",
            "namespace": namespace_of(submitted, namespace),
            "labels": labels_of(submitted),
        },
        "spec": spec,
    }


def schedule_problems(schedule: str) -> list[str]:
    """What is wrong with five cron fields, by the rules of Argo's parser."""
    fields = schedule.split()
    place = f"--schedule {schedule!r}"
    if len(fields) != len(_FIELDS):
        return [f"{place}: has {len(fields)} fields; write {' '.join(_names())}: '0 3 * * 1'"]
    return [
        f"{place}: {name}: {fault}; write {low} to {high}, *, a-b, */n or several with commas"
        for field, (name, low, high, words) in zip(fields, _FIELDS, strict=True)
        for part in field.split(",")
        if (fault := _fault(part, low, high, words))
    ]


def timezone_problems(timezone: str | None) -> list[str]:
    """What is wrong with a time zone's name; nothing can be told where the system knows none."""
    if timezone is None or not available_timezones():
        return []
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return [f"--timezone {timezone}: is no time zone; write a name such as Europe/Warsaw"]
    return []


def _names() -> list[str]:
    return [f"<{name}>" for name, *_ in _FIELDS]


def _fault(part: str, low: int, high: int, words: tuple[str, ...]) -> str:
    """What is wrong with one part of a field; empty if nothing is."""
    found = _PART.fullmatch(part)
    if not found:
        return f"{part!r} is not understood"
    ends = [end for end in (found[1], found[2]) if end is not None]
    values = []
    for end in ends:
        if end.lower() in words:
            values.append(words.index(end.lower()) + low)
        elif end.isdecimal() and low <= int(end) <= high:
            values.append(int(end))
        else:
            return f"{end} is not within {low} to {high}"
    if values != sorted(values):
        return f"{part} ends before it begins"
    return "a step of 0 never comes" if found[3] and not int(found[3]) else ""
