"""What the gateway's benchmarks start: Envoy as compiled, what stands beside it, and LiteLLM."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.gateway_load import Load
from bench.gateway_wire import request
from kuznia.contracts.limits import MOST, Limits
from kuznia.contracts.tenant import Access
from kuznia.errors import DependencyError
from kuznia.gateway.folder import GUARD, LIMITS, compiled, write
from kuznia.gateway.limits import counters
from kuznia.gateway.places import Places
from kuznia.gateway.table import Table, Target
from kuznia.progress import say
from workflows.environments import ROOT, envoy

TENANTS, MODELS = 1000, 10
ASKED = 20
"""Tenants whose keys and releases the load uses."""
START = 120
"""Seconds that a proxy has to start."""
AUTHORISE = "envoy.filters.http.lua"


@dataclass(frozen=True)
class Running:
    """A proxy that answers, and all processes that are its cost."""

    port: int
    processes: tuple[psutil.Process, ...]
    requests: list[bytes]
    streamed: list[bytes]

    def cpu(self) -> float:
        """Seconds of CPU that it has used."""
        return sum(
            sum(each.cpu_times()[:2])
            for process in self.processes
            for each in (process, *process.children(recursive=True))
        )

    def mib(self) -> float:
        """Resident memory, MiB."""
        return sum(
            each.memory_info().rss / 2**20
            for process in self.processes
            for each in (process, *process.children(recursive=True))
        )


def cores() -> tuple[int, int]:
    """A core for the proxy, one for the load and the model."""
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        raise DependencyError("this benchmark needs two cores; run it on a machine that has them")
    return found[0], found[1]


class Issuer:
    """Keys for the callers of the load, signed as the platform's are."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        self._key = ec.generate_private_key(ec.SECP256R1())
        self.public = (
            self._key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def token(self, tenant: str, jti: str) -> str:
        """A key for every model of `tenant`."""
        import jwt

        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": "kuznia",
            "aud": "kuznia-gateway",
            "sub": "bench",
            "jti": jti,
        }
        claims |= {"tenant": tenant, "models": ["*"], "risks": ["minimal", "limited", "high"]}
        claims |= {"stages": ["production"], "iat": now, "nbf": now, "exp": now + 86400}
        return jwt.encode(claims, self._key, algorithm="ES256")

    def questions(self) -> tuple[list[bytes], list[bytes]]:
        """Requests of ASKED callers, each to a release of its tenant; plain ones, streamed ones."""
        names = [f"t{number * (TENANTS // ASKED):04}" for number in range(ASKED)]
        made: list[list[bytes]] = [
            [
                request("127.0.0.1", self.token(name, f"key-{name}"), f"{name}/m0", streamed)
                for name in names
            ]
            for streamed in (False, True)
        ]
        return made[0], made[1]


def table(model_port: int, issuer: Issuer, whole: bool = True, **more: Any) -> Table:
    """All tenants and releases, or the first alone; every release is the mock model."""
    names = [f"t{number:04}" for number in range(TENANTS if whole else 1)]
    return Table(
        targets=tuple(
            Target(
                tenant=name,
                model=f"m{model}",
                stage="production",
                version="a" * 12,
                digest="a" * 64,
                risk="minimal",
                address=f"127.0.0.1:{model_port}",
                **more,
            )
            for name in names
            for model in range(MODELS if whole else 1)
        ),
        limits=_wide_limits(names if more.get("limited") else []),
        hosts={f"{name}.llm.example.org": name for name in names},
        access=Access(keys=(issuer.public,)),
    )


