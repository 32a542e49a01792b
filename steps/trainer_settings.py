"""LLaMA-Factory's settings for a run: ours, then the person's, then what neither set."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from kuznia.contracts.catalogue import BaseModelEntry
from kuznia.contracts.runspec import RunSpec
from kuznia.machine import multiplies_bfloat16
from steps.estimates import PADDING, Survey, Training
from steps.placement import Place

_POSITIVE = (
    "cutoff_len",
    "num_train_epochs",
    "max_samples",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lora_rank",
    "save_steps",
)
_ALIKE_AFTER_RESUME = {"ddp_find_unused_parameters": True, "use_reentrant_gc": False}
"""Else torch regroups gradients after the first step of an attempt, and more than two processes add
them up in another order from there: a resumed run would differ in its last digits. Looking for
unused parameters keeps the groups; checkpoints of activations allow that where not re-entrant."""
_ROWS_APART = (
    *("packing", "neat_packing", "lora_dropout", "neftune_noise_alpha", "label_smoothing_factor"),
    *("use_dft_loss", "use_eaft_loss", "use_asft_loss", "shift_attn", "mixture_of_depths"),
)
"""Settings under which rows are packed already, depend on more than their tokens, or have a loss
or an attention of another kind."""
_CHECKPOINTS = 10
"""About how many checkpoints a run makes: what a kill costs is a tenth of the run at most."""
_ROOM = 0.9
"""Share of the memory that an estimate may fill before a plan starts to save memory."""


def settings_of(
    spec: RunSpec, base: BaseModelEntry, device: str
) -> tuple[dict[str, Any], list[str]]:
    """Everything that LLaMA-Factory is told but paths, and `key value` of each default chosen."""
    owned: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full" if spec.method == "full" else "lora",
        "template": base.template,
        "seed": spec.seed,
        "full_determinism": True,
        "bf16": device == "cuda" or multiplies_bfloat16(),
        "use_cpu": device == "cpu",
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_total_limit": 2,
    }
    if base.default_system is not None:
        owned["default_system"] = base.default_system
    if spec.method == "qlora":
        owned |= {"quantization_bit": 4, "quantization_method": "bnb"}
    profile = {"disable_gradient_checkpointing": True, "packing": False}
    defaults: dict[str, Any] = {
        "cutoff_len": min(2048, base.context_length),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-5 if spec.method == "full" else 1e-4,
        "lr_scheduler_type": "cosine",
    }
    if "warmup_ratio" not in spec.llamafactory:
        defaults["warmup_steps"] = 0.1
    if spec.method != "full":
        defaults |= {"lora_rank": 8, "lora_target": "all"}
    chosen = [f"{key} {value}" for key, value in defaults.items() if key not in spec.llamafactory]
    return profile | defaults | spec.llamafactory | owned, chosen


def value_problems(settings: dict[str, Any], base: BaseModelEntry, place: str) -> list[str]:
    """One line for each value that no run can have."""
    problems = [
        f"{place}: llamafactory.{key}: {settings[key]} is not above 0; choose a value above 0"
        for key in _POSITIVE
        if settings.get(key) is not None and settings[key] <= 0
    ]
    if settings["cutoff_len"] > base.context_length:
        problems.append(
            f"{place}: llamafactory.cutoff_len: {settings['cutoff_len']} is above the base's "
            f"context length {base.context_length}; set {base.context_length} or less"
        )
    return problems


def fit(
    spec: RunSpec, base: BaseModelEntry, place: Place, rows: Survey, settings: dict[str, Any]
) -> tuple[dict[str, Any], Training, list[str]]:
    """Save memory, where the person left the choice to us, until the estimate fits.

    Returns the settings, what they come to, and a sentence for each thing that was changed.
    """
    settings, saved = dict(settings), []
    batch = settings["per_device_train_batch_size"]
    training = Training(
        base=base,
        method=spec.method,
        device=place.device,
        lora_rank=settings.get("lora_rank", 0),
        batch=batch,
        length=min(settings["cutoff_len"], rows.longest or settings["cutoff_len"]),
        checkpointing=not settings["disable_gradient_checkpointing"],
        bf16=settings["bf16"],
        work=rows.common_once(batch) if joins_rows(settings) else PADDING,
    )
    room = _ROOM * place.memory_gib
    if training.memory_gib > room and "disable_gradient_checkpointing" not in spec.llamafactory:
        saved.append(
            f"gradient checkpointing: without it about {training.memory_gib:.1f} GiB of "
            f"{place.memory_gib:.1f} GiB memory would be needed"
        )
        training = replace(training, checkpointing=True)
        settings["disable_gradient_checkpointing"] = False
    while (
        training.memory_gib > room
        and training.batch > 1
        and "per_device_train_batch_size" not in spec.llamafactory
    ):
        training = replace(training, batch=training.batch // 2)
        settings["per_device_train_batch_size"] = training.batch
        settings["gradient_accumulation_steps"] *= 2
    if training.batch < batch:
        saved.append(f"batches of {training.batch}, gradients added up, to fit the memory")
    return settings, training, saved


def joins_rows(settings: dict[str, Any]) -> bool:
    """Whether a batch may be one sequence, as far as settings decide: see steps/one_sequence.py."""
    return bool(settings["use_cpu"]) and not any(settings.get(key) for key in _ROWS_APART)


def share_batch(settings: dict[str, Any], processes: int) -> tuple[dict[str, Any], str]:
    """Settings with which `processes` together take the rows that one would take for a step.

    Sums over several batches are shared out first, then the batch. Returns the settings for each
    process, and how it came out in a sentence.
    """
    batch, sums = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
    if processes > 1:
        settings = _ALIKE_AFTER_RESUME | settings
    shares = math.gcd(sums, processes)
    each, summed = math.ceil(batch / (processes // shares)), sums // shares
    rows = each * summed * processes
    how = f"{processes} processes share the {batch * sums} rows of a step, {each * summed} each"
    if rows != batch * sums:
        how += (
            f": {rows} rows in all, more than one process would take; for equal results choose "
            f"per_device_train_batch_size so that {processes} divides it"
        )
    changed = {"per_device_train_batch_size": each, "gradient_accumulation_steps": summed}
    return settings | changed, how


def steps_of(rows: int, settings: dict[str, Any], processes: int = 1) -> int:
    """Optimizer steps of a run over that many rows, which `processes` share."""
    if settings.get("max_steps", -1) > 0:
        return int(settings["max_steps"])
    batches = math.ceil(rows / settings["per_device_train_batch_size"] / processes)
    an_epoch: int = math.ceil(batches / settings["gradient_accumulation_steps"])
    epochs = float(settings["num_train_epochs"])
    return math.ceil(an_epoch * epochs)


def epochs_of(rows: int, settings: dict[str, Any], processes: int = 1) -> float:
    """How often a run goes over its rows; `max_steps` decides where it is set."""
    if settings.get("max_steps", -1) <= 0:
        return float(settings["num_train_epochs"])
    one = settings | {"max_steps": -1, "num_train_epochs": 1}
    return float(settings["max_steps"] / max(1, steps_of(rows, one, processes)))


def save_steps(steps: int) -> int:
    """Steps between two checkpoints."""
    return max(1, math.ceil(steps / _CHECKPOINTS))
