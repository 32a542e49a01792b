"""Run the sync: `python -m services.sync`; `--once` makes one pass and ends.

Exit codes: 0 stopped or done, 2 its settings are wrong, 3 with --once: something outside failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time

from kuznia.errors import InputError, KuzniaError
from kuznia.forges import forge, token
from kuznia.registry import Registry
from services.sync.passes import Sync
from services.sync.registries import Registries
from services.sync.repository import Repository
from services.sync.server import serve, subscribe
from services.sync.settings import Settings, from_environment

LEAST = 1.0
"""Seconds from the end of a pass to the next at least, however many webhooks come."""
IMPATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""The next pass tries again; a silent MLflow must not hold up the others."""


def say(line: str) -> None:
    print(f"sync: {line}", flush=True)


def build(settings: Settings) -> Sync:
    """The sync, its repository cloned; raises what the settings or the remote are wrong with."""
    proposals = forge()

    def greet(registry: Registry) -> None:
        if settings.webhook_url and (
            fault := subscribe(registry, settings.webhook_url, settings.webhook_secret)
        ):
            say(fault)

    repository = Repository(
        settings.repository, settings.branch, settings.folder, token(), settings.author
    )
    registries = Registries(settings.mlflow, settings.interval, first=greet)
    return Sync(repository, registries, proposals, say)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m services.sync", description=__doc__)
    parser.add_argument("--once", action="store_true", help="make one pass and end")
    once = parser.parse_args(argv).once
    for name, value in IMPATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        settings = from_environment()
        sync = build(settings)
        if once:
            return 0 if sync.one_pass() else 3
        loop(sync, settings)
    except KuzniaError as error:
        for problem in error.problems if isinstance(error, InputError) else [str(error)]:
            print(f"error: {problem}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def loop(sync: Sync, settings: Settings) -> None:
    """Pass after pass until SIGTERM; a webhook makes the next one come at once."""
    wake, ended = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        ended.set()
        wake.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    server = serve(settings.port, settings.webhook_secret, wake)
    say(f"looks every {settings.interval:g} s; /metrics at port {server.server_port}")
    while not ended.is_set():
        wake.clear()
        start = time.monotonic()
        sync.one_pass()
        wake.wait(max(settings.interval - (time.monotonic() - start), LEAST))
        ended.wait(LEAST if wake.is_set() else 0)
    server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
