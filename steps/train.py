"""Fine-tune the base with LLaMA-Factory in a process of its own (`steps/trainer.py`)."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from kuznia.contracts.base import canonical_json, digest_of
from kuznia.contracts.steps import TrainInputs, TrainOutputs
from kuznia.errors import DependencyError
from kuznia.progress import say
from kuznia.settings import node
from steps.checkpoints import fetch, keep_last_complete
from steps.context import Context
from steps.faults import failure
from steps.supervisor import stoppable, watch
from steps.trained import publish
from steps.trainer_inputs import command_for, settings_for, variables_for
from steps.training import LIBRARIES, Listener, Reports, logged

FOLLOW_SECONDS = 900
"""How long other nodes wait for the first one to publish; it meets them again if they gave up."""


def run(inputs: TrainInputs, context: Context) -> TrainOutputs:
    """Train, resumably, and publish the adapter or the full weights.

    Reads: the clean training rows, the base's folder, the last whole checkpoint of an attempt
        before (in the work folder; where the store is elsewhere, in the store).
    Writes: weights, loss curve and finished.json under `<run>/train/`; the run in MLflow.
    Fails when: a setting or the memory does not do (2), disk, store or MLflow fail or the trainer
        is killed (3), it is told to stop (75, after a checkpoint).
    Safe to repeat because: a finished training is found by the digest of what decides its result,
        an unfinished one goes on from its last whole checkpoint, and no step is reported twice.
    """
    identity = digest_of(
        {
            "trainer": inputs.plan.trainer,
            "base": inputs.fetch_base.base.digest,
            "data": inputs.data_check.train.sha256,
            # Not the GPU's name: a run planned before it was recorded goes on from its checkpoint.
            "hardware": inputs.plan.hardware.model_dump(exclude={"reasons", "gpu"}),
        }
    )
    context.workdir.mkdir(parents=True, exist_ok=True)
    if inputs.plan.hardware.nodes > 1 and node():
        with stoppable("train"), _disk_full(context.workdir):
            return _follow(inputs, context, identity)
    with (
        stoppable("train"),
        Reports(inputs, context, _parameters(inputs)) as reports,
        _disk_full(context.workdir),
    ):
        outputs = _finished(inputs, context, identity)
        if outputs is None:
            outputs = _train(inputs, context, identity, reports)
        else:
            say("train: the weights are finished; only the reports are completed")
            for line in context.store.read(outputs.loss_curve.key).splitlines():
                reports.log(json.loads(line))
        return outputs.model_copy(update={"mlflow_run_id": reports.finish()})


def _finished(inputs: TrainInputs, context: Context, identity: str) -> TrainOutputs | None:
    try:
        record = json.loads(context.store.read(f"{inputs.plan.prefix}/train/finished.json"))
    except FileNotFoundError:
        return None
    same = record["identity"] == identity
    return TrainOutputs.model_validate(record["outputs"]) if same else None


def _train(inputs: TrainInputs, context: Context, identity: str, reports: Reports) -> TrainOutputs:
    prefix = f"{inputs.plan.prefix}/train"
    output = _weights(inputs, context, identity, reports.log)
    outputs = publish(inputs, context, output, _rows(inputs))
    record = {"identity": identity, "outputs": outputs.model_dump(mode="json")}
    context.store.write(f"{prefix}/finished.json", canonical_json(record))
    context.store.remove_folder(f"{prefix}/checkpoints")
    shutil.rmtree(output)
    return outputs


def _follow(inputs: TrainInputs, context: Context, identity: str) -> TrainOutputs:
    """On every node but the first: train along, then take the result that the first one makes."""
    if _finished(inputs, context, identity) is None:
        shutil.rmtree(_weights(inputs, context, identity, lambda _: None))
    for _ in range(FOLLOW_SECONDS):
        finished = _finished(inputs, context, identity)
        with suppress(FileNotFoundError):
            result = json.loads(context.store.read(f"{inputs.plan.prefix}/train/result.json"))
            outputs = TrainOutputs.model_validate(result["outputs"])
            if finished and outputs.weights == finished.weights:
                return outputs
        time.sleep(1)
    raise DependencyError(
        f"train: the first node has not finished {FOLLOW_SECONDS} s after this one; see its log, "
        "run again to train along with it"
    )


def _weights(
    inputs: TrainInputs,
    context: Context,
    identity: str,
    report: Callable[[dict[str, Any]], None],
) -> Path:
    """Train, from the last whole checkpoint if there is one; returns the trainer's output."""
    work = context.workdir
    checkpoints = f"{inputs.plan.prefix}/train/checkpoints/{identity[:12]}"
    output = work / f"output-{identity[:12]}"
    checkpoint = keep_last_complete(output)
    if checkpoint is None:
        fetch(context.store, checkpoints, output)
        checkpoint = keep_last_complete(output)
    settings = work / "settings.json"
    settings.write_text(json.dumps(settings_for(inputs, context, output, checkpoint), indent=2))
    log = work / "trainer.log"
    listener = Listener(_rows(inputs), report, context.store, checkpoints)
    if checkpoint is not None:
        # What a killed attempt had trained and not delivered.
        state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        for entry in logged(state, _rows(inputs)):
            report(entry)
    try:
        command = command_for(inputs, settings)
        ended = watch(command, variables_for(inputs, work), log, listener.hear)
    finally:
        listener.close()
    if ended.code:
        raise failure(ended, listener, inputs, log)
    return output


def _rows(inputs: TrainInputs) -> int:
    rows = inputs.data_check.train_report.rows
    return min(rows, inputs.plan.trainer.get("max_samples") or rows)


def _parameters(inputs: TrainInputs) -> dict[str, Any]:
    """What MLflow gets as parameters; LLaMA-Factory's own report leaves most of it out."""
    plan = inputs.plan
    return {
        **plan.trainer,
        **{f"hardware.{key}": value for key, value in plan.hardware.facts().items()},
        **{f"library.{name}": metadata.version(name) for name in LIBRARIES},
        "run": plan.run,
        "method": plan.spec.method,
        "base": plan.spec.base,
        "base_digest": inputs.fetch_base.base.digest,
        "data_fingerprint": inputs.data_check.fingerprint,
        "rows": inputs.data_check.train_report.rows,
        "seed": plan.spec.seed,
    }


@contextmanager
def _disk_full(work: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DependencyError(f"{work}: no space left; free some and run again") from error
