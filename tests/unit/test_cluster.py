"""What Argo and the API server say, in a person's words; the rest is in tests/e2e."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main
from cli.run import Duration
from cli.watch import Lines
from kuznia.errors import DependencyError, InputError
from tests.fixtures.kubernetes_api import Api, serve
from workflows.cluster import RIGHTS, Cluster, refusal
from workflows.follow import follow, log_lines
from workflows.nodes import facts_of, result_of, step_nodes

ARGO_FORBIDS = (
    'workflows.argoproj.io is forbidden: User "anna@example.org" cannot create resource '
    '"workflows" in API group "argoproj.io" in the namespace "acme-training"'
)


def workflow(phase: str | None, *nodes: dict[str, Any], **status: Any) -> dict[str, Any]:
    """A Workflow as Argo has it, with the nodes of its steps."""
    root = {"id": "run", "name": "run", "displayName": "run", "type": "DAG"}
    known = {node["id"]: node for node in (root, *nodes)} if nodes else {}
    config = "tenant: acme\nmodel: support\n"
    return {
        "metadata": {
            "name": "run",
            "namespace": "acme-training",
            "creationTimestamp": "2026-11-21T15:00:00Z",
        },
        "spec": {
            "workflowTemplateRef": {"name": "kuznia-finetune-0-1-0"},
            "arguments": {"parameters": [{"name": "config", "value": config}]},
        },
        "status": {"nodes": known, **({"phase": phase} if phase else {}), **status},
    }


def tried(step: str, phase: str, *attempts: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """A step's node with its attempts."""
    pods = [
        {
            "id": f"run-{step}-{number}",
            "name": f"run.{step}({number})",
            "displayName": f"{step}({number})",
            "type": "Pod",
            "boundaryID": "run",
            "startedAt": "2026-11-21T15:00:00Z",
            "finishedAt": "2026-11-21T15:00:10Z",
            **attempt,
        }
        for number, attempt in enumerate(attempts)
    ]
    # The next step's node stands among the children of a step, as in Argo.
    children = [*(pod["id"] for pod in pods), "run-next"]
    about = {"id": f"run-{step}", "name": f"run.{step}", "displayName": step, "boundaryID": "run"}
    return [{**about, "type": "Retry", "phase": phase, "children": children, **more}, *pods]


def failed(code: int, text: str = "") -> dict[str, Any]:
    message = f"main: Error (exit code {code})" + (f": {text}" if text else "")
    return {"phase": "Failed", "message": message, "outputs": {"exitCode": str(code)}}


def test_an_unset_phase_is_pending_and_not_the_end() -> None:
    facts = facts_of(workflow(None))
    assert (facts["phase"], facts["exit_code"]) == ("Pending", None)
    assert next(iter(facts["steps"])) == "plan" and len(facts["steps"]) == 9
    assert {step["phase"] for step in facts["steps"].values()} == {"Pending"}
    assert (facts["tenant"], facts["model"]) == ("acme", "support")
    waits = facts_of(workflow("Pending", message="Waiting for a lock.\nLock status: 0/1"))
    assert (waits["message"], waits["exit_code"]) == ("Waiting for a lock. Lock status: 0/1", None)


def test_a_mistake_is_told_in_the_steps_own_words() -> None:
    text = "error: config: seed: is -1; set it\nerror: config: base: no such; choose one\n"
    nodes = tried(
        "plan", "Failed", failed(2, text), message="retryStrategy.expression evaluated to false"
    )
    result, facts = result_of(workflow("Failed", *nodes)), facts_of(workflow("Failed", *nodes))
    assert (result.exit_code, result.failed, result.phase) == (2, "plan", "Failed")
    assert facts["steps"]["plan"] == {
        "phase": "Failed",
        "attempts": 1,
        "seconds": 10.0,
        "exit_code": 2,
        "message": "config: seed: is -1; set it\nconfig: base: no such; choose one",
    }


def test_an_attempt_that_is_made_again_is_told() -> None:
    attempts = failed(3, "error: no answer"), {"phase": "Running", "finishedAt": None}
    step = facts_of(workflow("Running", *tried("plan", "Running", *attempts)))["steps"]["plan"]
    assert (step["phase"], step["attempts"]) == ("Running", 2)
    assert step["message"] == "attempt 1 failed (exit code 3), tried again: no answer"
    done = {"phase": "Succeeded"}
    step = facts_of(workflow("Running", *tried("plan", "Succeeded", attempts[0], done)))
    assert step["steps"]["plan"]["message"] == ""


