"""`kuznia render` for many tenants, beside an app-of-apps chart that makes the same objects."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from bench.results import machine, save, spread
from kuznia.applications import GENERATED
from tests.fixtures.checkouts import checkout, release, tenant, write

SIZES = ((10, 10), (100, 10), (1000, 10))
TIMES = 3


def main() -> None:
    """Each size, ours and the chart in turn."""
    rows = []
    for tenants, models in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            root = _registry(Path(folder) / "registry", tenants, models)
            command = [sys.executable, "-m", "cli.main", "render", "--root", str(root)]
            ours, our_memory = _measure(command, root / GENERATED)
            chart = _chart(Path(folder) / "chart", root)
            theirs, their_memory = _measure(["helm", "template", "x", str(chart)])
        rows.append(
            {
                "tenants x models": f"{tenants} x {models}",
                "kuznia render, s": spread(ours),
                "MiB": our_memory,
                "helm template of an app-of-apps chart, s": spread(theirs),
                "MiB ": their_memory,
            }
        )
    save(
        "render_registry",
        "From the registry in git to what Argo CD reads",
        rows,
        machine("pydantic", "pyyaml"),
        "`kuznia render` reads and checks every release file too, and writes what changed; the "
        "chart is given all tenants as one values file and checks nothing.",
    )


def _registry(root: Path, tenants: int, models: int) -> Path:
    shares = {key: {"cpu": 1000, "memory_gib": 4000} for key in ("training", "inference")}
    names = [f"t{number:04}" for number in range(tenants)]
    checkout(root, **{name: tenant(name, quota=shares) for name in names})
    stages = {
        f"{name}/m{number}/staging.yaml": release(name, f"m{number}")
        for name in names
        for number in range(models)
    }
    return write(root, stages)


def _chart(folder: Path, root: Path) -> Path:
    """A chart with one template for all that a tenant has, and every tenant in its values."""
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: x\nversion: 0.1.0\n", "utf-8")
    one = root / GENERATED / "t0000"
    documents = [
        path.read_text("utf-8").replace("{{", '{{ "{{" }}')
        for path in sorted(one.rglob("*.yaml"))
        if path.parent.name != "values"
    ]
    text = "\n---\n".join(documents).replace("t0000", "{{ .name }}")
    template = f"{{{{- range .Values.tenants }}}}\n---\n{text}\n{{{{- end }}}}\n"
    (folder / "templates" / "tenants.yaml").write_text(template, "utf-8")
    names = [path.name for path in sorted((root / GENERATED).iterdir()) if path.name != "platform"]
    values = {"tenants": [{"name": name} for name in names]}
    (folder / "values.yaml").write_text(yaml.safe_dump(values), "utf-8")
    return folder


def _measure(command: list[str], gone: Path | None = None) -> tuple[list[float], float]:
    """Seconds of each repetition and the most memory of one, MiB; `gone` is removed before each."""
    seconds, memory = [], 0
    for _ in range(TIMES):
        if gone and gone.exists():
            shutil.rmtree(gone)
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - began)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        memory = max(memory, used.ru_maxrss // 1024)
    return seconds, float(memory)
