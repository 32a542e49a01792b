"""What is known of the runs on this machine: `<home>/runs/<run>/run.json`, one writer a run."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from kuznia import settings
from kuznia.errors import DependencyError, InputError

PHASES = ("Pending", "Running", "Succeeded", "Failed", "Interrupted")
"""Phases of a run and, without Interrupted, of a step."""


def now() -> str:
    """This moment in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def run_folder(run: str) -> Path:
    """Where the engine keeps a run."""
    return settings.home() / "runs" / run


def log_path(run: str, step: str) -> Path:
    """Everything a step printed, over all attempts."""
    return run_folder(run) / f"{step}.log"


def write(run: str, state: dict[str, Any]) -> None:
    """Replace the run's state at once; a reader never sees half of it."""
    path = run_folder(run) / "run.json"
    partial = path.with_name(".run.json")
    partial.write_text(json.dumps(state, indent=2, ensure_ascii=False), "utf-8")
    partial.replace(path)


def read(run: str) -> dict[str, Any]:
    """A run's state; one whose engine was killed reads Interrupted, not Running."""
    path = run_folder(run) / "run.json"
    state: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if state["phase"] == "Running" and not _is_locked(run):
        state["phase"] = "Interrupted"
        for step in state["steps"].values():
            if step["phase"] == "Running":
                step["phase"] = "Pending"
    return state


def runs() -> list[str]:
    """Names of all runs, the newest first."""
    found = (settings.home() / "runs").glob("*/run.json")
    return [path.parent.name for path in sorted(found, key=_started, reverse=True)]


def find(prefix: str | None) -> str:
    """The run that is meant: the newest, or the only one that begins with `prefix`."""
    names = runs()
    if not names:
        raise InputError(f"{settings.home()}: holds no run; start one with `kuznia run train.yaml`")
    if prefix is None or prefix in names:
        return prefix or names[0]
    found = [name for name in names if name.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    fault = f"begins {len(found)} runs ({', '.join(found)}); give more of it"
    raise InputError(
        f"run {prefix!r}: {fault if found else 'is not here; `kuznia runs` lists what is'}"
    )


@contextmanager
def lock(run: str) -> Iterator[None]:
    """Hold the run, so that nobody else executes it; freed by the kernel if the holder dies.

    Raises DependencyError where another process holds it.
    """
    run_folder(run).mkdir(parents=True, exist_ok=True)
    with (run_folder(run) / "lock").open("a+") as file:
        if not _taken(file):
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise DependencyError(
                f"run {run}: is already running (pid {pid}); "
                f"follow it with `kuznia logs {run} -f`, or stop it and run again"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _taken(file: TextIO) -> bool:
    """Lock `file`; tries for a moment, since a reader of the state may hold it for an instant."""
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def _is_locked(run: str) -> bool:
    with (run_folder(run) / "lock").open("a+") as file:
        try:
            # Shared, so that two readers never take each other for an engine.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _started(path: Path) -> str:
    started: str = json.loads(path.read_text("utf-8"))["started"]
    return started
