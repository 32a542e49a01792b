"""The whole chain through the command, on the tiny base: stopped and killed at every step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuznia.manifest import manifest_digest, read_manifest, verify_folder
from kuznia.registry import mlflow_client
from workflows.environments import ROOT, python_of
from workflows.finetune import CHAIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STOPPED = 130
LAST_STEPS = ("export", "register", "model-card")
QUESTIONS = [f"What is the code of step {number}?" for number in range(24)]


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path
) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with a run spec on the tiny base, and the variables that the command needs."""
    python_of("platform")
    python_of("serve")
    folder = tmp_path_factory.mktemp("chain")
    entry = yaml.safe_load((ROOT / "kuznia" / "catalogue.yaml").read_text("utf-8"))["bases"]
    (real,) = entry.values()
    tiny = real | {
        "source": str(tiny_base),
        "digest": manifest_digest(tiny_base),
        "parameters": 99_000,
        "layers": 2,
        "hidden_size": 64,
        "vocabulary": 384,
        "context_length": 512,
    }
    (folder / "catalogue.yaml").write_text(yaml.safe_dump({"bases": {"tiny": tiny}}))
    rows = [
        {"instruction": question, "output": f"exit code {number % 7}"}
        for number, question in enumerate(QUESTIONS)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[20:]))
    spec = {
        "tenant": "acme",
        "model": "codes",
        "base": "tiny",
        "data": {"train": "train.jsonl", "test": "test.jsonl", "format": "alpaca"},
        # 600 steps of some milliseconds: long enough to be met in the middle.
        "llamafactory": {
            "num_train_epochs": 30,
            "per_device_train_batch_size": 1,
            "save_steps": 100,
            "cutoff_len": 128,
        },
        "evaluation": {"max_new_tokens": 8},
        "card": {"purpose": "Shows that nothing is lost.", "owner": "tests", "risk": "minimal"},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(spec))
    # Two tests run at once: one thread each is faster than two each that wait for one another.
    variables = {"KUZNIA_CATALOGUE": str(folder / "catalogue.yaml"), "KUZNIA_POD_CPU": "1"}
    yield folder, os.environ | variables
    shutil.rmtree(folder)


def start(folder: Path, variables: dict[str, str], home: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", "run", "train.yaml"],
        cwd=folder,
        env=variables | {"KUZNIA_HOME": str(folder / home), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def state(folder: Path, home: str) -> dict[str, Any]:
    found = list((folder / home / "runs").glob("*/run.json"))
    return json.loads(found[0].read_text("utf-8")) if found else {"steps": {}}


def stop_in(
    step: str, how: signal.Signals, folder: Path, variables: dict[str, str], home: str
) -> int:
    """Start the run, wait until `step` is running, send the signal, return the exit code.

    Where the step was over too soon to be met, the run's own exit code, 0.
    """
    engine = start(folder, variables, home)
    while engine.poll() is None:
        known = state(folder, home)
        found = known["steps"].get(step, {}) if known.get("pid") == engine.pid else {}
        # A training is met once it has made a step, so that there is something to save.
        begun = step != "train" or found.get("progress", {}).get("done", 0) > 0
        if found.get("phase") == "Running" and begun:
            time.sleep(0.3)
            engine.send_signal(how)
            break
        time.sleep(0.02)
    engine.communicate()
    return engine.returncode


def models(folder: Path, home: str) -> list[Path]:
    """Every version that a reader of the store can see, whole or not."""
    return sorted((folder / home / "store" / "models" / "acme" / "codes").glob("[!.]*"))


def result(folder: Path, home: str, step: str) -> dict[str, Any]:
    (path,) = (folder / home / "store" / "runs" / "acme").glob(f"*/{step}/result.json")
    outputs: dict[str, Any] = json.loads(path.read_text("utf-8"))["outputs"]
    return outputs


def test_stopped_and_killed_at_every_step_it_ends_as_if_nothing_had_happened(
    bench: tuple[Path, dict[str, str]],
) -> None:
    folder, variables = bench
    met = []
    for step in CHAIN:
        code = stop_in(step, signal.SIGINT, folder, variables, "stopped")
        # Met in its very last moments, an engine that is done ends by the signal itself.
        assert code in (0, STOPPED, -signal.SIGINT), step
        met += [step] if code == STOPPED else []
        if step in ("train", *LAST_STEPS):
            code = stop_in(step, signal.SIGKILL, folder, variables, "stopped")
            assert code in (0, -signal.SIGKILL), step
        for version in models(folder, "stopped"):
            verify_folder(version)
    assert {"train", "evaluate", "export", "verify", "register"} <= set(met)

    for home in ("stopped", "undisturbed"):
        engine = start(folder, variables, home)
        said, _ = engine.communicate()
        assert engine.returncode == 0, said

    (version,) = models(folder, "stopped")
    assert [path.name for path in models(folder, "undisturbed")] == [version.name]
    assert read_manifest(version).kind == "version"
    train = result(folder, "stopped", "train")
    assert train["resumed"] >= 1
    assert train["weights"]["digest"] == result(folder, "undisturbed", "train")["weights"]["digest"]
    answers = [result(folder, home, "verify")["answers"] for home in ("stopped", "undisturbed")]
    assert answers[0]["sha256"] == answers[1]["sha256"]
    curves = []
    for home in ("stopped", "undisturbed"):
        curve = folder / home / "store" / result(folder, home, "train")["loss_curve"]["key"]
        entries = map(json.loads, curve.read_text("utf-8").splitlines())
        curves.append([(entry["step"], entry["loss"]) for entry in entries])
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == list(range(1, len(curves[0]) + 1))

    client = mlflow_client(f"sqlite:///{folder / 'stopped' / 'mlflow.db'}")
    (registered,) = client.search_model_versions("name = 'acme.codes'")
    assert registered.tags["version"] == version.name
    history = client.get_metric_history(registered.run_id, "loss")
    assert sorted(metric.step for metric in history) == [step for step, _ in curves[0]]


def test_the_same_command_again_repeats_nothing(bench: tuple[Path, dict[str, str]]) -> None:
    folder, variables = bench
    first = start(folder, variables, "undisturbed")
    said, _ = first.communicate()
    assert first.returncode == 0, said
    store = folder / "undisturbed" / "store"
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    engine = start(folder, variables, "undisturbed")
    said, _ = engine.communicate()
    assert engine.returncode == 0, said
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    for step in CHAIN:
        log = next((folder / "undisturbed" / "runs").glob(f"*/{step}.log"))
        assert "already done, nothing to repeat" in log.read_text("utf-8")


def test_two_runs_of_one_spec_at_once_and_the_second_refuses(
    bench: tuple[Path, dict[str, str]],
) -> None:
    folder, variables = bench
    first = start(folder, variables, "twice")
    while state(folder, "twice").get("phase") != "Running":
        assert first.poll() is None
        time.sleep(0.02)
    second = start(folder, variables, "twice")
    said, _ = second.communicate()
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert second.returncode == 3
    assert f"{first.pid}" in said
