"""Wait until a vLLM that is to end has answered all that it was asked: `python3 -m steps.drain`.

The hook of a pod that ends, before SIGTERM. A vLLM that is told to end refuses what its front has
taken in and its engine has not begun, with status 500: on a busy machine that is seconds of
requests. So it is told when nothing is under way, or when time is up. Standard library only: it
must start fast.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request

SECONDS = 10
"""For one look."""
QUIET = 2
"""Looks in a row, a second apart, that see nothing under way."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main(argv: list[str] | None = None) -> int:
    """Wait for new requests to stay away, then for those under way; always 0."""
    arguments = _parser().parse_args(argv)
    time.sleep(arguments.wait)
    end = time.monotonic() + arguments.finish
    quiet = 0
    while quiet < QUIET and time.monotonic() < end:
        time.sleep(1)
        quiet = 0 if _under_way(arguments.url) else quiet + 1
    return 0


def _under_way(url: str) -> int:
    """Requests that are not answered yet; 1 where a busy server does not say, 0 where none runs."""
    try:
        with _DIRECT.open(f"{url.rstrip('/')}/load", timeout=SECONDS) as answer:
            return int(json.load(answer)["server_load"])
    except TimeoutError:
        return 1
    except urllib.error.URLError as error:
        return int(isinstance(error.reason, TimeoutError))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m steps.drain",
        description="Wait until a vLLM (--enable-server-load-tracking) has answered everything.",
        epilog="example: python3 -m steps.drain --url http://127.0.0.1:8000 --wait 15 --finish 120",
    )
    parser.add_argument("--url", required=True, help="where the server is, without /v1")
    parser.add_argument("--wait", type=float, default=15, help="seconds until no new ones come")
    parser.add_argument("--finish", type=float, default=120, help="seconds for those under way")
    return parser


if __name__ == "__main__":
    sys.exit(main())
