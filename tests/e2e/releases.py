"""Releases of the tiny model on a real Argo CD: publishing one, its pods, questions to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import yaml

from kuznia.card_views import card_yaml
from kuznia.cards import build_card, load_rules
from tests.e2e.cluster import HERE, Tenant, image_of, kubectl, wait_for
from tests.e2e.platform import SHARED, Platform
from tests.e2e.versions import MODEL, SMALL
from tests.fixtures import evidence

NAME = f"{MODEL}-production"


def carded(deployed: Platform, tenant: Tenant, lines: dict[str, Any]) -> dict[str, Any]:
    """The release file for `lines`, with a card that says what they are."""
    card = yaml.safe_load(card_yaml(build_card(evidence.card_inputs(), load_rules())))
    says = {
        "tenant": tenant.name,
        "model": MODEL,
        "version": lines["version"],
        "manifest_sha256": lines["digest"],
    }
    for key, value in says.items():
        card["identity"][key]["value"] = value
    path = f"model-cards/{tenant.name}/{MODEL}/{lines['version']}.yaml"
    (deployed.checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (deployed.checkout / path).write_text(yaml.safe_dump(card, allow_unicode=True), "utf-8")
    return lines | {"card": path} | SMALL


def publish(deployed: Platform, tenant: Tenant, lines: dict[str, Any]) -> tuple[str, float]:
    """Commit a production release; the commit, and when it was pushed."""
    deployed.write({f"{tenant.name}/{MODEL}/production.yaml": carded(deployed, tenant, lines)})
    return deployed.push(f"{tenant.name}/{MODEL} {lines['version']} to production")


def pods(tenant: Tenant, version: str) -> list[dict[str, Any]]:
    """The pods of a version that are not ending, the newest last."""
    listed = kubectl(
        *("get", "pods", "-n", f"{tenant.name}-inference", "-o", "json"),
        *("-l", f"kuznia.model={MODEL},kuznia.version={version}"),
    )
    found = [p for p in json.loads(listed)["items"] if "deletionTimestamp" not in p["metadata"]]
    return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])


def ready(pod: dict[str, Any]) -> float | None:
    """When a pod became ready, seconds since 1970."""
    for condition in pod["status"].get("conditions", []):
        if (condition["type"], condition["status"]) == ("Ready", "True"):
            return moment(condition["lastTransitionTime"])
    return None


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@contextmanager
def caller(role: str) -> Iterator[str]:
    """A pod in the gateway's namespace with the label of a role there; its name."""
    name = f"load-{role}"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": role}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "load",
                    "image": image_of("platform"),
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "3600"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }
    kubectl("-n", SHARED, "apply", "-f", "-", text=json.dumps(pod))
    try:
        kubectl("-n", SHARED, "wait", f"pod/{name}", "--for=condition=Ready", "--timeout=120s")
        yield name
    finally:
        kubectl("-n", SHARED, "delete", "pod", name, "--grace-period=0", "--force")


class Load:
    """Questions to one release, from where the gateway is: so many a second, and so many always."""

    def __init__(self, pod: str, tenant: Tenant, rate: float = 10, always: int = 0) -> None:
        self.pod = pod
        address = f"http://{NAME}.{tenant.name}-inference:8000/v1/chat/completions"
        program = (HERE / "load.py").read_text("utf-8")
        self.exec("sh", "-c", "cat > /tmp/load.py", text=program)
        line = f"python /tmp/load.py {address} {tenant.name}/{MODEL} {rate} {always}"
        self.exec("sh", "-c", f"{line} > /tmp/answers 2>&1 & echo $! > /tmp/pid")

    def exec(self, *command: str, text: str | None = None) -> str:
        return kubectl("-n", SHARED, "exec", "-i", self.pod, "--", *command, text=text or "")

    def answers(self) -> list[dict[str, Any]]:
        """What came back so far, in the order of the answers."""
        return [json.loads(line) for line in self.exec("cat", "/tmp/answers").splitlines()]

    def latest(self, count: int) -> set[str]:
        """The texts of the last answers."""
        return {each.get("text", each.get("error")) for each in self.answers()[-count:]}

    def stop(self) -> list[dict[str, Any]]:
        """Ask no more, wait for the last answers; all of them by the time they were asked."""
        self.exec("sh", "-c", "kill -TERM $(cat /tmp/pid)")
        found = wait_for(
            "the last answers", lambda: [a for a in [self.answers()] if "asked" in a[-1]], 150
        )[0]
        assert found[-1]["asked"] == len(found) - 1
        return sorted(found[:-1], key=lambda each: each["start"])


def lost(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The questions that were not answered, or not to the end."""
    return [each for each in answers if each["status"] != 200 or not each["ended"]]
