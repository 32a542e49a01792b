"""Which MLflow run a training is reported to; test_train.py has the reports themselves."""

from __future__ import annotations

from pathlib import Path

from kuznia.registry import mlflow_client
from kuznia.tracking import Tracker


def test_a_run_that_is_planned_anew_is_another_training(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def report(cores: int, step: int) -> str:
        tracker = Tracker(uri, "acme/support", "support-1", {"hardware.threads": cores})
        tracker.log({"step": step, "time": 1.0, "loss": float(cores)})
        return tracker.close("FAILED")

    first = report(2, 1)
    assert report(2, 2) == first
    other = report(4, 1)
    assert other != first
    client = mlflow_client(uri)
    steps = {run: client.get_metric_history(run, "loss") for run in (first, other)}
    assert [(metric.step, metric.value) for metric in steps[first]] == [(1, 2.0), (2, 2.0)]
    assert [(metric.step, metric.value) for metric in steps[other]] == [(1, 4.0)]
