"""What a run on a cluster is doing: its Workflow and its pods' logs, asked for again and again.

Asking beats watching here: a broken connection, a restarted API server or a resource version that
is too old all come to the same, one answer less, and the next one has everything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from kuznia.errors import DependencyError, InputError, KuzniaError
from kuznia.failures import ended
from kuznia.progress import parse_progress
from workflows.cluster import Cluster
from workflows.local import Watcher
from workflows.nodes import ENDED, attempts_of, facts_of, nodes_of, step_nodes
from workflows.on_cluster import template_name

_PATIENCE = 3.0
"""Longest pause between two looks, seconds; Argo keeps a finished pod for at least five."""


def follow(cluster: Cluster, run: str, watcher: Watcher, deadline: float) -> dict[str, Any]:
    """Show the run until it has ended; returns its Workflow.

    Goes on through whatever keeps the API server from answering. Raises DependencyError when
    `deadline` seconds are over, or the Workflow is deleted; neither touches the run.
    """
    view = _View(cluster, run, watcher)
    until = time.monotonic() + deadline
    silent = False
    while True:
        try:
            workflow = cluster.get("workflows", run)
            if silent:
                watcher.say("the API server answers again")
            silent = False
            if workflow is not None:
                view.show(workflow)
        except DependencyError as error:
            if not silent:
                watcher.say(f"{error}; still trying")
            silent = True
        else:
            if workflow is None:
                raise DependencyError(
                    f"{run}: its Workflow was deleted from namespace {cluster.namespace}; what is "
                    "done is kept, the same command goes on"
                )
            if workflow.get("status", {}).get("phase") in ENDED:
                return view.explained(workflow)
        left = until - time.monotonic()
        if left <= 0:
            raise DependencyError(
                f"{run}: has not ended by the deadline and goes on; follow it with the same command"
            )
        time.sleep(min(view.pause, left))


def find(cluster: Cluster, prefix: str | None) -> dict[str, Any]:
    """The Workflow that is meant: the newest, or the only one whose name begins with `prefix`."""
    found = runs(cluster)
    names = [workflow["metadata"]["name"] for workflow in found]
    place = f"namespace {cluster.namespace}"
    if not names:
        raise InputError(
            f"{place}: holds no run; start one with `kuznia run train.yaml --on cluster`"
        )
    chosen = [name for name in names if name == prefix] or [
        name for name in names if name.startswith(prefix or "")
    ]
    if prefix is None or len(chosen) == 1:
        return found[names.index(chosen[0])]
    fault = f"begins {len(chosen)} runs ({', '.join(chosen)}); give more of it"
    way_out = f"is not in {place}; `kuznia runs --on cluster -n {cluster.namespace}` lists what is"
    raise InputError(f"run {prefix!r}: {fault if chosen else way_out}")


def runs(cluster: Cluster) -> list[dict[str, Any]]:
    """The Workflows of the chain, whoever started them and how, the newest first."""
    stem = template_name().rstrip("0123456789-")
    found = [
        workflow
        for workflow in cluster.find("workflows")
        if workflow["spec"].get("workflowTemplateRef", {}).get("name", "").startswith(stem)
    ]
    return sorted(found, key=lambda each: str(each["metadata"]["creationTimestamp"]), reverse=True)


def log_lines(
    cluster: Cluster, run: str, steps: list[str], go_on: bool
) -> Iterator[tuple[str, str | None]]:
    """(step, line) of every attempt; None for a line where a pod is gone, and its log with it.

    With `go_on`, until the run has ended.
    """
    tails: dict[str, Tail] = {}
    while True:
        workflow = cluster.get("workflows", run)
        if workflow is None:
            return
        nodes = nodes_of(workflow)
        pods = _pods(cluster, run)
        over = not go_on or workflow.get("status", {}).get("phase") in ENDED
        for name, node in step_nodes(workflow, nodes).items():
            for attempt in attempts_of(nodes, node) if name in steps else []:
                pod = pods.get(attempt["id"])
                if pod:
                    tail = tails.setdefault(attempt["id"], Tail(cluster, pod))
                    yield from ((name, line) for line in tail.lines())
                elif over and attempt["id"] not in tails:
                    yield name, None
        if over:
            return
        time.sleep(1)


class Tail:
    """A step's container log, read a piece at a time."""

    def __init__(self, cluster: Cluster, pod: str) -> None:
        self._cluster, self._pod = cluster, pod
        self.last = ""
        """Time of the newest line that was read."""

    def lines(self, **query: str) -> list[str]:
        """The lines since the last call."""
        since = {"sinceTime": self.last} if self.last else query
        text = self._cluster.log(self._pod, timestamps="true", **since)
        found = [line.partition(" ") for line in text.split("\n") if line]
        # sinceTime counts in whole seconds, so lines that are known come again.
        new = [(stamp, line) for stamp, _, line in found if stamp > self.last]
        self.last = new[-1][0] if new else self.last
        return [line for _, line in new if " argo=true" not in line]


