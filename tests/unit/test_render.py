"""What `kuznia render` prints: valid, complete, and taken from the compiled template."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cli.main import main
from kuznia import machine, settings
from steps.__main__ import main as run_step
from workflows.cron import schedule_problems
from workflows.environments import ROOT
from workflows.submit import TEMPLATE, prepare

SPEC = """\
tenant: acme
model: support
base: smollm2-135m-instruct
hardware: {hardware}
data: {{train: "s3://bucket/train.jsonl", test: "s3://bucket/test.jsonl", format: alpaca}}
card: {{purpose: answers questions, owner: Anna, risk: minimal}}
"""
CHAIN = ["plan", "data-check", "fetch-base", "train"]
RENDERED = {
    *("name", "activeDeadlineSeconds", "serviceAccountName", "volumes", "container"),
    *("inputs", "outputs", "podSpecPatch", "retryStrategy"),
}
"""Fields of a step's template that the Job has in its own form."""
ARGO_ONLY = {"synchronization", "metrics", "metadata"}
"""The semaphore, the metrics and the label of the queue, which the Job itself has."""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(SPEC.format(hardware="cpu"))
    return path


def render(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["render", *map(str, words)])


def documents(*words: str | Path) -> list[Any]:
    result = render(*words)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return list(yaml.safe_load_all(result.stdout))


@functools.cache
def compiled() -> Any:
    """The compiled template, read without our code."""
    return yaml.safe_load(TEMPLATE.read_text("utf-8"))


def templates() -> dict[str, Any]:
    return {entry["name"]: entry for entry in compiled()["spec"]["templates"]}


def refusal(*words: str | Path) -> list[str]:
    result = render(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    return [line.removeprefix("error: ") for line in result.stderr.splitlines()]


def test_the_job_is_the_chain_up_to_training(spec: Path) -> None:
    carried, job = documents("job", spec)
    run = prepare(spec)
    assert carried["data"] == {"train.yaml": run.config}
    assert job["metadata"]["name"] == carried["metadata"]["name"] == run.run
    assert job["metadata"]["namespace"] == "acme-training"
    pod = job["spec"]["template"]["spec"]
    containers = [*pod["initContainers"], *pod["containers"]]
    assert [container["name"] for container in containers] == CHAIN
    for container in containers:
        ours = templates()[container["name"]]["container"]
        same = set(ours) - {"args", "env", "resources"}
        assert {key: container[key] for key in same} == {key: ours[key] for key in same}
    assert "{{" not in yaml.safe_dump_all([carried, job])


def test_the_jobs_steps_hand_on_files(spec: Path) -> None:
    pod = documents("job", spec)[1]["spec"]["template"]["spec"]
    plan, _, _, train = [*pod["initContainers"], *pod["containers"]]
    assert plan["args"] == [
        *("plan", "--text", "config=$(KUZNIA_CONFIG)", "--text", f"run={prepare(spec).run}"),
        *("--outputs", "/kuznia/out/plan.json", "--workdir", "/kuznia/work/plan"),
    ]
    config = next(entry for entry in plan["env"] if entry["name"] == "KUZNIA_CONFIG")
    assert config["valueFrom"]["configMapKeyRef"] == {
        "name": prepare(spec).run,
        "key": "train.yaml",
    }
    assert train["args"] == [
        *("train", "--input", "plan=@/kuznia/out/plan.json"),
        *("--input", "data-check=@/kuznia/out/data-check.json"),
        *("--input", "fetch-base=@/kuznia/out/fetch-base.json"),
        *("--outputs", "/kuznia/out/train.json", "--workdir", "/kuznia/work/train"),
    ]


def test_the_job_is_confined_and_retried_as_the_template_is(spec: Path) -> None:
    job = documents("job", spec)[1]["spec"]
    whole = compiled()["spec"]
    pod = job["template"]["spec"]
    for key in ("securityContext", "automountServiceAccountToken"):
        assert pod[key] == whole[key]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 120
    assert job["backoffLimit"] == templates()["train"]["retryStrategy"]["limit"]
    ignore, fail, count = job["podFailurePolicy"]["rules"]
    assert (ignore["action"], ignore["onPodConditions"][0]["type"]) == (
        "Ignore",
        "DisruptionTarget",
    )
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [1, 2])
    assert (count["action"], count["onExitCodes"]["values"]) == ("Count", [3, 75])


def test_no_field_of_the_template_is_lost_unseen() -> None:
    for step in CHAIN:
        assert set(templates()[step]) - RENDERED - ARGO_ONLY == set()


