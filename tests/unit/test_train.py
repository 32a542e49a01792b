"""The train step, with the real LLaMA-Factory on a tiny base.

Two long runs serve most tests. `undisturbed` has a local store. `disturbed` asks for the same
with a store elsewhere (S3, served by moto) and is stopped by SIGTERM, loses its disk, is killed,
and loses its supervisor before it may finish.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from kuznia.contracts.steps import TrainInputs, TrainOutputs
from kuznia.errors import DependencyError, InputError, KuzniaError, Preempted
from kuznia.manifest import read_manifest
from kuznia.progress import parse_progress
from kuznia.registry import mlflow_client
from kuznia.store import Store, open_store
from steps.checkpoints import COMPLETE, keep_last_complete, mark_complete
from steps.faults import failure
from steps.placement import visible_gpus
from steps.supervisor import Ended
from steps.trainer_inputs import variables_for
from steps.trainer_settings import share_batch
from steps.training import Listener
from tests.fixtures.train_case import ROWS, SETTINGS, train_inputs
from workflows.environments import variables_of

STEPS = 90
slow = pytest.mark.slow
pytestmark = pytest.mark.xdist_group("train")


@dataclass
class Case:
    """One run of the step: where its things are and how to start it."""

    folder: Path
    inputs: TrainInputs
    python: Path
    variables: dict[str, str]
    lines: list[str] = field(default_factory=list)
    """What the attempts so far said."""

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def mlflow(self) -> str:
        return self.variables["MLFLOW_TRACKING_URI"]

    def start(self) -> subprocess.Popen[str]:
        """An attempt."""
        (self.folder / "inputs.json").write_text(self.inputs.model_dump_json())
        return subprocess.Popen(
            [
                *(self.python, "-m", "steps", "train", "--workdir", self.work),
                *("--inputs", self.folder / "inputs.json"),
                *("--outputs", self.folder / "outputs.json"),
            ],
            env=os.environ | variables_of("train") | self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def follow(self, process: subprocess.Popen[str], until: int | None = None) -> int:
        """Read to the end, or until step `until` is done; returns the exit code or -1."""
        assert process.stdout
        for line in process.stdout:
            self.lines.append(line)
            said = parse_progress(line)
            if until is not None and said and said["done"] == until:
                return -1
        process.stdout.close()
        return process.wait()

    def run(self) -> int:
        """A whole attempt."""
        return self.follow(self.start())

    @property
    def outputs(self) -> TrainOutputs:
        return TrainOutputs.model_validate_json((self.folder / "outputs.json").read_bytes())

    def store(self) -> Store:
        return open_store(self.variables["KUZNIA_STORE"])

    def curve(self) -> list[dict[str, Any]]:
        """The loss curve without what a clock said."""
        lines = self.store().read(self.outputs.loss_curve.key).splitlines()
        keys = ("step", "epoch", "loss", "grad_norm", "learning_rate")
        return [{key: json.loads(line)[key] for key in keys} for line in lines]


def case(folder: Path, base: Path, python: Path, store: str | None = None, **spec: Any) -> Case:
    folder.mkdir()
    variables = {
        "KUZNIA_HOME": str(folder),
        "KUZNIA_STORE": store or str(folder / "store"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }
    inputs = train_inputs(open_store(variables["KUZNIA_STORE"]), base, folder, **spec)
    return Case(folder, inputs, python, variables)


def shared_by_two(made: Case) -> Case:
    """The same training, each batch shared by two processes of one thread."""
    plan = made.inputs.plan
    trainer, _ = share_batch(plan.trainer, 2)
    hardware = plan.hardware.model_copy(update={"processes": 2})
    plan = plan.model_copy(update={"hardware": hardware, "trainer": trainer})
    made.inputs = made.inputs.model_copy(update={"plan": plan})
    return made


def on_gpus(made: Case, gpus: int) -> Case:
    """The same training on GPUs of this machine."""
    plan = made.inputs.plan
    hardware = plan.hardware.model_copy(
        update={"device": "cuda", "gpu_class": "any", "gpus": gpus, "dtype": "bfloat16"}
    )
    trainer = plan.trainer | {"bf16": True, "use_cpu": False}
    plan = plan.model_copy(update={"hardware": hardware, "trainer": trainer})
    made.inputs = made.inputs.model_copy(update={"plan": plan})
    return made


def checkpoints(work: Path) -> list[Path]:
    return sorted(work.glob("output-*/checkpoint-*"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """URI of a bucket in an S3 of our own; the environment says how to reach it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        import httpx

        httpx.put(f"http://{host}:{port}/weights").raise_for_status()
        yield "s3://weights/kuznia"
    server.stop()


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tiny_base: Path, train_python: Path) -> Case:
    """A LoRA run that nobody disturbed."""
    made = case(folder / "undisturbed", tiny_base, train_python)
    assert made.run() == 0, "".join(made.lines)
    return made