class _View:
    """Tells a watcher what has changed from one look to the next."""

    def __init__(self, cluster: Cluster, run: str, watcher: Watcher) -> None:
        self._cluster, self._run, self._watcher = cluster, run, watcher
        self._shown: dict[str, tuple[Any, ...]] = {}
        self._said: dict[str, str] = {}
        self._tails: dict[str, Tail] = {}
        self._first = True
        self._begun: set[str] = set()
        """Attempts that ran before the first look: of what they had said, the end is enough."""
        self._read: set[str] = set()
        """Attempts that have ended and whose log is read to its end."""
        self.pause = 1.0
        """Seconds until the next look is worth it."""

    def show(self, workflow: dict[str, Any]) -> None:
        facts, nodes = facts_of(workflow), nodes_of(workflow)
        self.pause = min(self.pause * 1.3, _PATIENCE)
        if facts["phase"] == "Pending" and facts["message"]:
            self._say("", f"Pending: {facts['message']}")
        attempts = {
            name: attempts_of(nodes, node) for name, node in step_nodes(workflow, nodes).items()
        }
        if self._first:
            self._first = False
            known = [attempt for each in attempts.values() for attempt in each]
            self._begun = {each["id"] for each in known if each["phase"] == "Running"}
            # What had ended before is not told again: `kuznia logs` has it.
            self._read = {attempt["id"] for attempt in known if _over(attempt)}
        for name, step in facts["steps"].items():
            waits = step["phase"] in ("Pending", "Running")
            if waits:
                self._step(name, step)
                self._say(name, f"{name}: {step['message']}" if step["message"] else "")
            for attempt in attempts[name]:
                self._hear(name, attempt)
            if not waits:
                self._step(name, step)

    def _step(self, name: str, step: dict[str, Any]) -> None:
        seen = (step["phase"], step["attempts"], step["message"])
        begun = name in self._shown or step["phase"] != "Pending"
        if begun and seen != self._shown.get(name):
            self.pause = 1.0
            self._shown[name] = seen
            self._watcher.step(name, step)

    def _hear(self, name: str, attempt: dict[str, Any]) -> None:
        """Pass on what an attempt has said since the last look."""
        node = attempt["id"]
        if node in self._read or attempt["phase"] == "Pending":
            return
        lines = self._log(node, **({"tailLines": "100"} if node in self._begun else {}))
        if _over(attempt) and lines is not None:
            self._read.add(node)
        facts = None
        for text in lines or []:
            self.pause = 1.0
            # Progress bars of libraries overwrite themselves; what stands last on the line counts.
            line = text.rstrip().rpartition("\r")[2]
            if found := parse_progress(line):
                facts = found
            elif line:
                self._watcher.log(name, line)
        if facts and not _over(attempt) and name in self._shown:
            self._watcher.progress(name, facts)

    def explained(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """The Workflow, its failed steps' reasons taken from their logs where Argo has none."""
        nodes = nodes_of(workflow)
        for node in step_nodes(workflow, nodes).values():
            attempts = attempts_of(nodes, node)
            end = ended(attempts[-1].get("message", "")) if attempts else None
            if end is None or end.problems or end.exit_code == 0:
                continue
            # Once more, for the reason alone: it may lie before what was read last.
            self._tails.pop(attempts[-1]["id"], None)
            lines = self._log(attempts[-1]["id"], tailLines="200") or []
            if said := [line for line in lines if line.startswith("error: ")] or lines[-1:]:
                attempts[-1]["message"] = "\n".join(
                    [f"{end.container}: {end.cause} (exit code {end.exit_code}): ", *said]
                )
        workflow.get("status", {}).pop("compressedNodes", None)
        workflow.setdefault("status", {})["nodes"] = nodes
        return workflow

    def _log(self, node: str, **query: str) -> list[str] | None:
        """New lines of an attempt's log; None, said once, where it cannot be read now."""
        try:
            if node not in self._tails:
                pod = _pods(self._cluster, self._run).get(node)
                if pod is None:
                    return []
                self._tails[node] = Tail(self._cluster, pod)
            return self._tails[node].lines(**query)
        except KuzniaError as error:
            self._say("log", f"{error}; the run is followed without its logs")
            return None

    def _say(self, about: str, text: str) -> None:
        """Say something about a step once, until there is something else to say."""
        if text != self._said.get(about, ""):
            self._said[about] = text
            if text:
                self._watcher.say(text)


def _over(attempt: dict[str, Any]) -> bool:
    return attempt["phase"] not in ("Pending", "Running")


def _pods(cluster: Cluster, run: str) -> dict[str, str]:
    """Names of the run's pods by the id of their node."""
    pods = cluster.find("pods", labelSelector=f"workflows.argoproj.io/workflow={run}")
    notes = ((pod["metadata"]["name"], pod["metadata"].get("annotations", {})) for pod in pods)
    return {note.get("workflows.argoproj.io/node-id", ""): name for name, note in notes}
