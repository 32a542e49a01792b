"""The wait of a pod that ends for what is under way in it, and for what still comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kuznia.serving import free_port
from steps import drain
from tests.fixtures.listening import Handler, listening

Looks = list[tuple[int, int]]
Serve = Callable[[Looks, int], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A server that says in turn what is under way and how many it has answered, the last pair for
    ever, with a status; its URL."""
    servers = ExitStack()

    def start(looks: Looks, status: int) -> str:
        class Vllm(Handler):
            def do_GET(self) -> None:
                under_way, answered = looks[0]
                if self.path == "/load":
                    text = f'{{"server_load": {under_way}}}'
                else:
                    assert self.path == "/metrics"
                    text = (
                        "# TYPE http_requests_total counter\n"
                        f'http_requests_total{{handler="a",status="2xx"}} {answered}.0\n'
                        'http_requests_total{handler="b",status="4xx"} 1.0\nother_total 9.0\n'
                    )
                    looks[:] = looks[1:] or looks
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

        return servers.enter_context(listening(Vllm))

    with servers:
        yield start


def seconds(url: str, finish: str = "30") -> float:
    began = time.monotonic()
    assert drain.main(["--url", url, "--wait", "0.2", "--finish", finish]) == 0
    return time.monotonic() - began


def test_it_waits_until_nothing_is_under_way_and_nothing_comes(serve: Serve) -> None:
    # Between two looks a request may come and be answered: only the count tells.
    looks = [(7, 20), (0, 27), (0, 29), (0, 29), (1, 29), (0, 30), (0, 30), (0, 30), (0, 30)]
    assert 9 <= seconds(serve(looks, 200)) < 14
    assert looks == [(0, 30)]


def test_it_waits_no_longer_than_it_may(serve: Serve) -> None:
    assert 2 <= seconds(serve([(1, 0)], 200), "2") < 5


def test_a_server_that_cannot_say_is_waited_for(serve: Serve) -> None:
    assert 6 <= seconds(serve([(0, 0)], 500), "6") < 9


def test_a_server_that_does_not_count_or_is_gone_has_nothing_under_way(serve: Serve) -> None:
    assert seconds(serve([(0, 0)], 404)) < 7
    assert seconds(f"http://127.0.0.1:{free_port()}") < 7
