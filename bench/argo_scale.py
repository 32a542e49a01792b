"""Many runs at once on a cluster: time per run and the controller's memory.

Everything is real but the steps, whose images are replaced by the chart's value `images` with one
that does nothing: so what is measured is Argo, Kubernetes and our template. Beside it the same
nine-step DAG as a person would first write it, without exit handler, locks, limits and confinement.
Needs what `make e2e` needs, and the image kuznia/noop (tests/e2e/noop). KUZNIA_BENCH_RUNS, as in
"10 50 200", says how many runs; on two cores 200 of them, 2,000 pods, take about half an hour.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import httpx

from bench.results import machine, save, spread
from kuznia.progress import say
from tests.e2e.cluster import Tenant, forwarded, image_of, kubectl, wait_for, workspace
from workflows.finetune import CHAIN, NAME, build

IMAGE = image_of("noop")
SIZES = [int(size) for size in os.environ.get("KUZNIA_BENCH_RUNS", "10 50").split()]
COMPLETED = "workflows.argoproj.io/completed"
MEMORY = re.compile(r"^process_resident_memory_bytes (\S+)", re.M)


def main() -> None:
    """Measure each size on our template, and the smallest on the bare one."""
    rows = []
    name = f"load-{secrets.token_hex(2)}"
    mlflow = {"enabled": False, "trackingUri": "http://nowhere:5000"}
    images = dict.fromkeys(("platform", "train", "serve"), IMAGE)
    # The disk, too: by the chart's 100Gi, two pods would fill the node.
    small = {"cpu": "10m", "memory": "32Mi", "ephemeral-storage": "10Mi"}
    large = {"cpu": "1", "memory": "256Mi", "ephemeral-storage": "1Gi"}
    sizes = {"requests": small, "limits": large}
    pods = {"heavy": sizes, "light": sizes}
    values = {
        "images": images,
        "mlflow": mlflow,
        "pods": pods,
        "hardware": {"slots": 200, "gpuClasses": []},
    }
    tenant = Tenant(name, "s3://unused")
    with workspace(tenant, values, {"UNUSED": "1"}), _memory() as memory:
        kubectl("label", "ns", tenant.namespace, "workflows.argoproj.io/parallelism-limit=500")
        kubectl("apply", "-f", "-", text=json.dumps(_bare(tenant.namespace)))
        for label, template, size in [
            ("bare DAG", "bare", SIZES[0]),
            *(("Kuźnia's template", NAME, size) for size in SIZES),
        ]:
            memory.clear()
            rows.append({"template": label, "runs at once": size} | _load(tenant, template, size))
            rows[-1]["controller, MiB at most"] = round(max(memory) / 2**20)
            _save(rows)


def _save(rows: list[dict[str, Any]]) -> None:
    """After every size: the next one may take an hour."""
    save(
        "argo_scale",
        "Many runs at once on one node, steps that do nothing",
        rows,
        machine("hera"),
        "A run is nine steps in ten pods with the exit handler, nine pods without. What limits is "
        "the node, which starts the pods; the controller's memory grows with the runs it holds.",
    )


def _load(tenant: Tenant, template: str, size: int) -> dict[str, Any]:
    """Start `size` runs at once and wait for all; every one must succeed."""
    label = secrets.token_hex(3)
    runs = [
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {
                "name": f"r{label}-{number}",
                "namespace": tenant.namespace,
                "labels": {"load": label},
            },
            "spec": {
                "workflowTemplateRef": {"name": template},
                # At once: a kubelet that keeps a thousand ended pods has no time for others.
                "podGC": {"strategy": "OnPodCompletion", "deleteDelayDuration": "0s"},
                "arguments": {"parameters": [{"name": "config", "value": "model: noop"}]},
            },
        }
        for number in range(size)
    ]
    began = time.monotonic()
    kubectl(
        "create", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": runs})
    )

    of_load = ("wf", "-n", tenant.namespace, "-l")

    def ended() -> bool:
        # As a table: hundreds of runs in full, again and again, would be load of our own.
        done = kubectl("get", *of_load, f"load={label},{COMPLETED}=true", "--no-headers")
        count = len(done.splitlines())
        say(f"{template}: {count} of {size} have ended")
        time.sleep(3)
        return count == size

    wait_for("the end of all runs", ended, 7200)
    wall = time.monotonic() - began
    items = json.loads(kubectl("get", *of_load, f"load={label}", "-o", "json"))["items"]
    failed = [item["metadata"]["name"] for item in items if item["status"]["phase"] != "Succeeded"]
    if failed:
        raise SystemExit(f"error: {len(failed)} of {size} runs failed: {', '.join(failed[:5])}")
    seconds = [
        (_moment(item["status"]["finishedAt"]) - _moment(item["metadata"]["creationTimestamp"]))
        for item in items
    ]
    kubectl("delete", *of_load, f"load={label}", "--wait=true")
    return {
        "s in all": round(wall),
        "s a run": round(wall / size, 2),
        "s from start to end": spread(seconds),
    }


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@contextmanager
def _memory() -> Iterator[list[float]]:
    """Resident bytes of Argo's controller, every second, by its own metrics page."""
    found: list[float] = []
    stop = threading.Event()

    def ask(address: str) -> None:
        # On a node that is busy starting pods an answer may take long.
        with httpx.Client(verify=False, timeout=120) as client:
            while not stop.wait(1):
                page = client.get(f"{address}/metrics").text
                found.extend(float(value) for value in MEMORY.findall(page))

    def watch() -> None:
        while not stop.is_set():
            with forwarded("argo", "deployment/workflow-controller", 9090) as address:
                try:
                    ask(address.replace("http:", "https:"))
                except httpx.TransportError as error:
                    say(f"the controller's metrics: {error}; asking anew")

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield found
        finally:
            stop.set()
        watching.result()


def _bare(namespace: str) -> dict[str, Any]:
    """The same DAG with plain containers: same image, same arguments, same outputs."""
    full = build().to_dict()
    spec = full["spec"]
    templates = []
    for template in spec["templates"]:
        if "container" not in template:
            templates.append(template)
        elif template["name"] in CHAIN:
            container = template["container"]
            templates.append(
                {
                    "name": template["name"],
                    "inputs": template["inputs"],
                    "outputs": template["outputs"],
                    "volumes": [{"name": "out", "emptyDir": {}}],
                    "container": {
                        "image": IMAGE,
                        "imagePullPolicy": "IfNotPresent",
                        "command": container["command"],
                        "args": container["args"],
                        "volumeMounts": [{"name": "out", "mountPath": "/kuznia/out"}],
                        "securityContext": container["securityContext"],
                    },
                }
            )
    kept = {key: spec[key] for key in ("entrypoint", "arguments", "parallelism", "securityContext")}
    # The namespace's own walls: without these two no pod would start in it.
    kept |= {"automountServiceAccountToken": False, "executor": spec["executor"]}
    return {
        "apiVersion": full["apiVersion"],
        "kind": full["kind"],
        "metadata": {"name": "bare", "namespace": namespace},
        "spec": kept | {"templates": templates},
    }


if __name__ == "__main__":
    main()
