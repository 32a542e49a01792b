"""LLaMA-Factory's settings for a run: ours, then the person's, then what neither set."""

from __future__ import annotations

import math
from typing import Any

from kuznia.contracts.catalogue import BaseModelEntry
from kuznia.contracts.runspec import RunSpec

_POSITIVE = (
    "cutoff_len",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lora_rank",
    "save_steps",
)
_CHECKPOINTS = 10
"""About how many checkpoints a run makes: what a kill costs is a tenth of the run at most."""


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
        "bf16": device == "cuda",
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
        if key in settings and settings[key] <= 0
    ]
    if settings["cutoff_len"] > base.context_length:
        problems.append(
            f"{place}: llamafactory.cutoff_len: {settings['cutoff_len']} is above the base's "
            f"context length {base.context_length}; set {base.context_length} or less"
        )
    return problems


def steps_of(rows: int, settings: dict[str, Any]) -> int:
    """Optimizer steps of a run over that many rows."""
    if settings.get("max_steps", -1) > 0:
        return int(settings["max_steps"])
    batches = math.ceil(rows / settings["per_device_train_batch_size"])
    an_epoch: int = math.ceil(batches / settings["gradient_accumulation_steps"])
    epochs = float(settings["num_train_epochs"])
    return math.ceil(an_epoch * epochs)


def save_steps(steps: int) -> int:
    """Steps between two checkpoints."""
    return max(1, math.ceil(steps / _CHECKPOINTS))
