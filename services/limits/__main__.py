"""Run the rate limit service of a laptop: `python -m services.limits --config limits.yaml`.

Exit codes: 0 stopped, 2 the limits file is wrong, 3 the port, the state or Redis is not to be had.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from kuznia.errors import InputError, KuzniaError
from services.limits.counters import Counters, Memory, Shared
from services.limits.server import Service, serve

GRACE = 2.0
"""Seconds that requests in progress have at the end."""


def say(line: str) -> None:
    print(f"limits: {line}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m services.limits", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the limits file")
    parser.add_argument("--host", default="127.0.0.1", help="[default: %(default)s]")
    parser.add_argument("--port", type=int, default=8081, help="0 chooses one [default: 8081]")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--redis", metavar="URL", help="count in this Redis, for several services")
    where.add_argument("--state", type=Path, help="SQLite file that keeps counts of long windows")
    given = parser.parse_args(argv)
    try:
        asyncio.run(run(given.config, given.host, given.port, given.redis, given.state))
    except KuzniaError as error:
        for problem in error.problems if isinstance(error, InputError) else [str(error)]:
            print(f"error: {problem}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


async def run(config: Path, host: str, port: int, redis: str | None, state: Path | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    counters: Counters = Shared(redis) if redis else Memory(state)
    server, port = serve(service := Service(config, counters, say), host, port)
    await server.start()
    say(f"listens at {host}:{port}")
    ticking = asyncio.create_task(service.tick())
    ending = asyncio.create_task(ended.wait())
    # A tick that fails is a bug: end with its traceback rather than serve without reloading.
    await asyncio.wait((ticking, ending), return_when=asyncio.FIRST_COMPLETED)
    await server.stop(GRACE)
    await counters.close()
    if ticking.done():
        ticking.result()
    ticking.cancel()
    ending.cancel()


if __name__ == "__main__":
    sys.exit(main())
