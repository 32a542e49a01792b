"""Which LLaMA-Factory settings a run spec may pass on.

`llamafactory_keys.json` lists every key that the pinned LLaMA-Factory accepts; it is generated
by `scripts/dump_llamafactory_keys.py` inside the train environment.
"""

from __future__ import annotations

import difflib
import functools
import json
from pathlib import Path
from typing import Any

_BASE = "set base in the run spec"
_STORE = "the platform chooses where files go"
_DATA = "set data in the run spec"
_HARDWARE = "set hardware in the run spec"
_TRACKING = "metrics go to MLflow, and to Weights & Biases by the key wandb"
_SEED = "set seed in the run spec"
_RESUME = "the platform resumes by itself"
_METHOD = "set method in the run spec"
_EXPORT = "set export in the run spec"
_EVALUATION = "set evaluation in the run spec"
_HUB = "nothing is pushed to a hub by the trainer"
_TRUST = "code from a model folder is never run"

OWNED: dict[str, str] = {
    "model_name_or_path": _BASE,
    "model_revision": _BASE,
    "adapter_name_or_path": _BASE,
    "adapter_folder": _BASE,
    "template": _BASE,
    "cache_dir": _STORE,
    "output_dir": _STORE,
    "overwrite_output_dir": _STORE,
    "logging_dir": _STORE,
    "tokenized_path": _STORE,
    "media_dir": _STORE,
    "dataset": _DATA,
    "eval_dataset": _DATA,
    "dataset_dir": _DATA,
    "val_size": _DATA,
    "bf16": _HARDWARE,
    "fp16": _HARDWARE,
    "pure_bf16": _HARDWARE,
    "use_cpu": _HARDWARE,
    "infer_dtype": _HARDWARE,
    "report_to": _TRACKING,
    "run_name": _TRACKING,
    "project": _TRACKING,
    "logging_strategy": _TRACKING,
    "logging_steps": _TRACKING,
    "use_swanlab": _TRACKING,
    "seed": _SEED,
    "data_seed": _SEED,
    "full_determinism": _SEED,
    "resume_from_checkpoint": _RESUME,
    "save_strategy": _RESUME,
    "save_only_model": _RESUME,
    "save_total_limit": _RESUME,
    "ignore_data_skip": _RESUME,
    "load_best_model_at_end": _RESUME,
    "stage": "only supervised fine-tuning (sft) is offered",
    "finetuning_type": _METHOD,
    "quantization_bit": _METHOD,
    "quantization_method": _METHOD,
    "create_new_adapter": _METHOD,
    "export_dir": _EXPORT,
    "export_size": _EXPORT,
    "export_device": _EXPORT,
    "export_quantization_bit": _EXPORT,
    "export_legacy_format": _EXPORT,
    "export_hub_model_id": _HUB,
    "do_train": "the train step trains",
    "do_eval": _EVALUATION,
    "do_predict": _EVALUATION,
    "predict_with_generate": _EVALUATION,
    "eval_strategy": _EVALUATION,
    "eval_steps": _EVALUATION,
    "push_to_hub": _HUB,
    "hub_model_id": _HUB,
    "hub_token": _HUB,
    "hf_hub_token": _HUB,
    "ms_hub_token": _HUB,
    "om_hub_token": _HUB,
    "trust_remote_code": _TRUST,
}
"""Keys that the platform sets itself, and what to write instead."""


@functools.cache
def known_keys() -> dict[str, dict[str, Any]]:
    """Every key of the pinned LLaMA-Factory: {key: {group, type, default}}."""
    text = Path(__file__).with_name("llamafactory_keys.json").read_text("utf-8")
    keys: dict[str, dict[str, Any]] = json.loads(text)
    return keys


def llamafactory_problems(settings: dict[str, Any]) -> list[str]:
    """One line for each key that may not be passed on; empty when all may."""
    problems = []
    for key in settings:
        if key in OWNED:
            problems.append(f"{key} is set by the platform; {OWNED[key]}")
        elif key not in known_keys():
            allowed = [name for name in known_keys() if name not in OWNED]
            near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else "remove it"
            problems.append(f"{key} is not a LLaMA-Factory setting; {hint}")
    return problems
