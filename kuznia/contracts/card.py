"""The model card: what is known about one version, and where each statement comes from.

Every leaf says its source; a leaf without a value says what to do about it. Nothing is blank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Literal, TypeVar

from pydantic import model_validator

from kuznia.contracts.base import Contract
from kuznia.contracts.runspec import Risk

Source = Literal["measured", "config", "human", "derived"]
T = TypeVar("T")

VARYING = (
    "identity.run",
    "registration.number",
    "training.mlflow_run_id",
    "training.loss_curve_sha256",
    "training.resumed",
    "training.duration_s",
    "training.samples_per_second",
)
"""Paths whose values may differ between two runs that make the same version on one machine."""


class Leaf(Contract, Generic[T]):
    """One statement."""

    value: T | None = None
    source: Source
    """measured by a step, taken from config, written by a human, or derived from the others."""
    evidence: str | None = None
    """What shows it: a key in the store, a digest, or a key of the run spec or catalogue."""
    missing: str | None = None
    """What to do where there is no value."""

    @model_validator(mode="after")
    def _never_blank(self) -> Leaf[T]:
        if (self.value is None) == (self.missing is None):
            raise ValueError("needs a value or, without one, what is missing; give one of them")
        return self


class Identity(Contract):
    tenant: Leaf[str]
    model: Leaf[str]
    version: Leaf[str]
    manifest_sha256: Leaf[str]
    mode: Leaf[str]
    """merged, or adapter beside its base."""
    bytes: Leaf[int]
    uri: Leaf[str]
    """Key of the version's folder in the store."""
    run: Leaf[str]
    kuznia: Leaf[str]


class Registration(Contract):
    """Where MLflow has it."""

    name: Leaf[str]
    number: Leaf[int]


class Purpose(Contract):
    """What only people can say."""

    statement: Leaf[str]
    owner: Leaf[str]
    risk: Leaf[Risk]
    users: Leaf[str]
    out_of_scope: Leaf[str]
    limitations: Leaf[str]


class Base(Contract):
    name: Leaf[str]
    relation: Leaf[str]
    """finetune or adapter, as Hugging Face names it."""
    origin: Leaf[str]
    manifest_sha256: Leaf[str]
    licence: Leaf[str]
    parameters: Leaf[int]
    context_length: Leaf[int]
    languages: Leaf[tuple[str, ...]]
    pretraining_flop: Leaf[float]
    pretraining_flop_basis: Leaf[str]


class Training(Contract):
    method: Leaf[str]
    seed: Leaf[int]
    hyperparameters: Leaf[dict[str, Any]]
    hardware: Leaf[dict[str, Any]]
    libraries: Leaf[dict[str, str]]
    steps: Leaf[int]
    epochs: Leaf[float]
    final_loss: Leaf[float]
    loss_curve_sha256: Leaf[str]
    flop: Leaf[float]
    duration_s: Leaf[float]
    samples_per_second: Leaf[float]
    resumed: Leaf[int]
    mlflow_run_id: Leaf[str]


class Gpai(Contract):
    """General-purpose AI: whether the fine-tuning makes its maker a provider of such a model."""

    ratio: Leaf[float]
    """FLOP of the fine-tuning over FLOP of the base's training."""
    threshold_flop: Leaf[float]
    above_threshold: Leaf[bool]
    basis: Leaf[str]


class Split(Contract):
    """The rows of one split, after the data gate."""

    rows: Leaf[int]
    sha256: Leaf[str]
    dropped: Leaf[dict[str, int]]
    """Rows that the gate dropped, by reason."""
    tokens: Leaf[dict[str, int]]
    """Estimated tokens a row: p50, p95, max."""


class Data(Contract):
    origin: Leaf[str]
    licence: Leaf[str]
    format: Leaf[str]
    fingerprint: Leaf[str]
    train: Split
    test: Split
    overlap: Leaf[int]
    """Test rows whose prompt is in train."""


class CardMetric(Contract):
    """One metric on the test rows; intervals are 95 %."""

    value: Leaf[float]
    interval: Leaf[tuple[float, float]]
    base: Leaf[float]
    difference: Leaf[float]
    difference_interval: Leaf[tuple[float, float]]
    gate: Leaf[dict[str, Any]]
    """What the run spec asked for before the run."""


class Evaluation(Contract):
    test_rows: Leaf[int]
    dataset_sha256: Leaf[str]
    answers_sha256: Leaf[str]
    verdict: Leaf[str]
    reasons: Leaf[tuple[str, ...]]
    metrics: dict[str, CardMetric]


class Parity(Contract):
    """Whether what is served is what was trained."""

    passed: Leaf[bool]
    reasons: Leaf[tuple[str, ...]]
    template_rows: Leaf[int]
    template_equal: Leaf[int]
    positions: Leaf[int]
    top1_agreement: Leaf[float]
    mean_kl: Leaf[float]
    max_kl: Leaf[float]
    base_mean_kl: Leaf[float]
    unchanged_share: Leaf[float]


class Transparency(Contract):
    """Article 50: what people who meet the model must be told."""

    notes: Leaf[tuple[str, ...]]


class Card(Contract):
    """Everything that is known about one version."""

    schema_version: Literal[1] = 1
    kind: Literal["model"] = "model"
    law: Leaf[str]
    """The consolidated text and the rule file that derived fields follow."""
    identity: Identity
    registration: Registration
    purpose: Purpose
    base: Base
    training: Training
    gpai: Gpai
    data: Data
    evaluation: Evaluation
    parity: Parity
    art50: Transparency

    def leaves(self) -> Iterator[tuple[str, Leaf[Any]]]:
        """(dotted path, leaf) of every statement, in the order of the card."""
        yield from _leaves("", self)

    @property
    def missing(self) -> tuple[str, ...]:
        """Paths without a value."""
        return tuple(path for path, leaf in self.leaves() if leaf.missing is not None)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Leaf[Any]]]:
    if isinstance(value, Leaf):
        yield path, value
        return
    if isinstance(value, Contract):
        parts = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, dict):
        parts = list(value.items())
    else:
        return
    for name, part in parts:
        yield from _leaves(f"{path}.{name}" if path else name, part)
