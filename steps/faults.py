"""Why a trainer did not finish: a person's setting, something outside, or our bug."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kuznia.contracts.steps import TrainInputs
from kuznia.errors import DependencyError, InputError, KuzniaError, Preempted
from steps.checkpoints import step_of
from steps.supervisor import Ended
from steps.training import Listener

OUT_OF_MEMORY = ("OutOfMemoryError", "out of memory", "can't allocate memory", "MemoryError")
NO_SPACE = ("No space left on device", "os error 28")


def failure(ended: Ended, heard: Listener, inputs: TrainInputs, log: Path) -> KuzniaError:
    """Why the trainer did not finish, in one line."""
    spec = inputs.plan.spec
    whole_log = f"the whole log is {log}"
    if heard.diverged:
        return InputError(
            f"config: llamafactory.learning_rate: loss or gradient is infinite at step "
            f"{heard.diverged}; lower it"
        )
    # Of several nodes, one that was told to stop stops all.
    if ended.stopped or ended.code == Preempted.exit_code:
        place = f"step {step_of(heard.saved)}" if heard.saved else "its last checkpoint, if any"
        where = f"{heard.step} of {heard.total}"
        return Preempted(f"stopped after step {where}; the same command goes on from {place}")
    if ended.says(*OUT_OF_MEMORY):
        return InputError(
            "config: llamafactory: training needs more memory than there is (planned "
            f"{inputs.plan.estimate.memory_gib:.1f} GiB); lower per_device_train_batch_size or "
            f"cutoff_len; {whole_log}"
        )
    if ended.says(*NO_SPACE):
        return DependencyError(f"{log.parent}: no space left; free some and run again; {whole_log}")
    if ended.code < 0:
        return DependencyError(
            f"the trainer was killed by signal {-ended.code} at step {heard.step} of "
            f"{heard.total}, for lack of memory perhaps; run again to go on from its last "
            f"checkpoint; {whole_log}"
        )
    several = inputs.plan.hardware.processes * inputs.plan.hardware.nodes > 1
    if several and ended.left_alone:
        return DependencyError(
            f"the trainers lost each other at step {heard.step} of {heard.total}: {ended.fault}; "
            f"run again to go on from the last checkpoint; {whole_log}"
        )
    key = _culprit(ended.fault, spec.llamafactory) if not heard.total else None
    if key:
        return InputError(f"config: llamafactory.{key}: {ended.fault}; correct it; {whole_log}")
    return KuzniaError(f"LLaMA-Factory failed: {ended.fault}; {whole_log}")


def _culprit(fault: str, settings: dict[str, Any]) -> str | None:
    """The setting that an error message names, by its key or by its text value."""
    for key, value in settings.items():
        if re.search(rf"\b{re.escape(key)}\b", fault):
            return key
        # Short words such as `all` are in many messages.
        if (
            isinstance(value, str)
            and len(value) > 3
            and re.search(rf"\b{re.escape(value)}\b", fault)
        ):
            return key
    return None
