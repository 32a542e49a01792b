"""Training as a plain Kubernetes Job, for teams without Argo: the chain up to `train` in one pod.

Containers, confinement and retries are those of the compiled template. The steps before training
are init containers; outputs are handed on as files in a folder that all containers share. Each
gets what `train` gets, which costs nothing: they run one after another, and a pod holds the most
that one of them asks for. Each is told how much that is, since `plan` plans for it.

Several nodes are several pods of one Job. Each does the steps before training for itself, which the
store makes cheap to repeat; they find the first by its name and train as one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kuznia.contracts.catalogue import load_catalogue
from kuznia.errors import InputError, collected
from steps.placement import cpu_problems, place_of, pod_of
from workflows.render import labels_of, namespace_of, submission, template
from workflows.sizes import size_problems, times, variables
from workflows.submit import TEMPLATE, Submission
from workflows.subset import Step, load, plain, substitute

PORT = 29500
"""Where the first of several nodes waits for the others."""
STEPS = ("plan", "data-check", "fetch-base", "train")
_TASK = re.compile(r"\{\{tasks\.(.*)\.outputs\.parameters\.outputs\}\}")


def job(
    path: Path,
    namespace: str | None,
    images: Iterable[str],
    claim: str | None = None,
    *,
    images_file: Path | None = None,
    sizes: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """ConfigMap and Job for the run spec at `path`; InputError with all that is wrong.

    For several nodes also the Service that names their pods.
    `claim` names the volume claim to mount where the store is a folder on a volume. `sizes` holds
    what a pod with one GPU or none asks for, by resource, where it is not what the template says.
    """
    sizes = sizes or {}
    problems = size_problems(sizes)
    with collected(problems):
        document = template(images, file=images_file)
    with collected(problems):
        submitted = submission(path)
    if problems:
        raise InputError(problems)
    templates = {entry["name"]: entry for entry in document["spec"]["templates"]}
    steps = {step.name: step for step in load(TEMPLATE).steps}
    patch, labels = _hardware(submitted, path)
    containers = [_container(templates[name], steps[name], submitted) for name in STEPS]
    main = containers[-1]
    limits = main["resources"]["limits"] | sizes
    for added in patch.pop("containers", []):
        _merge(main, {**added, "name": main["name"]})
    _size(containers, limits, submitted.spec.gpus)
    whole = document["spec"]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": templates["train"]["serviceAccountName"],
        "automountServiceAccountToken": whole["automountServiceAccountToken"],
        "securityContext": whole["securityContext"],
        "initContainers": containers[:-1],
        "containers": [main],
        "volumes": _volumes([templates[name] for name in STEPS], claim),
    }
    _merge(pod, json.loads(whole["podSpecPatch"]))
    _merge(pod, patch)
    about = {
        "name": submitted.run,
        "namespace": namespace_of(submitted, namespace),
        "labels": labels_of(submitted) | labels,
    }
    spec = {
        "backoffLimit": max(steps[name].retry.limit for name in STEPS),
        "activeDeadlineSeconds": sum(templates[name]["activeDeadlineSeconds"] for name in STEPS),
        "ttlSecondsAfterFinished": whole["ttlStrategy"]["secondsAfterCompletion"],
        "podFailurePolicy": {"rules": _rules(steps["train"])},
        "template": {"metadata": {"labels": labels_of(submitted)}, "spec": pod},
    }
    plain = {**about, "labels": labels_of(submitted)}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": plain}
    made = [{**config, "data": {"train.yaml": submitted.config}}]
    if submitted.spec.nodes > 1:
        made.append(_spread(spec, submitted, plain))
    return [*made, {"apiVersion": "batch/v1", "kind": "Job", "metadata": about, "spec": spec}]


def _spread(job: dict[str, Any], submitted: Submission, about: dict[str, Any]) -> dict[str, Any]:
    """Make the Job one of several pods; returns the Service by which they find the first."""
    # A Service's name begins with a letter, a run's may not.
    nodes, name = submitted.spec.nodes, f"nodes-{submitted.run}"
    several = {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    # When one pod stops or is lost, all end and are tried again.
    job |= {**several, "backoffLimit": job["backoffLimit"] * nodes}
    pod = job["template"]["spec"]
    pod["subdomain"] = name
    meeting = {"name": "KUZNIA_RENDEZVOUS", "value": f"{submitted.run}-0.{name}:{PORT}"}
    for container in (*pod["initContainers"], *pod["containers"]):
        if container["name"] in ("plan", "train"):
            container["env"] = [*container.get("env", []), meeting]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**about, "name": name},
        "spec": {
            "clusterIP": "None",
            # They look for each other before they are ready.
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": submitted.run},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def _hardware(submitted: Submission, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a GPU class adds to the pod, and the Job's label for its queue."""
    if submitted.spec.hardware in ("auto", "cpu"):
        if problems := list(cpu_problems(submitted.spec, str(path))):
            raise InputError(problems)
        return {}, {}
    catalogue = load_catalogue()
    place = place_of(submitted.spec, catalogue, str(path))
    found = pod_of(place, catalogue, submitted.spec.gpus)
    patch: dict[str, Any] = json.loads(found.patch)
    return patch, {"kueue.x-k8s.io/queue-name": found.queue} if found.queue else {}


