"""The chain in real pods, on a tiny base: equal to the local engine's, and interrupted."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuznia.contracts.card import VARYING
from kuznia.manifest import manifest_digest
from kuznia.store import open_store
from tests.e2e.cluster import Tenant, get, kubectl, nodes, outputs, wait_for, why
from tests.e2e.conftest import MakeTenant, catalogue_of, from_volume, put_base, put_on_volume
from workflows.finetune import CHAIN

pytestmark = [pytest.mark.timeout(1500), pytest.mark.long]
SAVE_STEPS = 200


@pytest.fixture(scope="module")
def acme(tenants: MakeTenant, tiny_base: Path) -> Tenant:
    retry = {"pause": "2s", "longest": "4s"}
    tenant = tenants("acme", catalogue=catalogue_of(tiny_base), retry=retry)
    put_base(tenant, "tiny", tiny_base)
    return tenant


def write_spec(tenant: Tenant, folder: Path, model: str, epochs: int) -> Path:
    """A run spec with its rows beside it; an epoch has 20 steps of some milliseconds."""
    rows = [
        {"instruction": f"What is the code of step {n}?", "output": f"exit code {n % 7}"}
        for n in range(24)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[20:]))
    spec = {
        "tenant": tenant.name,
        "model": model,
        "base": "tiny",
        "data": {"train": "train.jsonl", "test": "test.jsonl", "format": "alpaca"},
        "llamafactory": {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": 1,
            "save_steps": SAVE_STEPS,
            "cutoff_len": 128,
        },
        "evaluation": {"max_new_tokens": 8},
        "card": {"purpose": "Shows that nothing is lost.", "owner": "tests", "risk": "minimal"},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def local_run(tenant: Tenant, spec: Path, base: Path, catalogue: dict[str, Any]) -> dict[str, Any]:
    """The report of the same spec run by the local engine, as a pod would: its threads, no GPU."""
    home = spec.parent / "home"
    open_store(str(home / "store")).put_folder(base, f"bases/tiny/{manifest_digest(base)}")
    (spec.parent / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    here = {
        "KUZNIA_HOME": str(home),
        "KUZNIA_CATALOGUE": str(spec.parent / "catalogue.yaml"),
        "KUZNIA_POD_CPU": "2",
        "KUZNIA_GPU_CLASSES": "",
    }
    done = Tenant(tenant.name, "", here).kuznia("run", spec.name, "--json", cwd=spec.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def card_of(read: Callable[[str], bytes], made: dict[str, Any]) -> dict[str, Any]:
    """A card without what two runs of one version may differ in."""
    card: dict[str, Any] = yaml.safe_load(read(made["card"]["key"]))
    for path in VARYING:
        node = card
        *parents, last = path.split(".")
        for parent in parents:
            node = node.get(parent, {})
        node.pop(last, None)
    return card


def put_rows(tenant: Tenant, spec: Path) -> None:
    """Put the rows beside a run spec on the tenant's volume, and name them there."""
    changed = yaml.safe_load(spec.read_text("utf-8"))
    for split in ("train", "test"):
        key = f"datasets/{tenant.name}/{split}.jsonl"
        put_on_volume(tenant, spec.with_name(f"{split}.jsonl"), key)
        changed["data"][split] = f"{tenant.store}/{key}"
    spec.write_text(yaml.safe_dump(changed))


