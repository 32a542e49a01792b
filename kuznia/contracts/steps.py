"""What goes into and comes out of every step of the chain.

Field names of inputs are the names of the steps they come from. Outputs are small: files travel
by URI and digest.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from kuznia.contracts.base import Contract
from kuznia.contracts.catalogue import BaseModelEntry, Sha256
from kuznia.contracts.runspec import Metric, RunSpec


class Folder(Contract):
    """A folder in the store, named by its content."""

    key: str
    """Key below the store's root, without a slash at the end."""
    digest: Sha256
    """Digest of its manifest."""
    bytes: int = Field(ge=0)


class File(Contract):
    """A file in the store."""

    key: str
    sha256: Sha256
    bytes: int = Field(ge=0)


# plan


class PlanInputs(Contract):
    """The run spec as text, and the run's name."""

    config: str
    run: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")


class Hardware(Contract):
    """What the run uses, and why."""

    device: Literal["cpu", "cuda"]
    gpu_class: str | None
    gpu: str = ""
    """The GPU's own name, known where the plan is made beside it; its class may be the nearest."""
    gpus: int = Field(ge=0)
    """On one node."""
    processes: int = Field(default=1, ge=1)
    """Trainer processes on one node, one a GPU; they share every batch."""
    nodes: int = Field(default=1, ge=1)
    """Nodes that train together."""
    threads: int = Field(ge=1)
    dtype: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    packing: bool
    reasons: tuple[str, ...]
    """One sentence for each choice."""

    def facts(self) -> dict[str, Any]:
        """All but the reasons, and a GPU's name only where it is known."""
        return self.model_dump(exclude={"reasons"} if self.gpu else {"reasons", "gpu"})


class Pod(Contract):
    """What a cluster is to add to the pods that use the hardware; nothing on one machine."""

    patch: str
    """JSON, a strategic merge patch for the pod's spec: nodes, tolerations, GPUs."""
    queue: str
    """Kueue's LocalQueue; empty for none."""


class Estimate(Contract):
    """What the run should take; rough, made before anything is downloaded."""

    rows: int
    tokens: int
    """Tokens over all epochs, without padding."""
    train_seconds: float
    memory_gib: float
    memory_available_gib: float
    disk_gib: float
    disk_available_gib: float
    cost: float
    """EUR, from the GPU class's price."""
    flop: float
    basis: str


class PlanOutputs(Contract):
    """Everything the later steps need to know; made once, before any expensive work."""

    run: str
    spec: RunSpec
    base: BaseModelEntry
    hardware: Hardware
    pod: Pod
    estimate: Estimate
    trainer: dict[str, Any]
    """LLaMA-Factory settings, all but paths."""

    @property
    def prefix(self) -> str:
        """Where this run's files lie in the store."""
        return f"runs/{self.spec.tenant}/{self.run}"


# data-check


class DataCheckInputs(Contract):
    plan: PlanOutputs


class SplitReport(Contract):
    """What was read and what was kept of one split."""

    rows_read: int
    rows: int
    """Rows kept."""
    empty: int
    over_long: int
    duplicates: int
    tokens_p50: int
    tokens_p95: int
    tokens_max: int
    """Estimated tokens a row (the trainer's tokenizer is not loaded here)."""
    examples: tuple[str, ...]
    """Up to ten dropped rows: `train.jsonl:17: empty answer`."""


class DataCheckOutputs(Contract):
    """Clean rows in one form (JSONL of {"messages": [...]}) and what was found."""

    train: File
    test: File
    fingerprint: Sha256
    """Digest of both files' ordered content."""
    train_report: SplitReport
    test_report: SplitReport
    overlap: int
    """Test rows whose prompt was in train; they are an error, so 0 in a passed check."""


# fetch-base


class FetchBaseInputs(Contract):
    plan: PlanOutputs


class FetchBaseOutputs(Contract):
    """The base model's folder in the store, its manifest checked against the catalogue."""

    base: Folder


# train