@dataclass
class Disturbed:
    case: Case
    codes: list[int]
    """Exit codes of the attempts."""
    begins: list[int]
    """The steps after which they began."""
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def disturbed(folder: Path, tiny_base: Path, train_python: Path, bucket: str) -> Disturbed:
    """The same run, stopped, moved to an empty disk, killed and orphaned on its way."""
    made = case(folder / "disturbed", tiny_base, train_python, bucket)
    facts: dict[str, Any] = {}
    first = made.start()
    made.follow(first, until=27)
    first.terminate()
    codes = [made.follow(first)]
    facts["after_sigterm"] = [
        (path.name, (path / COMPLETE).exists()) for path in checkpoints(made.work)
    ]
    facts["in_store"] = made.store().folders(_kept(made))
    made.work.rename(made.folder / "lost-disk")

    second = made.start()
    made.follow(second, until=random.randrange(42, 59))
    psutil.Process(second.pid).children()[0].kill()
    codes.append(made.follow(second))
    # What a trainer killed while it saved would leave: a newer folder without the mark.
    whole = checkpoints(made.work)[-1]
    half = whole.with_name("checkpoint-85")
    half.mkdir()
    (half / "trainer_state.json").write_text("{")

    # One that trains on without MLflow and delivers nothing before it is killed.
    mlflow = made.variables["MLFLOW_TRACKING_URI"]
    made.variables["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{free_port()}"
    third = made.start()
    made.follow(third, until=random.randrange(62, 79))
    trainer = psutil.Process(third.pid).children()[0]
    third.kill()
    codes.append(made.follow(third))
    facts["orphan"] = psutil.wait_procs([trainer], timeout=10)[1]
    made.variables["MLFLOW_TRACKING_URI"] = mlflow
    codes.append(made.run())
    said = (parse_progress(line) for line in made.lines)
    begins = [each["done"] for each in said if each and "loss" not in each]
    return Disturbed(made, codes, begins, facts)


def _kept(made: Case) -> str:
    (settings,) = made.work.glob("output-*")
    return f"{made.inputs.plan.prefix}/train/checkpoints/{settings.name.removeprefix('output-')}"


@slow
def test_lora_publishes_only_content(undisturbed: Case) -> None:
    outputs = undisturbed.outputs
    weights = undisturbed.folder / "store" / outputs.weights.key
    manifest = read_manifest(weights)
    assert outputs.kind == manifest.kind == "adapter"
    assert [entry.path for entry in manifest.files] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert manifest.about == {
        "base": "tiny",
        "base_digest": undisturbed.inputs.fetch_base.base.digest,
    }
    config = json.loads((weights / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert str(undisturbed.folder) not in (weights / "adapter_config.json").read_text()
    assert (outputs.steps, outputs.epochs, outputs.resumed) == (STEPS, 15, 0)
    assert outputs.final_loss < undisturbed.curve()[0]["loss"] - 0.5
    assert outputs.samples_per_second > 0
    (tokens,) = re.findall(r"num_input_tokens_seen +=  *(\d+)", "".join(undisturbed.lines))
    assert outputs.flop == 6 * 150_000 * int(tokens)
    assert outputs.libraries["llamafactory"] == "0.9.5"
    assert not list(undisturbed.work.glob("output-*"))


@slow
def test_every_step_is_shown(undisturbed: Case) -> None:
    said = [each for each in map(parse_progress, undisturbed.lines) if each]
    assert [each["done"] for each in said] == list(range(STEPS + 1))
    assert all(each["total"] == STEPS and each["unit"] == "steps" for each in said)
    assert all({"loss", "samples_per_second", "eta_seconds"} <= set(each) for each in said[2:])
    assert said[-1]["eta_seconds"] == 0


@slow
def test_base_is_trained_as_planned_and_rows_as_they_are(undisturbed: Case) -> None:
    """LLaMA-Factory prints the first row as it trains on it: roles, system turn, what is learnt."""
    said = "".join(undisturbed.lines)
    planned = undisturbed.inputs.plan.hardware.dtype
    settings = json.loads((undisturbed.work / "settings.json").read_text())
    base = json.loads(Path(settings["model_name_or_path"], "config.json").read_text())
    assert base["dtype"] == planned
    turns = "".join(
        f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in ROWS[0]
    )
    assert f"inputs:\n{turns}" in said
    assert "labels:\nBrown.<|im_end|>\nLazy.<|im_end|>\n" in said


@slow
def test_mlflow_has_every_step_and_setting(undisturbed: Case) -> None:
    client = mlflow_client(undisturbed.mlflow)
    run = client.get_run(undisturbed.outputs.mlflow_run_id)
    assert client.get_experiment(run.info.experiment_id).name == "acme/support"
    assert (run.info.run_name, run.info.status) == ("try-1", "FINISHED")
    for metric in ("loss", "grad_norm", "learning_rate"):
        history = client.get_metric_history(run.info.run_id, metric)
        assert [(point.step, point.value) for point in history] == [
            (entry["step"], entry[metric]) for entry in undisturbed.curve()
        ]
    assert len(client.get_metric_history(run.info.run_id, "samples_per_second")) == STEPS - 1
    parameters = run.data.params
    wanted = undisturbed.inputs.plan.trainer | {
        "base": "tiny",
        "base_digest": undisturbed.inputs.fetch_base.base.digest,
        "data_fingerprint": undisturbed.inputs.data_check.fingerprint,
        "run": "try-1",
        "hardware.dtype": undisturbed.inputs.plan.hardware.dtype,
        "library.llamafactory": "0.9.5",
    }
    assert {key: parameters.get(key) for key in wanted} == {
        key: str(value) for key, value in wanted.items()
    }


@slow
def test_finished_training_is_not_repeated(undisturbed: Case) -> None:
    made = Case(undisturbed.folder, undisturbed.inputs, undisturbed.python, undisturbed.variables)
    before = made.outputs
    (undisturbed.folder / "store" / made.inputs.plan.prefix / "train/result.json").unlink()
    assert made.run() == 0
    assert made.outputs == before
    assert not any(map(parse_progress, made.lines))
    history = mlflow_client(made.mlflow).get_metric_history(before.mlflow_run_id, "loss")
    assert len(history) == STEPS


@slow
def test_sigterm_saves_and_ends_with_75(disturbed: Disturbed) -> None:
    assert disturbed.codes[0] == 75
    name, complete = disturbed.facts["after_sigterm"][-1]
    stopped = int(name.removeprefix("checkpoint-"))
    assert complete and 27 <= stopped < 40
    assert disturbed.begins[1] == stopped
    said = "".join(disturbed.case.lines)
    assert f"error: stopped after step {stopped} of 90; the same command goes on" in said


@slow
def test_checkpoint_outlives_the_disk(disturbed: Disturbed) -> None:
    """Only the newest is kept in the store, the second attempt began from it, none is left."""
    assert disturbed.facts["in_store"] == [str(disturbed.begins[1])]
    prefix = f"{disturbed.case.inputs.plan.prefix}/train"
    assert disturbed.case.store().folders(prefix) == ["weights"]


@slow
def test_kills_cost_steps_but_no_result(undisturbed: Case, disturbed: Disturbed) -> None:
    assert disturbed.codes == [75, 3, -9, 0]
    assert disturbed.begins == [0, disturbed.begins[1], 40, 60]
    assert "error: the trainer was killed by signal 9 at step" in "".join(disturbed.case.lines)
    assert disturbed.case.outputs.weights.digest == undisturbed.outputs.weights.digest
    assert disturbed.case.curve() == undisturbed.curve()
    assert disturbed.case.outputs.resumed == 3


@slow
def test_trainer_does_not_outlive_its_supervisor(disturbed: Disturbed) -> None:
    assert disturbed.facts["orphan"] == []


@slow
def test_resumed_run_is_one_run_with_every_step_once(disturbed: Disturbed) -> None:
    client = mlflow_client(disturbed.case.mlflow)
    experiment = client.get_experiment_by_name("acme/support")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == disturbed.case.outputs.mlflow_run_id
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == list(range(1, STEPS + 1))


@slow
def test_full_with_wandb_while_mlflow_is_down(
    folder: Path, tiny_base: Path, train_python: Path
) -> None:
    """One launch: full weights, an offline file of W&B, and reports that are made up for."""
    made = case(
        folder / "full",
        tiny_base,
        train_python,
        method="full",
        wandb="kuznia",
        llamafactory={"num_train_epochs": 1, "per_device_train_batch_size": 8},
    )
    database = made.variables["MLFLOW_TRACKING_URI"]
    made.variables |= {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}",
        "WANDB_MODE": "offline",
    }
    assert made.run() == 3
    said = "".join(made.lines)
    assert "training goes on, metrics are kept" in said
    assert "error: MLflow at http://127.0.0.1" in said
    assert said.count("does not answer (Connection refused); start it or correct") == 2
    (offline,) = made.store().keys(f"{made.inputs.plan.prefix}/train/wandb")
    assert offline[0].endswith("run-acme-try-1.wandb") and offline[1] > 0

    made.variables["MLFLOW_TRACKING_URI"] = database
    made.lines.clear()
    assert made.run() == 0
    assert not any(map(parse_progress, made.lines))
    outputs = made.outputs
    manifest = read_manifest(made.folder / "store" / outputs.weights.key)
    assert [entry.path for entry in manifest.files] == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert outputs.kind == "full"
    config = (made.folder / "store" / outputs.weights.key / "config.json").read_text()
    assert str(made.folder) not in config
    history = mlflow_client(database).get_metric_history(outputs.mlflow_run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3]


@slow
def test_two_processes_train_as_one(folder: Path, tiny_base: Path, train_python: Path) -> None:
    """On two CPU processes what else runs on two GPUs, undisturbed, and stopped midway."""
    settings = SETTINGS | {"num_train_epochs": 5, "save_steps": 10}
    calm, torn = (
        shared_by_two(case(folder / name, tiny_base, train_python, llamafactory=settings))
        for name in ("calm", "torn")
    )
    assert calm.run() == 0, "".join(calm.lines)
    said = [each for each in map(parse_progress, calm.lines) if each]
    assert [each["done"] for each in said] == list(range(31))

    first = torn.start()
    torn.follow(first, until=7)
    (launcher,) = psutil.Process(first.pid).children()
    assert len(launcher.children()) == 2
    first.terminate()
    assert torn.follow(first) == 75, "".join(torn.lines)
    (stopped,) = checkpoints(torn.work)
    assert {"rng_state_0.pth", "rng_state_1.pth", COMPLETE} <= {p.name for p in stopped.iterdir()}
    assert torn.run() == 0, "".join(torn.lines)
    assert torn.outputs.weights.digest == calm.outputs.weights.digest
    assert torn.curve() == calm.curve()
    assert (torn.outputs.steps, torn.outputs.resumed) == (30, 1)


@slow
def test_sigterm_before_the_first_step_ends_with_75(
    folder: Path, tiny_base: Path, train_python: Path
) -> None:
    made = case(folder / "early", tiny_base, train_python)
    process = made.start()
    while not psutil.Process(process.pid).children():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert made.follow(process) == 75
    assert made.lines[-1] == (
        "error: stopped after step 0 of 0; the same command goes on from its last checkpoint, "
        "if any\n"
    )


@slow
def test_refused_value_is_named(folder: Path, tiny_base: Path, train_python: Path) -> None:
    settings = SETTINGS | {"lr_scheduler_type": "wavy"}
    made = case(folder / "refused", tiny_base, train_python, llamafactory=settings)
    assert made.run() == 2
    assert made.lines[-1].startswith(
        "error: config: llamafactory.lr_scheduler_type: ValueError: wavy is not a valid "
    )
    assert made.lines[-1].endswith(f"; correct it; the whole log is {made.work}/trainer.log\n")
    client = mlflow_client(made.mlflow)
    experiment = client.get_experiment_by_name("acme/support")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


@pytest.mark.gpu
@pytest.mark.slow
def test_qlora_trains_an_adapter(folder: Path, tiny_base: Path, train_python: Path) -> None:
    made = on_gpus(case(folder / "qlora", tiny_base, train_python, method="qlora"), 1)
    assert made.run() == 0, "".join(made.lines)
    assert made.outputs.kind == "adapter"


@pytest.mark.gpu
@pytest.mark.slow
def test_two_gpus_train_as_one(folder: Path, tiny_base: Path, train_python: Path) -> None:
    if len(visible_gpus()) < 2:
        pytest.skip("needs two GPUs")
    calm, torn = (
        on_gpus(shared_by_two(case(folder / name, tiny_base, train_python)), 2)
        for name in ("two-gpus", "two-gpus-stopped")
    )
    assert calm.run() == 0, "".join(calm.lines)
    first = torn.start()
    torn.follow(first, until=27)
    first.terminate()
    assert torn.follow(first) == 75
    assert torn.run() == 0, "".join(torn.lines)
    assert torn.outputs.weights.digest == calm.outputs.weights.digest
    assert torn.curve() == calm.curve()


def test_qlora_asks_for_four_bits(tmp_path: Path, tiny_base: Path) -> None:
    made = case(tmp_path / "qlora", tiny_base, Path("python"), method="qlora")
    settings = made.inputs.plan.trainer
    assert (settings["quantization_bit"], settings["finetuning_type"]) == (4, "lora")


def test_only_the_last_whole_checkpoint_is_kept(tmp_path: Path) -> None:
    for step, whole in ((20, True), (100, True), (120, False)):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text("{}")
        if whole:
            mark_complete(checkpoint)
    (tmp_path / "adapter_model.safetensors").touch()
    assert keep_last_complete(tmp_path) == tmp_path / "checkpoint-100"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-100"]
    (tmp_path / "checkpoint-100" / COMPLETE).unlink()
    assert keep_last_complete(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


FAULTS: list[tuple[Ended, type[KuzniaError], str]] = [
    (
        Ended(1, False, ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",)),
        InputError,
        "config: llamafactory: training needs more memory than there is (planned 0.1 GiB); lower "
        "per_device_train_batch_size or cutoff_len; the whole log is trainer.log",
    ),
    (
        Ended(1, False, ("OSError: [Errno 28] No space left on device",)),
        DependencyError,
        ".: no space left; free some and run again; the whole log is trainer.log",
    ),
    (
        Ended(-9, False, ()),
        DependencyError,
        "the trainer was killed by signal 9 at step 0 of 0, for lack of memory perhaps; run again "
        "to go on from its last checkpoint; the whole log is trainer.log",
    ),
    (
        Ended(1, False, ("ValueError: wavy is not a valid SchedulerType", "  hint")),
        InputError,
        "config: llamafactory.lr_scheduler_type: ValueError: wavy is not a valid SchedulerType; "
        "correct it; the whole log is trainer.log",
    ),
    (
        Ended(1, False, ("Traceback", "  at line 3", "KeyError: 'lm_head'", "")),
        KuzniaError,
        "LLaMA-Factory failed: KeyError: 'lm_head'; the whole log is trainer.log",
    ),
    (
        Ended(-15, True, ()),
        Preempted,
        "stopped after step 0 of 0; the same command goes on from its last checkpoint, if any",
    ),
]


ALONE = "[rank0]: RuntimeError: Read error: Connection reset by peer."


def test_the_trainer_that_failed_is_heard_and_not_those_it_left(
    tmp_path: Path, tiny_base: Path
) -> None:
    made = shared_by_two(case(tmp_path / "several", tiny_base, Path("python")))
    listener = Listener(1, lambda entry: None, made.store(), "checkpoints")
    own = Ended(1, False, ("[rank1]: KeyError: 'lm_head'", ALONE))
    error = failure(own, listener, made.inputs, Path("trainer.log"))
    assert (type(error), "KeyError: 'lm_head'" in str(error)) == (KuzniaError, True)
    error = failure(Ended(1, False, (ALONE,)), listener, made.inputs, Path("trainer.log"))
    assert isinstance(error, DependencyError)
    assert str(error).startswith("the trainers lost each other at step 0 of 0: ")
    error = failure(Ended(75, False, ()), listener, made.inputs, Path("trainer.log"))
    assert isinstance(error, Preempted)


def test_a_run_sees_its_gpus_only(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = on_gpus(case(tmp_path / "gpus", tiny_base, Path("python")), 2)
    for given, seen in (("3,5,7", "3,5"), ("4,1", None)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert variables_for(made.inputs, tmp_path).get("CUDA_VISIBLE_DEVICES") == seen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(InputError, match=r"gpus: 2 is more than are open here \(7\); set gpus: 1"):
        variables_for(made.inputs, tmp_path)


@pytest.mark.parametrize(("ended", "kind", "message"), FAULTS, ids=lambda value: str(value)[:30])
def test_failures_say_what_to_do(
    tmp_path: Path,
    tiny_base: Path,
    ended: Ended,
    kind: type[KuzniaError],
    message: str,
) -> None:
    settings = SETTINGS | {"lr_scheduler_type": "wavy"}
    made = case(tmp_path / "failure", tiny_base, Path("python"), llamafactory=settings)
    listener = Listener(1, lambda entry: None, made.store(), "checkpoints")
    error = failure(ended, listener, made.inputs, Path("trainer.log"))
    assert type(error) is kind
    assert str(error) == message
