"""Where a run trains: the GPU or the cores that `hardware` in the run spec comes to."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kuznia import machine, settings
from kuznia.contracts.catalogue import Catalogue, GpuClass
from kuznia.contracts.runspec import RunSpec
from kuznia.contracts.steps import Pod
from kuznia.errors import InputError
from steps.estimates import CPU_FLOPS_PER_CORE, GPU_UTILISATION, PARALLEL_EFFICIENCY


@dataclass(frozen=True)
class Place:
    """Where the run trains."""

    device: Literal["cpu", "cuda"]
    gpu_class: str | None
    memory_gib: float
    flops: float
    """FLOP/s that training is expected to sustain."""
    price_per_hour: float
    why: str
    gpu: str = ""
    """The GPU's own name where it is here."""

    def times(self, processes: int) -> Place:
        """As many of it as there are processes, which share every batch: speed and price grow."""
        return replace(
            self,
            flops=self.flops * processes * PARALLEL_EFFICIENCY,
            price_per_hour=self.price_per_hour * processes,
        )


def cores(gpus: int = 1) -> int:
    """Cores of the machine or of the pod that will train, which gets as many for every GPU."""
    pod = settings.pod_size("CPU")
    return max(1, int(pod * gpus if pod else machine.cores()))


def memory_gib() -> float:
    """Memory of the machine or of the pod that will train, GiB."""
    return settings.pod_size("MEMORY") or machine.memory_gib()


def disk_gib(path: Path) -> float:
    """Disk that the pod that will train gets, or that is free at `path`, GiB."""
    return settings.pod_size("DISK") or machine.free_disk_gib(path)


def place_of(spec: RunSpec, catalogue: Catalogue, spec_name: str) -> Place:
    """What `hardware` comes to here; InputError if there is no such thing or it cannot do."""
    allowed = settings.gpu_classes()
    choices = [name for name in catalogue.gpu_classes if allowed is None or name in allowed]
    if spec.hardware in choices:
        found = catalogue.gpu_classes[spec.hardware]
        return _gpu_place(spec.hardware, found, found.memory_gib, "as hardware asks")
    if spec.hardware not in ("auto", "cpu"):
        known = ["auto", "cpu", *choices]
        near = difflib.get_close_matches(spec.hardware, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        where = (
            "open to this tenant" if spec.hardware in catalogue.gpu_classes else "in the catalogue"
        )
        raise InputError(f"{spec_name}: hardware: {spec.hardware!r} is not {where}; {hint}")
    if spec.hardware == "auto" and allowed and choices:
        name = next(name for name in allowed if name in choices)
        found = catalogue.gpu_classes[name]
        return _gpu_place(name, found, found.memory_gib, "the tenant's first GPU class")
    gpus = machine.gpus() if spec.hardware == "auto" and allowed is None else []
    if gpus:
        here = len(visible_gpus())
        if spec.gpus > max(here, 1):
            raise InputError(
                f"{spec_name}: gpus: {spec.gpus} is more than are open here ({here}); set gpus: "
                f"{max(here, 1)}"
            )
        nearest = class_of(gpus[0], catalogue)
        of_class = catalogue.gpu_classes[nearest] if nearest else None
        name = gpus[0].name
        place = _gpu_place(nearest, of_class, gpus[0].memory_gib, f"{name} is here")
        return replace(place, gpu=name)
    if problems := list(cpu_problems(spec, spec_name)):
        raise InputError(problems)
    why = "no GPU class is open here" if allowed is not None else "no NVIDIA GPU is here"
    why = why if spec.hardware == "auto" else "as hardware asks"
    flops = CPU_FLOPS_PER_CORE["bfloat16" if machine.multiplies_bfloat16() else "float32"]
    return Place("cpu", None, memory_gib(), cores() * flops, 0.0, why)


def cpu_problems(spec: RunSpec, spec_name: str) -> Iterator[str]:
    """One line for each thing in the spec that a CPU cannot do."""
    if spec.method == "qlora":
        yield (
            f"{spec_name}: method: qlora needs an NVIDIA GPU, and this run would be on cpu; "
            "set method: lora, or hardware to a GPU class"
        )
    if spec.gpus > 1:
        yield (
            f"{spec_name}: gpus: {spec.gpus} need NVIDIA GPUs, and this run would be on cpu; set "
            "gpus: 1, or hardware to a GPU class"
        )


def visible_gpus() -> list[str]:
    """The GPUs that are open to this process, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(index) for index in range(len(machine.gpus()))]
    return [name.strip() for name in given.split(",") if name.strip()]


def pod_of(place: Place, catalogue: Catalogue, gpus: int) -> Pod:
    """What a cluster adds to pods that use `place`: its nodes, tolerations, GPUs and queue.

    For several GPUs also memory that their processes share, and cores and memory for each.
    """
    if place.gpu_class is None:
        return Pod(patch="{}", queue="")
    found = catalogue.gpu_classes[place.gpu_class]
    amounts = {"nvidia.com/gpu": str(gpus)}
    main: dict[str, Any] = {"name": "main", "resources": {"limits": amounts, "requests": amounts}}
    patch: dict[str, Any] = {
        "nodeSelector": found.node_selector,
        "tolerations": [t.model_dump(exclude_none=True) for t in found.tolerations],
        "containers": [main],
    }
    if gpus > 1:
        if cpu := settings.pod_size("CPU"):
            amounts["cpu"] = f"{cpu * gpus:g}"
        if memory := settings.pod_size("MEMORY"):
            amounts["memory"] = f"{memory * gpus:g}Gi"
        # NCCL moves gradients through shared memory; a container has 64 MiB of it otherwise.
        main["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]
        shared = {"medium": "Memory", "sizeLimit": f"{gpus}Gi"}
        patch["volumes"] = [{"name": "shm", "emptyDir": shared}]
    return Pod(patch=json.dumps(patch, sort_keys=True), queue=found.queue or settings.queue())


def _gpu_place(name: str | None, found: GpuClass | None, memory: float, why: str) -> Place:
    """A GPU without a class is taken for a small one that costs nothing."""
    tflops, price = (found.bf16_tflops, found.price_per_hour) if found else (60.0, 0.0)
    return Place("cuda", name, memory, GPU_UTILISATION * tflops * 1e12, price, why)


def class_of(gpu: machine.Gpu, catalogue: Catalogue) -> str | None:
    """The GPU class that a GPU is nearest to, or None if it has less memory than any.

    Its name decides where a class's name begins like it (H100 80GB and A100 80GB), else memory.
    """
    fitting = [n for n, c in catalogue.gpu_classes.items() if c.memory_gib <= gpu.memory_gib * 1.02]
    words = gpu.name.lower().replace("-", " ").split()
    named = [name for name in fitting if name.split("-")[0] in words]
    by_memory = sorted(named or fitting, key=lambda name: catalogue.gpu_classes[name].memory_gib)
    return by_memory[-1] if by_memory else None
