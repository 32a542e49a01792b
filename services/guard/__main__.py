"""Run the guard: `python -m services.guard --config guard.json --port 8090`.

Exit codes: 0 stopped by a signal, 2 an option or the configuration is wrong, 3 it cannot listen.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from aiohttp import web
from prometheus_client import start_http_server

from kuznia.errors import DependencyError, InputError
from services.guard import metrics
from services.guard.capture import Capture
from services.guard.config import MASTER, Keys, Watched
from services.guard.server import Guard

DRAIN = 110.0
"""Seconds that requests in progress have after SIGTERM; the chart gives its pod 120."""


def say(line: str) -> None:
    print(f"guard: {line}", flush=True)


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.guard", description=__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="the GuardConfig, JSON; watched")
    add("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    add("--port", type=int, default=8090, help="port to listen at (8090); 0: only the socket")
    add("--uds", type=Path, help="Unix socket to listen at too")
    add("--keys", type=Path, help=f"folder of <tenant>.key for pseudonyms; else ${MASTER}")
    add("--metrics-port", type=int, default=0, help="of /metrics; 0: none")
    add("--largest-mib", type=int, default=32, help="body of a request at most, MiB (32)")
    add("--content", help="store of what releases with capture keep; without it nothing is kept")
    add("--content-keys", help="store of the keys to it; a different one, not locked")
    add("--content-days", type=int, default=190, help="days that content is kept (190)")
    return parser.parse_args(argv)


def content_store(given: argparse.Namespace) -> Capture | None:
    """Where content is kept; raises InputError for half an answer."""
    if bool(given.content) != bool(given.content_keys):
        raise InputError("--content: needs --content-keys, and the other way round; give both")
    if not given.content:
        return None
    from kuznia.audit.content import ContentStore
    from kuznia.store.objects import open_store

    return ContentStore(open_store(given.content), open_store(given.content_keys))


@asynccontextmanager
async def guarding(
    watched: Watched, capture: Capture | None, days: int, largest: int
) -> AsyncIterator[web.AppRunner]:
    """The guard's server, not listening yet; it renews its configuration while it lasts."""
    guard = Guard(watched, capture, days)
    app = web.Application(client_max_size=largest)
    app.router.add_route("*", "/{tail:.*}", guard.handle)
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        handler_cancellation=True,
        shutdown_timeout=DRAIN,
    )
    await runner.setup()
    watcher = asyncio.create_task(watched.watch())
    try:
        yield runner
    finally:
        watcher.cancel()
        await runner.cleanup()
        await guard.sessions.close()


async def serve(given: argparse.Namespace) -> None:
    """Answer until SIGTERM or SIGINT, then end what is in progress."""
    watched = Watched(given.config, Keys(given.keys, os.environ.get(MASTER, "")), say)
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ended.set)
    capture = content_store(given)
    largest = given.largest_mib << 20
    async with guarding(watched, capture, given.content_days, largest) as runner:
        if given.port:
            await web.TCPSite(runner, given.host, given.port).start()
            say(f"listens at {given.host}:{given.port}")
        if given.uds:
            await web.UnixSite(runner, str(given.uds)).start()
            say(f"listens at {given.uds}")
        await ended.wait()


def main(argv: list[str] | None = None) -> int:
    given = options(argv)
    try:
        if given.metrics_port:
            start_http_server(given.metrics_port, given.host, registry=metrics.REGISTRY)
        uvloop.run(serve(given))
    except InputError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        failed = DependencyError(f"cannot listen: {error.strerror}; choose another port")
        print(f"error: {failed}", file=sys.stderr, flush=True)
        return failed.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
