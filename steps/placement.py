"""Where a run trains: the GPU or the cores that `hardware` in the run spec comes to."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from kuznia import machine
from kuznia.contracts.catalogue import Catalogue, GpuClass
from kuznia.contracts.runspec import RunSpec
from kuznia.errors import InputError
from steps.estimates import CPU_FLOPS_PER_CORE, GPU_UTILISATION


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


def place_of(spec: RunSpec, catalogue: Catalogue, spec_name: str) -> Place:
    """What `hardware` comes to here; InputError if there is no such thing or it cannot do."""
    if spec.hardware in catalogue.gpu_classes:
        found = catalogue.gpu_classes[spec.hardware]
        return _gpu_place(spec.hardware, found, found.memory_gib, "as hardware asks")
    if spec.hardware not in ("auto", "cpu"):
        known = ["auto", "cpu", *catalogue.gpu_classes]
        near = difflib.get_close_matches(spec.hardware, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        raise InputError(
            f"{spec_name}: hardware: {spec.hardware!r} is not in the catalogue; {hint}"
        )
    gpus = machine.gpus() if spec.hardware == "auto" else []
    if gpus:
        name = class_of(gpus[0], catalogue)
        of_class = catalogue.gpu_classes[name] if name else None
        return _gpu_place(name, of_class, gpus[0].memory_gib, f"{gpus[0].name} is here")
    if spec.method == "qlora":
        raise InputError(
            f"{spec_name}: method: qlora needs an NVIDIA GPU, and this run would be on cpu; "
            "set method: lora, or hardware to a GPU class"
        )
    why = "no NVIDIA GPU is here" if spec.hardware == "auto" else "as hardware asks"
    flops = machine.cores() * CPU_FLOPS_PER_CORE
    return Place("cpu", None, machine.memory_gib(), flops, 0.0, why)


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
