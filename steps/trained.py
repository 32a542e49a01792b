"""Publish what a training made: weights by content, loss curve, and the figures of both."""

from __future__ import annotations

import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Literal

from kuznia.contracts.steps import TrainInputs, TrainOutputs
from kuznia.errors import KuzniaError
from kuznia.manifest import write_manifest
from steps.context import Context
from steps.training import LIBRARIES, logged

CURVE = (
    *("step", "epoch", "loss", "grad_norm", "learning_rate"),
    *("samples_per_second", "seconds", "time"),
)
"""What the loss curve says of a step; `seconds` is its duration, `time` when it ended."""
WEIGHTS = {
    "adapter": ("adapter_model.safetensors", "adapter_config.json"),
    "full": ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
}
"""What is published: content, and nothing that holds a time or a path."""


def publish(inputs: TrainInputs, context: Context, output: Path, rows: int) -> TrainOutputs:
    """Publish the weights in `output` and its loss curve; `rows` is what an epoch has.

    The weights' digest depends on their content only; mlflow_run_id is left empty.
    """
    plan, prefix = inputs.plan, f"{inputs.plan.prefix}/train"
    kind: Literal["adapter", "full"] = "full" if plan.spec.method == "full" else "adapter"
    folder = context.workdir / "weights"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for pattern in WEIGHTS[kind]:
        for path in output.glob(pattern):
            shutil.copy2(path, folder) if path.suffix == ".json" else os.link(
                path, folder / path.name
            )
    if kind == "adapter":
        _settle(folder / "adapter_config.json", plan.spec.base)
    about = {"base": plan.spec.base, "base_digest": inputs.fetch_base.base.digest}
    digest = write_manifest(folder, kind, about)
    state = json.loads((output / "trainer_state.json").read_text("utf-8"))
    history = logged(state, rows)
    if not history:
        raise KuzniaError(f"{output}: the trainer logged no step; run again and report this")
    curve = context.workdir / "loss-curve.jsonl"
    with curve.open("w", encoding="utf-8") as file:
        for entry in history:
            file.write(json.dumps({key: entry[key] for key in CURVE if key in entry}) + "\n")
    warm = [entry for entry in history if "samples_per_second" in entry]
    samples = sum(entry["samples_per_second"] * entry["seconds"] for entry in warm)
    seconds = sum(entry["seconds"] for entry in history)
    warm_seconds = sum(entry["seconds"] for entry in warm)
    return TrainOutputs(
        kind=kind,
        weights=context.publish(folder, f"{prefix}/weights/{digest[:12]}"),
        loss_curve=context.put(curve, f"{prefix}/loss-curve.jsonl"),
        steps=state["global_step"],
        epochs=state["epoch"],
        final_loss=history[-1]["loss"],
        seconds=round(seconds, 3),
        samples_per_second=(samples / warm_seconds if warm else rows * state["epoch"] / seconds),
        resumed=sum(entry.get("resumed", 0) for entry in state["log_history"]),
        flop=6.0 * plan.base.parameters * state["num_input_tokens_seen"],
        mlflow_run_id="",
        libraries={name: metadata.version(name) for name in LIBRARIES},
    )


def _settle(config_file: Path, base: str) -> None:
    """Take path and chance out of adapter_config.json: PEFT writes sets in any order."""
    config = json.loads(config_file.read_text("utf-8"))
    config["base_model_name_or_path"] = base
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[key] = sorted(value)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
