"""What goes over the wire in the gateway's benchmarks: questions, answers, what came of them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from kuznia.errors import DependencyError

EVENTS = 64
"""Of one streamed answer."""
PACE = 0.002
"""Seconds between two events of the model."""
_EVENT = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}


def _whole(value: object) -> bytes:
    body = json.dumps(value).encode()
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


def _answer() -> bytes:
    return _whole(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "a word " * 32},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 500, "completion_tokens": 64, "total_tokens": 564},
        }
    )


def _events() -> list[bytes]:
    """The frames of a streamed answer, the last with its end; a number names each event."""

    def frame(value: object) -> bytes:
        data = b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode())
        return f"{len(data) + 2:x}\r\n".encode() + data + b"\n\n\r\n"

    made = [
        frame({**_EVENT, "choices": [{"index": 0, "delta": {"content": f" w{index}"}}]})
        for index in range(EVENTS)
    ]
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    made[0] = head + made[0]
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 500, "completion_tokens": EVENTS, "total_tokens": 500 + EVENTS}
    made[-1] += frame({**_EVENT, "choices": [last]})
    made[-1] += frame({**_EVENT, "choices": [], "usage": usage})
    made[-1] += frame(b"[DONE]") + b"0\r\n\r\n"
    return made


ANSWER, STREAM = _answer(), _events()
MODELS = _whole({"object": "list", "data": [{"id": "bench", "object": "model"}]})
"""To whoever asks without a body: LiteLLM wants to know what there is."""


def request(host: str, token: str, model: str, streamed: bool = False, size: int = 2048) -> bytes:
    """A chat question of `size` characters as it goes over the wire."""
    value: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": ("What is a gateway for? " * size)[:size]}],
    }
    if streamed:
        value |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(value).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass
class Model:
    """A connection that came to the model."""

    socket: socket.socket
    got: bytes = b""
    sent: list[float] = field(default_factory=list)
    """When each event left."""


@dataclass
class Client:
    """A connection of a caller to the proxy."""

    socket: socket.socket
    since: float = 0.0
    got: bytearray = field(default_factory=bytearray)
    size: int = -1
    """Of the whole answer; 0 where its end says so, -1 while its head is not read."""
    busy: bool = False
    last: bool = False
    """Whether the proxy closes the connection after this answer."""
    arrived: list[float] = field(default_factory=list)
    """When each piece of a streamed answer came."""
    then: Callable[[bytes], None] | None = None
    """Takes the whole answer, which then counts for nothing else."""


@dataclass
class Measured:
    """What came of one phase; seconds."""

    latencies: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """From the model to the client, each event."""
    done: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)
    """First lines of answers that were not 200, and what else went wrong."""

    def sound(self, what: str) -> Measured:
        """This, unless a request failed: figures of refusals say nothing."""
        if self.failed:
            raise DependencyError(
                f"{what}: {len(self.failed)} requests failed, first: {self.failed[0]}; see its log"
            )
        return self


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def gaps(sent: list[float], arrived: list[float]) -> list[float]:
    """How long each event was on its way: until the next piece that came after it left."""
    found, position = [], 0
    for moment in sent:
        while arrived[position] < moment:
            position += 1
        found.append(arrived[position] - moment)
    return found
