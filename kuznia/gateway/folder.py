"""The gateway's folder: every file of it, checked by Envoy itself before it is used."""

from __future__ import annotations

import json
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

from kuznia.contracts.base import canonical_json
from kuznia.errors import DependencyError, InputError
from kuznia.gateway.envoy import files
from kuznia.gateway.guard import guard_config
from kuznia.gateway.limits import DOMAIN, text_of
from kuznia.gateway.places import Places
from kuznia.gateway.table import Table

LIMITS = "limits/config/kuznia.yaml"
"""Where envoyproxy/ratelimit looks, below its runtime root."""
GUARD = "guard.json"
SECONDS = 120
"""For Envoy to check a configuration of ten thousand releases many times over."""


def compiled(table: Table, places: Places, revoked: dict[str, int]) -> dict[str, str]:
    """Every file, by its name in the folder, in the order to write them.

    `revoked` has the keys that are no longer good: jti and when they would end, Unix seconds.
    """
    limits = {"domain": DOMAIN, "descriptors": list(table.limits)}
    return {
        GUARD: canonical_json(guard_config(table)).decode() + "\n",
        LIMITS: text_of(limits),
        **files(table, places, revoked),
    }


def validate(made: dict[str, str], envoy: Path) -> None:
    """Have Envoy check what it would watch; InputError with its words if it would refuse it.

    DependencyError where it comes to no verdict.
    """
    clusters, listeners = (
        json.loads(made[name])["resources"] for name in ("clusters.json", "listeners.json")
    )
    (routes,) = json.loads(made["routes.json"])["resources"]
    start = json.loads(made["envoy.json"])
    del start["dynamic_resources"]
    start["admin"] = {}
    for each in listeners:
        _inline(each, routes)
    resources = start["static_resources"]
    resources["listeners"] = [_untyped(each) for each in listeners]
    resources["clusters"] += [_untyped(each) for each in clusters]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(start, file)
        file.flush()
        line = [str(envoy), "--mode", "validate", "-c", file.name, "-l", "error"]
        try:
            done = subprocess.run(
                [*line, "--concurrency", "1"],
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise DependencyError(
                f"Envoy has not checked the configuration in {SECONDS} s; give it more CPU"
            ) from None
    if done.returncode < 0:
        raise DependencyError(
            f"signal {-done.returncode} ended Envoy's check of the configuration; give it more "
            "memory"
        )
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise InputError(f"Envoy refuses the configuration: {' '.join(lines[-3:])[:600]}")


def _untyped(resource: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in resource.items() if key != "@type"}


def _inline(listener: dict[str, Any], routes: dict[str, Any]) -> None:
    """The routes in the listener itself, and no files: watched ones are not read here."""
    for chain in listener["filter_chains"]:
        chain.pop("transport_socket", None)
        manager = chain["filters"][0]["typed_config"]
        # The spool is where the gateway runs, which need not be here.
        for log in manager.get("access_log", ()):
            log["typed_config"]["path"] = "/dev/null"
        if manager.pop("rds", None):
            manager["route_config"] = _untyped(routes)


def write(made: dict[str, str], folder: Path) -> list[str]:
    """Put what differs into `folder`, each file at once or not at all; returns their names."""
    changed = []
    for name, text in made.items():
        path = folder / name
        if path.exists() and path.read_text("utf-8") == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        try:
            partial.write_text(text, "utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        changed.append(name)
    return changed
