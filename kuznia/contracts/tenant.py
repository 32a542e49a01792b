"""A tenant: argocd/registry/<tenant>/tenant.yaml. And the platform it lives on, beside it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from kuznia.contracts.base import Contract
from kuznia.contracts.limits import Limits
from kuznia.contracts.release import Gib
from kuznia.contracts.runspec import Name, Risk

Host = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,}$")]


def _public(key: str) -> str:
    if "PRIVATE" in key:
        raise ValueError("holds a private key; replace it, and put the public part here")
    if not re.match(r"-----BEGIN PUBLIC KEY-----\n", key):
        raise ValueError("is not a public key in PEM form; paste the whole file")
    return key


PublicKey = Annotated[str, AfterValidator(_public)]
State = Literal["active", "hibernated", "retired"]


class Share(Contract):
    """What one of the tenant's namespaces may use at a time."""

    gpus: int = Field(default=0, ge=0)
    cpu: float = Field(gt=0)
    """Cores."""
    memory_gib: Gib


class TrainingShare(Share):
    """What training may use at a time."""

    runs: int = Field(default=1, ge=1)
    """Runs whose training, evaluation or verification goes on at once; others wait."""


class Quota(Contract):
    """What the tenant may use."""

    training: TrainingShare
    inference: Share


class People(Contract):
    """Groups of the organisation's identity provider with each role."""

    data_scientists: tuple[str, ...] = ()
    """Start, follow and stop runs; see what is served, change nothing of it."""
    mlops: tuple[str, ...] = ()
    """Also look into both namespaces; promote by pull request."""
    compliance: tuple[str, ...] = ()
    """Read everything but secrets."""
    reviewers: tuple[str, ...] = ()
    """Accounts or teams of the forge that must approve what goes into production, as @name."""
    callers: tuple[str, ...] = ()
    """Ask the models in production; data scientists and MLOps also those in staging."""


class Identities(Contract):
    """Annotations of the workloads' service accounts, for Workload Identity or IRSA."""

    data: dict[str, str] = {}
    """Steps that read rows and write reports."""
    model: dict[str, str] = {}
    """Steps that read and write weights."""
    registry: dict[str, str] = {}
    """Steps that register versions."""
    notify: dict[str, str] = {}
    """What tells the end of a run, with what its steps have left in the store."""
    mlflow: dict[str, str] = {}
    serving: dict[str, str] = {}
    """Pods that serve; they only read."""


class Storage(Contract):
    """Where everything of the tenant is kept."""

    store: str = Field(pattern=r"^(s3://|gs://|file:///storage/).+")
    """s3://bucket/prefix, gs://bucket/prefix, or file:///storage/store on a volume claim."""
    settings: dict[str, str] = {}
    """Environment variables of every step and every serving pod, as AWS_ENDPOINT_URL."""
    secret: str | None = None
    """Name of the key in the organisation's secret store that fills the Secret `kuznia`."""
    signing_secret: str | None = None
    """Name of the key there whose value is the private key (PEM) that signs versions."""
    claim_gib: int = Field(default=0, ge=0)
    """Size of the volume claim at /storage, GiB; 0 for none."""
    access_modes: tuple[Literal["ReadWriteOnce", "ReadWriteMany"], ...] = ()
    """How its nodes mount it: ReadWriteMany unless the platform says otherwise; ReadWriteOnce for a
    disk that one node has at a time."""
    storage_class: str = ""
    existing_claim: str = ""
    """Claim in the training namespace that is there already, in place of a new one."""
    serving_claim: str = ""
    """Claim in the inference namespace on the same volume, where the store is on one: a claim
    belongs to one namespace."""


class MLflow(Contract):
    """The tenant's MLflow."""

    backend: Literal["sqlite", "postgres"] = "sqlite"
    """sqlite on a volume of its own, or Postgres at the address in the Secret `mlflow`."""
    gib: int = Field(default=5, ge=1)
    """Size of its volume, GiB."""


class Retention(Contract):
    """How long what is kept is kept."""

    audit_days: int = Field(default=190, ge=190)
    """Audit records; the AI Act asks for six months at least."""


