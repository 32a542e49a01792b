"""Which LLaMA-Factory settings a run spec may pass on.

`llamafactory_keys.json` lists every key that the pinned LLaMA-Factory accepts; it is generated
by `scripts/dump_llamafactory_keys.py` inside the train environment.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
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
_LAUNCH = "the platform starts the trainer's processes"
_STAGE = "only supervised fine-tuning (sft) is offered"
_TRUST = "code from a model folder is never run"

OWNED: dict[str, str] = {
    "model_name_or_path": _BASE,
    "model_revision": _BASE,
    "adapter_name_or_path": _BASE,
    "adapter_folder": _BASE,
    "template": _BASE,
    "default_system": "write a system message into the rows, or see base",
    "generation_config": _BASE,
    "new_special_tokens_config": _BASE,
    "kt_weight_path": _BASE,
    "kt_expert_checkpoint_path": _BASE,
    "cache_dir": _STORE,
    "output_dir": _STORE,
    "overwrite_output_dir": _STORE,
    "logging_dir": _STORE,
    "tokenized_path": _STORE,
    "media_dir": _STORE,
    "offload_folder": _STORE,
    "profiler_output_dir": _STORE,
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
    "trackio_space_id": _TRACKING,
    "use_swanlab": _TRACKING,
    "swanlab_api_key": _TRACKING,
    "swanlab_lark_secret": _TRACKING,
    "swanlab_lark_webhook_url": _TRACKING,
    "swanlab_logdir": _TRACKING,
    "swanlab_mode": _TRACKING,
    "swanlab_project": _TRACKING,
    "swanlab_run_name": _TRACKING,
    "swanlab_workspace": _TRACKING,
    "seed": _SEED,
    "data_seed": _SEED,
    "full_determinism": _SEED,
    "resume_from_checkpoint": _RESUME,
    "save_strategy": _RESUME,
    "save_only_model": _RESUME,
    "save_total_limit": _RESUME,
    "ignore_data_skip": _RESUME,
    "load_best_model_at_end": _RESUME,
    "stage": _STAGE,
    "ref_model": _STAGE,
    "ref_model_adapters": _STAGE,
    "reward_model": _STAGE,
    "reward_model_adapters": _STAGE,
    "finetuning_type": _METHOD,
    "quantization_bit": _METHOD,
    "quantization_method": _METHOD,
    "create_new_adapter": _METHOD,
    "export_dir": _EXPORT,
    "export_size": _EXPORT,
    "export_device": _EXPORT,
    "export_quantization_bit": _EXPORT,
    "export_quantization_dataset": _EXPORT,
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
    "hub_always_push": _HUB,
    "hub_private_repo": _HUB,
    "hub_revision": _HUB,
    "hub_strategy": _HUB,
    "hf_hub_token": _HUB,
    "ms_hub_token": _HUB,
    "om_hub_token": _HUB,
    "local_rank": _LAUNCH,
    "master_addr": _LAUNCH,
    "master_port": _LAUNCH,
    "ray_init_kwargs": _LAUNCH,
    "ray_num_workers": _LAUNCH,
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
        elif fault := _type_fault(known_keys()[key]["type"], settings[key]):
            problems.append(f"{key} {fault}")
    return problems


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "write true or false"),
    "int": ((int,), "write a whole number"),
    "float": (
        (int, float),
        "write a number with a point, such as 2.0e-4 (YAML reads 2e-4 as text)",
    ),
    "str": ((str,), "write text, several names with commas between them"),
}


def _type_fault(kind: str, value: Any) -> str | None:
    """What is wrong with a value of a plain type; LLaMA-Factory itself judges all others."""
    optional = re.fullmatch(r"Optional\[(\w+)\]|(\w+) \| None", kind)
    if optional:
        if value is None:
            return None
        kind = optional[1] or optional[2]
    if kind not in _KINDS:
        return None
    types, way_out = _KINDS[kind]
    fits = isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
    return None if fits else f"is {value!r}; {way_out}"
