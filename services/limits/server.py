"""Answers Envoy over gRPC: is this over a limit? Fixed windows, as the Go service counts them.

What is refused counts too, and all lists of a request are counted even if one is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from kuznia.errors import DependencyError, InputError
from services.limits.counters import Counters, Hit
from services.limits.messages import METHOD, OK, OVER_LIMIT, SERVICE, Request, Response, Status
from services.limits.rules import Rule, read_rules

MOST = 2**32
"""A request adds no more: it is above every limit, and counts stay within 64 bits."""
TICK = 1.0
"""Seconds after which a changed file is read and long windows are written down."""

Say = Callable[[str], None]


class Service:
    """Rules of the file `path`, counts of `counters`; InputError for a file that is wrong."""

    def __init__(self, path: Path, counters: Counters, say: Say) -> None:
        self._path, self._counters, self._say = path, counters, say
        self._seen = self._state()
        self.rules = read_rules(path)
        self._fault = ""

    async def should_rate_limit(self, request: Any, context: Any) -> Any:
        """The answer for a RateLimitRequest: one status a list, and the worst of them."""
        if not request.domain or not request.descriptors:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "needs a domain and descriptors; send both"
            )
        try:
            return await self.decide(request, int(time.time()))
        except DependencyError as error:
            # Envoy's failure_mode_deny says what becomes of the request.
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    async def decide(self, request: Any, now: int) -> Any:
        rules, hits, met = self.rules, list[Hit](), list[Rule | None]()
        known = request.domain == rules.domain
        for descriptor in request.descriptors:
            rule = rules.meets(descriptor.entries) if known else None
            met.append(rule)
            if rule:
                # Its own number, where 0 only asks; without it the request's, at least 1.
                own = descriptor.HasField("hits")
                more = min(descriptor.hits.value if own else max(1, request.hits), MOST)
                pairs = "_".join(f"{entry.key}_{entry.value}" for entry in descriptor.entries)
                hits.append(Hit(f"{request.domain}_{pairs}_", rule.seconds, more))
        counts = iter(await self._counters.add(hits, now) if hits else ())
        response = Response(overall_code=OK)
        for rule in met:
            if rule is None:
                response.statuses.append(Status(code=OK))
                continue
            left = rule.most - next(counts)
            over = left < 0 and not rule.shadow
            if over:
                response.overall_code = OVER_LIMIT
            status = response.statuses.add(
                code=OVER_LIMIT if over else OK,
                current_limit=rule.limit,
                limit_remaining=max(0, left),
            )
            status.duration_until_reset.seconds = rule.seconds - now % rule.seconds
        return response

    async def tick(self) -> None:
        """Every second: read the file if it has changed, write long windows down."""
        while True:
            await asyncio.sleep(TICK)
            await self.reload()
            try:
                self._counters.save()
                fault = ""
            except DependencyError as error:
                fault = str(error)
            if fault != self._fault:
                self._say(fault or "counts are written down again")
                self._fault = fault

    async def reload(self) -> None:
        """Take the file's rules if it has changed; a bad one changes nothing."""
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self.rules = await asyncio.to_thread(read_rules, self._path)
            self._say(f"{self._path}: read again")
        except InputError as error:
            for problem in error.problems:
                self._say(f"{problem} (the limits of before stay)")

    def _state(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return (found.st_mtime_ns, found.st_ino, found.st_size)


def serve(service: Service, host: str, port: int) -> tuple[Any, int]:
    """A gRPC server that is ready to start, and its port (chosen if `port` is 0)."""
    # Two services must not share a port unseen, each counting half.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(
        service.should_rate_limit,
        request_deserializer=Request.FromString,
        response_serializer=Response.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    try:
        return server, int(server.add_insecure_port(f"{host}:{port}"))
    except RuntimeError as error:
        raise DependencyError(
            f"{host}:{port}: cannot listen there ({error}); choose another --port"
        ) from error
