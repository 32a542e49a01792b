"""The chain as an Argo WorkflowTemplate: which step runs in which image, with how much.

What a step needs is not said here: its inputs contract names the steps it reads from, and that
is the order. How a pod is confined and retried is in `workflows/pods.py`.
`python -m workflows.compile` writes the YAML that Argo and the local engine run.
"""

from __future__ import annotations

import json

from hera.workflows import DAG, Container, Parameter, Task, WorkflowTemplate
from hera.workflows.models import ExecutorConfig, PodGC, TTLStrategy

from kuznia import __version__
from steps.__main__ import STEPS
from workflows.metrics import run_metrics
from workflows.pods import OUTPUTS, Needs, container, pod_security

DAY = 24 * 3600
CHAIN = {
    "plan": Needs("platform", "kuznia-data", 1, "1Gi", "2Gi", hours=1),
    "data-check": Needs("platform", "kuznia-data", 1, "2Gi", "10Gi", hours=2),
    "fetch-base": Needs("serve", "kuznia-model", 2, "8Gi", "100Gi", hours=6),
    "train": Needs("train", "kuznia-model", 4, "16Gi", "100Gi", 168, hardware=True, retries=20),
    "evaluate": Needs("train", "kuznia-model", 4, "16Gi", "50Gi", 24, hardware=True, retries=10),
    "export": Needs("train", "kuznia-model", 2, "16Gi", "100Gi", hours=6, signs=True),
    "verify": Needs("train", "kuznia-model", 4, "16Gi", "50Gi", 6, hardware=True, retries=10),
    "register": Needs("platform", "kuznia-registry", 1, "1Gi", "1Gi", hours=1),
    "model-card": Needs("platform", "kuznia-registry", 1, "1Gi", "1Gi", hours=1),
}
NOTIFY = Needs("platform", "kuznia-notify", 1, "512Mi", "1Gi", hours=1)
NAME = f"kuznia-finetune-{__version__.replace('.', '-')}"
OTHER_SOURCES = {"registration": "register"}
"""Inputs that are not named after the step they come from."""


def build() -> WorkflowTemplate:
    """The template; `config` is the only parameter without a default."""
    with WorkflowTemplate(
        name=NAME,
        entrypoint="chain",
        on_exit="notify",
        arguments=[Parameter(name="config"), Parameter(name="run", value="{{workflow.name}}")],
        parallelism=2,
        active_deadline_seconds=14 * DAY,
        ttl_strategy=TTLStrategy(seconds_after_completion=30 * DAY),
        # Pods are kept a while for their logs; they hold no resources once they have ended.
        pod_gc=PodGC(strategy="OnWorkflowCompletion", delete_delay_duration="1h"),
        security_context=pod_security(),
        service_account_name="kuznia-data",
        automount_service_account_token=False,
        executor=ExecutorConfig(service_account_name="kuznia-executor"),
        # Time for a checkpoint after SIGTERM; no variables named after the namespace's Services.
        pod_spec_patch=json.dumps(
            {"terminationGracePeriodSeconds": 120, "enableServiceLinks": False}
        ),
    ) as template:
        containers = {name: _step(name, needs) for name, needs in CHAIN.items()}
        _notify()
        with DAG(name="chain"):
            for name, step in containers.items():
                sources = {field: source_of(field) for field in fields_of(name)}
                Task(
                    name=name,
                    template=step,
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


def _step(name: str, needs: Needs) -> Container:
    arguments = [name]
    for field, is_text in fields_of(name).items():
        option = "--text" if is_text else "--input"
        arguments += [option, f"{field}={_verbatim(f'inputs.parameters[{field!r}]')}"]
    arguments += ["--outputs", OUTPUTS, "--workdir", "/kuznia/work"]
    return container(name, needs, "steps", arguments, list(fields_of(name)))


def _verbatim(value: str) -> str:
    """Argo's reference to a value, for a container's arguments.

    Kubernetes replaces $(NAME) there, a Secret's variable too, and makes one $ of two.
    """
    return f"{{{{=sprig.replace('$', '$$', {value})}}}}"


def _notify() -> Container:
    """The exit handler: whatever the end, say it once, with the reason, and count it."""
    facts = {
        "workflow": "workflow.name",
        "uid": "workflow.uid",
        "namespace": "workflow.namespace",
        "status": "workflow.status",
        "seconds": "workflow.duration",
        "attempt": "retries",
    }
    texts = {
        "run": "workflow.parameters.run",
        "config": "workflow.parameters.config",
        "failures": "workflow.failures",
    }
    arguments = [f"--{name}={{{{{fact}}}}}" for name, fact in facts.items()]
    arguments += [f"--{name}={_verbatim(text)}" for name, text in texts.items()]
    arguments += [f"--retries={NOTIFY.retries}"]
    step = container("notify", NOTIFY, "steps.notify", [*arguments, "--outputs", OUTPUTS], [])
    step.metrics = run_metrics()
    return step