def test_a_gpu_class_adds_its_nodes_and_only_training_gets_the_gpu(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUZNIA_QUEUE", "acme-gpus")
    spec.write_text(SPEC.format(hardware="l4"))
    job = documents("job", spec)[1]
    pod = job["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "acme-gpus"
    (train,) = pod["containers"]
    cpu = templates()["train"]["container"]["resources"]
    assert train["resources"]["limits"] == {**cpu["limits"], "nvidia.com/gpu": "1"}
    assert all("nvidia.com/gpu" not in c["resources"]["limits"] for c in pod["initContainers"])


def told(container: dict[str, Any]) -> dict[str, str]:
    """What a container's environment says of the pod's size."""
    found = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    return {name: value for name, value in found.items() if name.startswith("KUZNIA_POD_")}


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ((), ("4", "16Gi", "100Gi")),
        (("--cpu=500m", "--memory=1536Mi", "--disk=1.5Ti"), ("500m", "1536Mi", "1.5Ti")),
        (("--cpu", "2.5", "--memory", "8G"), ("2.5", "8G", "100Gi")),
    ],
)
def test_every_container_gets_and_is_told_what_training_gets(
    words: tuple[str, ...], limits: tuple[str, ...], spec: Path
) -> None:
    pod = documents("job", spec, *words)[1]["spec"]["template"]["spec"]
    sizes = dict(zip(("cpu", "memory", "ephemeral-storage"), limits, strict=True))
    names = ("KUZNIA_POD_CPU", "KUZNIA_POD_MEMORY", "KUZNIA_POD_DISK")
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["resources"] == {"requests": sizes, "limits": sizes}
        assert told(container) == dict(zip(names, limits, strict=True))


