"""LoRA training on a CPU: our profile against LLaMA-Factory as it comes.

Both train the real base on the demo's rows with the demo's settings (rank, batch, length, seed),
so many threads as cores, and are timed by the same callback. What differs is what `plan` chooses
without a GPU: float32 where the cores do not multiply bf16 faster, batches as one sequence, fused
adapters, no gradient checkpointing and memory kept between steps, where LLaMA-Factory's examples
have bf16 and checkpointing on. Full determinism is on in ours only, as in every run of ours. How
much that is depends on the kind of core (ADR 0017), so there is one result for cores that multiply
bfloat16 fast and one for others.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bench.results import machine, ratio, save, spread
from kuznia import machine as cores
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
BFLOAT16 = cores.multiplies_bfloat16()
STEPS = 8 if BFLOAT16 else 2
"""Optimizer steps a run; the first warms up and is not counted. On cores without fast bfloat16 one
step of the stock settings takes two minutes."""
OURS = "Kuźnia's CPU profile"
STOCK = "LLaMA-Factory's stock settings"
LIBRARIES = ("torch", "transformers", "peft", "llamafactory")


def main() -> None:
    """Alternate the two, print the table, and write the result of this kind of core."""
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
        plain = {
            key: value
            for key, value in profile.items()
            if key not in waiting and not key.startswith("MALLOC_")
        }
        arms = {
            OURS: ("steps.trainer", ours, profile),
            STOCK: ("bench.stock_trainer", _stock(ours, inputs, context), plain),
        }
        speeds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(ROUNDS):
            for name, (module, arm, variables) in arms.items():
                speeds[name].append(_speed(module, arm, variables, work))
                say(f"{name}: {speeds[name][-1]:.2f} samples/s")
    batch = ours["per_device_train_batch_size"]
    save(
        "cpu_training_bfloat16" if BFLOAT16 else "cpu_training",
        f"LoRA training on a CPU, {'bfloat16 fast' if BFLOAT16 else 'no fast bfloat16'}",
        [
            {
                "settings": name,
                "samples/s": spread(speeds[name]),
                "x stock": "" if name == STOCK else ratio(speeds[name], speeds[STOCK]),
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


def _speed(module: str, arm: dict[str, Any], variables: dict[str, str], work: Path) -> float:
    """Rows a second over the steps after the first, in a new folder below `work`."""
    folder = Path(tempfile.mkdtemp(dir=work))
    file = folder / "settings.json"
    file.write_text(
        json.dumps(
            arm | {"output_dir": str(folder / "out"), "max_steps": STEPS, "save_strategy": "no"}
        )
    )
    events: list[dict[str, Any]] = []
    command = [str(python_of("train")), "-m", module, str(file)]
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
