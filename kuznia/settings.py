"""Where this process finds the store, MLflow and its caches; all from the environment.

| variable               | meaning                                | default                       |
|------------------------|----------------------------------------|-------------------------------|
| KUZNIA_HOME            | state of the local engine              | .kuznia in the current folder |
| KUZNIA_CACHE           | environments, models; safe to delete   | ~/.cache/kuznia               |
| KUZNIA_STORE           | URI of the store                       | <home>/store                  |
| MLFLOW_TRACKING_URI    | MLflow server or database              | sqlite:///<home>/mlflow.db    |
| KUZNIA_CATALOGUE       | the catalogue file                     | the one that ships            |
| KUZNIA_TENANT          | whose runs this workspace takes        | everybody's                   |
| KUZNIA_GPU_CLASSES     | GPU classes open here, with commas;    | the GPU that is here          |
|                        | the first is `hardware: auto`          |                               |
| KUZNIA_POD_CPU         | cores of a pod that trains             | this machine's                |
| KUZNIA_POD_MEMORY      | its memory, as 16Gi                    | this machine's                |
| KUZNIA_POD_DISK        | its disk, as 100Gi                     | what is free here             |
| KUZNIA_QUOTA           | the namespace's quota, and what asks   | none                          |
|                        | for a part of it, JSON; the chart      |                               |
|                        | helm/workspace sets it                 |                               |
| KUZNIA_QUEUE           | Kueue's LocalQueue for pods with GPUs  | none                          |
| KUZNIA_RENDEZVOUS      | host:port where several nodes meet; a  | none                          |
|                        | Job of `kuznia render job` sets it     |                               |
| KUZNIA_TERMINATION_LOG | where a step leaves its reason to fail | /dev/termination-log          |
| KUZNIA_SIGNING_KEY     | private key that signs versions: the   | <home>/keys/signing.pem, made |
|                        | path of a PEM file, or the PEM text    | on first use; in a pod none   |
| KUZNIA_TRUSTED_KEYS    | folder of public keys (*.pem), one of  | none: the registered digest   |
|                        | which must have signed what is served  | decides                       |
| KUZNIA_HTTP_TOKEN      | bearer token for weights at https://   | none                          |
| KUZNIA_KEYS            | folder of the keys that sign API keys  | <home>/keys/issuer, made on   |
|                        | of the gateway                         | first use; in a pod none      |

Those of notifications are in docs/howto/get-notified.md.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from kuznia.quantities import amount


def home() -> Path:
    """Folder of the local engine's state, absolute."""
    return Path(os.environ.get("KUZNIA_HOME", ".kuznia")).resolve()


def cache() -> Path:
    """Folder of what can be made again, absolute."""
    given = os.environ.get("KUZNIA_CACHE")
    return Path(given).resolve() if given else Path.home() / ".cache" / "kuznia"


def store_uri() -> str:
    """URI of the store."""
    return os.environ.get("KUZNIA_STORE") or (home() / "store").as_uri()


def tracking_uri() -> str:
    """Where MLflow keeps runs and the registry of models."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def tenant() -> str:
    """The tenant whose workspace this is; empty where anybody's runs may be."""
    return os.environ.get("KUZNIA_TENANT", "")


def gpu_classes() -> list[str] | None:
    """Names of the GPU classes that may be asked for, the default first; None: what is here."""
    given = os.environ.get("KUZNIA_GPU_CLASSES")
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


def in_a_pod() -> bool:
    """Whether this runs on a cluster, where a step's own folder dies with its pod."""
    return "KUZNIA_POD_CPU" in os.environ


def pod_size(what: Literal["CPU", "MEMORY", "DISK"]) -> float | None:
    """Cores or GiB of a pod that trains, where the platform team has said so."""
    given = os.environ.get(f"KUZNIA_POD_{what}")
    return float(amount(given) / (1 if what == "CPU" else 2**30)) if given else None


def quota() -> dict[str, Any]:
    """What the chart helm/workspace says of the quota; empty for none.

    `hard` is a ResourceQuota's; `pod` the resources of a pod that uses the hardware, `beside` those
    of each container that runs at the same time.
    """
    found: dict[str, Any] = json.loads(os.environ.get("KUZNIA_QUOTA") or "{}")
    return found


def workspace() -> dict[str, Any]:
    """What the platform team allows and gives a run, by variable, as it stands now."""
    names = ("TENANT", "GPU_CLASSES", "POD_CPU", "POD_MEMORY", "POD_DISK", "QUOTA", "QUEUE")
    return {name: os.environ.get(f"KUZNIA_{name}", "") for name in names}


def signing_key() -> str:
    """Path or text of the private key that signs versions; empty where none is named."""
    return os.environ.get("KUZNIA_SIGNING_KEY", "")


def trusted_keys() -> Path | None:
    """Folder of the public keys that sign what may be served here; None: all may be served."""
    given = os.environ.get("KUZNIA_TRUSTED_KEYS")
    return Path(given) if given else None


def keys_folder() -> Path | None:
    """Folder of the keys that sign API keys, where one is named."""
    given = os.environ.get("KUZNIA_KEYS")
    return Path(given).resolve() if given else None


def queue() -> str:
    """Kueue's LocalQueue for pods with GPUs; empty for none."""
    return os.environ.get("KUZNIA_QUEUE", "")


def rendezvous() -> str:
    """Where the trainers of several nodes meet, host:port; empty on a node that trains alone."""
    return os.environ.get("KUZNIA_RENDEZVOUS", "")


def node() -> int:
    """This node's number among those that train together; Kubernetes numbers a Job's pods."""
    return int(os.environ.get("JOB_COMPLETION_INDEX") or 0)