def test_a_run_on_a_volume_makes_what_the_local_engine_makes(
    volume: Tenant, tiny_base: Path, tmp_path: Path
) -> None:
    spec = write_spec(volume, tmp_path, "codes", epochs=60)
    refused = volume.kuznia("run", spec.name, "--on", "cluster", cwd=tmp_path)
    assert refused.returncode == 2
    assert "put the file there and name it file:///storage/store/datasets/" in refused.stderr
    here = local_run(volume, spec, tiny_base, catalogue_of(tiny_base))

    put_rows(volume, spec)
    done = volume.kuznia("run", spec.name, "--on", "cluster", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    there = json.loads(done.stdout)

    assert set(there["outputs"]) == set(CHAIN)
    made, ours = there["outputs"], here["outputs"]
    for step, facts in (
        ("fetch-base", ("base",)),
        ("evaluate", ("metrics", "verdict")),
        ("export", ("version", "folder")),
        ("register", ("version", "aliases")),
    ):
        for fact in facts:
            assert made[step][fact] == ours[step][fact], (step, fact)
    for step, file in (("data-check", "train"), ("data-check", "test"), ("evaluate", "answers")):
        assert made[step][file]["sha256"] == ours[step][file]["sha256"], (step, file)
    assert made["data-check"]["fingerprint"] == ours["data-check"]["fingerprint"]
    assert made["train"]["weights"]["digest"] == ours["train"]["weights"]["digest"]

    theirs = card_of(partial(from_volume, volume), made["model-card"])
    mine = card_of(open_store(str(tmp_path / "home" / "store")).read, ours["model-card"])
    # Another name of the rows is another run's name.
    run = there["run"]
    assert json.loads(json.dumps(theirs).replace(run, here["run"])) == mine

    again = volume.kuznia("run", spec.name, "--on", "cluster", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    workflow = volume.workflow(run)
    assert [len(nodes(workflow, step)) for step in CHAIN] == [1] * len(CHAIN)


def steps_done(tenant: Tenant, run: str) -> tuple[str, int, int]:
    """The running train pod, the optimizer step it began after, and the last that it reported."""
    running = [pod for pod in tenant.pods(run, "train") if pod["status"]["phase"] == "Running"]
    if not running or "deletionTimestamp" in running[-1]["metadata"]:
        return "", 0, 0
    name = running[-1]["metadata"]["name"]
    done = re.findall(r'"done": ?(\d+)', tenant.log(name)) or [0]
    return name, int(done[0]), int(done[-1])


def delete_pod(tenant: Tenant, pod: str) -> None:
    kubectl("delete", "pod", pod, "-n", tenant.namespace, "--wait=false")


def delete_pod_at_once(tenant: Tenant, pod: str) -> None:
    """As when its node is gone: no time for a checkpoint."""
    kubectl("delete", "pod", pod, "-n", tenant.namespace, "--grace-period=0", "--force")


KILL_TRAINER = """
import os, pathlib, signal
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    words = path.read_bytes().split(b"\\0")
    if b"steps.trainer" in words:
        os.kill(int(path.parent.name), signal.SIGKILL)
"""


def kill_trainer(tenant: Tenant, pod: str) -> None:
    kubectl("exec", pod, "-n", tenant.namespace, "-c", "main", "--", "python", "-c", KILL_TRAINER)


def drain_node(tenant: Tenant, pod: str) -> None:
    found = get("pod", pod, tenant.namespace)
    node, label = found["spec"]["nodeName"], "workflows.argoproj.io/workflow"
    run = found["metadata"]["labels"][label]
    try:
        kubectl(
            *("drain", node, "--force", "--delete-emptydir-data", "--ignore-daemonsets"),
            *("--pod-selector", f"{label}={run},workflows.argoproj.io/completed=false"),
            "--timeout=150s",
        )
    finally:
        kubectl("uncordon", node)


def restart_controller(tenant: Tenant, pod: str) -> None:
    kubectl("-n", "argo", "rollout", "restart", "deployment/workflow-controller")
    kubectl("-n", "argo", "rollout", "status", "deployment/workflow-controller", "--timeout=120s")


INTERRUPTIONS = (
    delete_pod,
    delete_pod_at_once,
    kill_trainer,
    drain_node,
    restart_controller,
    delete_pod,
)


def test_a_training_survives_everything_and_ends_as_if_undisturbed(
    acme: Tenant, tiny_base: Path, tmp_path: Path
) -> None:
    spec = write_spec(acme, tmp_path, "survivor", epochs=200)
    done = acme.kuznia("run", spec.name, "--on", "cluster", "--detach", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(done.stdout)["run"]

    pod, gone, reached = "", "", 0
    for interrupt in INTERRUPTIONS:

        def further(gone: str = gone, last: int = reached) -> tuple[str, int, int] | None:
            """Beyond another checkpoint, and so far that it has come to the store."""
            pod, began, done = steps_done(acme, run)
            far = done > last + SAVE_STEPS and done % SAVE_STEPS > SAVE_STEPS // 3
            return (pod, began, done) if far and pod != gone else None

        before = pod
        pod, began, last = wait_for(f"progress beyond step {reached}", further, 300)
        assert pod == before or began >= reached - SAVE_STEPS
        reached = last
        interrupt(acme, pod)
        # What is killed inside has trained on since its log was read, and is seen a while longer.
        gone = "" if interrupt is restart_controller else pod
        time.sleep(2)
    workflow = acme.ended(run, 900)
    assert workflow["status"]["phase"] == "Succeeded", why(acme, workflow)

    attempts = nodes(workflow, "train")
    # A restarted controller costs no attempt.
    assert len(attempts) == len(INTERRUPTIONS)
    trained = outputs(workflow, "train")
    assert trained["resumed"] == len(INTERRUPTIONS) - 1
    here = local_run(acme, spec, tiny_base, catalogue_of(tiny_base))
    assert trained["weights"]["digest"] == here["outputs"]["train"]["weights"]["digest"]
    assert outputs(workflow, "export")["version"] == here["outputs"]["export"]["version"]