def _size(containers: list[dict[str, Any]], limits: dict[str, str], gpus: int) -> None:
    """Give all containers the same, and say in the environment of each how much that is.

    As in the chain, several GPUs get as many times the cores and memory of one.
    """
    whole = limits | {resource: times(limits[resource], gpus) for resource in ("cpu", "memory")}
    for container in containers:
        for amounts in container["resources"].values():
            amounts |= whole
        container["env"] = [*container.get("env", []), *variables(limits)]


def _container(entry: dict[str, Any], step: Step, submitted: Submission) -> dict[str, Any]:
    """The template's container, its inputs read from files and its outputs written to one."""
    inputs = {name: _input(name, value, step, submitted) for name, value in step.arguments.items()}
    references = {f"inputs.parameters.{name}": value for name, value in inputs.items()}
    (outputs,) = step.outputs.values()
    places = {outputs: str(PurePosixPath(outputs).with_name(f"{step.name}.json"))}
    container = {"name": step.name, **entry["container"]}
    words = [substitute(plain(places.get(word, word)), references) for word in container["args"]]
    workdir = words.index("--workdir") + 1
    words[workdir] = f"{words[workdir]}/{step.name}"
    container["args"] = words
    if step.name == "plan":
        key = {"name": submitted.run, "key": "train.yaml"}
        added = [
            {"name": "KUZNIA_CONFIG", "valueFrom": {"configMapKeyRef": key}},
            # This pod has its amounts already.
            {"name": "KUZNIA_QUOTA", "value": ""},
        ]
        if submitted.spec.hardware == "auto":
            # This pod asks for no GPU, so the tenant's classes must not be chosen from.
            added.append({"name": "KUZNIA_GPU_CLASSES", "value": ""})
        container["env"] = [*container.get("env", []), *added]
    return container


def _input(name: str, value: str, step: Step, submitted: Submission) -> str:
    if task := _TASK.fullmatch(value):
        (outputs,) = step.outputs.values()
        return "@" + str(PurePosixPath(outputs).with_name(f"{task[1]}.json"))
    # Kubernetes puts the variable's value in; the run spec stands in the ConfigMap alone.
    return {"config": "$(KUZNIA_CONFIG)", "run": submitted.run}[name]


def _rules(train: Step) -> list[dict[str, Any]]:
    """A lost pod costs no attempt, our bug or a person's mistake ends the Job, the rest counts."""
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}},
        {"action": "Count", "onExitCodes": {"operator": "In", "values": sorted(train.retry.codes)}},
    ]


def _volumes(entries: list[dict[str, Any]], claim: str | None) -> list[dict[str, Any]]:
    """Every volume of the templates, once; `claim` is the storage, if there is one."""
    volumes = {volume["name"]: volume for e in entries for volume in e["volumes"]}
    if claim:
        source = {"persistentVolumeClaim": {"claimName": claim}}
        volumes["storage"] = {"name": "storage", **source}
    return list(volumes.values())


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """Put `patch` into `target`: mappings key by key, lists behind lists, all else as a whole."""
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif isinstance(value, list) and isinstance(target.get(key), list):
            target[key] = [*target[key], *value]
        else:
            target[key] = value
