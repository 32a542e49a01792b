"""LLaMA-Factory in a process of its own, which the step `train` starts and watches.

    python -m steps.trainer SETTINGS EVENTS SUPERVISOR

SETTINGS is a JSON file of LLaMA-Factory settings, EVENTS the descriptor of a pipe that gets one
JSON object a line, SUPERVISOR the process id without which this one ends. On SIGTERM it saves a
checkpoint after the current optimizer step and ends with 75.

Events: begin (step, total), log (step, epoch, loss, grad_norm, learning_rate, seconds, time),
save (path), diverged (step).
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback

from kuznia.errors import InputError, Preempted
from steps.checkpoints import mark_complete

PR_SET_PDEATHSIG = 1


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
        # Until here there is nothing to save, and SIGTERM ends the process as it always does.
        signal.signal(signal.SIGTERM, self._stop)
        if state.global_step:
            state.log_history.append({"step": state.global_step, "resumed": 1})
        tell(self._events, "begin", step=state.global_step, total=state.max_steps)
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        self._seconds, self._since = now - self._since, now
        if self._asked_to_stop:
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
        mark_complete(checkpoint)
        tell(self._events, "save", path=str(checkpoint))
        self._since = time.perf_counter()
        if self._asked_to_stop:
            sys.exit(Preempted.exit_code)

    def _stop(self, *_: Any) -> None:
        self._asked_to_stop = True


def main(settings_file: str, descriptor: str, supervisor: str) -> None:
    """Train as the settings say."""
    end_with(int(supervisor))
    # Children that this process starts must not keep the pipe open after its death.
    os.set_inheritable(int(descriptor), False)
    events = os.fdopen(int(descriptor), "w", buffering=1)
    settings = json.loads(Path(settings_file).read_text("utf-8"))
    # Under full determinism torch fills every new tensor, a guard against reading it unwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False
    run_exp(settings, callbacks=[Reporter(events)])


def tell(events: Any, event: str, **facts: Any) -> None:
    """Write one event."""
    events.write(json.dumps({"event": event, **facts}) + "\n")


def end_with(supervisor: int) -> None:
    """Have the kernel kill this process when the supervisor dies."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        sys.exit("the supervisor is gone")


if __name__ == "__main__":
    main(*sys.argv[1:])