class Tenant(Contract):
    """Who owns models, what they may use, who may do what, and whether it is awake."""

    state: State = "active"
    """hibernated stops everything and keeps all data; retired is the first step of removal."""
    cluster: Name = "in-cluster"
    """Name of a cluster that is registered in Argo CD and listed in platform.yaml."""
    hosts: tuple[Host, ...] = ()
    """Names under which the gateway answers for this tenant."""
    gpu_classes: tuple[Name, ...] = ()
    """GPU classes of the catalogue that are open to it; the first is the default."""
    queue: str = ""
    """Kueue's ClusterQueue for its training; empty: no Kueue."""
    quota: Quota
    people: People = People()
    identities: Identities = Identities()
    storage: Storage
    mlflow: MLflow = MLflow()
    signing_keys: tuple[PublicKey, ...] = ()
    """Public keys (PEM) whose signature weights must carry; empty: unsigned weights are served."""
    guard: Literal["off", "default", "strict"] = "default"
    """The gateway's policy for what goes in and comes out."""
    limits: Limits = Limits()
    """What all callers of the tenant may use together."""
    key_limits: Limits = Limits()
    """What each caller may use: keys of one name, or a person of the organisation."""
    two_people_for: tuple[Risk, ...] = ("high",)
    """Risk classes whose production releases need the approval of two reviewers."""
    retention: Retention = Retention()
    webui: bool = False
    """LLaMA-Factory's WebUI (LLaMA Board) in the training namespace."""


class Part(Contract):
    """A part by others, at one version: a chart of a chart repository, or a folder of a git one."""

    repository: str = Field(pattern=r"^https://\S+$")
    version: str = Field(pattern=r"^v?[0-9]+\.[0-9]+\.[0-9]+$")
    """The chart's version, or the git repository's tag."""
    chart: str | None = None
    path: str | None = None
    """Folder with a chart, a kustomization or plain manifests."""
    namespace: Name
    values: dict[str, Any] = {}
    """Values of its chart."""

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Part:
        if (self.chart is None) == (self.path is None):
            raise ValueError("needs either chart or path; set one of them")
        return self


class Issuer(Contract):
    """An identity provider of the organisation (OpenID Connect) whose tokens the gateway takes."""

    issuer: str = Field(pattern=r"^https?://\S+$")
    """As in the tokens' claim `iss`."""
    audiences: tuple[str, ...] = Field(min_length=1)
    jwks: str = Field(pattern=r"^https?://\S+$")
    """Where its public keys are."""
    groups: str = "groups"
    """The claim with the caller's groups, which people: of a tenant names."""


class Access(Contract):
    """Who may come to the gateway, and under which names it answers."""

    hosts: tuple[Host, ...] = ()
    """Names of the gateway for all tenants; a tenant's own are in its file."""
    issuers: tuple[Issuer, ...] = ()
    keys: tuple[PublicKey, ...] = ()
    """Public keys (PEM) that sign the platform's own API keys; `kuznia keys public` prints them."""
    store: str = Field(default="", pattern=r"^((s3|gs)://.+|file:///storage/.+)?$")
    """Where revoked keys are read from and the audit log goes."""
    largest_request_mib: int = Field(default=32, ge=1, le=256)
    """Requests above it are refused, MiB."""


class Platform(Contract):
    """What all tenants share: where git is, which images, which clusters."""

    repository: str = Field(pattern=r"^(https?|ssh)://\S+$")
    """This repository's address, as Argo CD reads it."""
    revision: str = "main"
    """Branch that is deployed."""
    argocd: str = "argocd"
    """Argo CD's namespace."""
    clusters: dict[Name, str] = {"in-cluster": "https://kubernetes.default.svc"}
    """Clusters that are registered in Argo CD: name and address."""
    images: dict[str, str] = {}
    """Images by digest, as `make images` prints them; empty: kuznia/<name>:<version>."""
    gateway: str = "llm-shared"
    """Namespace of the gateway, the only one that may reach a model."""
    access: Access = Access()
    entry: dict[str, Any] = {}
    """Values of the chart helm/gateway; empty: it is not deployed."""
    shared: dict[str, Any] = {}
    """Values of the chart helm/shared, which lives in the gateway's namespace."""
    sync: dict[str, Any] = {}
    """Values of the chart helm/sync besides repository and branch; empty: it is not deployed."""
    parts: dict[Name, Part] = {}
    """Parts by others that Argo CD installs; leave out what the cluster has already."""
    removals: int = Field(default=1, ge=0)
    """Releases that one change may remove."""
    workspace: dict[str, Any] = {}
    """More values of the chart helm/workspace, the same for every tenant."""
    serving: dict[str, Any] = {}
    """More values of the chart helm/vllm, the same for every release."""
