"""The run spec: the one file that a team writes to get a fine-tuned model (train.yaml)."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kuznia.contracts.base import Contract, load_yaml, parse
from kuznia.contracts.llamafactory import llamafactory_problems
from kuznia.errors import InputError

NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME)]
"""A tenant's, model's or base's name: it becomes part of namespaces, URIs and host names."""

Metric = Literal["exact_match", "token_f1"]
Method = Literal["lora", "qlora", "full"]
Risk = Literal["minimal", "limited", "high"]


class Columns(Contract):
    """Which columns of a CSV file hold what."""

    prompt: str
    """Column with the question or instruction."""
    response: str
    """Column with the answer to learn."""
    system: str | None = None
    """Column with a system prompt, if any."""


class Data(Contract):
    """Where the rows are and what form they have."""

    train: str
    """Path beside the run spec, or a URI (file://, s3://, gs://, hf://)."""
    test: str | None = None
    """Held-out rows in the same form; without it `test_fraction` of the rows is split off."""
    format: Literal["alpaca", "sharegpt", "openai", "csv"]
    """How a row is written; see docs/howto/prepare-data.md."""
    columns: Columns | None = None
    """For csv only."""
    test_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of rows split off for testing where `test` is absent."""

    @model_validator(mode="after")
    def _columns_go_with_csv(self) -> Data:
        if self.format == "csv" and self.columns is None:
            raise ValueError(
                "format csv needs columns; add columns: {prompt: <name>, response: <name>}"
            )
        if self.format != "csv" and self.columns is not None:
            raise ValueError(
                f"columns belong to format csv, not {self.format}; remove them or set format: csv"
            )
        return self


class GateRule(Contract):
    """What a metric must reach before a version may be promoted."""

    at_least: float | None = Field(default=None, ge=0, le=1)
    """The candidate's mean on the test rows, 0 to 1."""
    not_worse_than: Literal["base", "deployed"] | None = None
    margin: float = Field(default=0.0, ge=0, le=1)
    """How much worse than the other still counts as not worse."""

    @model_validator(mode="after")
    def _asks_something(self) -> GateRule:
        if self.at_least is None and self.not_worse_than is None:
            raise ValueError("asks nothing; set at_least or not_worse_than")
        return self


class Evaluation(Contract):
    """How the candidate is measured."""

    metrics: tuple[Metric, ...] = ("exact_match", "token_f1")
    gate: dict[Metric, GateRule] = {}
    """What the verdict asks of a metric; without a gate: one better than the base, none worse."""
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    """Longest answer that is generated for a test row, in tokens."""

    @model_validator(mode="after")
    def _gate_uses_measured_metrics(self) -> Evaluation:
        for metric in self.gate:
            if metric not in self.metrics:
                raise ValueError(f"gate.{metric} is not in metrics; add it to metrics")
        return self


class Export(Contract):
    """What form the version takes."""

    merge: bool = True
    """Merge a LoRA adapter into the base; false keeps base and adapter apart."""


class CardSpec(Contract):
    """What only a person can say about the model; the rest of the card is measured."""

    purpose: str = Field(min_length=10)
    """What the model is for, in a sentence."""
    owner: str = Field(min_length=1)
    """Who answers for it."""
    risk: Risk
    """Risk of the intended use under the AI Act."""
    users: str | None = None
    """Who is meant to use it."""
    out_of_scope: str | None = None
    """What it must not be used for."""
    limitations: str | None = None
    """What it is known to do badly."""
    data_origin: str | None = None
    """Where the rows come from."""
    data_licence: str | None = None
    """Under which terms they may be used."""


UNMERGEABLE = ("use_dora", "additional_target", "resize_vocab", "add_tokens", "add_special_tokens")
"""Settings whose weights the step export could only refuse, after all training."""


class RunSpec(Contract):
    """One run of the chain, asked for by a person."""

    tenant: Name
    """Who owns the model."""
    model: Name
    """The model's name; with the tenant's it names the registered model."""
    base: str
    """A name in the catalogue."""
    data: Data
    method: Method = "lora"
    """lora trains an adapter, qlora too on a 4-bit base (needs a GPU), full all weights."""
    hardware: str = "auto"
    """auto, cpu, or a GPU class of the catalogue."""
    gpus: int = Field(default=1, ge=1, le=8)
    """GPUs of one node that share every batch; a CPU has none to share."""
    nodes: int = Field(default=1, ge=1, le=16)
    """Nodes that train together; more than one only by `kuznia render job`."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Same spec, rows and seed: same weights, on the same kind of machine."""
    llamafactory: dict[str, Any] = {}
    """Trainer settings passed on; keys that the platform owns are refused by name."""
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    card: CardSpec
    wandb: str | None = Field(default=None, min_length=1)
    """Weights & Biases project that gets the metrics too; WANDB_MODE=offline keeps them here."""

    @field_validator("llamafactory")
    @classmethod
    def _llamafactory_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        problems = llamafactory_problems(value)
        if problems:
            raise ValueError("\n".join(problems))
        return value

    @model_validator(mode="after")
    def _merge_fits_method(self) -> RunSpec:
        if self.method == "full" and not self.export.merge:
            raise ValueError("export.merge: false needs an adapter; use method lora or set it true")
        return self

    @model_validator(mode="after")
    def _what_is_trained_can_be_merged(self) -> RunSpec:
        odd = [key for key in UNMERGEABLE if self.llamafactory.get(key)]
        if odd and self.export.merge:
            other = "" if self.method == "full" else ", or set export.merge: false"
            raise ValueError(
                f"llamafactory: {', '.join(odd)}: not to be merged into the base, which has no "
                f"place for it; leave it out{other}"
            )
        return self

    @model_validator(mode="after")
    def _several_gpus_are_no_cpu(self) -> RunSpec:
        if self.gpus > 1 and self.hardware == "cpu":
            raise ValueError(
                f"gpus: {self.gpus} and hardware: cpu do not go together; set gpus: 1, or "
                "hardware to a GPU class"
            )
        return self


def parse_run_spec(text: str, place: str = "config") -> RunSpec:
    """The run spec in `text` (YAML).

    Raises InputError with every fault; `place` is the file's name in the messages.
    """
    value = load_yaml(text, place)
    if "{{" in text:
        raise InputError(
            f"{place}: holds {{{{, which Argo would fill in on a cluster; write it without"
        )
    if not isinstance(value, dict):
        raise InputError(f"{place}: is not a mapping of keys; start from `kuznia init`")
    spec: RunSpec = parse(RunSpec, value, place)
    return spec


def is_uri(path: str) -> bool:
    """Whether a data path is a URI and not a file beside the spec."""
    return "://" in path


def data_suffix(path: str) -> str:
    """The file name's ending in lower case: `.jsonl`, `.csv`, `.json`."""
    return PurePosixPath(path.split("://")[-1]).suffix.lower()