@pytest.mark.parametrize(
    ("attempt", "code", "words"),
    [
        (failed(75, "error: preempted"), 75, "preempted"),
        (failed(1), 1, "ended with exit code 1"),
        ({"phase": "Failed", "message": "OOMKilled (exit code 137)"}, 137, "ran out of memory"),
        ({"phase": "Error", "message": "pod deleted"}, 3, "pod deleted"),
        ({"phase": "Error", "message": "init: Error (exit code 2): no disk"}, 3, "no disk"),
    ],
)
def test_exit_codes(attempt: dict[str, Any], code: int, words: str) -> None:
    nodes = tried("train", "Failed", attempt)
    ended = workflow("Failed", *tried("plan", "Succeeded", {"phase": "Succeeded"}), *nodes)
    assert (result_of(ended).exit_code, result_of(ended).failed) == (code, "train")
    assert words in facts_of(ended)["steps"]["train"]["message"]


def test_what_a_pod_waits_for_is_told_unless_it_is_usual() -> None:
    def waits(message: str) -> dict[str, Any]:
        pod = {"phase": "Pending", "message": message, "finishedAt": None}
        facts = facts_of(workflow("Running", *tried("train", "Running", pod)))
        found: dict[str, Any] = facts["steps"]["train"]
        return found

    assert waits("Unschedulable: 0/1 nodes")["message"] == "Unschedulable: 0/1 nodes"
    assert (waits("PodInitializing")["message"], waits("")["phase"]) == ("", "Pending")
    lock = tried("train", "Pending", message="Waiting for acme/hardware lock. Lock status: 0/1")
    assert "lock" in facts_of(workflow("Running", *lock))["steps"]["train"]["message"]


def test_a_run_that_a_person_stopped() -> None:
    nodes = tried("plan", "Running", failed(143))
    stopped = workflow("Failed", *nodes, message="Stopped with strategy 'Stop'")
    stopped["spec"]["shutdown"] = "Stop"
    assert (result_of(stopped).phase, result_of(stopped).exit_code) == ("Interrupted", 130)
    queued = workflow("Pending", message="Waiting for a lock")
    queued["spec"]["shutdown"] = "Stop"
    assert facts_of(queued)["message"] == "told to stop; Waiting for a lock"


def test_a_run_that_never_came_to_a_step() -> None:
    ended = workflow("Failed", message="invalid spec: templates.plan: no such field")
    assert (result_of(ended).exit_code, result_of(ended).failed) == (1, None)
    nodes = tried("plan", "Succeeded", {"phase": "Succeeded"})
    late = workflow("Error", *nodes, message="Max duration limit exceeded")
    assert (result_of(late).exit_code, result_of(late).phase) == (3, "Failed")


def test_outputs_and_order_come_from_the_workflow_itself() -> None:
    done = {"parameters": [{"name": "outputs", "value": '{"a": 1}'}]}
    nodes = tried("first", "Succeeded", {"phase": "Succeeded"}, outputs=done)
    tasks = [{"name": "first"}, {"name": "second"}]
    stored = {"entrypoint": "x", "templates": [{"name": "x", "dag": {"tasks": tasks}}]}
    whole = workflow("Succeeded", *nodes, storedWorkflowTemplateSpec=stored)
    assert list(facts_of(whole)["steps"]) == ["first", "second"]
    assert result_of(whole).outputs == {"first.outputs": '{"a": 1}'}
    packed = gzip.compress(json.dumps(whole["status"].pop("nodes")).encode())
    whole["status"]["compressedNodes"] = base64.b64encode(packed).decode()
    assert result_of(whole).outputs == {"first.outputs": '{"a": 1}'}
    assert step_nodes(whole, {}) == {"first": None, "second": None}


def test_refusals_name_place_fault_and_way_out() -> None:
    def said(status: int, reason: str = "") -> tuple[type[Exception], str]:
        place = "namespace acme-training"
        error = refusal(status, reason, "create", "workflows", place, "https://api")
        return type(error), str(error)

    assert said(403, ARGO_FORBIDS) == (
        InputError,
        "namespace acme-training: anna@example.org may not create workflows; ask who runs the "
        "platform for the tenant's role there, or name another namespace with --namespace",
    )
    kind, text = said(403, "exceeded quota: runs")
    assert kind is InputError and "refuses to create workflows: exceeded quota: runs" in text
    assert said(401) == (
        InputError,
        "https://api: does not know your login; log in to the cluster again",
    )
    for status in (0, 429, 500, 503):
        assert said(status)[0] is DependencyError


def followed(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch, deadline: float = 60
) -> list[str]:
    """What `kuznia run --on cluster` prints of a run; no request may change it."""
    monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
    stream = io.StringIO()
    with serve(api, folder / "kubeconfig"):
        follow(Cluster("acme-training"), "run", Lines(stream), deadline)
    assert {method for method, _ in api.asked} == {"GET"}
    return [re.sub(r"http://\S+", "HOST", line) for line in stream.getvalue().splitlines()]