def test_several_gpus_get_as_many_times_the_cores_and_memory_that_plan_counts_with(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUZNIA_POD_CPU", "3")  # of whoever renders
    spec.write_text(SPEC.format(hardware="l4") + "gpus: 4\n")
    pod = documents("job", spec, "--cpu", "6", "--memory=10.5Gi")[1]["spec"]["template"]["spec"]
    (train,) = pod["containers"]
    assert train["resources"]["limits"] == {
        "cpu": "24",
        "memory": "42.0Gi",
        "ephemeral-storage": "100Gi",
        "nvidia.com/gpu": "4",
    }
    sizes = {"KUZNIA_POD_CPU": "6", "KUZNIA_POD_MEMORY": "10.5Gi", "KUZNIA_POD_DISK": "100Gi"}
    assert [told(c) for c in (*pod["initContainers"], train)] == [sizes] * len(CHAIN)


def test_plan_plans_for_what_training_gets(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's run spec, with nothing but what the how-to's ConfigMap and the Job give."""
    demo = yaml.safe_load((ROOT / "examples/demo/train.yaml").read_text("utf-8"))
    for split in ("train", "test"):
        demo["data"][split] = (ROOT / "examples/demo" / f"{split}.jsonl").as_uri()
    spec.write_text(yaml.safe_dump(demo | {"hardware": "cpu"}))
    carried, job = documents("job", spec, "--cpu", "3", "--memory", "6Gi")
    plan = job["spec"]["template"]["spec"]["initContainers"][0]
    folder = spec.parent / "kuznia"
    values = {entry["name"]: entry["value"] for entry in plan["env"] if "value" in entry}
    for name, value in {"KUZNIA_STORE": (folder / "store").as_uri(), **values}.items():
        monkeypatch.setenv(name, value)
    (folder / "cgroup").mkdir(parents=True)
    (folder / "cgroup" / "cpu.max").write_text("100000 100000\n")
    (folder / "cgroup" / "memory.max").write_text(f"{2**30}\n")
    monkeypatch.setattr(machine, "_CGROUP", folder / "cgroup")
    config = carried["data"]["train.yaml"]
    words = [word.replace("$(KUZNIA_CONFIG)", config) for word in plan["args"]]
    words = [f"{folder.parent}{word}" if word.startswith("/kuznia/") else word for word in words]
    assert run_step(words) == 0
    made = json.loads((folder / "out" / "plan.json").read_text("utf-8"))
    assert made["hardware"]["threads"] == 3
    assert made["estimate"]["memory_available_gib"] == 6
    assert settings.in_a_pod()


def test_every_fault_of_a_job_is_named_at_once(spec: Path) -> None:
    spec.write_text(SPEC.format(hardware="cpu") + "seed: -1\n")
    words = ("--cpu=4cores", "--memory", "16", "--disk=0Gi", "--image=train=latest")
    assert refusal("job", spec, *words) == [
        "--cpu '4cores': is no amount of cores; write 4 or 500m",
        "--memory '16': is no amount of memory; write 16Gi or 512Mi",
        "--disk '0Gi': is no amount of disk; write 100Gi or 500Mi",
        "--image train=latest: is no image with a tag or digest; write HOST/PATH:TAG",
        f"{spec}: seed: -1 is below 0; choose a value within the bound",
    ]


def test_without_a_gpu_class_the_plan_cannot_choose_one(spec: Path) -> None:
    spec.write_text(SPEC.format(hardware="auto"))
    pod = documents("job", spec)[1]["spec"]["template"]["spec"]
    assert {"name": "KUZNIA_GPU_CLASSES", "value": ""} in pod["initContainers"][0]["env"]
    assert {"name": "KUZNIA_QUOTA", "value": ""} in pod["initContainers"][0]["env"]
    assert "nodeSelector" not in pod


def test_several_nodes_are_pods_that_find_each_other(spec: Path) -> None:
    spec.write_text(SPEC.format(hardware="l4") + "gpus: 2\nnodes: 3\n")
    carried, service, job = documents("job", spec)
    run, made = carried["metadata"]["name"], job["spec"]
    pod = made["template"]["spec"]
    assert (made["completionMode"], made["completions"], made["parallelism"]) == ("Indexed", 3, 3)
    assert made["backoffLimit"] == 3 * templates()["train"]["retryStrategy"]["limit"]
    assert service["metadata"]["name"] == pod["subdomain"] == f"nodes-{run}"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": run}
    meeting = {"name": "KUZNIA_RENDEZVOUS", "value": f"{run}-0.nodes-{run}:29500"}
    containers = [*pod["initContainers"], *pod["containers"]]
    assert [meeting in c.get("env", []) for c in containers] == [True, False, False, True]
    (train,) = pod["containers"]
    assert train["resources"]["limits"] == {
        "cpu": "8",
        "memory": "32Gi",
        "ephemeral-storage": "100Gi",
        "nvidia.com/gpu": "2",
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in train["volumeMounts"]}
    ours = templates()["train"]["container"]["volumeMounts"]
    assert mounts == {**{m["name"]: m["mountPath"] for m in ours}, "shm": "/dev/shm"}
    assert set(mounts) <= {volume["name"] for volume in pod["volumes"]}
    assert len({volume["name"] for volume in pod["volumes"]}) == len(pod["volumes"])


def test_one_node_is_one_plain_pod(spec: Path) -> None:
    _, job = documents("job", spec)
    assert "completionMode" not in job["spec"]
    assert "KUZNIA_RENDEZVOUS" not in yaml.safe_dump(job)


def test_several_gpus_need_a_gpu_class(spec: Path) -> None:
    spec.write_text(SPEC.format(hardware="auto") + "gpus: 2\n")
    assert refusal("job", spec) == [
        f"{spec}: gpus: 2 need NVIDIA GPUs, and this run would be on cpu; set gpus: 1, or hardware "
        "to a GPU class"
    ]


def test_a_claim_becomes_the_storage(spec: Path) -> None:
    pod = documents("job", spec, "--claim", "store", "-n", "here")[1]["spec"]["template"]["spec"]
    (storage,) = [volume for volume in pod["volumes"] if volume["name"] == "storage"]
    assert storage == {"name": "storage", "persistentVolumeClaim": {"claimName": "store"}}


@pytest.mark.parametrize("what", [["job"], ["cron", "--schedule=0 3 * * 1"]])
def test_local_data_are_refused(what: list[str], spec: Path) -> None:
    spec.write_text(spec.read_text().replace("s3://bucket/train.jsonl", "train.jsonl"))
    (spec.parent / "train.jsonl").write_text("{}\n")
    (line,) = refusal(*what, spec)
    assert line.startswith(f"{spec}: data.train: ")
    assert line.endswith("copy it into the tenant's store and name it by its URI there")


def test_the_schedule_starts_the_template_with_the_spec(spec: Path) -> None:
    words = ("--schedule", "0 3 * * MON", "--timezone", "Europe/Warsaw", "-n", "here")
    (cron,) = documents("cron", spec, *words)
    assert cron["metadata"]["name"] == "support-retrain"
    assert cron["metadata"]["namespace"] == "here"
    made = cron["spec"]
    assert (made["schedules"], made["timezone"]) == (["0 3 * * MON"], "Europe/Warsaw")
    assert made["concurrencyPolicy"] == "Forbid"
    (parameter,) = made["workflowSpec"]["arguments"]["parameters"]
    assert parameter == {"name": "config", "value": prepare(spec).config}
    (template,) = documents("template")
    assert made["workflowSpec"]["workflowTemplateRef"] == {"name": template["metadata"]["name"]}


def test_every_fault_of_a_schedule_is_named_at_once(spec: Path) -> None:
    spec.write_text(SPEC.format(hardware="cpu") + "seed: -1\n")
    assert refusal("cron", spec, "--schedule", "61 3 * * 7", "--timezone", "Mars/Base") == [
        "--schedule '61 3 * * 7': minute: 61 is not within 0 to 59; write 0 to 59, *, a-b, */n or "
        "several with commas",
        "--schedule '61 3 * * 7': day of week: 7 is not within 0 to 6; write 0 to 6, *, a-b, */n "
        "or several with commas",
        "--timezone Mars/Base: is no time zone; write a name such as Europe/Warsaw",
        f"{spec}: seed: -1 is below 0; choose a value within the bound",
    ]


@pytest.mark.parametrize(
    "schedule", ["* * * * *", "*/15 0-6/2 1,15 jan-MAR 1-5", "0 3 ? * sun", "5/10 3 * * *"]
)
def test_schedules_that_are_right(schedule: str) -> None:
    assert schedule_problems(schedule) == []


@pytest.mark.parametrize(
    ("schedule", "fault"),
    [
        ("@daily", "has 1 fields"),
        ("0 3 * *", "has 4 fields"),
        ("0 3 * * 1 2026", "has 6 fields"),
        ("0 3 0 * *", "day of month: 0 is not within 1 to 31"),
        ("0 3 * 13 *", "month: 13 is not within"),
        ("0 3 * * fri-mon", "day of week: fri-mon ends before it begins"),
        ("0 3 * * mondays", "day of week: mondays is not within"),
        ("*/0 3 * * *", "minute: a step of 0 never comes"),
        ("1,, 3 * * *", "minute: '' is not understood"),
        ("-1 3 * * *", "minute: '-1' is not understood"),
    ],
)
def test_schedules_that_are_wrong(schedule: str, fault: str) -> None:
    assert fault in schedule_problems(schedule)[0]


def test_the_template_takes_images_from_elsewhere() -> None:
    digest = f"registry.example.org:5000/kuznia-train@sha256:{'a' * 64}"
    words = ("--image", f"train={digest}", "--image", "platform=noop:1", "-n", "here")
    (template,) = documents("template", *words)
    assert template["metadata"] == {**compiled()["metadata"], "namespace": "here"}
    images = {
        entry["name"]: entry["container"]["image"]
        for entry in template["spec"]["templates"]
        if "container" in entry
    }
    assert images["train"] == images["evaluate"] == digest
    assert images["plan"] == images["register"] == "noop:1"
    assert images["fetch-base"] == templates()["fetch-base"]["container"]["image"]
    assert documents("template") == [compiled()]


def test_every_image_that_is_wrong_is_named() -> None:
    words = ("trainer=a:1", "train=registry.example.org/train", "train=a:latest", "serve=")
    lines = refusal("template", *(f"--image={word}" for word in words))
    assert [line.partition(": ")[2].partition(";")[0] for line in lines] == [
        "no step uses 'trainer'",
        "is no image with a tag or digest",
        "latest is another image every day",
        "is no image with a tag or digest",
    ]


def images_file(folder: Path, **images: str) -> Path:
    path = folder / "images.yaml"
    path.write_text(yaml.safe_dump({"images": images}))
    return path


def test_the_job_takes_all_images_from_the_map_that_make_images_prints(spec: Path) -> None:
    names = ("platform", "gateway", "mlflow", "train", "serve")
    where = {name: f"registry.example.org/kuznia-{name}@sha256:{'a' * 64}" for name in names}
    words = ("--images", images_file(spec.parent, **where))
    pod = documents("job", spec, *words)[1]["spec"]["template"]["spec"]
    used = [container["image"] for container in (*pod["initContainers"], *pod["containers"])]
    assert used == [where[name] for name in ("platform", "platform", "serve", "train")]
    (template,) = documents("template", *words, "--image", "train=mine:1")
    images = {t["name"]: t["container"]["image"] for t in template["spec"]["templates"][:4]}
    assert images == dict(zip(CHAIN, [*used[:3], "mine:1"], strict=True))


def test_a_map_of_images_that_is_wrong_is_named(spec: Path) -> None:
    path = images_file(spec.parent, trian="a:1", train="registry.example.org/train", serve="a:1")
    assert refusal("job", spec, "--images", path) == [
        f"{path}: images.train: is no image with a tag or digest; write HOST/PATH:TAG",
        f"{path}: images.trian: no step uses 'trian'; name platform, serve, train",
    ]
    path.write_text("platform: a:1\n")
    assert refusal("job", spec, "--images", path) == [
        f"{path}: has no map images; give what `make images` printed"
    ]
    path.unlink()
    assert refusal("job", spec, "--images", path) == [
        f"{path}: no such file; `make images` prints it"
    ]
