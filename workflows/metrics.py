"""What Argo's controller exports of a run when it has ended, from the exit handler's summary."""

from __future__ import annotations

from hera.workflows import Counter, Gauge, Histogram, Label
from hera.workflows.models import Amount

_SUMMARY = "{{{{=jsonpath(outputs.parameters.outputs, '$.{}')}}}}"
_TRAINED = _SUMMARY.format("trained") + " == true"
"""Only a run that came to train has the figures of training."""
_SECONDS: list[float | Amount] = [60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0]


def run_metrics() -> list[Counter | Gauge | Histogram]:
    """Result, duration, training speed and time in the queue, by tenant and model."""
    labels = [Label(key=key, value=_SUMMARY.format(key)) for key in ("tenant", "model")]
    result = Label(key="result", value=_SUMMARY.format("result"))
    return [
        Counter(
            name="kuznia_runs_total", help="Runs that ended", labels=[*labels, result], value="1"
        ),
        Histogram(
            name="kuznia_run_seconds",
            help="From submission to the end",
            labels=[*labels, result],
            buckets=_SECONDS,
            value=_SUMMARY.format("seconds"),
        ),
        Histogram(
            name="kuznia_queue_seconds",
            help="From the moment training could start to its start",
            labels=labels,
            buckets=_SECONDS,
            value=_SUMMARY.format("queue_seconds"),
            when=_TRAINED,
        ),
        Gauge(
            name="kuznia_train_samples_per_second",
            help="Training speed of the newest run",
            realtime=False,
            labels=labels,
            value=_SUMMARY.format("samples_per_second"),
            when=_TRAINED,
        ),
    ]
