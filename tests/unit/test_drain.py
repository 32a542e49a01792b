"""The wait of a pod that ends for what is under way in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from kuznia.serving import free_port
from steps import drain

Serve = Callable[[list[bytes | int]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A server that gives these answers (or refusals) in turn, the last one for ever; its URL."""
    servers: list[HTTPServer] = []

    def start(answers: list[bytes | int]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/load"
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(answer if isinstance(answer, int) else 200)
                self.end_headers()
                self.wfile.write(b"" if isinstance(answer, int) else answer)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def seconds(url: str, finish: str = "30") -> float:
    began = time.monotonic()
    assert drain.main(["--url", url, "--wait", "0.2", "--finish", finish]) == 0
    return time.monotonic() - began


def test_it_waits_until_nothing_is_under_way_twice_in_a_row(serve: Serve) -> None:
    left: list[bytes | int] = [b'{"server_load": %d}' % each for each in (7, 0, 3, 0, 0)]
    assert 5 <= seconds(serve(left)) < 10
    assert left == [b'{"server_load": 0}']


def test_it_waits_no_longer_than_it_may(serve: Serve) -> None:
    assert 2 <= seconds(serve([b'{"server_load": 1}']), "2") < 5


def test_a_server_that_does_not_count_or_is_gone_has_nothing_under_way(serve: Serve) -> None:
    assert seconds(serve([404])) < 5
    assert seconds(f"http://127.0.0.1:{free_port()}") < 5
