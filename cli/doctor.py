"""Look for what would keep this machine from running the chain."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click

from cli.output import COLOURS, print_json
from kuznia import settings
from kuznia.errors import KuzniaError

LEAST_MEMORY_GIB = 6
LEAST_DISK_GIB = 15
"""Both environments and a small model; a larger base needs more, which `plan` computes."""


class Finding(NamedTuple):
    """One line of the report; a `problem` keeps the chain from running, a `note` does not."""

    what: str
    state: str
    detail: str


@click.command(epilog="example: kuznia doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(as_json: bool) -> None:
    """Look for what would keep this machine from running the chain.

    A `note` limits something, a `problem` must be solved first; exit code 1 if there is one.
    """
    findings = [finding for check in CHECKS for finding in check()]
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        width = max(len(finding.what) for finding in findings)
        for what, state, detail in findings:
            colour = click.style(f"{state:<8}", fg=COLOURS[state])
            click.echo(f"{what:<{width}}  {colour} {detail}")
    if any(finding.state == "problem" for finding in findings):
        raise SystemExit(1)


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        yield Finding("python", "ok", version)
    else:
        yield Finding("python", "problem", f"{version} is not 3.11; install it with `make setup`")


def _machine() -> Iterator[Finding]:
    import psutil

    yield Finding("cores", "ok", str(len(os.sched_getaffinity(0))))
    memory = psutil.virtual_memory().available / 2**30
    if memory >= LEAST_MEMORY_GIB:
        yield Finding("memory", "ok", f"{memory:.1f} GiB available")
    else:
        detail = f"{memory:.1f} GiB available, under {LEAST_MEMORY_GIB}; close other programs"
        yield Finding("memory", "problem", detail)
    places = {"disk (state)": settings.home(), "disk (cache)": settings.cache()}
    for what, folder in places.items():
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free / 2**30
        if free >= LEAST_DISK_GIB:
            yield Finding(what, "ok", f"{free:.0f} GiB free at {folder}")
        else:
            detail = f"{free:.1f} GiB free at {folder}, under {LEAST_DISK_GIB}; free some"
            yield Finding(what, "problem", detail)


def _gpu() -> Iterator[Finding]:
    program = shutil.which("nvidia-smi")
    if not program:
        yield Finding("gpu", "note", "none found; training and serving use the CPU")
        return
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode:
        yield Finding("gpu", "note", "nvidia-smi fails; check the driver, or use the CPU")
    else:
        yield Finding("gpu", "ok", "; ".join(done.stdout.strip().splitlines()))


def _environments() -> Iterator[Finding]:
    from kuznia.sources import uv_program
    from workflows.environments import environment_folder, images, is_ready

    try:
        yield Finding("uv", "ok", uv_program())
    except KuzniaError as error:
        yield Finding("uv", "problem", str(error))
    for image in images():
        if is_ready(image):
            yield Finding(f"environment {image}", "ok", str(environment_folder(image)))
        else:
            detail = "not installed yet; that happens on first use"
            yield Finding(f"environment {image}", "note", detail)


def _store() -> Iterator[Finding]:
    from kuznia.store import open_store

    uri = settings.store_uri()
    try:
        open_store(uri).write("doctor/probe", b"written by kuznia doctor")
    except KuzniaError as error:
        yield Finding("store", "problem", str(error))
    except OSError as error:
        detail = f"{uri}: {error.strerror}; choose another place by KUZNIA_STORE"
        yield Finding("store", "problem", detail)
    else:
        yield Finding("store", "ok", f"{uri} can be written")


def _mlflow() -> Iterator[Finding]:
    uri = settings.tracking_uri()
    if uri.startswith("sqlite:///"):
        yield _database(Path(uri.removeprefix("sqlite:///")))
        return
    import httpx

    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        detail = f"{uri}: {error}; start the server or correct MLFLOW_TRACKING_URI"
        yield Finding("mlflow", "problem", detail)
    else:
        yield Finding("mlflow", "ok", f"{uri} answers")


def _database(path: Path) -> Finding:
    if not path.exists():
        return Finding("mlflow", "ok", f"{path} is made by the first run")
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        return Finding("mlflow", "problem", f"{path}: {error}; move it away or mend it")
    return Finding("mlflow", "ok", str(path))


def _serving() -> Iterator[Finding]:
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        detail = "not found; vLLM on a CPU needs it: apt-get install libnuma1"
        yield Finding("libnuma", "note", detail)
    else:
        yield Finding("libnuma", "ok", "found")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8000))
        except OSError:
            yield Finding("port 8000", "note", "is taken; `kuznia serve` needs --port")
        else:
            yield Finding("port 8000", "ok", "free")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _machine,
    _gpu,
    _environments,
    _store,
    _mlflow,
    _serving,
)