class Compiled:
    """A gateway's folder, as the compiler writes it."""

    def __init__(self, folder: Path, table: Table, revoked: dict[str, int] | None = None) -> None:
        for name in ("conf", "spool"):
            (folder / name).mkdir(parents=True)
        guard, limits, port = (free_port() for _ in range(3))
        self.table = table
        self.places = Places(
            folder=folder / "conf",
            spool=folder / "spool",
            admin=folder / "admin.sock",
            host="127.0.0.1",
            port=port,
            guard=f"127.0.0.1:{guard}",
            limits=f"127.0.0.1:{limits}",
        )
        write(compiled(table, self.places, revoked or {}), self.places.folder)

    def reduce(self, names: frozenset[str]) -> None:
        """Leave only these filters, and no access log; without `authorise`, one route."""
        conf = self.places.folder
        listeners = json.loads((conf / "listeners.json").read_text("utf-8"))
        manager = listeners["resources"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        known = {each["name"] for each in manager["http_filters"]}
        if unknown := names - known:
            raise AssertionError(f"no filter {', '.join(sorted(unknown))} among {sorted(known)}")
        manager["http_filters"] = [
            each for each in manager["http_filters"] if each["name"] in names
        ]
        del manager["access_log"]
        routes = json.loads((conf / "routes.json").read_text("utf-8"))
        host = routes["resources"][0]["virtual_hosts"][0]
        host.pop("typed_per_filter_config", None)
        if AUTHORISE not in names:
            del host["matcher"]
            one = {"cluster": self.table.targets[0].id, "timeout": "0s"}
            host["routes"] = [{"match": {"prefix": "/"}, "route": one}]
        (conf / "listeners.json").write_text(json.dumps(listeners), "utf-8")
        (conf / "routes.json").write_text(json.dumps(routes), "utf-8")

    @contextmanager
    def envoy(self, core: int) -> Iterator[psutil.Process]:
        """Envoy with one worker on `core`, as the gateway runs it."""
        command = [str(envoy(say)), "-c", str(self.places.folder / "envoy.json")]
        command += ["--concurrency", "1", "--file-flush-interval-msec", "1000"]
        command += ["--file-flush-min-size-kb", "4"]
        command += ["--disable-hot-restart", "-l", "warn", "--component-log-level", "misc:error"]
        with process(command, core, self.places.folder.parent / "log") as started:
            yield started


@contextmanager
def beside(gateway: Compiled, core: int) -> Iterator[list[psutil.Process]]:
    """The limit service and the guard, where the table asks for them, on the proxy's core."""
    target, places = gateway.table.targets[0], gateway.places
    if target.limited:
        config, (host, _, port) = LIMITS, places.limits.rpartition(":")
        line = ["services.limits", "--port", port]
    elif target.guard != "off":
        config, (host, _, port) = GUARD, places.guard.rpartition(":")
        line = ["services.guard", "--host", host, "--port", port]
    else:
        yield []
        return
    command = [sys.executable, "-m", *line, "--config", str(places.folder / config)]
    with process(command, core, places.folder.parent / "log-beside") as started:
        yield [started]


def _wide_limits(names: list[str]) -> tuple[dict[str, Any], ...]:
    """Every counter set for every tenant and caller, and none ever reached."""
    rules = counters(Limits(**dict.fromkeys(Limits.model_fields, MOST)))
    each: dict[str, Any] = {
        "key": "tenant",
        "descriptors": [{"key": "caller", "descriptors": rules}, *rules],
    }
    return tuple({**each, "value": name} for name in names)


@contextmanager
def process(
    command: list[str], core: int, log: Path, variables: dict[str, str] | None = None
) -> Iterator[psutil.Process]:
    """A process on its own core, ended when the block ends; what it says is in `log`."""
    with log.open("ab") as out:
        started = psutil.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (variables or {}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            preexec_fn=lambda: _own(core),
        )
    try:
        yield started
    finally:
        children = started.children(recursive=True) if started.is_running() else []
        started.terminate()
        for each in psutil.wait_procs([started, *children], timeout=10)[1]:
            each.kill()
        started.wait()


def _own(core: int) -> None:
    """This process has the core, and before the kernel's own work where that is allowed."""
    os.sched_setaffinity(0, {core})
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def until_answered(load: Load, port: int, question: bytes, folder: Path, mark: bytes = b"") -> None:
    """Wait until the proxy answers, with `mark` in its answer; else its log says why."""
    if fault := load.first_answer(port, question, START, mark):
        log = "\n".join(path.read_text("utf-8")[-2000:] for path in sorted(folder.glob("log*")))
        raise DependencyError(f"no good answer from the proxy in {START} s: {fault}; {log}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
