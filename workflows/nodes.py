"""What Argo writes into a Workflow, in the words of a local run's state (`workflows/state.py`)."""

from __future__ import annotations

import base64
import gzip
import json
from datetime import UTC, datetime
from typing import Any

import yaml

from kuznia.errors import DependencyError, KuzniaError
from kuznia.failures import ended
from workflows.local import INTERRUPTED, Result
from workflows.submit import compiled

ENDED = ("Succeeded", "Failed", "Error")
"""Phases in which Argo does nothing more; an unset phase and Pending are not among them."""
_USUAL = {"", "PodInitializing", "ContainerCreating"}
"""Why every pod waits for a moment."""


def facts_of(workflow: dict[str, Any]) -> dict[str, Any]:
    """A Workflow in the words of a local run's state (`workflows/state.py`)."""
    spec, status = workflow["spec"], workflow.get("status", {})
    nodes = nodes_of(workflow)
    phase = status.get("phase") or "Pending"
    # Argo ends a run that waits for a lock only once it has it.
    told = "told to stop; " if spec.get("shutdown") and phase not in ENDED else ""
    steps = {name: _step(nodes, node, phase) for name, node in step_nodes(workflow, nodes).items()}
    facts = {
        **_about(spec),
        "run": workflow["metadata"]["name"],
        "namespace": workflow["metadata"]["namespace"],
        "template": spec.get("workflowTemplateRef", {}).get("name", ""),
        "phase": {"Error": "Failed"}.get(phase, phase),
        "started": status.get("startedAt") or workflow["metadata"]["creationTimestamp"],
        "finished": status.get("finishedAt"),
        "exit_code": None,
        "message": told + _flat(status.get("message", "")),
        "steps": steps,
    }
    if phase in ENDED:
        stopped = phase != "Succeeded" and spec.get("shutdown")
        failed = failed_step(facts)
        if phase == "Succeeded":
            facts["exit_code"] = 0
        elif stopped:
            facts |= {"phase": "Interrupted", "exit_code": INTERRUPTED}
        elif failed:
            # Without an exit code the pod was lost, or never came to be: not the spec's fault.
            facts["exit_code"] = steps[failed]["exit_code"] or DependencyError.exit_code
        else:
            facts["exit_code"] = DependencyError.exit_code if nodes else KuzniaError.exit_code
    return facts


def failed_step(facts: dict[str, Any]) -> str | None:
    """The first step that failed, if any has."""
    failed = [name for name, step in facts["steps"].items() if step["phase"] == "Failed"]
    return failed[0] if failed else None


def result_of(workflow: dict[str, Any]) -> Result:
    """How a run that has ended ended, as the local engine says it."""
    facts, nodes = facts_of(workflow), nodes_of(workflow)
    outputs = {
        f"{name}.{parameter['name']}": parameter["value"]
        for name, node in step_nodes(workflow, nodes).items()
        for parameter in (node or {}).get("outputs", {}).get("parameters", [])
        if "value" in parameter
    }
    return Result(facts["run"], facts["phase"], facts["exit_code"], failed_step(facts), outputs)


def nodes_of(workflow: dict[str, Any]) -> dict[str, Any]:
    """The Workflow's nodes by id; Argo compresses them where they are many."""
    status = workflow.get("status", {})
    if packed := status.get("compressedNodes"):
        unpacked: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed)))
        return unpacked
    nodes: dict[str, Any] = status.get("nodes") or {}
    return nodes


def step_nodes(workflow: dict[str, Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """Each step's node by the step's name, in the chain's order; None where it has not begun."""
    stored = workflow.get("status", {}).get("storedWorkflowTemplateSpec")
    spec = stored or compiled()["spec"]
    (chain,) = (each for each in spec["templates"] if each["name"] == spec["entrypoint"])
    run = workflow["metadata"].get("name")
    found = {n["displayName"]: n for n in nodes.values() if n.get("boundaryID") == run}
    return {task["name"]: found.get(task["name"]) for task in chain["dag"]["tasks"]}


def attempts_of(nodes: dict[str, Any], node: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The pods of a step, oldest first."""
    if node is None or node["type"] == "Pod":
        return [node] if node else []
    children = [nodes[child] for child in node.get("children", []) if child in nodes]
    return [child for child in children if child["name"].startswith(f"{node['name']}(")]


def _step(nodes: dict[str, Any], node: dict[str, Any] | None, run_phase: str) -> dict[str, Any]:
    """A step in the words of a local run's state."""
    attempts = attempts_of(nodes, node)
    phase = node["phase"] if node else "Pending"
    last = attempts[-1]["phase"] if attempts else phase
    if phase == "Running" and (run_phase in ENDED or last == "Pending"):
        # A pod that waits is no running step; and Argo leaves the node of a stopped step as it was.
        phase = last
    phase = {"Error": "Failed", "Omitted": "Pending", "Skipped": "Pending"}.get(phase, phase)
    if phase == "Running" and run_phase in ENDED:
        phase = "Pending"
    code, message = None, ""
    for number, attempt in enumerate(attempts, 1):
        code, reason = _reason(attempt)
        if attempt["phase"] in ("Failed", "Error"):
            what = "was lost" if code is None else f"failed (exit code {code})"
            again = f"attempt {number} {what}, tried again: {_flat(reason)}"
            message = reason if phase == "Failed" else again
        elif reason and reason not in _USUAL:
            message = _flat(reason)
    if node and not attempts and node["phase"] != "Omitted":
        message = _flat(node.get("message", ""))
    return {
        "phase": phase,
        "attempts": len(attempts),
        "seconds": round(sum(_seconds(attempt) for attempt in attempts), 3),
        "exit_code": code,
        "message": "" if phase == "Succeeded" else message,
    }


def _reason(attempt: dict[str, Any]) -> tuple[int | None, str]:
    """Exit code of an attempt and why it failed: what the step said, else Argo's message."""
    message = attempt.get("message", "").strip()
    end = ended(message)
    if end is None or end.container != "main":
        code = attempt.get("outputs", {}).get("exitCode", "")
        return int(code) if end is None and code.isdigit() else None, message
    if end.cause == "OOMKilled":
        return end.exit_code, "ran out of memory and was killed; ask for less or give it more"
    return end.exit_code, "\n".join(end.problems) or f"ended with exit code {end.exit_code}"


def _seconds(attempt: dict[str, Any]) -> float:
    """How long an attempt took, or has taken until now."""
    if attempt["phase"] == "Pending" or not attempt.get("startedAt"):
        return 0.0
    end = datetime.fromisoformat(attempt.get("finishedAt") or datetime.now(UTC).isoformat())
    return (end - datetime.fromisoformat(attempt["startedAt"])).total_seconds()


def _about(spec: dict[str, Any]) -> dict[str, str]:
    """Tenant and model of a run and its spec, as far as the spec can be read."""
    parameters = spec.get("arguments", {}).get("parameters", [])
    text = next((str(p.get("value", "")) for p in parameters if p["name"] == "config"), "")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    named = value if isinstance(value, dict) else {}
    return {key: str(named.get(key, "")) for key in ("tenant", "model")} | {"spec": text}


def _flat(text: str) -> str:
    return " ".join(text.split())
