"""What a trainer starts from: its settings with their files, and its environment."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from kuznia.contracts.steps import TrainInputs
from kuznia.errors import InputError
from kuznia.settings import node, rendezvous
from steps.context import Context
from steps.placement import visible_gpus

ROLES = {
    # Not "openai": that converter adds "detailed thinking off" to the system prompt.
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {"role_tag": "role", "content_tag": "content"}
    | {f"{role}_tag": role for role in ("system", "user", "assistant")},
}
"""How LLaMA-Factory is to read data-check's rows."""

ON_CPU = {
    "CUDA_VISIBLE_DEVICES": "",
    # Memory of large tensors is kept, not given back to the kernel at every step: a third faster.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


def settings_for(
    inputs: TrainInputs, context: Context, output: Path, checkpoint: Path | None
) -> dict[str, Any]:
    """LLaMA-Factory's settings: the plan's and the paths; the files they name are made here."""
    trainer, data = inputs.plan.trainer, context.workdir / "data"
    data.mkdir(exist_ok=True)
    rows = data / "train.jsonl"
    rows.unlink(missing_ok=True)
    rows.symlink_to(context.file(inputs.data_check.train).resolve())
    entry = {"train": {"file_name": rows.name, **ROLES}}
    (data / "dataset_info.json").write_text(json.dumps(entry))
    packed = trainer.get("packing") or trainer.get("neat_packing")
    settings = {
        **trainer,
        "model_name_or_path": str(_base(inputs, context)),
        "dataset": "train",
        "dataset_dir": str(data),
        "output_dir": str(output),
        "disable_tqdm": True,
        # Packed rows carry a mask of row numbers, whose sum is not a number of tokens.
        "include_num_input_tokens_seen": "all" if packed else "non_padding",
    }
    return settings | ({"resume_from_checkpoint": str(checkpoint)} if checkpoint else {})


def _base(inputs: TrainInputs, context: Context) -> Path:
    """The base's folder, or a view of it that is loaded in the planned number format.

    LLaMA-Factory loads weights in the number format that config.json names, whatever the other
    settings; the view is that file changed, beside links to all others.
    """
    base = context.folder(inputs.fetch_base.base)
    config = json.loads((base / "config.json").read_text("utf-8"))
    stored = config.pop("torch_dtype", None) or config.get("dtype")
    planned = inputs.plan.hardware.dtype
    if stored == planned:
        return base
    view = context.workdir / f"base-{planned}"
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir()
    for path in base.iterdir():
        (view / path.name).symlink_to(path.resolve())
    (view / "config.json").unlink()
    (view / "config.json").write_text(json.dumps(config | {"dtype": planned}, indent=2))
    return view


def variables_for(inputs: TrainInputs, work: Path) -> dict[str, str]:
    """Environment variables of the trainer."""
    hardware = inputs.plan.hardware
    variables = {
        "OMP_NUM_THREADS": str(max(1, hardware.threads // hardware.processes)),
        # Waiting threads give way: beside any other busy program, spinning costs a factor of ten.
        # But not at once: some microseconds later most waits are over.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "1000",
        # The order of sets decides the order of modules, and so of numbers.
        "PYTHONHASHSEED": str(inputs.plan.spec.seed),
        "PYTHONUNBUFFERED": "1",
        "HF_HOME": str(work / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "LLAMAFACTORY_VERBOSITY": "WARNING",
    }
    return variables | (ON_CPU if hardware.device == "cpu" else _first_gpus(hardware.gpus))


def _first_gpus(gpus: int) -> dict[str, str]:
    """Hides all GPUs but the first ones, where there are more; InputError where there are fewer."""
    here = visible_gpus()
    if here and len(here) < gpus:
        raise InputError(
            f"config: gpus: {gpus} is more than are open here ({', '.join(here)}); set gpus: "
            f"{len(here)}, or open more by CUDA_VISIBLE_DEVICES"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(here[:gpus])} if len(here) > gpus else {}


def command_for(inputs: TrainInputs, settings: Path) -> list[str]:
    """What starts the trainer: itself, or torchrun where several processes train as one."""
    hardware = inputs.plan.hardware
    alone = hardware.processes * hardware.nodes == 1
    words = [sys.executable, "-m", "steps.trainer" if alone else "steps.launcher"]
    if not alone:
        words.append(f"--nproc-per-node={hardware.processes}")
        words += _meeting(inputs) if hardware.nodes > 1 else ["--standalone"]
    return [*words, str(settings)]


def _meeting(inputs: TrainInputs) -> list[str]:
    """torchrun's words for a node that meets others at the first one."""
    return [
        *(f"--nnodes={inputs.plan.hardware.nodes}", f"--node-rank={node()}"),
        *("--rdzv-backend=static", f"--rdzv-endpoint={rendezvous()}"),
        f"--rdzv-id={inputs.plan.run}",
    ]
