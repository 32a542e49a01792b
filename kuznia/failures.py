"""Why a run failed, in a person's words, from what Argo says of its failed nodes.

Argo 4.0.5 gives an exit handler `{{workflow.failures}}`: a JSON list as a quoted Go string, with
every node that failed or could not be run, in no order. A step with retries has one node for each
attempt and one that sums them up; an attempt stays in the list when a later one succeeded, and
then the sum is not there. The DAG has a node too, named after the workflow:

    [{"displayName": "plan(0)", "message": "main: Error (exit code 2): error: config: seed: ...",
      "templateName": "plan", "phase": "Failed", "podName": "...", "finishedAt": "2026-..Z"},
     {"displayName": "plan", "message": "retryStrategy.expression evaluated to false", ...},
     {"displayName": "support-0123456789", "message": "", "templateName": "chain", ...}]

`null` where nothing failed. After `argo stop` the sum is missing and `finishedAt` is null. What
stands behind the exit code is what the container left in its termination log.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Kind = Literal[
    "input",
    "dependency",
    "preempted",
    "bug",
    "memory",
    "killed",
    "deadline",
    "lost",
    "stopped",
    "evicted",
    "start",
    "argo",
    "other",
]

_CODES: dict[int, tuple[Kind, str]] = {
    1: ("bug", "met a bug in Kuźnia"),
    2: ("input", "found a mistake in what a person wrote"),
    3: ("dependency", "could not do without something that did not answer"),
    75: ("preempted", "was preempted each time"),
    137: ("killed", "was killed"),
    143: ("killed", "was told to stop"),
}
_OVER = "ran, or waited for a node or a lock, when the run's time was over"
_MESSAGES: list[tuple[str, Kind, str]] = [
    (
        "workflow shutdown|Stopped with strategy",
        "stopped",
        "had not ended when a person stopped it",
    ),
    ("Step exceeded its deadline", "deadline", _OVER),
    ("Pod was active on the node longer", "deadline", "took longer than it may"),
    ("pod deleted|.*node shutdown|Pod was terminated", "lost", "lost its pod or node"),
    (".*low on resource|.*storage usage", "evicted", "was evicted from its node"),
    (".*Unschedulable", "start", "fits no node"),
    ("Pod failed before|.*ImagePull", "start", "did not start"),
]
_ATTEMPT = re.compile(r"(.+)\((\d+)\)")
_ENDED = re.compile(r"(?:([\w-]+): )?(\w+) \(exit code (\d+)\)(?:: (.*))?", re.S)
_LONGEST = 600


class Ended(NamedTuple):
    """How a container of a node ended."""

    container: str
    """`main`; `init` and `wait` are Argo's."""
    cause: str
    """`Error`, `OOMKilled`, ..."""
    exit_code: int
    problems: list[str]
    """What it left as its reason, without `error: `; empty if it left nothing."""


@dataclass(frozen=True)
class Failure:
    """A step that failed for good."""

    step: str
    kind: Kind
    happened: str
    """What `kind` means, to stand behind the step's name."""
    attempts: int
    exit_code: int | None
    """None where no container ended with one."""
    problems: list[str]

    def sentence(self) -> str:
        """One line: the step, what happened to it, and the first thing it said."""
        tried = f" in {self.attempts} attempts" if self.attempts > 1 else ""
        code = f" (exit code {self.exit_code})" if self.exit_code is not None else ""
        said = f": {self.problems[0]}" if self.problems else ""
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        line = " ".join(f"step {self.step} {self.happened}{tried}{code}{said}".split())
        return line[:_LONGEST] + more


def ended(message: str) -> Ended | None:
    """A node's message taken apart; None if it does not tell of a container's end."""
    found = _ENDED.fullmatch(message.strip())
    if not found:
        return None
    said = (line.removeprefix("error: ").strip() for line in (found[4] or "").splitlines())
    return Ended(found[1] or "main", found[2], int(found[3]), [line for line in said if line])


def failures(text: str, workflow: str) -> list[Failure]:
    """The steps that failed for good in `{{workflow.failures}}`, the first to fail first.

    Raises ValueError for a text of another shape.
    """
    nodes = [
        node
        for node in _nodes(text)
        if node["displayName"] != workflow
        and not node["displayName"].startswith(f"{workflow}.onExit")
    ]
    sums: dict[str, dict[str, Any]] = {}
    attempts: dict[str, dict[int, dict[str, Any]]] = {}
    for node in nodes:
        if attempt := _ATTEMPT.fullmatch(node["displayName"]):
            attempts.setdefault(attempt[1], {})[int(attempt[2])] = node
        else:
            sums[node["displayName"]] = node
    lasts = {name: tries[max(tries)] for name, tries in attempts.items()}
    stopped = {name for name, node in lasts.items() if _told(node["message"])[0] == "stopped"}
    found = [
        _failure(name, sums.get(name), lasts.get(name), len(attempts.get(name, ())))
        for name in sums.keys() | stopped
    ]
    return [failure for _, failure in sorted(found, key=lambda pair: (pair[0], pair[1].step))]


def _nodes(text: str) -> list[dict[str, Any]]:
    """Go quotes more than JSON can read back (\\x7f, \\U000e0001); Python reads all of it."""
    try:
        nodes = json.loads(ast.literal_eval(text) if text.startswith('"') else text)
    except SyntaxError as error:
        raise ValueError(str(error)) from None
    if nodes is None:
        return []
    if not isinstance(nodes, list) or not all(
        isinstance(node, dict) and isinstance(node.get("displayName"), str) for node in nodes
    ):
        raise ValueError("is not a list of nodes")
    return [{**node, "message": node.get("message") or ""} for node in nodes]


def _failure(
    step: str, summed: dict[str, Any] | None, last: dict[str, Any] | None, attempts: int
) -> tuple[str, Failure]:
    """When a step failed, and how; one of its nodes is there at least."""
    node = last or summed or {}
    kind, happened, problems = _told(node["message"])
    if summed and summed["message"].startswith("retry exceeded workflow deadline"):
        kind, happened = "deadline", _OVER
    end = ended(node["message"])
    code = end.exit_code if end else None
    failure = Failure(step, kind, happened, max(attempts, 1), code, problems)
    return node.get("finishedAt") or "9999", failure


def _told(message: str) -> tuple[Kind, str, list[str]]:
    """What a node's message tells of, in words, and what is worth repeating of it."""
    if end := ended(message):
        if end.container in ("init", "wait"):
            return "argo", "could not get its inputs or hand over its outputs", end.problems
        if end.cause == "OOMKilled":
            return "memory", "ran out of memory", end.problems
        return *_CODES.get(end.exit_code, ("other", "failed")), end.problems
    for pattern, kind, happened in _MESSAGES:
        if re.match(pattern, message):
            return kind, happened, [] if kind in ("stopped", "deadline") else [message.strip()]
    return "other", "failed", [message.strip()] if message.strip() else []
