"""Merging a LoRA adapter: ours, shard by shard, against `llamafactory-cli export`.

Both merge the same random adapter of rank 32 into the real base, each in a process of its own,
imports included. The step `export` besides hashes every file twice and publishes the version.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench.cpu_training import _home, _inputs, _versions
from bench.results import machine, ratio, save, spread
from kuznia import settings
from kuznia.contracts.base import canonical_json
from kuznia.contracts.steps import Folder, TrainInputs
from kuznia.errors import KuzniaError
from kuznia.manifest import read_manifest, write_manifest
from kuznia.progress import say
from kuznia.store import open_store
from steps.context import Context
from workflows.environments import python_of, variables_of

ROUNDS = 3
RANK = 32
MAKE_ADAPTER = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
lora = LoraConfig(r=int(sys.argv[3]), target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, lora)
for name, weight in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weight, std=0.01)
model.save_pretrained(sys.argv[2])
"""
MERGE = """
import sys
from pathlib import Path
from steps.merge import merge_adapter
merge_adapter(*(Path(each) for each in sys.argv[1:]))
"""


def main() -> None:
    """Alternate the three, print the table, and write bench/results/merge.json."""
    load = round(os.getloadavg()[0], 1)
    if load > 1:
        say(f"warning: the machine is busy (load {load}); these figures will mean little")
    with tempfile.TemporaryDirectory() as text, _home(Path(text)):
        folder, python = Path(text), python_of("train")
        inputs = _inputs(folder)
        store = open_store(settings.store_uri())
        base = Context(store, "", folder, settings.cache()).folder(inputs.fetch_base.base)
        adapter = folder / "adapter"
        _measure([python, "-c", MAKE_ADAPTER, base, adapter, RANK])
        (adapter / "README.md").unlink()
        asked = {
            "model_name_or_path": str(base),
            "adapter_name_or_path": str(adapter),
            "template": inputs.plan.base.template,
            "export_dir": str(folder / "theirs"),
            "export_device": "cpu",
        }
        # LLaMA-Factory reads YAML, and JSON is YAML.
        (folder / "export.yaml").write_text(json.dumps(asked))
        given = _export_inputs(inputs, adapter, folder)
        step = ["-m", "steps", "export", "--inputs", given, "--outputs", folder / "out.json"]
        arms = {
            "Kuźnia, merge alone": [python, "-c", MERGE, base, adapter, folder / "ours"],
            "Kuźnia, step export": [python, *step, "--workdir", folder / "export"],
            "llamafactory-cli export": [
                *(python.with_name("llamafactory-cli"), "export", folder / "export.yaml"),
            ],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for _ in range(ROUNDS):
            for name, command in arms.items():
                for made in ("ours", "theirs", "export"):
                    shutil.rmtree(folder / made, ignore_errors=True)
                (folder / "ours").mkdir()
                store.remove_folder("models")
                store.remove_folder(f"{inputs.plan.prefix}/export")
                found[name].append(_measure(command))
                say(f"{name}: {found[name][-1][0]:.1f} s, {found[name][-1][1]:.0f} MiB")
    rows = [
        {
            "what": name,
            "seconds": spread([seconds for seconds, _ in runs]),
            "peak memory, MiB": spread([memory for _, memory in runs]),
        }
        for name, runs in found.items()
    ]
    ours, _, theirs = found.values()
    pairs = [[[run[side] for run in runs] for runs in (ours, theirs)] for side in (0, 1)]
    rows.append(
        {
            "what": "merge alone / llamafactory-cli",
            "seconds": ratio(*pairs[0]),
            "peak memory, MiB": ratio(*pairs[1]),
        }
    )
    save(
        "merge",
        "Merging a LoRA adapter",
        rows,
        machine() | {"packages": _versions(), "load_before": load},
        f"SmolLM2-135M-Instruct, random adapter of rank {RANK} on all linear layers; median "
        f"(minimum to maximum) of {ROUNDS} alternating runs, imports included.",
    )


def _export_inputs(inputs: TrainInputs, adapter: Path, folder: Path) -> Path:
    """What the export step would get had training made `adapter`."""
    store = open_store(settings.store_uri())
    digest = write_manifest(adapter, "adapter")
    key = f"{inputs.plan.prefix}/train/weights"
    store.put_folder(adapter, key)
    weights = Folder(key=key, digest=digest, bytes=read_manifest(adapter).bytes)
    figures = ("steps", "epochs", "final_loss", "seconds", "samples_per_second", "resumed", "flop")
    train = {
        **dict.fromkeys(figures, 0),
        "kind": "adapter",
        "weights": weights.model_dump(mode="json"),
        "loss_curve": inputs.data_check.train.model_dump(mode="json"),
        "mlflow_run_id": "none",
        "libraries": {},
    }
    plain = inputs.model_dump(mode="json", include={"plan", "fetch_base"}) | {"train": train}
    path = folder / "export-inputs.json"
    path.write_bytes(canonical_json(plain))
    return path


def _measure(command: list[object]) -> tuple[float, float]:
    """Seconds and peak resident memory (MiB) of a process of the train environment."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as said:
        running = subprocess.Popen(
            [str(word) for word in command],
            env=os.environ | variables_of("train"),
            stdout=said,
            stderr=said,
        )
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        if running.returncode:
            said.seek(0)
            raise KuzniaError(f"{command[1]}: {said.read()[-2000:].decode(errors='replace')}")
    return seconds, used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
