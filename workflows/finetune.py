"""The chain as an Argo WorkflowTemplate: which step runs in which image, with how much.

What a step needs is not said here: its inputs contract names the steps it reads from, and that
is the order. `python -m workflows.compile` writes the YAML that Argo and the local engine run.
"""

from __future__ import annotations

from typing import NamedTuple

from hera.workflows import (
    DAG,
    ConfigMapEnv,
    Container,
    EmptyDirVolume,
    Parameter,
    Resources,
    RetryStrategy,
    Task,
    WorkflowTemplate,
)
from hera.workflows.models import Backoff, IntOrString, ValueFrom

from kuznia import __version__
from steps.__main__ import STEPS


class Needs(NamedTuple):
    """Image of a step and what its pod asks for."""

    image: str
    cpu: int
    memory: str
    disk: str
    hours: int
    """An attempt that runs longer is stopped."""


CHAIN = {
    "plan": Needs("platform", 1, "1Gi", "1Gi", hours=1),
    "data-check": Needs("platform", 1, "2Gi", "10Gi", hours=2),
    "fetch-base": Needs("serve", 2, "8Gi", "100Gi", hours=6),
    "train": Needs("train", 4, "16Gi", "100Gi", hours=168),
    "evaluate": Needs("train", 4, "16Gi", "50Gi", hours=24),
    "export": Needs("train", 2, "16Gi", "100Gi", hours=6),
    "verify": Needs("train", 4, "16Gi", "50Gi", hours=6),
    "register": Needs("platform", 1, "1Gi", "1Gi", hours=1),
    "model-card": Needs("platform", 1, "1Gi", "1Gi", hours=1),
}
NAME = f"kuznia-finetune-{__version__.replace('.', '-')}"
OTHER_SOURCES = {"registration": "register"}
"""Inputs that are not named after the step they come from."""


def build() -> WorkflowTemplate:
    """The template; `config` is the only parameter without a default."""
    parameters = [Parameter(name="config"), Parameter(name="run", value="{{workflow.name}}")]
    with WorkflowTemplate(
        name=NAME, entrypoint="chain", arguments=parameters, parallelism=2
    ) as template:
        containers = {name: _container(name, needs) for name, needs in CHAIN.items()}
        with DAG(name="chain"):
            for name, container in containers.items():
                sources = {field: source_of(field) for field in fields_of(name)}
                Task(
                    name=name,
                    template=container,
                    dependencies=[source for source in sources.values() if source in CHAIN] or None,
                    arguments=[
                        Parameter(name=field, value=_reference(source))
                        for field, source in sources.items()
                    ],
                )
    return template


def fields_of(name: str) -> dict[str, bool]:
    """Inputs of a step by their names in YAML, and whether each is text rather than JSON."""
    model, _ = STEPS[name]
    return {
        field.replace("_", "-"): info.annotation is str
        for field, info in model.model_fields.items()
    }


def source_of(field: str) -> str:
    """The step, or the parameter of the workflow, that an input comes from."""
    return OTHER_SOURCES.get(field, field)


def _reference(source: str) -> str:
    if source in CHAIN:
        return f"{{{{tasks.{source}.outputs.parameters.outputs}}}}"
    return f"{{{{workflow.parameters.{source}}}}}"


def _container(name: str, needs: Needs) -> Container:
    arguments = [name]
    for field, is_text in fields_of(name).items():
        option = "--text" if is_text else "--input"
        arguments += [option, f"{field}={{{{inputs.parameters.{field}}}}}"]
    outputs = "/kuznia/out/outputs.json"
    return Container(
        name=name,
        image=f"kuznia/{needs.image}:{__version__}",
        command=["python", "-m", "steps"],
        args=[*arguments, "--outputs", outputs, "--workdir", "/kuznia/work"],
        env=[
            ConfigMapEnv(name=variable, config_map_name="kuznia", config_map_key=variable)
            for variable in ("KUZNIA_STORE", "MLFLOW_TRACKING_URI")
        ],
        inputs=[Parameter(name=field) for field in fields_of(name)],
        outputs=[Parameter(name="outputs", value_from=ValueFrom(path=outputs))],
        volumes=[
            EmptyDirVolume(name="out", mount_path="/kuznia/out"),
            EmptyDirVolume(name="work", mount_path="/kuznia/work"),
        ],
        resources=Resources(
            cpu_request=needs.cpu, memory_request=needs.memory, ephemeral_request=needs.disk
        ),
        active_deadline_seconds=needs.hours * 3600,
        retry_strategy=RetryStrategy(
            limit=3,
            expression="asInt(lastRetry.exitCode) in [3, 75]",
            backoff=Backoff(duration="10s", factor=IntOrString(2)),
        ),
    )
