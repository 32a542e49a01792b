"""The part of Argo's WorkflowTemplate that the local engine runs; all else is refused.

`FIELDS` is the whole list. `load` turns a file into a `Chain` and names every fault by its path,
so a template that runs here means the same on a cluster.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kuznia import __version__
from kuznia.errors import InputError
from workflows.environments import images

FIELDS = {
    "apiVersion": "argoproj.io/v1alpha1",
    "kind": "WorkflowTemplate",
    "metadata.name": "name of the template",
    "spec.entrypoint": "name of the one `dag` template",
    "spec.parallelism": "how many steps run at once; without it, all that are ready",
    "spec.arguments.parameters[].name": "a parameter of the run",
    "spec.arguments.parameters[].value": "its default; may hold `{{workflow.name}}`",
    "spec.templates[].name": "name of a step's template, or of the entrypoint",
    "spec.templates[].dag.tasks[].name": "name of a step",
    "spec.templates[].dag.tasks[].template": "a container template",
    "spec.templates[].dag.tasks[].dependencies[]": "steps that must have succeeded",
    "spec.templates[].dag.tasks[].arguments.parameters[].name": "an input of the template",
    "spec.templates[].dag.tasks[].arguments.parameters[].value": "text with "
    "`{{workflow.name}}`, `{{workflow.parameters.X}}` or `{{tasks.X.outputs.parameters.Y}}`",
    "spec.templates[].inputs.parameters[].name": "an input",
    "spec.templates[].outputs.parameters[].name": "an output",
    "spec.templates[].outputs.parameters[].valueFrom.path": "file whose text is the output",
    "spec.templates[].container.image": "`kuznia/<image>:<this version>`: runs in the environment "
    "of that image",
    "spec.templates[].container.command[]": "program, `python` being the environment's",
    "spec.templates[].container.args[]": "its arguments; may hold `{{inputs.parameters.X}}` and "
    "`{{=sprig.replace('$', '$$', inputs.parameters['X'])}}`, which is the same where nothing "
    "replaces $(NAME)",
    "spec.templates[].container.env[].name": "an environment variable",
    "spec.templates[].container.env[].value": "its value",
    "spec.templates[].container.envFrom[].configMapRef.name": "`kuznia`: the settings of this "
    "machine",
    "spec.templates[].container.envFrom[].secretRef": "the environment of `kuznia run`",
    "spec.templates[].container.volumeMounts[].name": "a volume of the template",
    "spec.templates[].container.volumeMounts[].mountPath": "arguments and output paths below it "
    "are mapped to the step's folder of the run",
    "spec.templates[].volumes[].name": "a volume",
    "spec.templates[].volumes[].emptyDir": "a folder that outlives a failed attempt here",
    "spec.templates[].volumes[].configMap": "left out: the catalogue of this machine is used",
    "spec.templates[].activeDeadlineSeconds": "an attempt that takes longer is stopped and fails",
    "spec.templates[].retryStrategy.limit": "retries after the first attempt",
    "spec.templates[].retryStrategy.expression": "`asInt(lastRetry.exitCode) in [<codes>]`; what "
    "follows after `|| lastRetry.message matches` is about lost pods",
    "spec.templates[].retryStrategy.backoff.duration": "pause before the first retry: `10s`, `1m`",
    "spec.templates[].retryStrategy.backoff.factor": "the pause grows by it",
    "spec.templates[].retryStrategy.backoff.cap": "but not beyond this",
}
"""Every field that is understood, and what it means here."""

CLUSTER = {
    "spec.activeDeadlineSeconds": "longest run",
    "spec.onExit": "the template that reports the end",
    "spec.ttlStrategy": "how long an ended run is listed",
    "spec.podGC": "how long pods are kept for their logs",
    "spec.podSpecPatch": "time to stop, no variables of Services",
    "spec.securityContext": "users and seccomp",
    "spec.serviceAccountName": "whose rights a pod has",
    "spec.automountServiceAccountToken": "no token in pods",
    "spec.executor": "the account that reports outputs to Argo",
    "spec.templates[].serviceAccountName": "whose rights a step has in the cloud",
    "spec.templates[].podSpecPatch": "the GPU class's nodes, tolerations and GPUs",
    "spec.templates[].metadata.labels": "the queue",
    "spec.templates[].metrics": "what is counted when a run ends",
    "spec.templates[].synchronization": "the tenant's semaphore",
    "spec.templates[].container.imagePullPolicy": "when an image is pulled",
    "spec.templates[].container.env[].valueFrom": "a key of a Secret; here the environment of "
    "`kuznia run` has it",
    "spec.templates[].container.resources": "what a pod asks for and gets at most",
    "spec.templates[].container.securityContext": "what a container may not do",
    "spec.templates[].retryStrategy.affinity": "no node that an attempt failed on",
}
"""Fields that mean nothing on one machine; the local engine leaves them unread."""

_OPAQUE = (
    *CLUSTER,
    "spec.templates[].container.envFrom[].secretRef",
    "spec.templates[].volumes[].emptyDir",
    "spec.templates[].volumes[].configMap",
)
_REFERENCE = re.compile(r"\{\{(.*?)\}\}")
_VERBATIM = re.compile(r"\{\{=sprig\.replace\('\$', '\$\$', inputs\.parameters\['([\w-]+)'\]\)\}\}")
_RETRY = re.compile(
    r"asInt\(lastRetry\.exitCode\) in \[(\d+(?:, ?\d+)*)\]( \|\| lastRetry\.message matches '.*')?"
)
_DURATION = re.compile(r"(\d+)(s|m|h)?")
_UNITS = {None: 1, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Retry:
    """When a failed attempt is made again."""

    limit: int = 0
    codes: frozenset[int] = frozenset()
    duration: float = 0
    factor: float = 1
    cap: float = float("inf")

    def pause(self, retry: int) -> float:
        """Seconds to wait before retry number `retry`, counted from 1."""
        return min(self.cap, self.duration * float(self.factor ** (retry - 1)))


@dataclass(frozen=True)
class Step:
    """One task of the DAG with its container template."""

    name: str
    image: str
    argv: tuple[str, ...]
    variables: dict[str, str]
    mounts: dict[str, str]
    """Mount path to volume name."""
    arguments: dict[str, str]
    outputs: dict[str, str]
    """Output parameter to the path of its file."""
    dependencies: tuple[str, ...]
    retry: Retry
    deadline: float | None
    """Seconds an attempt may take."""


@dataclass(frozen=True)
class Chain:
    """A checked template, its steps in an order that respects the dependencies."""

    name: str
    parameters: dict[str, str | None]
    """Parameters of the run with their defaults."""
    parallelism: int | None
    steps: tuple[Step, ...]


def load(path: Path) -> Chain:
    """Read and check a compiled template.

    Raises InputError with every fault, each with the path of its field.
    """
    document = yaml.safe_load(path.read_text("utf-8"))
    problems = [
        f"{path}: {field}: is not a field that the local engine knows; remove it or run "
        "on a cluster (docs/reference/local-engine.md)"
        for field in _unknown(document)
    ]
    if problems:
        raise InputError(problems)
    return _Reader(path, document).chain()


def substitute(text: str, values: dict[str, str]) -> str:
    """Replace every `{{name}}`; what is put in is not looked at again."""
    return _REFERENCE.sub(lambda match: values[match[1].strip()], text)


def reference() -> str:
    """The table of fields as a page of the documentation."""
    rows = "\n".join(f"| `{field}` | {meaning} |" for field, meaning in FIELDS.items())
    unread = "\n".join(f"| `{field}` | {meaning} |" for field, meaning in CLUSTER.items())
    return (
        "# What the local engine knows of Argo\n\n"
        "`kuznia run` runs `workflows/compiled/finetune.yaml` on this machine. It understands the\n"
        "fields below and refuses a template that uses any other, naming the field's path.\n\n"
        f"| field | here |\n|---|---|\n{rows}\n\n"
        "These are for a cluster and are left unread; notifications and metrics, too, are a\n"
        f"cluster's.\n\n| field | on a cluster |\n|---|---|\n{unread}\n\n"
        "When a step fails, no further step is started and those that run are let finish, as Argo\n"
        "does. An output that a step did not write is a failure.\n"
    )


def _unknown(node: Any, pattern: str = "", place: str = "") -> Iterator[str]:
    """Paths of the fields that are not in FIELDS."""
    if pattern in _OPAQUE:
        return
    if isinstance(node, dict):
        for key, value in node.items():
            below = f"{pattern}.{key}" if pattern else str(key)
            here = f"{place}.{key}" if place else str(key)
            known = (*FIELDS, *CLUSTER)
            if any(f == below or f.startswith((f"{below}.", f"{below}[")) for f in known):
                yield from _unknown(value, below, here)
            else:
                yield here
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _unknown(value, f"{pattern}[]", f"{place}[{index}]")


class _Reader:
    """Turns a document whose fields are known into a Chain, collecting what does not fit."""

    def __init__(self, path: Path, document: Any) -> None:
        self.path = path
        self.spec = document["spec"]
        self.name: str = document["metadata"]["name"]
        self.problems: list[str] = []
        self.templates = {template["name"]: template for template in self.spec["templates"]}

    def chain(self) -> Chain:
        parameters = _values(self.spec.get("arguments"))
        tasks = self.templates[self.spec["entrypoint"]]["dag"]["tasks"]
        ordered = self._ordered({task["name"]: task for task in tasks})
        steps = tuple(self._step(task, set(parameters)) for task in ordered)
        if self.problems:
            raise InputError(f"{self.path}: {problem}" for problem in self.problems)
        return Chain(self.name, parameters, self.spec.get("parallelism"), steps)

    def _ordered(self, tasks: dict[str, Any]) -> list[Any]:
        done: dict[str, Any] = {}
        while ready := [
            name
            for name, task in tasks.items()
            if name not in done and all(other in done for other in task.get("dependencies", []))
        ]:
            done |= {name: tasks[name] for name in ready}
        for name in tasks.keys() - done.keys():
            self.problems.append(
                f"{name}: dependencies: name an unknown step or go in a circle; correct them"
            )
        return list(done.values())

    def _step(self, task: Any, parameters: set[str]) -> Step:
        name = task["name"]
        template = self.templates[task["template"]]
        container = template["container"]
        dependencies = tuple(task.get("dependencies", []))
        arguments = {key: str(value) for key, value in _values(task.get("arguments")).items()}
        inputs = set(_values(template.get("inputs")))
        argv = tuple(map(plain, (*container["command"], *container.get("args", []))))
        for source in container.get("envFrom", []):
            if source.get("configMapRef", source.get("secretRef"))["name"] != "kuznia":
                self.problems.append(f"{name}: envFrom: only ConfigMap kuznia is known; use it")
        known = {"workflow.name", *(f"workflow.parameters.{name}" for name in parameters)}
        for other in dependencies:
            outputs = self._outputs(self._task_template(other))
            known |= {f"tasks.{other}.outputs.parameters.{output}" for output in outputs}
        self._refers(f"{name}: arguments", arguments.values(), known)
        self._refers(f"{name}: args", argv, {f"inputs.parameters.{key}" for key in inputs})
        if inputs != set(arguments):
            odd = ", ".join(sorted(inputs ^ set(arguments)))
            self.problems.append(f"{name}: inputs and arguments differ in {odd}; give each input")
        return Step(
            name=name,
            image=self._image(name, container["image"]),
            argv=argv,
            variables={e["name"]: e["value"] for e in container.get("env", []) if "value" in e},
            mounts=self._mounts(name, template),
            arguments=arguments,
            outputs=self._outputs(template),
            dependencies=dependencies,
            retry=self._retry(name, template.get("retryStrategy")),
            deadline=template.get("activeDeadlineSeconds"),
        )

    def _task_template(self, task_name: str) -> Any:
        tasks = self.templates[self.spec["entrypoint"]]["dag"]["tasks"]
        (task,) = (task for task in tasks if task["name"] == task_name)
        return self.templates[task["template"]]

    def _outputs(self, template: Any) -> dict[str, str]:
        outputs = template.get("outputs", {}).get("parameters", [])
        return {output["name"]: output["valueFrom"]["path"] for output in outputs}

    def _refers(self, place: str, texts: Any, known: set[str]) -> None:
        for text in texts:
            for match in _REFERENCE.finditer(text):
                if match[1].strip() not in known:
                    self.problems.append(f"{place}: {match[0]} is not known here; correct it")

    def _image(self, name: str, image: str) -> str:
        match = re.fullmatch(rf"kuznia/([a-z]+):{re.escape(__version__)}", image)
        if not match or match[1] not in images():
            self.problems.append(
                f"{name}: image: {image!r} is not kuznia/<name>:{__version__}; compile again"
            )
        return match[1] if match else image

    def _mounts(self, name: str, template: Any) -> dict[str, str]:
        volumes = {volume["name"]: volume for volume in template.get("volumes", [])}
        mounts = template["container"].get("volumeMounts", [])
        for mount in mounts:
            if mount["name"] not in volumes:
                self.problems.append(f"{name}: volume {mount['name']!r} is missing; add it")
        return {
            mount["mountPath"]: mount["name"]
            for mount in mounts
            if "emptyDir" in volumes.get(mount["name"], {})
        }

    def _retry(self, name: str, strategy: Any) -> Retry:
        if strategy is None:
            return Retry()
        expression = _RETRY.fullmatch(strategy.get("expression", ""))
        backoff = strategy.get("backoff", {})
        duration = _seconds(backoff.get("duration", "0"))
        cap = _seconds(backoff["cap"]) if "cap" in backoff else float("inf")
        if not expression or duration is None or cap is None:
            self.problems.append(
                f"{name}: retryStrategy: only 'asInt(lastRetry.exitCode) in [<codes>]' and "
                "durations such as 10s are known; use that form"
            )
            return Retry()
        return Retry(
            limit=int(strategy["limit"]),
            codes=frozenset(int(code) for code in expression[1].split(",")),
            duration=duration,
            factor=float(backoff.get("factor", 1)),
            cap=cap,
        )


def plain(word: str) -> str:
    """An argument without the doubling of dollars that Kubernetes would undo."""
    return _VERBATIM.sub(r"{{inputs.parameters.\1}}", word)


def _seconds(text: Any) -> float | None:
    found = _DURATION.fullmatch(str(text))
    return int(found[1]) * _UNITS[found[2]] if found else None


def _values(arguments: Any) -> dict[str, Any]:
    """Parameters by name with their value, or None."""
    return {p["name"]: p.get("value") for p in (arguments or {}).get("parameters", [])}
