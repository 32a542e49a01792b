"""What a run reports while it works: MLflow always, Weights & Biases where the run spec asks.

One run of Kuźnia is one run of MLflow, in the experiment `<tenant>/<model>`, found again by its
tag `kuznia.run`; whoever goes on with a run logs only the steps that are not there yet.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kuznia.errors import DependencyError
from kuznia.progress import say
from kuznia.registry import mlflow_answers, mlflow_client

RETRY_SECONDS = 5.0
METRICS = ("loss", "grad_norm", "learning_rate", "epoch", "samples_per_second")
RUN_TAG = "kuznia.run"
FINISHED, FAILED, PREEMPTED = "FINISHED", "FAILED", "SCHEDULED"
"""MLflow's words for how a run stands."""
_PARAMS_AT_ONCE, _METRICS_AT_ONCE = 100, 1000


class Tracker:
    """Sends parameters and metrics to MLflow as they come, from a thread of its own.

    While MLflow is down everything is kept and tried again, and nothing waits for it; only
    `close` raises DependencyError if it is still down then.
    """

    def __init__(self, uri: str, experiment: str, run: str, parameters: dict[str, Any]) -> None:
        self._uri = uri
        self._experiment = experiment
        self._run = run
        self._parameters = {key: str(value)[:6000] for key, value in parameters.items()}
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._closing = threading.Event()
        self._client: Any = None
        self._run_id = ""
        self._known: set[int] = set()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._work = self._executor.submit(self._deliver)
        self._news.set()

    def log(self, entry: dict[str, Any]) -> None:
        """Take the metrics of one step: {"step", "time", and any of METRICS}."""
        with self._lock:
            self._waiting.append(entry)
        self._news.set()

    def close(self, status: str) -> str:
        """Deliver what waits, set the run's status and return its id.

        Raises DependencyError if MLflow does not answer.
        """
        self._closing.set()
        self._news.set()
        self._executor.shutdown()
        self._work.result()
        with mlflow_answers(self._uri):
            if status == PREEMPTED:
                self._client.update_run(self._run_id, status=status)
            else:
                self._client.set_terminated(self._run_id, status)
        return self._run_id

    def _deliver(self) -> None:
        warned = False
        while True:
            self._news.wait()
            self._news.clear()
            last = self._closing.is_set()
            try:
                self._send()
            except DependencyError as error:
                if last:
                    raise
                if not warned:
                    say(f"warning: {error}; training goes on, metrics are kept")
                warned = True
                self._closing.wait(RETRY_SECONDS)
                self._news.set()
            else:
                warned = False
                if last:
                    return

    def _send(self) -> None:
        from mlflow.entities import Metric

        with mlflow_answers(self._uri):
            if not self._run_id:
                self._attach()
            with self._lock:
                entries = list(self._waiting)
            metrics = [
                Metric(key, entry[key], int(entry["time"] * 1000), entry["step"])
                for entry in entries
                if entry["step"] not in self._known
                for key in METRICS
                if key in entry
            ]
            for start in range(0, len(metrics), _METRICS_AT_ONCE):
                part = metrics[start : start + _METRICS_AT_ONCE]
                self._client.log_batch(self._run_id, metrics=part)
            self._known.update(entry["step"] for entry in entries)
            with self._lock:
                del self._waiting[: len(entries)]

    def _attach(self) -> None:
        """Find or make the run, complete its parameters, and see which steps it has."""
        from mlflow.entities import Param

        client = self._client = mlflow_client(self._uri)
        experiment = _experiment_id(client, self._experiment)
        found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{self._run}'")
        # The same run planned anew, for a corrected workspace, is another training.
        run = next((each for each in found if self._agrees(each.data.params)), None)
        if run is None:
            tags = {RUN_TAG: self._run}
            run = client.create_run(experiment, tags=tags, run_name=self._run)
        missing = [
            Param(key, value)
            for key, value in self._parameters.items()
            if key not in run.data.params
        ]
        for start in range(0, len(missing), _PARAMS_AT_ONCE):
            part = missing[start : start + _PARAMS_AT_ONCE]
            client.log_batch(run.info.run_id, params=part)
        self._known = {
            metric.step for metric in client.get_metric_history(run.info.run_id, METRICS[0])
        }
        client.update_run(run.info.run_id, status="RUNNING")
        self._run_id = run.info.run_id

    def _agrees(self, known: dict[str, str]) -> bool:
        """Not so where a run was planned anew for a corrected workspace: that trains anew."""
        return all(self._parameters.get(key, value) == value for key, value in known.items())


def _experiment_id(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            made: str = client.create_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
        else:
            return made
    existing: str = found.experiment_id
    return existing


class WandbRun:
    """The same metrics in Weights & Biases; WANDB_MODE=offline writes them to `folder` only."""

    def __init__(self, project: str, run: str, folder: Path, parameters: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._mark = folder / "last-step"
        self._last = int(self._mark.read_text()) if self._mark.exists() else 0
        try:
            self._run: Any = wandb.init(
                project=project,
                id=run,
                name=run,
                resume="allow",
                dir=folder,
                config=parameters,
                settings=wandb.Settings(console="off", disable_git=True, save_code=False),
            )
        except wandb.errors.Error as error:
            raise DependencyError(
                f"Weights & Biases: {str(error).splitlines()[0]}; set WANDB_API_KEY, or "
                "WANDB_MODE=offline, or remove wandb from the run spec"
            ) from error

    def log(self, entry: dict[str, Any]) -> None:
        """Take the metrics of one step, once: steps done again after a resume are left out."""
        if entry["step"] > self._last:
            metrics = {key: entry[key] for key in METRICS if key in entry}
            self._run.log(metrics, step=entry["step"])
            self._last = entry["step"]
            self._mark.write_text(str(self._last))

    def close(self, failed: bool) -> Iterable[Path]:
        """End the run; returns the files that hold it where it is offline."""
        self._run.finish(exit_code=int(failed))
        return sorted(self._folder.glob("wandb/offline-run-*/*.wandb"))
