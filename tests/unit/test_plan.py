"""nvidia-smi is stood in for by a program of the same name that prints what it prints."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuznia import machine
from kuznia.contracts.catalogue import load_catalogue
from kuznia.contracts.llamafactory import OWNED, known_keys
from kuznia.contracts.steps import PlanInputs, PlanOutputs
from kuznia.errors import InputError
from kuznia.machine import Gpu
from kuznia.store import open_store
from steps import plan
from steps.__main__ import run_step
from steps.context import Context
from steps.placement import class_of
from steps.trainer_settings import share_batch, steps_of

HUGE = {
    "source": "hf://acme/huge@v1",
    "digest": "0" * 64,
    "licence": "Apache-2.0",
    "template": "llama3",
    "parameters": 400_000_000_000,
    "context_length": 8192,
    "layers": 126,
    "hidden_size": 16384,
    "vocabulary": 128256,
    "dtype": "bfloat16",
    "pretraining_flop": None,
    "pretraining_flop_basis": "not published",
}
EIGHT_B = HUGE | {
    "parameters": 8_030_000_000,
    "layers": 32,
    "hidden_size": 4096,
}


@pytest.fixture
def planner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plan a spec that differs from the smallest one in what is given; no GPU is in sight."""
    catalogue = load_catalogue().model_dump(mode="json")
    catalogue["bases"] |= {"huge": HUGE, "eight-b": EIGHT_B}
    (tmp_path / "catalogue.yaml").write_text(yaml.safe_dump(catalogue, sort_keys=False))
    monkeypatch.setenv("KUZNIA_CATALOGUE", str(tmp_path / "catalogue.yaml"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    rows = [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in range(100)]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**changes: Any) -> PlanOutputs:
        spec = {
            "tenant": "acme",
            "model": "support",
            "base": "smollm2-135m-instruct",
            "data": {"train": str(train), "test": str(train), "format": "alpaca"},
            "card": {"purpose": "Answers questions.", "owner": "Team", "risk": "minimal"},
        }
        inputs = PlanInputs(config=yaml.safe_dump(spec | changes), run="try-1")
        store = open_store(str(tmp_path / "store"))
        return plan.run(inputs, Context(store, "", tmp_path / "work", tmp_path / "cache"))

    return make


def refused(planner: Any, **changes: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        planner(**changes)
    return caught.value.problems


def with_gpu(monkeypatch: pytest.MonkeyPatch, folder: Path, line: str) -> None:
    (folder / "bin").mkdir()
    program = folder / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{line}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}/bin")


def test_the_cpu_profile(planner: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = planner()
    hardware = made.hardware
    assert (hardware.device, hardware.gpu_class, hardware.gpus) == ("cpu", None, 0)
    fast = machine.multiplies_bfloat16()
    assert (hardware.dtype, hardware.threads) == (
        "bfloat16" if fast else "float32",
        machine.cores(),
    )
    assert not hardware.gradient_checkpointing
    assert not hardware.packing
    trainer = made.trainer
    assert trainer["disable_gradient_checkpointing"]
    assert (trainer["bf16"], trainer["use_cpu"]) == (fast, True)
    assert trainer["default_system"] == made.base.default_system
    printed = capsys.readouterr().out.splitlines()
    assert printed[: len(hardware.reasons)] == list(hardware.reasons)
    assert "cpu: no NVIDIA GPU is here" in printed
    assert any("learning_rate 0.0001" in line for line in hardware.reasons)


def test_the_trainer_knows_every_setting(planner: Any) -> None:
    for method in ("lora", "full"):
        trainer = planner(method=method).trainer
        assert set(trainer) <= set(known_keys())
        places = {"model_name_or_path", "output_dir", "dataset", "dataset_dir"}
        assert not places & set(trainer)
        assert trainer["finetuning_type"] == method
        assert ("lora_rank" in trainer) == (method == "lora")


def test_what_a_person_sets_wins(planner: Any) -> None:
    given = {
        "lora_rank": 32,
        "num_train_epochs": 5,
        "per_device_train_batch_size": 16,
        "disable_gradient_checkpointing": False,
        "packing": True,
        "warmup_ratio": 0.2,
        "save_steps": 7,
    }
    made = planner(llamafactory=given, seed=7)
    assert given.items() <= made.trainer.items()
    assert "warmup_steps" not in made.trainer
    assert made.trainer["seed"] == 7
    assert made.hardware.gradient_checkpointing
    assert made.hardware.packing
    assert "disable_gradient_checkpointing and packing: as llamafactory sets" in (
        made.hardware.reasons
    )
    assert not set(given) & set(OWNED)


def test_checkpoints_are_about_ten(planner: Any) -> None:
    made = planner(llamafactory={"per_device_train_batch_size": 10, "num_train_epochs": 4})
    assert made.trainer["save_steps"] == 4
    assert planner(llamafactory={"max_steps": 5}).trainer["save_steps"] == 1


def test_the_estimate_follows_the_work(planner: Any) -> None:
    one = planner(llamafactory={"num_train_epochs": 1}).estimate
    four = planner(llamafactory={"num_train_epochs": 4}).estimate
    full = planner(llamafactory={"num_train_epochs": 1}, method="full").estimate
    assert one.rows == 100
    assert 30 * 100 < one.tokens < 40 * 100
    assert four.tokens == 4 * one.tokens
    assert four.train_seconds == pytest.approx(4 * one.train_seconds, rel=0.05)
    assert full.flop == pytest.approx(1.5 * one.flop)
    assert full.memory_gib > one.memory_gib + 1
    assert one.cost == 0


def test_the_estimate_ends_where_the_settings_end_the_run(planner: Any) -> None:
    given = {"per_device_train_batch_size": 1, "num_train_epochs": 4}
    whole = planner(llamafactory=given)
    some = planner(llamafactory=given | {"max_samples": 20})
    assert (some.estimate.rows, some.trainer["save_steps"]) == (20, 8)
    assert some.estimate.tokens == pytest.approx(whole.estimate.tokens / 5, rel=0.01)
    short = planner(llamafactory=given | {"max_steps": 40})
    assert short.estimate.tokens == pytest.approx(whole.estimate.tokens / 10, rel=0.01)
    assert short.estimate.train_seconds < whole.estimate.train_seconds / 8
    assert planner(llamafactory=given | {"max_samples": 500}).estimate == whole.estimate
    assert refused(planner, llamafactory={"max_samples": 0}) == [
        "config: llamafactory.max_samples: 0 is not above 0; choose a value above 0"
    ]


def test_rows_that_are_split_off_are_not_trained_on(planner: Any, tmp_path: Path) -> None:
    data = {"train": str(tmp_path / "train.jsonl"), "format": "alpaca", "test_fraction": 0.2}
    assert planner(data=data).estimate.rows == 80


@pytest.fixture
def large_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system says that there is room, whatever machine runs the tests."""
    free = shutil.disk_usage("/")._replace(free=500 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)


@pytest.mark.usefixtures("large_disk")
def test_a_gpu_class_by_name(planner: Any) -> None:
    made = planner(hardware="h100-80gb", method="qlora", base="eight-b")
    hardware = made.hardware
    assert (hardware.device, hardware.gpu_class, hardware.gpus) == ("cuda", "h100-80gb", 1)
    assert hardware.dtype == "bfloat16"
    assert (made.trainer["bf16"], made.trainer["use_cpu"]) == (True, False)
    assert (made.trainer["quantization_bit"], made.trainer["finetuning_type"]) == (4, "lora")
    assert made.estimate.memory_gib < 16
    assert made.estimate.cost >= 0


@pytest.mark.usefixtures("large_disk")
def test_memory_is_saved_before_a_run_is_refused(planner: Any, tmp_path: Path) -> None:
    row = {"instruction": "word " * 3000, "output": "x"}
    (tmp_path / "train.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    made = planner(hardware="l4", base="eight-b")
    trainer = made.trainer
    assert made.hardware.gradient_checkpointing
    assert not trainer["disable_gradient_checkpointing"]
    assert trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] == 8
    assert trainer["per_device_train_batch_size"] < 8
    assert made.estimate.memory_gib <= 22.4
    assert any(reason.startswith("gradient checkpointing: ") for reason in made.hardware.reasons)
    assert (
        "the catalogue's sizing for lora of eight-b asks for 45.9 GiB, 1 x l4 has 22.4 GiB: it "
        "fits by the estimate below"
    ) in made.hardware.reasons


def test_the_gpu_that_is_here(
    planner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, tmp_path, "NVIDIA H200, 143771")
    made = planner()
    assert (made.hardware.device, made.hardware.gpu_class) == ("cuda", "h200-141gb")
    assert made.hardware.reasons[0] == "h200-141gb: NVIDIA H200 is here"
    assert made.hardware.gpu == "NVIDIA H200"
    assert planner(hardware="cpu").hardware.gpu == ""
    assert made.estimate.memory_available_gib == pytest.approx(140.4, abs=0.1)
    assert planner(hardware="cpu").hardware.device == "cpu"


@pytest.mark.parametrize(
    ("name", "memory_gib", "expected"),
    [
        ("NVIDIA L4", 22.5, "l4"),
        ("NVIDIA A100-SXM4-40GB", 40.0, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 80.0, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 79.6, "h100-80gb"),
        ("NVIDIA H200", 140.4, "h200-141gb"),
        ("NVIDIA GeForce RTX 4090", 24.0, "l4"),
        ("NVIDIA T4", 15.0, None),
    ],
)
def test_a_gpu_has_the_nearest_class(name: str, memory_gib: float, expected: str | None) -> None:
    assert class_of(Gpu(name, memory_gib), load_catalogue()) == expected


def test_a_gpu_below_every_class(
    planner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, tmp_path, "NVIDIA T4, 15360")
    made = planner()
    assert (made.hardware.device, made.hardware.gpu_class) == ("cuda", None)
    assert made.estimate.memory_available_gib == 15
    assert made.estimate.cost == 0


@pytest.mark.usefixtures("large_disk")
def test_gpus_share_the_batch_the_time_and_not_the_memory(
    planner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUZNIA_POD_CPU", "4")
    monkeypatch.setenv("KUZNIA_POD_MEMORY", "16Gi")
    row = {"instruction": "word " * 1000, "output": "x"}
    (tmp_path / "train.jsonl").write_text(100 * (json.dumps(row) + "\n"))
    given = {"num_train_epochs": 300}
    one = planner(hardware="h100-80gb", base="eight-b", llamafactory=given)
    four = planner(hardware="h100-80gb", base="eight-b", llamafactory=given, gpus=4)
    hardware = four.hardware
    assert (hardware.gpus, hardware.processes, hardware.nodes) == (4, 4, 1)
    assert (one.hardware.threads, hardware.threads) == (4, 16)
    assert four.trainer["per_device_train_batch_size"] == 2
    assert four.trainer["save_steps"] == one.trainer["save_steps"]
    assert "4 processes share the 8 rows of a step, 2 each" in hardware.reasons
    assert four.estimate.train_seconds == pytest.approx(one.estimate.train_seconds / 3.6, rel=0.01)
    assert four.estimate.cost == pytest.approx(one.estimate.cost / 0.9, rel=0.01)
    assert four.estimate.memory_available_gib == one.estimate.memory_available_gib
    # Each GPU holds the 15 GiB of weights; only rows are shared.
    assert 15 < four.estimate.memory_gib < one.estimate.memory_gib
    patch = json.loads(four.pod.patch)
    (main,) = patch["containers"]
    amounts = {"nvidia.com/gpu": "4", "cpu": "16", "memory": "64Gi"}
    assert main["resources"] == {"limits": amounts, "requests": amounts}
    assert main["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]
    assert [volume["name"] for volume in patch["volumes"]] == ["shm"]


@pytest.mark.parametrize(
    ("batch", "sums", "processes", "expected"),
    [
        (8, 1, 1, (8, 1)),
        (8, 1, 4, (2, 1)),
        (2, 8, 4, (2, 2)),
        (2, 6, 4, (1, 3)),
        (3, 1, 2, (2, 1)),
        (1, 1, 8, (1, 1)),
    ],
)
def test_processes_take_together_what_one_takes(
    batch: int, sums: int, processes: int, expected: tuple[int, int]
) -> None:
    given = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": sums}
    settings, how = share_batch(given, processes)
    assert tuple(settings[key] for key in given) == expected
    rows = expected[0] * expected[1] * processes
    assert (f": {rows} rows in all" in how) == (rows != batch * sums)
    assert steps_of(960, {**settings, "num_train_epochs": 1}, processes) == 960 // rows
    # One process trains with the settings that it always had.
    assert (settings == given) == (processes == 1)


def test_more_gpus_than_there_are(
    planner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, tmp_path, "NVIDIA H200, 143771\nNVIDIA H200, 143771")
    assert planner(gpus=2).hardware.gpus == 2
    assert refused(planner, gpus=4) == [
        "config: gpus: 4 is more than are open here (2); set gpus: 2"
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert refused(planner, gpus=2) == [
        "config: gpus: 2 is more than are open here (1); set gpus: 1"
    ]


def test_several_gpus_or_nodes_where_there_can_be_none(planner: Any) -> None:
    assert refused(planner, gpus=2, nodes=3) == [
        "config: nodes: 3 nodes train together only in a Job of their own; set nodes: 1, or print "
        "that Job with `kuznia render job`",
        "config: gpus: 2 need NVIDIA GPUs, and this run would be on cpu; set gpus: 1, or hardware "
        "to a GPU class",
    ]


def test_nodes_that_can_meet_are_planned_for(planner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUZNIA_RENDEZVOUS", "first:29500")
    made = planner(nodes=2)
    assert (made.hardware.processes, made.hardware.nodes) == (1, 2)
    assert made.trainer["per_device_train_batch_size"] == 4


@pytest.mark.usefixtures("large_disk")
def test_on_a_cluster_the_tenants_classes_and_pods_count(
    planner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUZNIA_GPU_CLASSES", "a100-80gb, l4")
    monkeypatch.setenv("KUZNIA_QUEUE", "training")
    made = planner(base="eight-b")
    assert made.hardware.gpu_class == "a100-80gb"
    assert made.hardware.reasons[0] == "a100-80gb: the tenant's first GPU class"
    assert made.pod.queue == "training"
    assert json.loads(made.pod.patch) == {
        "nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [
            {
                "name": "main",
                "resources": {
                    "limits": {"nvidia.com/gpu": "1"},
                    "requests": {"nvidia.com/gpu": "1"},
                },
            }
        ],
    }
    assert refused(planner, hardware="h100-80gb") == [
        "config: hardware: 'h100-80gb' is not open to this tenant; did you mean a100-80gb?"
    ]


def test_on_a_cluster_without_gpus_the_pod_is_the_machine(
    planner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUZNIA_GPU_CLASSES", "")
    for what, amount in (("CPU", "3"), ("MEMORY", "12.5Gi"), ("DISK", "40Gi")):
        monkeypatch.setenv(f"KUZNIA_POD_{what}", amount)
    made = planner()
    assert (made.hardware.device, made.hardware.threads) == ("cpu", 3)
    assert made.hardware.reasons[0] == "cpu: no GPU class is open here"
    assert made.estimate.memory_available_gib == 12.5
    assert made.estimate.disk_available_gib == 40
    assert (made.pod.patch, made.pod.queue) == ("{}", "")


@pytest.fixture
def small_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace with L4s, whose pods have 4 cores and 16 GiB."""
    monkeypatch.setenv("KUZNIA_GPU_CLASSES", "l4")
    monkeypatch.setenv("KUZNIA_POD_CPU", "4")
    monkeypatch.setenv("KUZNIA_POD_MEMORY", "16Gi")


def quota(**hard: str | float) -> str:
    """KUZNIA_QUOTA as the chart writes it, for pods of 4 cores and 16 GiB."""
    size = {"cpu": "4", "memory": "16Gi"}
    argo = {
        "requests": {"cpu": "10m", "memory": "64Mi"},
        "limits": {"cpu": "500m", "memory": "256Mi"},
    }
    names = {name.replace("_", "."): amount for name, amount in hard.items()}
    names = {name.replace("gpu", "nvidia.com/gpu"): amount for name, amount in names.items()}
    return json.dumps({"hard": names, "pod": {"limits": size}, "beside": [argo]})


@pytest.mark.usefixtures("large_disk", "small_pods")
@pytest.mark.parametrize(
    ("hard", "changes", "problems"),
    [
        (
            {"requests_gpu": 1},
            {"gpus": 8},
            [
                "config: gpus: this run needs 8 GPUs, the quota requests.nvidia.com/gpu is 1; set "
                "fewer gpus, or ask for a larger quota"
            ],
        ),
        (
            {"requests_gpu": "0"},
            {},
            [
                "config: hardware: this run needs 1 GPUs, the quota requests.nvidia.com/gpu is 0; "
                "set hardware: cpu, or ask for a larger quota"
            ],
        ),
        (
            {"requests_cpu": "8", "limits_memory": "33024Mi"},
            {"gpus": 2},
            [
                "config: gpus: this run needs 8.01 cores, the quota requests.cpu is 8; set fewer "
                "gpus, or ask for a larger quota"
            ],
        ),
        (
            {"limits_cpu": "4499m", "requests_memory": "16G", "limits_memory": 2**34},
            {"hardware": "cpu"},
            [
                "config: hardware: this run needs 4.5 cores, the quota limits.cpu is 4.499; ask "
                "for a larger quota",
                "config: hardware: this run needs 16.0625 GiB memory, the quota requests.memory is "
                "14.9012; ask for a larger quota",
                "config: hardware: this run needs 16.25 GiB memory, the quota limits.memory is 16; "
                "ask for a larger quota",
            ],
        ),
    ],
)
def test_what_the_quota_can_never_hold_is_refused(
    planner: Any,
    monkeypatch: pytest.MonkeyPatch,
    hard: dict[str, str | float],
    changes: dict[str, Any],
    problems: list[str],
) -> None:
    monkeypatch.setenv("KUZNIA_QUOTA", quota(**hard))
    assert refused(planner, **changes) == problems


@pytest.mark.usefixtures("large_disk", "small_pods")
def test_what_the_quota_just_holds_is_planned(
    planner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = quota(requests_gpu=2, requests_cpu="8010m", limits_cpu=8.5, limits_memory="33024Mi")
    monkeypatch.setenv("KUZNIA_QUOTA", exact)
    assert planner(gpus=2).hardware.gpus == 2


def test_a_corrected_catalogue_or_workspace_is_planned_for(
    planner: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same spec is the same run, whose plan is kept."""
    monkeypatch.setenv("KUZNIA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("KUZNIA_GPU_CLASSES", "")
    inputs = {"config": planner().spec.model_dump_json(), "run": "try-2"}

    def again() -> Any:
        return run_step("plan", inputs, tmp_path / "work")

    repeated = "already done, nothing to repeat"
    again()
    again()
    assert repeated in capsys.readouterr().out
    catalogue = tmp_path / "catalogue.yaml"
    other = "a" * 64
    text = catalogue.read_text("utf-8")
    catalogue.write_text(text.replace(again().base.digest, other), "utf-8")
    assert again().base.digest == other
    for name, amount in (("CPU", "3"), ("MEMORY", "24Gi"), ("DISK", "100G")):
        monkeypatch.setenv(f"KUZNIA_POD_{name}", amount)
    estimate = again().estimate
    assert estimate.memory_available_gib == 24
    assert estimate.disk_available_gib == pytest.approx(93.13, abs=0.01)


def test_another_tenants_run_is_refused(planner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUZNIA_TENANT", "acme")
    assert planner().spec.tenant == "acme"
    assert refused(planner, tenant="globex") == [
        "config: tenant: globex, but this workspace is acme's; set tenant: acme, or submit it to "
        "globex-training"
    ]


def test_data_without_a_row_that_can_be_read_are_refused(planner: Any, tmp_path: Path) -> None:
    """With the places of what is wrong, not an estimate of nothing."""
    table = tmp_path / "rows.csv"
    table.write_text("frage,antwort\nWann?,Jetzt.\n")
    data = {"train": str(table), "format": "csv"}
    data["columns"] = {"prompt": "question", "response": "answer"}
    (problem, *_) = refused(planner, data=data)
    assert problem == "rows.csv:1: has no column 'question'; it has frage, antwort"
    table.write_text("question,answer\n")
    assert refused(planner, data=data) == ["rows.csv: holds no rows; put some into it"]


def test_everything_that_there_is_not_is_named_at_once(planner: Any) -> None:
    data = {"train": "/none/train.jsonl", "test": "/none/test.jsonl", "format": "alpaca"}
    assert refused(planner, base="smollm3", hardware="h100-80", data=data) == [
        "config: base: 'smollm3' is not in the catalogue; did you mean smollm2-135m-instruct?",
        "config: hardware: 'h100-80' is not in the catalogue; did you mean h100-80gb?",
        "config: data.train: train.jsonl does not exist; correct it",
        "config: data.test: test.jsonl does not exist; correct it",
    ]


def test_an_unknown_kind_of_hardware(planner: Any) -> None:
    assert refused(planner, hardware="quantum") == [
        "config: hardware: 'quantum' is not in the catalogue; choose one of auto, cpu, l4, "
        "a100-40gb, a100-80gb, h100-80gb, h200-141gb"
    ]


@pytest.mark.parametrize("hardware", ["cpu", "auto"])
def test_qlora_needs_a_gpu(planner: Any, hardware: str) -> None:
    assert refused(planner, hardware=hardware, method="qlora") == [
        "config: method: qlora needs an NVIDIA GPU, and this run would be on cpu; set method: "
        "lora, or hardware to a GPU class"
    ]


def test_values_that_no_run_can_have(planner: Any) -> None:
    given = {"cutoff_len": 9000, "lora_rank": 0, "learning_rate": -1.0}
    assert refused(planner, llamafactory=given) == [
        "config: llamafactory.learning_rate: -1.0 is not above 0; choose a value above 0",
        "config: llamafactory.lora_rank: 0 is not above 0; choose a value above 0",
        "config: llamafactory.cutoff_len: 9000 is above the base's context length 8192; set 8192 "
        "or less",
    ]


def test_what_cannot_fit_is_refused_with_the_numbers(planner: Any) -> None:
    memory, disk = refused(planner, base="huge", hardware="h100-80gb", method="full")
    assert memory.startswith("config: hardware: h100-80gb has 79.5 GiB memory, this run needs ")
    assert memory.endswith(" GiB; set method: lora, or hardware with more memory")
    assert disk.startswith("config: base: this run needs about ")
    assert disk.endswith(" GiB are free; free some or set a smaller base")


def test_a_machine_that_is_too_small(planner: Any) -> None:
    memory = refused(planner, base="huge", hardware="cpu")[0]
    assert memory.startswith("config: hardware: cpu has ")
    assert "set a smaller base or cutoff_len" in memory


def test_rows_with_faults_do_not_stop_the_plan(planner: Any, tmp_path: Path) -> None:
    """data-check names them a moment later, all at once."""
    (tmp_path / "train.jsonl").write_text('{\n{"instruction": "Who?", "output": "I."}\n')
    made = planner()
    assert made.estimate.rows == 1
    assert made.trainer["save_steps"] == 1
