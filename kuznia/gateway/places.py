"""Where the parts of one gateway find each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON = "type.googleapis.com"
"""Prefix of every type's name in Envoy's configuration."""


@dataclass(frozen=True)
class Places:
    """Where the parts of one gateway find each other."""

    folder: Path
    """What is compiled; Envoy watches it."""
    spool: Path
    """Lines for the audit log."""
    admin: Path
    """Envoy's own interface, a unix socket."""
    host: str = "0.0.0.0"
    port: int = 8080
    guard: str = "127.0.0.1:8090"
    limits: str = "127.0.0.1:8081"
    stats_port: int | None = None
    """Where /ready and /stats/prometheus are, for a cluster."""
    certificates: Path | None = None
    """Folder with tls.crt and tls.key; None: no TLS here."""


def address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
