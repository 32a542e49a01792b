"""The catalogue: base models and GPU classes that the platform team offers."""

from __future__ import annotations

import difflib
import math
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from kuznia.contracts.base import Contract, load_yaml, parse
from kuznia.contracts.runspec import Name
from kuznia.errors import InputError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BaseModelEntry(Contract):
    """One base model."""

    source: str
    """Where it comes from: a folder, file://, s3://, gs://, hf://<repo>@<revision>, or
    pypi://<package>/<version>/<path of a .gguf file in it>."""
    digest: Sha256
    """Digest of the folder's manifest: what `kuznia` checks after every fetch."""
    licence: str
    """SPDX identifier."""
    template: str
    """LLaMA-Factory's name of the chat template; `verify` proves that it is the served one."""
    default_system: str | None = None
    """System prompt that the model's own chat template adds where a conversation has none; null
    leaves LLaMA-Factory's. It must be the same to the letter."""
    parameters: int = Field(gt=0)
    context_length: int = Field(gt=0)
    """Longest sequence, in tokens."""
    layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    dtype: Literal["bfloat16", "float16", "float32"]
    """Number format of the weights as stored."""
    pretraining_flop: float | None = Field(gt=0)
    """Compute of the original training, null where it is unknown."""
    pretraining_flop_basis: str
    """Where that number comes from, or why it is unknown."""
    languages: tuple[str, ...] = ()


class Toleration(Contract):
    """A Kubernetes toleration of the training pool."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"] = "NoSchedule"


class GpuClass(Contract):
    """A kind of accelerator that the training pool has."""

    memory_gib: float = Field(gt=0)
    """Memory of one GPU, GiB."""
    bf16_tflops: float = Field(gt=0)
    """Dense bf16 peak, TFLOP/s (vendor's figure)."""
    price_per_hour: float = Field(ge=0)
    """EUR for one GPU for one hour; 0 where it is not charged."""
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    queue: str | None = None
    """Kueue's LocalQueue for it; null: the tenant's."""


class Sizing(Contract):
    """GPU memory that some work on a model of some size takes; others are scaled from it."""

    work: Literal["lora", "qlora", "full", "inference"]
    parameters: float = Field(gt=0)
    memory_gib: float = Field(gt=0)
    """Of all GPUs together, GiB."""


class Catalogue(Contract):
    """What a run spec may name under `base` and `hardware`."""

    bases: dict[Name, BaseModelEntry]
    gpu_classes: dict[Name, GpuClass] = {}
    sizing: tuple[Sizing, ...] = ()
    """The platform team's rule of thumb: `kuznia check` refuses releases below it, the step plan
    says so and goes by its own estimate."""

    def memory_for(self, work: str, parameters: float) -> float:
        """GPU memory for `work` on a model of so many parameters, GiB; 0 where nothing is said.

        The row nearest in size is scaled in proportion.
        """
        rows = [row for row in self.sizing if row.work == work]
        if not rows:
            return 0.0
        nearest = min(rows, key=lambda row: abs(math.log(row.parameters / parameters)))
        return nearest.memory_gib * parameters / nearest.parameters

    def base(self, name: str, place: str) -> BaseModelEntry:
        """The entry `name`; InputError with the nearest names if there is none."""
        if name in self.bases:
            return self.bases[name]
        near = difflib.get_close_matches(name, self.bases, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(self.bases)}"
        raise InputError(f"{place}: base: {name!r} is not in the catalogue; {hint}")


def catalogue_path() -> Path:
    """The catalogue in force: $KUZNIA_CATALOGUE, else the one that ships."""
    given = os.environ.get("KUZNIA_CATALOGUE")
    return Path(given) if given else Path(__file__).parents[1] / "catalogue.yaml"


def load_catalogue(path: Path | None = None) -> Catalogue:
    """Read a catalogue file; InputError with every fault if it is not one."""
    path = path or catalogue_path()
    try:
        value = load_yaml(path.read_text("utf-8"), str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such catalogue; correct KUZNIA_CATALOGUE") from None
    catalogue: Catalogue = parse(Catalogue, value, str(path))
    return catalogue
