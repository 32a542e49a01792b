"""Keep the gateway's folder: `python -m services.gateway --table DIR --folder DIR ...`.

Exit codes: 0 stopped or, with --once, done; 2 an option is wrong; 3 with --once: there is no
configuration that Envoy takes.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from prometheus_client import start_http_server

from kuznia.errors import InputError, KuzniaError
from kuznia.gateway.places import Places
from kuznia.gateway.shards import read_tables
from kuznia.keys.ledger import revoked
from kuznia.store import open_store
from services.gateway.configurer import Configurer
from services.gateway.metrics import REGISTRY

EVERY = 1.0
"""Seconds between two looks."""
PATIENCE = 60.0
"""Seconds that --once waits for a first table."""
EXAMPLE = """example:
  python -m services.gateway --table /etc/kuznia/table --folder /gateway/conf \\
    --spool /gateway/spool --admin /gateway/run/admin.sock --store s3://audit/gateway
"""


def say(line: str) -> None:
    print(f"gateway: {line}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m services.gateway",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--table", type=Path, required=True, metavar="PATH", help="folder with the releases"
    )
    parser.add_argument(
        "--folder", type=Path, required=True, metavar="PATH", help="what Envoy watches"
    )
    parser.add_argument(
        "--spool", type=Path, required=True, metavar="PATH", help="lines for the audit log"
    )
    parser.add_argument(
        "--admin", type=Path, required=True, metavar="PATH", help="Envoy's unix socket"
    )
    parser.add_argument(
        "--certificates", type=Path, metavar="PATH", help="folder with tls.crt and tls.key"
    )
    parser.add_argument("--host", default="0.0.0.0", help="[default: %(default)s]")
    parser.add_argument("--port", type=int, default=8080, help="[default: %(default)s]")
    parser.add_argument("--stats-port", type=int, help="port of /ready and /stats/prometheus")
    parser.add_argument("--guard", default="127.0.0.1:8090", help="[default: %(default)s]")
    parser.add_argument("--limits", default="127.0.0.1:8081", help="[default: %(default)s]")
    parser.add_argument("--store", help="URI of the store with revoked keys; none: no key is")
    parser.add_argument("--envoy", type=Path, metavar="PATH", help="Envoy, which checks first")
    parser.add_argument("--metrics-port", type=int, help="port of /metrics")
    parser.add_argument("--once", action="store_true", help="write a first configuration and end")
    given = parser.parse_args(argv)
    try:
        return run(given)
    except KuzniaError as error:
        for problem in error.problems if isinstance(error, InputError) else [str(error)]:
            print(f"error: {problem}", file=sys.stderr, flush=True)
        return error.exit_code


def run(given: argparse.Namespace) -> int:
    """Look every second until SIGTERM; with --once until a configuration is in force."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    store = open_store(given.store) if given.store else None
    configurer = Configurer(
        places=Places(
            folder=given.folder,
            spool=given.spool,
            admin=given.admin,
            host=given.host,
            port=given.port,
            guard=given.guard,
            limits=given.limits,
            stats_port=given.stats_port,
            certificates=given.certificates,
        ),
        read_table=lambda: read_tables(given.table),
        read_revoked=lambda: revoked(store) if store else {},
        soft=given.table / "soft.yaml",
        envoy=given.envoy,
        say=say,
    )
    for folder in (given.folder, given.spool, given.admin.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if given.metrics_port:
        start_http_server(given.metrics_port, registry=REGISTRY)
    waited = 0.0
    while not ended.is_set():
        configurer.look()
        if given.once and (configurer.ready or waited >= PATIENCE):
            return 0 if configurer.ready else 3
        ended.wait(EVERY)
        waited += EVERY
    return 0


if __name__ == "__main__":
    sys.exit(main())