class TrainInputs(Contract):
    plan: PlanOutputs
    data_check: DataCheckOutputs
    fetch_base: FetchBaseOutputs


class TrainOutputs(Contract):
    """The adapter (or full weights) and how it came to be."""

    kind: Literal["adapter", "full"]
    weights: Folder
    loss_curve: File
    """JSONL: one line a logged step with step, epoch, loss, grad_norm, learning_rate."""
    steps: int
    epochs: float
    final_loss: float
    seconds: float
    """Seconds spent in training steps, over all attempts."""
    samples_per_second: float
    resumed: int
    """How many times training went on from a checkpoint."""
    flop: float
    """Estimated compute, 6 x parameters x tokens."""
    mlflow_run_id: str
    libraries: dict[str, str]
    """Versions of what trained."""


# evaluate


class EvaluateInputs(Contract):
    plan: PlanOutputs
    data_check: DataCheckOutputs
    fetch_base: FetchBaseOutputs
    train: TrainOutputs


class MetricResult(Contract):
    """One metric on the test rows, paired: the same rows answered by both."""

    base: float
    candidate: float
    difference: float
    low: float
    high: float
    """95 % interval of the paired difference (steps/metrics.py)."""
    candidate_low: float
    candidate_high: float
    """95 % interval of the candidate's mean."""


Verdict = Literal["promote", "hold", "not enough evidence"]


class EvaluateOutputs(Contract):
    test_rows: int
    metrics: dict[Metric, MetricResult]
    verdict: Verdict
    reasons: tuple[str, ...]
    answers: File
    """JSONL: one line a test row with prompt, expected, base, candidate and scores."""


# export


class ExportInputs(Contract):
    plan: PlanOutputs
    fetch_base: FetchBaseOutputs
    train: TrainOutputs


class ExportOutputs(Contract):
    """An immutable version in the store."""

    version: str = Field(pattern=r"^[0-9a-f]{12}$")
    folder: Folder
    mode: Literal["merged", "adapter"]
    unchanged_share: float = Field(ge=0, le=1)
    """Share of the adapted weights that rounding left as they were."""


# verify


class VerifyInputs(Contract):
    plan: PlanOutputs
    data_check: DataCheckOutputs
    fetch_base: FetchBaseOutputs
    train: TrainOutputs
    export: ExportOutputs


class SmokeAnswer(Contract):
    """A question and its answer, the first 500 characters of each."""

    prompt: str
    answer: str


class VerifyOutputs(Contract):
    """Whether the version is what was trained, and answers as it should."""

    passed: bool
    reasons: tuple[str, ...]
    template_rows: int
    template_equal: int
    """Rows whose token ids are equal under the trainer's template and the served one."""
    parity_positions: int
    top1_agreement: float
    """Share of positions where version and base + adapter put the same token first."""
    mean_kl: float
    max_kl: float
    """Kullback-Leibler divergence of next-token distributions, nats."""
    base_mean_kl: float
    """The same against the base alone: shows that the version differs from it."""
    smoke: tuple[SmokeAnswer, ...]
    answers: File
    """JSON: what the version answers, for the pods that serve it (steps/answers.py)."""


# register


class RegisterInputs(Contract):
    plan: PlanOutputs
    data_check: DataCheckOutputs
    fetch_base: FetchBaseOutputs
    train: TrainOutputs
    evaluate: EvaluateOutputs
    export: ExportOutputs
    verify: VerifyOutputs


class RegisterOutputs(Contract):
    name: str
    """Registered model's name, `<tenant>.<model>`."""
    number: int
    """MLflow's version number."""
    version: str
    aliases: tuple[str, ...]


# model-card


class ModelCardInputs(RegisterInputs):
    registration: RegisterOutputs
    """Outputs of the step register (the plain name is taken by Python's base classes)."""


class ModelCardOutputs(Contract):
    card: File
    readme: File
    complete: bool
    missing: tuple[str, ...]
    """Card paths that have no value."""
