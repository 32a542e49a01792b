"""Run the collector: `python -m services.audit --spool DIR --state DIR --writer NAME --to STORE`.

SIGTERM seals and ships what is there. Exit codes: 0 stopped, 2 an option is wrong, 3 something
outside failed at the start.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kuznia.audit.keys import private_key
from kuznia.audit.pseudonyms import Pseudonyms
from kuznia.contracts.audit import OPERATOR, WRITER
from kuznia.errors import DependencyError, InputError, KuzniaError
from kuznia.settings import home
from kuznia.store.objects import open_store
from services.audit import metrics
from services.audit.collector import BATCH, FULL, SMALL, Collector, Settings
from services.audit.shipper import Shipper
from services.audit.state import State


def say(line: str) -> None:
    print(f"audit: {line}", file=sys.stderr, flush=True)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.audit", description=__doc__)
    add = parser.add_argument
    add("--spool", type=Path, required=True, help="folder that the gateway writes to")
    add("--state", type=Path, required=True, help="folder of its own, on a disk that stays")
    add("--writer", required=True, help="the name of this gateway pod or laptop")
    add("--to", required=True, help="store of the log: a folder, file://, s3:// or gs://")
    add("--anchors", help="second store, by another owner, that gets each checkpoint too")
    add("--secrets", help="store of the keys of callers' pseudonyms; <KUZNIA_HOME>/keys")
    add("--key", type=Path, help="private Ed25519 key (PEM); the laptop's in KUZNIA_HOME")
    add("--admin", type=Path, help="Envoy's admin socket; without it ends.jsonl only grows")
    add("--port", type=int, default=0, help="of /metrics; 0: none")
    add("--seal-seconds", type=float, default=300.0, help="age at which a segment is sealed")
    add("--seal-records", type=int, default=10_000, help="records at which it is")
    add("--rotate-bytes", type=int, default=8 * 2**20, help="size at which ends.jsonl is renamed")
    add("--pause", type=float, default=0.5, help="seconds between two looks")
    add("--patience", type=float, default=20.0, help="seconds to wait for the store at the end")
    add("--copy", action="store_true", help="print each record too, for a log that is searched")
    add(
        "--ephemeral",
        action="store_true",
        help="the state ends with this process: on SIGTERM open requests get their record, too",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    given = options().parse_args(argv)
    try:
        return run(given)
    except KuzniaError as error:
        for problem in error.problems if isinstance(error, InputError) else [str(error)]:
            print(f"error: {problem}", file=sys.stderr, flush=True)
        return error.exit_code


def run(given: argparse.Namespace) -> int:
    """Collect until SIGTERM."""
    _check(given)
    ended = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: ended.set())
    key = private_key(given.key)
    try:
        given.spool.mkdir(parents=True, exist_ok=True)
        kept = State(given.state, given.writer)
        pseudonyms = Pseudonyms(open_store(given.secrets or str(home() / "keys")))
        if given.port:
            from prometheus_client import start_http_server

            start_http_server(given.port, registry=metrics.REGISTRY)
    except FULL as error:
        raise DependencyError(f"{given.state}: {error}; make room or rights there") from error
    settings = Settings(
        given.spool,
        given.admin,
        given.seal_seconds,
        given.seal_records,
        given.rotate_bytes,
        given.copy,
    )
    shipper = Shipper(kept.path, kept.writer, given.to, given.anchors, say)

    def collector() -> Collector:
        return Collector(settings, kept, key, pseudonyms, shipper, say)

    say(f"writes as {kept.writer} to {given.to}")
    _loop(collector, kept, shipper, ended, given.pause)
    kept.release()
    if not _finish(collector, given.ephemeral, given.patience):
        say("some segments are not in the store yet; the next start ships them")
    shipper.end()
    kept.close()
    return 0


def _check(given: argparse.Namespace) -> None:
    problems = []
    if not re.fullmatch(WRITER, given.writer) or len(given.writer) > 100:
        problems.append(
            f"--writer: {given.writer!r} is no name; use letters, digits, dots and -, 100 at most"
        )
    elif given.writer == OPERATOR:
        problems.append(f"--writer: {OPERATOR} is the name of `kuznia audit` itself; use another")
    if problems:
        raise InputError(problems)


def _loop(
    make: Callable[[], Collector],
    kept: State,
    shipper: Shipper,
    ended: threading.Event,
    pause: float,
) -> None:
    """Cycle after cycle; after a fault of the disk, with a memory made anew from the state."""
    collector: Collector | None = None
    fault = ""
    while not ended.is_set():
        shipper.check()
        try:
            collector = collector or make()
            if fault and not collector.relieve():
                ended.wait(pause)
                continue
            more = collector.cycle(batch=SMALL if fault else BATCH)
            collector.measure()
        except FULL as error:
            metrics.FAULTS.labels("state").inc()
            metrics.DISK_FULL.set(1)
            if str(error) != fault:
                say(f"{error}: nothing is written until there is room again; free some")
            fault, more = str(error), False
            kept.release()
            if collector:
                collector.close()
            collector = None
        else:
            if fault and not more:
                metrics.DISK_FULL.set(0)
                kept.reserve()
                fault = ""
        if not more:
            ended.wait(pause)
    if collector:
        collector.close()


def _finish(make: Callable[[], Collector], last: bool, patience: float) -> bool:
    """Write, seal and ship what is there; False if some of it could not be shipped in time."""
    until = time.monotonic() + patience
    try:
        collector = make()
        collector.relieve()
        while collector.cycle(last, SMALL) and time.monotonic() < until:
            pass
        collector.seal_all()
        while (left := collector.waiting()) and time.monotonic() < until:
            time.sleep(0.02)
        collector.close()
    except FULL as error:
        say(f"{error}: what is in the spool waits there for the next start")
        return False
    return not left


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # The shipper may wait in a client that knows no interruption.
    os._exit(code)
