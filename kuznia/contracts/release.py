"""A release: which version a tenant serves, argocd/registry/<tenant>/<model>/<stage>.yaml.

The file is also a values file of the chart `helm/vllm`: what a person writes is what is deployed.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kuznia.contracts.base import Contract
from kuznia.contracts.catalogue import Sha256
from kuznia.contracts.limits import Limits

Stage = Literal["staging", "production"]
STAGES: tuple[Stage, ...] = ("staging", "production")

VERSION_LINES = (
    "version",
    "digest",
    "uri",
    "base",
    "mode",
    "base_uri",
    "base_digest",
    "lora_rank",
    "answers_uri",
    "answers_sha256",
    "card",
)
"""The keys that say what is served. Promotion moves these lines and no other."""

Uri = Annotated[str, Field(pattern=r"^(s3|gs|https|hf|file)://[^\s]+$")]
Gib = Annotated[float, Field(gt=0)]


class Autoscaling(Contract):
    """Replicas by load: KEDA on vLLM's queue and its key-value cache."""

    most: int = Field(ge=1)
    """Replicas at most; `replicas` is the least."""
    waiting: int = Field(default=5, ge=1)
    """Requests that wait, a replica, above which one is added."""
    cache: float = Field(default=0.8, gt=0, le=1)
    """Share of the key-value cache in use above which one is added."""


class Release(Contract):
    """One release of one version of one model."""

    version: str = Field(pattern=r"^[0-9a-f]{12}$")
    """The version's name: the first 12 hex digits of its digest."""
    digest: Sha256
    """Digest of the version's manifest; weights that differ are not served."""
    uri: Uri
    """The version's folder in the store."""
    base: str
    """The base model's name in the catalogue."""
    mode: Literal["merged", "adapter"] = "merged"
    base_uri: Uri | None = None
    """The base's folder, where the version is an adapter."""
    base_digest: Sha256 | None = None
    """Digest of the base's manifest, where the version is an adapter."""
    lora_rank: int | None = Field(default=None, ge=1, le=512)
    """The adapter's rank, where the version is one."""
    answers_uri: Uri | None = None
    """The prompts and answers that `verify` recorded; a pod is ready when it answers so."""
    answers_sha256: Sha256 | None = None
    card: str | None = None
    """The card in this repository, model-cards/<tenant>/<model>/<version>.yaml."""

    replicas: int = Field(default=1, ge=1, le=64)
    context_length: int = Field(default=4096, ge=64)
    """Longest conversation that is served, in tokens."""
    hardware: str = "cpu"
    """`cpu`, or a GPU class that is open to the tenant."""
    gpus: int = Field(default=1, ge=1, le=8)
    """GPUs of a replica, over which every layer is split; not used where hardware is cpu."""
    cpu: float = Field(default=4, gt=0)
    """Cores of a replica."""
    memory_gib: Gib = 16
    """Memory of a replica, GiB."""
    disk_gib: Gib = 50
    """Disk of a replica for its weights, GiB."""
    rollout: Literal["surge", "recreate"] = "surge"
    """surge starts a new replica before an old one ends; recreate needs no room for two, and
    answers nobody in between."""
    weights: Literal["fetch", "stream", "fuse"] = "fetch"
    """fetch copies and checks every file first; stream (runai_streamer) and fuse (GCS FUSE) read
    from the bucket and check the manifest's signature alone."""
    engine: Literal["vllm", "llamafactory"] = "vllm"
    """llamafactory is its own `api` server, for experiments."""
    autoscaling: Autoscaling | None = None
    limits: Limits = Limits()
    """What all callers of this release may use together."""
    concurrency: int | None = Field(default=None, ge=1)
    """Requests in progress at most; more are answered 429."""
    split: int = Field(default=0, ge=0, le=50)
    """Of a production release: per cent of the callers who are answered by the staging release
    instead, always the same ones."""
    arguments: tuple[str, ...] = ()
    """More arguments of vLLM, as --name=value."""

    @model_validator(mode="after")
    def _version_is_the_digests(self) -> Release:
        if not self.digest.startswith(self.version):
            raise ValueError(
                f"version {self.version} is not how digest {self.digest[:12]}... begins; copy "
                "both from one version"
            )
        return self

    @model_validator(mode="after")
    def _adapter_has_a_base(self) -> Release:
        keys = ("base_uri", "base_digest", "lora_rank")
        given = [key for key in keys if getattr(self, key) is not None]
        if self.mode == "adapter" and len(given) < len(keys):
            raise ValueError(f"mode adapter needs {', '.join(keys)}; add all of them")
        if self.mode == "merged" and given:
            raise ValueError(f"{given[0]} belongs to mode adapter, not merged; remove it")
        return self

    @model_validator(mode="after")
    def _answers_have_a_digest(self) -> Release:
        if (self.answers_uri is None) != (self.answers_sha256 is None):
            raise ValueError("answers_uri and answers_sha256 go together; add the other")
        return self

    @model_validator(mode="after")
    def _grows_upward(self) -> Release:
        if self.autoscaling and self.autoscaling.most < self.replicas:
            raise ValueError(
                f"autoscaling.most: {self.autoscaling.most} is below replicas: {self.replicas}; "
                "raise it"
            )
        return self

    @property
    def on_gpu(self) -> bool:
        return self.hardware != "cpu"

    @property
    def replicas_at_once(self) -> int:
        """The most replicas that exist at one time, a rollout's included."""
        most = self.autoscaling.most if self.autoscaling else self.replicas
        return most + (self.rollout == "surge")
