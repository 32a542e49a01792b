"""Load for a gateway on loopback: the clients before it and the model behind it, in one thread.

One thread and one clock: when an event leaves the model and when it reaches the client are
comparable, and no two processes of ours wait for one another on the same core. The thread never
sleeps while it measures, so that it is not late itself.
"""

from __future__ import annotations

import gc
import heapq
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.gateway_wire import ANSWER, EVENTS, MODELS, PACE, STREAM, Client, Measured, Model, gaps

PATIENCE = 60.0
"""Seconds for whatever is still under way when the last request has gone."""
SETTLING = 0.1
"""Share of the requests that come first and do not count: connections are made."""


class Load:
    """The model's port, open as long as this is; each method is one phase of load on one proxy."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._epoll.register(self._listener, select.EPOLLIN)
        self._models: dict[int, Model] = {}
        self._clients: dict[int, Client] = {}
        self._idle: deque[Client] = deque()
        self._due: list[tuple[float, int, int]] = []
        """Events to send: when, to which connection of the model, which."""
        self._streams: deque[Model] = deque()
        self._measured = Measured()

    def close(self) -> None:
        self._hang_up()
        for model in self._models.values():
            model.socket.close()
        self._listener.close()
        self._epoll.close()

    def open_loop(self, port: int, requests: list[bytes], rate: float, seconds: float) -> Measured:
        """Requests at fixed times, whatever the answers do; latency counts from those times."""
        count = int(rate * seconds)
        with self._phase() as measured:
            began = time.perf_counter()
            sent = 0
            while sent < count:
                now = time.perf_counter()
                while sent < count and began + sent / rate <= now:
                    client = self._free(port)
                    self._ask(client, requests[sent % len(requests)], began + sent / rate)
                    sent += 1
                self._turn(0)
            self._finish()
        measured.latencies = measured.latencies[int(count * SETTLING) :]
        return measured

    def closed_loop(
        self, port: int, requests: list[bytes], clients: int, seconds: float
    ) -> Measured:
        """As much as goes through: each client asks again when it is answered."""
        with self._phase() as measured:
            began = time.perf_counter()
            number = 0
            while time.perf_counter() < began + seconds:
                while self._idle or len(self._clients) < clients:
                    self._ask(self._free(port), requests[number % len(requests)])
                    number += 1
                self._turn(0.01)
            self._finish()
            measured.seconds = time.perf_counter() - began
        return measured

    def streams(self, port: int, requests: list[bytes], count: int) -> Measured:
        """Streamed answers one after another; `gaps` has what each event took to get through."""
        with self._phase() as measured:
            began = time.perf_counter()
            for number in range(count):
                self._streams.clear()
                client = self._free(port)
                self._ask(client, requests[number % len(requests)])
                self._finish()
                if not measured.failed and number >= count * SETTLING:
                    measured.gaps += gaps(self._streams[0].sent, client.arrived)
            measured.seconds = time.perf_counter() - began
        return measured

    def first_answer(self, port: int, question: bytes, patience: float, mark: bytes = b"") -> str:
        """Ask until an answer is 200 with `mark` in it; else, in the end, what came last."""
        end = time.perf_counter() + patience
        fault: list[str] = []

        def judge(answer: bytes) -> None:
            if not answer.lower().startswith(b"http/1.1 200") or mark not in answer:
                fault.append(answer[:2000].decode("utf-8", "replace"))

        while time.perf_counter() < end:
            fault.clear()
            with self._phase() as measured:
                try:
                    self.probe(port, question, judge)
                except OSError as refused:
                    fault.append(str(refused))
                self._finish()
                fault += measured.failed
            if not fault:
                return ""
            time.sleep(0.1)
        return fault[0]

    def probe(self, port: int, question: bytes, then: Callable[[bytes], None]) -> None:
        """Ask once beside the load; `then` gets the whole answer."""
        client = self._free(port)
        client.then = then
        self._ask(client, question)

    def steadily(
        self, port: int, requests: list[bytes], rate: float, until: Callable[[], bool]
    ) -> Measured:
        """As open_loop, until `until`, asked at least every millisecond, says so."""
        with self._phase() as measured:
            began, sent = time.perf_counter(), 0
            while not until():
                if began + sent / rate <= time.perf_counter():
                    self._ask(self._free(port), requests[sent % len(requests)])
                    sent += 1
                self._turn(0.001)
            self._finish()
            measured.seconds = time.perf_counter() - began
        return measured

    @contextmanager
    def _phase(self) -> Iterator[Measured]:
        """New connections, and no pause of the garbage collector in between."""
        self._measured = Measured()
        gc.collect()
        gc.disable()
        try:
            yield self._measured
        finally:
            gc.enable()
            self._hang_up()

    def _hang_up(self) -> None:
        for client in list(self._clients.values()):
            self._drop(client)
        self._idle.clear()

    def _drop(self, client: Client) -> None:
        del self._clients[client.socket.fileno()]
        client.socket.close()

    def _free(self, port: int) -> Client:
        while self._idle:
            client = self._idle.popleft()
            if client.socket.fileno() >= 0:
                return client
        made = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        self._epoll.register(made, select.EPOLLIN)
        client = self._clients[made.fileno()] = Client(made)
        return client

    def _ask(self, client: Client, request: bytes, since: float | None = None) -> None:
        client.since = time.perf_counter() if since is None else since
        client.got.clear()
        client.arrived = []
        client.size, client.busy = -1, True
        client.socket.send(request)

    def _finish(self) -> None:
        """Wait for what is under way."""
        end = time.perf_counter() + PATIENCE
        while any(client.busy for client in self._clients.values()):
            if time.perf_counter() > end:
                self._measured.failed.append(f"no answer within {PATIENCE:g} s")
                return
            self._turn(0)

    def _turn(self, timeout: float) -> None:
        """What has come, and events whose time has come."""
        for number, _ in self._epoll.poll(timeout):
            if client := self._clients.get(number):
                self._client(client)
            elif model := self._models.get(number):
                self._model(model)
            else:
                made, _address = self._listener.accept()
                made.setblocking(False)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._epoll.register(made, select.EPOLLIN)
                self._models[made.fileno()] = Model(made)
        while self._due and self._due[0][0] <= time.perf_counter():
            due, number, index = heapq.heappop(self._due)
            if model := self._models.get(number):
                model.sent.append(time.perf_counter())
                model.socket.send(STREAM[index])
                if index + 1 < EVENTS:
                    heapq.heappush(self._due, (due + PACE, number, index + 1))

    def _client(self, client: Client) -> None:
        try:
            data = client.socket.recv(262144)
        except ConnectionError:
            data = b""
        now = time.perf_counter()
        if not data:
            if client.busy:
                self._measured.failed.append("the connection was closed before the answer ended")
            self._drop(client)
            return
        client.got += data
        if client.size < 0:
            end = client.got.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(client.got[:end]).lower()
            length = head.find(b"content-length: ")
            client.size = 0 if length < 0 else end + 4 + int(head[length + 16 :].split(b"\r")[0])
            client.last = b"\r\nconnection: close" in head
            if not client.then and not head.startswith(b"http/1.1 200"):
                self._measured.failed.append(bytes(client.got[:2000]).decode("utf-8", "replace"))
        if client.size == 0:
            client.arrived.append(now)
        if (
            client.got.endswith(b"0\r\n\r\n")
            if client.size == 0
            else len(client.got) >= client.size
        ):
            self._answered(client, now)

    def _answered(self, client: Client, now: float) -> None:
        client.busy = False
        if then := client.then:
            client.then = None
            then(bytes(client.got))
        else:
            self._measured.done += 1
            self._measured.latencies.append(now - client.since)
        if client.last:
            self._drop(client)
        else:
            self._idle.append(client)

    def _model(self, model: Model) -> None:
        try:
            data = model.socket.recv(262144)
        except ConnectionError:
            data = b""
        if not data:
            del self._models[model.socket.fileno()]
            model.socket.close()
            return
        model.got += data
        end = model.got.find(b"\r\n\r\n")
        if end < 0:
            return
        head = model.got[:end].lower()
        found = head.find(b"content-length: ")
        length = 0 if found < 0 else int(head[found + 16 :].split(b"\r")[0])
        if len(model.got) < end + 4 + length:
            return
        body = model.got[end + 4 :]
        model.got = b""
        if b'"stream":true' in body or b'"stream": true' in body:
            model.sent = []
            self._streams.append(model)
            heapq.heappush(self._due, (time.perf_counter(), model.socket.fileno(), 0))
        else:
            model.socket.send(ANSWER if length else MODELS)
