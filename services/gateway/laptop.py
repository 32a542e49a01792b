"""The whole gateway as processes of one machine: Envoy, guard, limits, audit log."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kuznia import settings
from kuznia.errors import DependencyError
from kuznia.gateway.folder import GUARD, LIMITS
from kuznia.gateway.places import Places
from kuznia.gateway.table import Table
from kuznia.keys.ledger import revoked
from kuznia.serving import check_port, free_port, stop
from kuznia.store import open_store
from services.gateway.configurer import Configurer
from services.guard.config import MASTER as GUARD_KEY

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60
WRITER = "laptop"
"""Name of this gateway's stream in the audit log."""
Say = Callable[[str], None]


@dataclass
class Gateway:
    """A gateway that answers; call `look` every second."""

    url: str
    """Base URL of the OpenAI API, with /v1."""
    folder: Path
    configurer: Configurer
    processes: dict[str, subprocess.Popen[bytes]]
    lines: Mapping[str, list[str]]
    spool: Path

    def look(self) -> None:
        """Bring the configuration up to date and start again what has ended."""
        self.configurer.look()
        for name, process in self.processes.items():
            if process.poll() is not None:
                self.processes[name] = self.start(name)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start one part; its log is `<name>.log` in the gateway's folder."""
        if name == "envoy":
            # Requests of an Envoy that is gone have no more lines to come.
            (self.spool / "epoch").write_text(f"{uuid.uuid4()}\n", "utf-8")
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                self.lines[name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), GUARD_KEY: _guard_key()},
            )


@contextmanager
def gateway(
    read_table: Callable[[], Table],
    envoy: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    soft: Path | None = None,
    say: Say = lambda _: None,
) -> Iterator[Gateway]:
    """Start the gateway in front of what `read_table` finds, wait until it answers, stop it.

    Its files are in <home>/gateway, its audit log in the store. Raises DependencyError if the port
    is taken or a part does not start, with the last lines of its log.
    """
    check_port(host, port)
    folder = settings.home() / "gateway"
    conf, spool, state = (folder / name for name in ("conf", "spool", "state"))
    for each in (conf, spool, state):
        each.mkdir(parents=True, exist_ok=True)
    store_uri = settings.store_uri()
    store = open_store(store_uri)
    with tempfile.TemporaryDirectory(prefix="kuznia-") as short:
        # A path to a socket is at most 107 characters long.
        admin = Path(short) / "admin.sock"
        guard, limits = free_port(), free_port()
        places = Places(conf, spool, admin, host, port, f"127.0.0.1:{guard}", f"127.0.0.1:{limits}")
        made = Gateway(
            f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}/v1",
            folder,
            Configurer(places, read_table, lambda: revoked(store), soft, envoy, say),
            {},
            {
                "limits": _service(
                    *("limits", "--config", conf / LIMITS, "--port", limits),
                    *("--state", state / "limits.db"),
                ),
                "guard": _service(
                    *("guard", "--config", conf / GUARD, "--port", guard),
                    *("--content", store_uri),
                    *("--content-keys", (settings.home() / "keys").as_uri()),
                ),
                "audit": _service(
                    *("audit", "--spool", spool, "--state", state / "audit"),
                    *("--writer", WRITER, "--to", store_uri, "--admin", admin),
                ),
                "envoy": [
                    *(str(envoy), "-c", str(conf / "envoy.json"), "--concurrency", "1"),
                    *("--file-flush-interval-msec", "1000", "--file-flush-min-size-kb", "4"),
                    "--disable-hot-restart",
                    *("--drain-time-s", "5", "--drain-strategy", "immediate"),
                    *("--log-level", "warn", "--component-log-level", "misc:error"),
                ],
            },
            spool,
        )
        made.configurer.look()
        if not made.configurer.ready:
            raise DependencyError(f"the gateway has no configuration; see {folder}")
        try:
            for name in made.lines:
                made.processes[name] = made.start(name)
            _wait(made)
            yield made
        finally:
            # Envoy first: its last lines are then still read.
            for name in ("envoy", "audit", "guard", "limits"):
                if process := made.processes.get(name):
                    stop(process)


def _guard_key() -> str:
    """The key of pseudonyms here, made on first use."""
    path = settings.home() / "keys" / "guard.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        path.write_text(secrets.token_hex(32), "utf-8")
    return path.read_text("utf-8")


def _service(name: str, *options: object) -> list[str]:
    return [sys.executable, "-m", f"services.{name}", *map(str, options)]


def _wait(gateway: Gateway) -> None:
    import httpx

    began = time.monotonic()
    with httpx.Client(timeout=2, trust_env=False) as client:
        while time.monotonic() - began < START_SECONDS:
            for name, process in gateway.processes.items():
                if process.poll() is not None:
                    log = gateway.folder / f"{name}.log"
                    end = log.read_text("utf-8", errors="replace").splitlines()[-5:]
                    raise DependencyError(
                        f"{name} ended with exit code {process.poll()}; its log is {log}\n"
                        + "\n".join(line[-300:] for line in end)
                    )
            try:
                if client.get(f"{gateway.url}/models").status_code == 401:
                    for place in (
                        gateway.configurer.places.guard,
                        gateway.configurer.places.limits,
                    ):
                        host, _, port = place.rpartition(":")
                        socket.create_connection((host, int(port)), 2).close()
                    return
            except (httpx.TransportError, OSError):
                pass  # Not there yet.
            time.sleep(0.1)
    raise DependencyError(f"the gateway does not answer; see the logs in {gateway.folder}")
