"""LLaMA-Factory in a process of its own, which the step `train` starts and watches.

    python -m steps.trainer SETTINGS EVENTS SUPERVISOR

SETTINGS is a JSON file of LLaMA-Factory settings, EVENTS the descriptor or the path of a pipe that
gets one JSON object a line, SUPERVISOR the process id without which this one ends. On SIGTERM it
saves a checkpoint after the current optimizer step and ends with 75.

Several such processes train as one where `steps/launcher.py` starts them: what one is told, all
do after the same step, and only the first writes events, checkpoints and weights.

Events: begin (step, total), log (step, epoch, loss, grad_norm, learning_rate, seconds, time),
save (path), diverged (step).
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback

from kuznia.errors import DependencyError, InputError, Preempted
from steps import one_sequence
from steps.checkpoints import mark_complete
from steps.fused_lora import FusedLora
from steps.models import NOISY
from steps.supervisor import end_with


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Tells the supervisor what happens, marks whole checkpoints, and stops when asked to.

    What must outlive a killed pod (seconds a step took, resumes) goes into the trainer's own log
    history, which every checkpoint holds.
    """

    def __init__(self, events: Any) -> None:
        self._events = events
        self._asked_to_stop = False
        self._warm_up = True
        self._since = self._seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        steps = everyones(state.global_step)
        if len(set(steps)) > 1:
            raise DependencyError(f"nodes go on from different checkpoints: after steps {steps}")
        # Until here there is nothing to save, and SIGTERM ends the process as it always does.
        signal.signal(signal.SIGTERM, self._stop)
        if state.global_step:
            state.log_history.append({"step": state.global_step, "resumed": 1})
        tell(self._events, "begin", step=state.global_step, total=state.max_steps)
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        self._seconds, self._since = now - self._since, now
        if any(everyones(self._asked_to_stop)):
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" not in logs:
            return
        entry = state.log_history[-1]
        entry |= {"seconds": round(self._seconds, 4), "time": round(time.time(), 3)}
        if self._warm_up:
            entry["warm_up"] = 1
            self._warm_up = False
        tell(self._events, "log", **entry)
        if not all(math.isfinite(logs.get(key, 0.0)) for key in ("loss", "grad_norm")):
            tell(self._events, "diverged", step=state.global_step)
            sys.exit(InputError.exit_code)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
        gather_random_states(checkpoint)
        if state.is_world_process_zero:
            mark_complete(checkpoint)
            tell(self._events, "save", path=str(checkpoint))
        # Nobody ends before the checkpoint is whole: the end of one is the end of all.
        stop = any(everyones(self._asked_to_stop))
        self._since = time.perf_counter()
        if stop:
            sys.exit(Preempted.exit_code)

    def _stop(self, *_: Any) -> None:
        self._asked_to_stop = True


def everyones(value: Any) -> list[Any]:
    """The value that each process has, in their order; waits for all."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_random_states(checkpoint: Path) -> None:
    """Put every process's random state into the first one's checkpoint, the only one that is kept.

    Processes of other nodes have written theirs to other disks. Waits for all to have written.
    """
    if not dist.is_initialized():
        return
    name = f"rng_state_{dist.get_rank()}.pth"
    for other, state in everyones((name, (checkpoint / name).read_bytes())):
        if dist.get_rank() == 0 and other != name:
            (checkpoint / other).write_bytes(state)


def main(settings_file: str, events: str, supervisor: str) -> None:
    """Train as the settings say."""
    end_with(int(supervisor))
    settings = json.loads(Path(settings_file).read_text("utf-8"))
    logging.getLogger(NOISY).setLevel(logging.ERROR)
    # Under full determinism torch fills every new tensor, a guard against reading it unwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False
    # Without a GPU, one of several loads its checkpoint to "cpu:0", a place that torch lacks.
    torch.serialization.register_package(
        0, lambda _: None, lambda storage, place: storage if place.startswith("cpu:") else None
    )
    callbacks: list[TrainerCallback] = [Reporter(opened(events))]
    if one_sequence.possible(settings):
        # Tokens that are computed: a mask of pairs has no sum that would be their number.
        settings["include_num_input_tokens_seen"] = "all"
        callbacks += [one_sequence.OneSequence(), FusedLora()]
    run_exp(settings, callbacks=callbacks)


def opened(events: str) -> Any:
    """The pipe for events, to write lines to."""
    if not events.isdigit():
        first = os.environ["RANK"] == "0"
        return Path(events if first else os.devnull).open("w", buffering=1)
    # Children that this process starts must not keep the pipe open after its death.
    os.set_inheritable(int(events), False)
    return os.fdopen(int(events), "w", buffering=1)


def tell(events: Any, event: str, **facts: Any) -> None:
    """Write one event."""
    events.write(json.dumps({"event": event, **facts}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
