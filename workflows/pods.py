"""The pod of a step: how it is confined, what it asks for, when it is tried again."""

from __future__ import annotations

from typing import NamedTuple

from hera.workflows import (
    ConfigMapVolume,
    Container,
    EmptyDirVolume,
    Parameter,
    Resources,
    RetryStrategy,
    SecretEnv,
)
from hera.workflows.models import (
    Backoff,
    Capabilities,
    ConfigMapEnvSource,
    ConfigMapKeySelector,
    EnvFromSource,
    IntOrString,
    PodSecurityContext,
    RetryAffinity,
    RetryNodeAntiAffinity,
    SeccompProfile,
    SecretEnvSource,
    SecurityContext,
    SemaphoreRef,
    Synchronization,
    ValueFrom,
)

from kuznia import __version__

OUTPUTS = "/kuznia/out/outputs.json"
USER = 65532
SETTINGS = "kuznia"
"""ConfigMap, and Secret where there is one, whose keys are every step's environment variables."""
SIGNING = "kuznia-signing"
"""Secret with the key `signing.pem`, where there is one; only the pod that signs gets it."""
LOCKS = "kuznia-locks"
"""ConfigMap whose keys size the tenant's semaphores."""
LOST = (
    "^pod deleted|node shutdown|^Pod was terminated|low on resource"
    "|Error \\\\(exit code (137|143)\\\\)"
)
"""What Argo's message says where the pod was taken away or its node lost. Exit code 137 without
OOMKilled is how a container ends that the kubelet had to kill, 143 how one ends when it is told to.
Mostly the pod is gone before Argo looks, but a finalizer, such as Kueue's, keeps it in sight."""


class Needs(NamedTuple):
    """Image and service account of a step, and what its pod asks for."""

    image: str
    account: str
    cpu: int
    memory: str
    disk: str
    hours: int
    """An attempt that runs longer is stopped."""
    signs: bool = False
    """Whether it gets the tenant's signing key."""
    hardware: bool = False
    """Whether it runs on what the run spec's `hardware` comes to; else it never asks for a GPU."""
    retries: int = 3


_SIGNING_KEY = SecretEnv(
    name="KUZNIA_SIGNING_KEY", secret_name=SIGNING, secret_key="signing.pem", optional=True
)


def pod_security() -> PodSecurityContext:
    """Every pod of a run: what the Pod Security Standard `restricted` wants."""
    return PodSecurityContext(
        run_as_non_root=True,
        run_as_user=USER,
        run_as_group=USER,
        fs_group=USER,
        fs_group_change_policy="OnRootMismatch",
        seccomp_profile=SeccompProfile(type="RuntimeDefault"),
    )


def container(
    name: str, needs: Needs, module: str, arguments: list[str], inputs: list[str]
) -> Container:
    """A container template that runs `python -m <module> <arguments>` in the step's image."""
    step = Container(
        name=name,
        image=f"kuznia/{needs.image}:{__version__}",
        image_pull_policy="IfNotPresent",
        command=["python", "-m", module],
        args=arguments,
        env_from=[
            EnvFromSource(config_map_ref=ConfigMapEnvSource(name=SETTINGS)),
            EnvFromSource(secret_ref=SecretEnvSource(name=SETTINGS, optional=True)),
        ],
        env=[_SIGNING_KEY] if needs.signs else None,
        inputs=[Parameter(name=field) for field in inputs],
        outputs=[Parameter(name="outputs", value_from=ValueFrom(path=OUTPUTS))],
        volumes=[
            EmptyDirVolume(name="out", mount_path="/kuznia/out"),
            EmptyDirVolume(name="work", mount_path="/kuznia/work"),
            EmptyDirVolume(name="tmp", mount_path="/tmp"),
            # The chart puts the tenant's claim here where it has one.
            EmptyDirVolume(name="storage", mount_path="/storage"),
            ConfigMapVolume(name="kuznia-catalogue", optional=True, mount_path="/etc/kuznia"),
        ],
        resources=_resources(needs),
        service_account_name=needs.account,
        security_context=SecurityContext(
            allow_privilege_escalation=False,
            capabilities=Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        ),
        active_deadline_seconds=needs.hours * 3600,
        retry_strategy=_retry(needs.retries),
    )
    if needs.hardware:
        # What `plan` found out about the hardware, on the pods that use it.
        step.pod_spec_patch = "{{=jsonpath(inputs.parameters.plan, '$.pod.patch')}}"
        step.labels = {
            "kueue.x-k8s.io/queue-name": "{{=jsonpath(inputs.parameters.plan, '$.pod.queue')}}"
        }
        slots = ConfigMapKeySelector(name=LOCKS, key="hardware")
        step.synchronization = Synchronization(semaphores=[SemaphoreRef(config_map_key_ref=slots)])
    return step


def _resources(needs: Needs) -> Resources:
    return Resources(
        cpu_request=needs.cpu,
        cpu_limit=needs.cpu,
        memory_request=needs.memory,
        memory_limit=needs.memory,
        ephemeral_request=needs.disk,
        ephemeral_limit=needs.disk,
    )


def _retry(limit: int) -> RetryStrategy:
    """Again after exit codes 3 and 75 and after a lost pod; nothing else.

    Never on a node that an attempt failed on, which Argo demands, not prefers: where no other node
    is left the step waits. So the chart leaves this out unless retry.otherNode is true.
    """
    return RetryStrategy(
        limit=limit,
        expression=f"asInt(lastRetry.exitCode) in [3, 75] || lastRetry.message matches '{LOST}'",
        backoff=Backoff(duration="10s", factor=IntOrString(2), cap="2m"),
        affinity=RetryAffinity(node_anti_affinity=RetryNodeAntiAffinity()),
    )