def progress_line(done: int) -> str:
    return "progress: " + json.dumps({"step": "plan", "done": done, "total": 2, "unit": "parts"})


RUNS = {"phase": "Running", "finishedAt": None}
ARGO = 'time="2026-11-21T15:00:00.000Z" level=info msg="capturing logs" argo=true'


def test_what_steps_print_is_shown_once_and_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, log = {"phase": "Succeeded"}, "2026-11-21T15:00:00.{}00000000Z".format
    failed_twice = tried("train", "Failed", failed(3, "error: no answer"), failed(1, ""))
    api = Api(
        [
            workflow("Running"),
            workflow("Running", *tried("plan", "Running", RUNS)),
            None,
            workflow("Running", *tried("plan", "Running", RUNS)),
            # It ended between two looks, and so did the next step, twice.
            workflow("Failed", *tried("plan", "Succeeded", done), *failed_twice),
        ],
        {
            "run-plan-0": [
                (1, log(0), ARGO),
                (1, log(1), "reading the spec"),
                (1, log(2), progress_line(1)),
                (1, log(3), " 10%|#  \r 20%|## "),
                (2, log(4), "said while nobody answered"),
                (3, log(5), progress_line(2)),
                (4, log(6), "plan: the last words"),
            ],
            "run-train-0": [(4, log(7), "error: no answer")],
            "run-train-1": [(4, log(8), "Traceback"), (4, log(9), "ValueError: broken")],
        },
    )
    lines = followed(api, tmp_path, monkeypatch)
    silent = next(line for line in lines if "still trying" in line)
    assert silent.startswith("HOST the API server does not answer")
    assert lines == [
        "plan: Running",
        "plan: reading the spec",
        "plan:  20%|##",
        "plan: 1/2 parts",
        silent,
        "the API server answers again",
        "plan: said while nobody answered",
        "plan: 2/2 parts",
        "plan: the last words",
        "plan: Succeeded in 10 s",
        "train: error: no answer",
        "train: Traceback",
        "train: ValueError: broken",
        "train: Failed",
    ]


def test_a_run_under_way_is_followed_from_the_last_lines_of_the_steps_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tried("plan", "Succeeded", {"phase": "Succeeded"})
    trains = workflow("Running", *done, *tried("train", "Running", RUNS))
    ended = workflow("Succeeded", *done, *tried("train", "Succeeded", {"phase": "Succeeded"}))
    stamps = [f"2026-11-21T15:00:{number // 10:02}.{number % 10}00000000Z" for number in range(203)]
    said = [(0, stamp, f"line {number}") for number, stamp in enumerate(stamps[:200])]
    said += [(1, stamp, "the end") for stamp in stamps[200:201]]
    api = Api([trains, ended], {"run-plan-0": [(0, stamps[0], "long ago")], "run-train-0": said})
    assert followed(api, tmp_path, monkeypatch) == [
        "plan: Succeeded in 10 s",
        "train: Running",
        *(f"train: line {number}" for number in range(100, 200)),
        "train: the end",
        "train: Succeeded in 10 s",
    ]


def test_the_log_of_a_pod_that_comes_late_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the quota was full: Argo's node is there before its pod."""
    waits = workflow("Running", *tried("plan", "Pending", {"phase": "Pending"}))
    ended = workflow("Succeeded", *tried("plan", "Succeeded", {"phase": "Succeeded"}))
    api = Api([waits, ended], {"run-plan-0": [(1, "2026-11-21T15:00:00.100000000Z", "planned")]})
    api.pods_from = 1
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with serve(api, tmp_path / "kubeconfig"):
        assert list(log_lines(Cluster("acme-training"), "run", ["plan"], True)) == [
            ("plan", "planned")
        ]


def test_a_deadline_ends_the_following_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Api([workflow("Running")], {})
    with pytest.raises(DependencyError, match="has not ended by the deadline and goes on"):
        followed(api, tmp_path, monkeypatch, deadline=0)


def test_durations() -> None:
    convert = Duration().convert
    assert [convert(text, None, None) for text in ("90s", "30m", "24h")] == [90, 1800, 86400]
    done = CliRunner().invoke(main, ["run", "x.yaml", "--on", "cluster", "--deadline", "1 day"])
    assert done.exit_code == 2 and "write 90s, 30m or 24h" in done.stderr


def test_options_of_a_cluster_are_refused_here() -> None:
    for command in (["run", "x.yaml", "--detach"], ["logs", "-n", "a"], ["runs", "--context", "a"]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2 and "add --on cluster or leave it out" in done.stderr, command


def test_the_howto_lists_every_right() -> None:
    from workflows.environments import ROOT

    text = (ROOT / "docs/howto/run-on-a-cluster.md").read_text("utf-8")
    for resource, verbs in RIGHTS.items():
        assert f"| {resource} | {', '.join(verbs)} |" in text
