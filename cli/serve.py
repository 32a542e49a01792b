"""Serve a registered model with vLLM."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kuznia.registry import ModelVersion
    from kuznia.serving import Server

EPILOG = """\b
examples:
  kuznia serve support                  the version in staging
  kuznia serve support@8c1f0d --port 8001
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="MODEL[@VERSION]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
@click.option(
    "--context", type=int, help="Longest conversation in tokens; at most 4096 unless set."
)
def command(model: str, host: str, port: int, context: int | None) -> None:
    """Serve MODEL over the OpenAI API until Ctrl-C, after checking every file of the version."""
    from kuznia import settings
    from kuznia.registry import Registry
    from kuznia.serving import check_port, failure

    check_port(host, port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    version = Registry(settings.tracking_uri()).find(model)
    try:
        with started(version, host, port, context) as server:
            _tell(server)
            while server.process.poll() is None:
                time.sleep(0.5)
            raise failure(server.process, server.log)
    except KeyboardInterrupt:
        click.echo("\nstopped", err=True)


@contextmanager
def started(
    version: ModelVersion, host: str, port: int, context: int | None = None
) -> Iterator[Server]:
    """vLLM on `version`, with its progress on stderr; stopped at the end."""
    from kuznia import settings
    from kuznia.gateway.served import listed, target_of
    from kuznia.libnuma import numa_variables
    from kuznia.serving import serving
    from kuznia.weights import fetch_weights
    from workflows.environments import python_of, variables_of

    _say(f"checking {version.name} {version.version} in {version.uri}")
    weights = fetch_weights(version, settings.cache())
    python = python_of("serve", say=_say)
    environment = variables_of("serve") | numa_variables(settings.cache(), say=_say)
    log = settings.home() / "serve" / f"{version.name}.log"
    with (
        waiting() as say,
        serving(
            *(weights, python, environment),
            log=log,
            host=host,
            port=port,
            longest=context,
            say=say,
        ) as server,
    ):
        say(-1, "")
        with listed(target_of(version, server.url)):
            yield server


@contextmanager
def waiting() -> Iterator[Callable[[float, str], None]]:
    """A line that is rewritten on a terminal, and printed once a change elsewhere.

    Calling it with a negative time clears it.
    """
    live = sys.stderr.isatty()
    last = ""

    def say(seconds: float, doing: str) -> None:
        nonlocal last
        if live:
            text = "" if seconds < 0 else f"starting vLLM: {doing} ({seconds:.0f} s)"
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        elif doing and doing != last:
            click.echo(f"starting vLLM: {doing}", err=True)
        last = doing

    try:
        yield say
    finally:
        say(-1, "")


def _tell(server: Server) -> None:
    port = server.url.rpartition(":")[2].partition("/")[0]
    other = "" if port == "8000" else f" --url {server.url}"
    body = f'{{"model": "{server.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    click.echo(f"ready in {server.seconds:.0f} s: {server.url} serves {server.name}")
    click.echo(f"  kuznia chat {server.name}{other}")
    click.echo("  kuznia gateway                 keys, limits, guard and audit log before it")
    click.echo(
        f"  curl {server.url}/chat/completions -H 'Content-Type: application/json' -d '{body}'"
    )
    click.echo(f"log: {server.log}; Ctrl-C stops it")


def _say(text: str) -> None:
    click.echo(text, err=True)
