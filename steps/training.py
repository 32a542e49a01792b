"""What the step `train` does with what its trainer says: reports and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from kuznia import settings
from kuznia.contracts.steps import TrainInputs
from kuznia.errors import DependencyError, Preempted
from kuznia.progress import progress, say
from kuznia.store import Store
from kuznia.tracking import FAILED, FINISHED, PREEMPTED, Tracker, WandbRun
from steps.checkpoints import upload
from steps.context import Context

LIBRARIES = ("torch", "transformers", "peft", "llamafactory")


class Reports:
    """The run in MLflow, and in Weights & Biases where the run spec asks for it.

    Leaving the block by an exception tells them how the run stands.
    """

    def __init__(self, inputs: TrainInputs, context: Context, parameters: dict[str, Any]) -> None:
        spec = inputs.plan.spec
        self._context = context
        self._finished = False
        self._prefix = f"{inputs.plan.prefix}/train/wandb"
        self._wandb = None
        if spec.wandb:
            folder = context.workdir / "wandb-run"
            name = f"{spec.tenant}-{inputs.plan.run}"
            self._wandb = WandbRun(spec.wandb, name, folder, parameters)
        experiment = f"{spec.tenant}/{spec.model}"
        self._mlflow = Tracker(context.tracking_uri, experiment, inputs.plan.run, parameters)

    def __enter__(self) -> Reports:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or self._finished:
            return
        stands = PREEMPTED if issubclass(kind, Preempted | KeyboardInterrupt) else FAILED
        try:
            self.finish(stands)
        except DependencyError as silent:
            say(f"warning: {silent}")

    def log(self, entry: dict[str, Any]) -> None:
        """Report one step."""
        self._mlflow.log(entry)
        if self._wandb:
            self._wandb.log(entry)

    def finish(self, status: str = FINISHED) -> str:
        """Deliver everything; returns MLflow's run id. DependencyError if MLflow is down."""
        self._finished = True
        if self._wandb:
            for path in self._wandb.close(status == FAILED):
                self._context.put(path, f"{self._prefix}/{path.parent.name}/{path.name}")
            self._wandb = None
        return self._mlflow.close(status)


class Listener:
    """Takes the trainer's events: progress lines, reports, and copies of checkpoints.

    Checkpoints are copied to the store, since a pod's disk dies with it; on one machine a local
    store lies beside the step's folder and would only hold them twice.
    """

    def __init__(
        self, rows: int, report: Callable[[dict[str, Any]], None], store: Store, checkpoints: str
    ) -> None:
        self.rows = rows
        self.diverged = 0
        self.saved: Path | None = None
        self.total = self.step = 0
        self._report = report
        self._store = store
        self._checkpoints = checkpoints
        self._copies = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._before: dict[str, Any] = {}
        self._seconds: list[float] = []

    def hear(self, event: dict[str, Any]) -> None:
        """Act on one event of `steps/trainer.py`."""
        kind = event.pop("event")
        if kind == "begin":
            self.step, self.total = event["step"], event["total"]
            progress("train", self.step, self.total, "steps")
        elif kind == "log":
            self._log(event)
        elif kind == "diverged":
            self.diverged = event["step"]
        elif kind == "save":
            self.saved = Path(event["path"])
            if self._store.local_path(self._checkpoints) is None or settings.in_a_pod():
                self._copies.submit(self._copy, self.saved)

    def close(self) -> None:
        """Wait for copies under way."""
        self._copies.shutdown()

    def _log(self, entry: dict[str, Any]) -> None:
        add_speed(self._before, entry, self.rows)
        self._before = entry
        self.step = entry["step"]
        self._report(entry)
        facts = {"loss": round(entry["loss"], 4)}
        if "samples_per_second" in entry:
            self._seconds.append(entry["seconds"])
            left = (self.total - self.step) * sum(self._seconds) / len(self._seconds)
            facts["samples_per_second"] = round(entry["samples_per_second"], 2)
            facts["eta_seconds"] = round(left, 1)
        progress("train", self.step, self.total, "steps", **facts)

    def _copy(self, checkpoint: Path) -> None:
        try:
            upload(self._store, self._checkpoints, checkpoint)
        except DependencyError as error:
            say(f"warning: {checkpoint.name} is not in the store: {error}")


def logged(state: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """Every step that a trainer's state, or a checkpoint's, tells of, with its speed."""
    history = [entry for entry in state["log_history"] if "loss" in entry]
    for before, entry in zip([{}, *history], history, strict=False):
        add_speed(before, entry, rows)
    return history


def add_speed(before: dict[str, Any], entry: dict[str, Any], rows: int) -> None:
    """Put samples_per_second into a step's entry: rows of data, packed or not, over seconds.

    The first step of an attempt gets none: it pays for warming up.
    """
    if before and "warm_up" not in entry:
        done = rows * (entry["epoch"] - before["epoch"])
        entry["samples_per_second"] = done / max(entry["seconds"], 1e-9)
