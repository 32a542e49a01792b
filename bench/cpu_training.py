"""LoRA training on a CPU: our profile against LLaMA-Factory as it comes.

Both train the real base on the demo's rows with the demo's settings (rank, batch, length, seed),
so many threads as cores, and are timed by the same callback. What differs is what `plan` chooses
without a GPU: float32 weights, batches as one sequence, no gradient checkpointing and memory kept
between steps, where LLaMA-Factory's examples have bf16 and checkpointing on. Full determinism is on
in ours only, as in every run of ours. Ours is also measured twice at once on the same cores, as
beside any other program, with threads that soon sleep while they wait and with threads that spin,
libgomp's own choice.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bench.results import machine, ratio, save, spread
from kuznia import settings
from kuznia.contracts.steps import TrainInputs
from kuznia.errors import KuzniaError
from kuznia.progress import say
from kuznia.store import open_store
from steps.context import Context
from steps.supervisor import watch
from steps.trainer_inputs import settings_for, variables_for
from workflows.environments import ROOT, python_of, variables_of

DEMO = ROOT / "examples" / "demo"
ROUNDS = 3
STEPS = 4
"""Optimizer steps a run; the first warms up and is not counted."""
OURS = "Kuźnia's CPU profile"
SPINNING = "the same, threads that spin"
STOCK = "LLaMA-Factory's stock settings"
LIBRARIES = ("torch", "transformers", "peft", "llamafactory")


def main() -> None:
    """Alternate the two, print the table, and write bench/results/cpu_training.json."""
    load = round(os.getloadavg()[0], 1)
    if load > 1:
        say(f"warning: the machine is busy (load {load}); these figures will mean little")
    with tempfile.TemporaryDirectory() as folder, _home(Path(folder)):
        work = Path(folder) / "train"
        work.mkdir()
        inputs = _inputs(Path(folder))
        context = Context(open_store(settings.store_uri()), "", work, settings.cache())
        ours = settings_for(inputs, context, work / "output", None)
        profile = variables_for(inputs, work) | variables_of("train")
        waiting = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        spinning = {key: value for key, value in profile.items() if key not in waiting}
        plain = {key: value for key, value in spinning.items() if not key.startswith("MALLOC_")}
        stock = _stock(ours, inputs, context)
        arms = {OURS: (ours, profile), SPINNING: (ours, spinning), STOCK: (stock, plain)}
        alone: dict[str, list[float]] = {name: [] for name in arms}
        shared: dict[str, list[float]] = {OURS: [], SPINNING: []}
        for _ in range(ROUNDS):
            for name, (arm, variables) in arms.items():
                alone[name].append(_speed(arm, variables, work))
                say(f"{name}: {alone[name][-1]:.2f} samples/s")
                if name in shared:
                    # Processes: what watches a trainer handles signals, as only main threads may.
                    with ProcessPoolExecutor() as pool:
                        both = [pool.submit(_speed, arm, variables, work) for _ in range(2)]
                    shared[name].append(sum(each.result() for each in both))
                    say(f"{name}, two at once: {shared[name][-1]:.2f} samples/s")
    batch = ours["per_device_train_batch_size"]
    save(
        "cpu_training",
        "LoRA training on a CPU",
        [
            {
                "settings": name,
                "samples/s": spread(alone[name]),
                "x stock": "" if name == STOCK else ratio(alone[name], alone[STOCK]),
                "two at once, samples/s of both": spread(shared[name]) if name in shared else "",
            }
            for name in arms
        ],
        machine() | {"packages": _versions(), "load_before": load},
        f"SmolLM2-135M-Instruct, demo rows, rank {ours['lora_rank']}, batch {batch}; median "
        f"(minimum to maximum) of {ROUNDS} alternating runs of {STEPS} steps, the first left out.",
    )


def _inputs(folder: Path) -> TrainInputs:
    """What the train step would get from a run of the demo."""
    spec = yaml.safe_load((DEMO / "train.yaml").read_text("utf-8"))
    spec |= {"hardware": "cpu"}
    spec["data"] |= {name: str(DEMO / spec["data"][name]) for name in ("train", "test")}
    plan = _step("plan", "platform", folder, {"config": yaml.safe_dump(spec), "run": "bench"})
    return TrainInputs.model_validate(
        {
            "plan": plan,
            "data_check": _step("data-check", "platform", folder, {"plan": plan}),
            "fetch_base": _step("fetch-base", "serve", folder, {"plan": plan}),
        }
    )


def _step(name: str, image: str, folder: Path, values: dict[str, Any]) -> Any:
    given, made = folder / f"{name}.in.json", folder / f"{name}.out.json"
    given.write_text(json.dumps(values), "utf-8")
    subprocess.run(
        [
            *(python_of(image), "-m", "steps", name, "--workdir", folder / name),
            *("--inputs", given, "--outputs", made),
        ],
        env=os.environ | variables_of(image),
        check=True,
    )
    return json.loads(made.read_text("utf-8"))


def _stock(ours: dict[str, Any], inputs: TrainInputs, context: Context) -> dict[str, Any]:
    """The same rows and the demo's own settings; all else as LLaMA-Factory's examples have it."""
    profile = ("disable_gradient_checkpointing", "full_determinism")
    base = context.folder(inputs.fetch_base.base)
    # LLaMA-Factory takes bf16 on a CPU only where the CPU is asked for.
    stock = {"model_name_or_path": str(base), "bf16": True, "use_cpu": True}
    return {key: value for key, value in ours.items() if key not in profile} | stock


def _speed(arm: dict[str, Any], variables: dict[str, str], work: Path) -> float:
    """Rows a second over the steps after the first, in a new folder below `work`."""
    folder = Path(tempfile.mkdtemp(dir=work))
    file = folder / "settings.json"
    file.write_text(
        json.dumps(
            arm | {"output_dir": str(folder / "out"), "max_steps": STEPS, "save_strategy": "no"}
        )
    )
    events: list[dict[str, Any]] = []
    command = [str(python_of("train")), "-m", "steps.trainer", str(file)]
    ended = watch(command, variables, folder / "trainer.log", events.append)
    if ended.code:
        raise KuzniaError(f"the trainer ended with {ended.code}: {ended.fault}")
    seconds = [each["seconds"] for each in events if each["event"] == "log"][1:]
    rows = arm["per_device_train_batch_size"] * arm["gradient_accumulation_steps"]
    return float(rows * len(seconds) / sum(seconds))


def _versions() -> dict[str, str]:
    code = (
        "import json, importlib.metadata as known; "
        f"print(json.dumps({{name: known.version(name) for name in {LIBRARIES}}}))"
    )
    done = subprocess.run([python_of("train"), "-c", code], capture_output=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    """Keep the bench's store and runs out of the user's."""
    before = dict(os.environ)
    os.environ["KUZNIA_HOME"] = str(folder)
    for name in ("KUZNIA_STORE", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    main()
