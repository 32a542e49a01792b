"""Wait until a vLLM that is to end has answered and is asked nothing: `python3 -m steps.drain`.

The hook of a pod that ends, before SIGTERM. A vLLM that is told to end refuses with status 500 what
its front has taken in and its engine has not begun, and what still comes: on a busy machine that is
seconds of requests. So it is told when nothing is under way and nothing has come for some seconds,
or when time is up. Standard library only: it must start fast.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from urllib.parse import urlsplit

SECONDS = 10
"""For one look."""
QUIET = 3
"""Looks in a row, a second apart, that see nothing under way and nothing answered in between."""
ANSWERED = "http_requests_total"
"""vLLM's counter of requests; looks and probes are not in it."""


def main(argv: list[str] | None = None) -> int:
    """Wait for new requests to stay away, then for those under way; always 0."""
    arguments = _parser().parse_args(argv)
    time.sleep(arguments.wait)
    end = time.monotonic() + arguments.finish
    quiet, before = 0, -1.0
    while quiet < QUIET and time.monotonic() < end:
        time.sleep(1)
        under_way, answered = look(urlsplit(arguments.url).netloc)
        quiet = quiet + 1 if not under_way and answered == before else 0
        before = answered
    return 0


def look(address: str) -> tuple[int, float]:
    """Requests under way and requests answered; one under way where a busy server does not say."""
    try:
        load = json.loads(_get(address, "/load") or '{"server_load": 0}')["server_load"]
        lines = (_get(address, "/metrics") or "").splitlines()
        values = (line.rpartition(" ")[2] for line in lines if line.startswith(ANSWERED))
        return int(load), sum(map(float, values))
    except ConnectionRefusedError:
        # Nobody is there any more.
        return 0, 0.0
    except (OSError, http.client.HTTPException, ValueError):
        return 1, 0.0


def _get(address: str, path: str) -> str | None:
    """The text at a path; None where there is no such path."""
    connection = http.client.HTTPConnection(address, timeout=SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise http.client.HTTPException(answer.status)
        return text
    finally:
        connection.close()


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
