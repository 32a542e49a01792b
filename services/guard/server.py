"""The reverse proxy: one request in, looked at, on to the model of its release, and back."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Coroutine
from typing import Any

import aiohttp
from aiohttp import web

from kuznia.errors import DependencyError, InputError
from kuznia.guard.inspector import Blocked, Inspector
from kuznia.guard.replies import inspect_reply
from kuznia.guard.requests import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    PATHS,
    RESPONSES,
    Request,
    add_system_prompt,
    parse_body,
    refused,
)
from kuznia.guard.scanner import Naming
from kuznia.guard.verdict import Refusal, Verdict
from services.guard import metrics
from services.guard.capture import Capture, keep
from services.guard.config import Guarded, Watched
from services.guard.judge import may_pass
from services.guard.relay import Relay
from services.guard.sessions import Sessions

TEXTS = (CHAT, COMPLETIONS, RESPONSES)
"""Paths whose answers have texts."""
LARGE = 131_072
"""Bytes of a body above which it is looked at in a thread, so that others do not wait."""
MODELS = "/v1/models"
HEADER = "x-kuznia-guard"
_PASSED_ON = ("x-request-id", "traceparent", "tracestate")
_PASSED_BACK = ("retry-after", "x-request-id")


class Guard:
    """Answers requests; one for all of them."""

    def __init__(self, watched: Watched, capture: Capture | None, days: int) -> None:
        self.watched, self.capture, self.days = watched, capture, days
        self.sessions = Sessions()
        self._late: set[asyncio.Task[None]] = set()

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` though the client of its request is gone."""
        task = asyncio.create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Never raises but for a client that is gone."""
        name = request.headers.get("x-kuznia-release", "")
        guarded = self.watched.current.releases.get(name)
        if guarded is None:
            message = f"{name[:100]!r} is no release here; ask for one of /v1/models"
            return _error(Refusal(404, "model_not_found", message))
        async with self.sessions.one() as session:
            exchange = Exchange(self, session, request, guarded)
            try:
                return await exchange.run()
            except Refusal as refusal:
                exchange.said = what_was_done(refusal)
                return _error(refusal, exchange.headers())
            finally:
                said = exchange.said or exchange.verdict.action
                metrics.REQUESTS.labels(guarded.release.tenant, said).inc()
                metrics.ADDED.observe(exchange.spent)


class Exchange:
    """One request and its answer."""

    def __init__(
        self,
        guard: Guard,
        session: aiohttp.ClientSession,
        request: web.BaseRequest,
        guarded: Guarded,
    ) -> None:
        self.guard, self.session, self.request, self.guarded = guard, session, request, guarded
        self.verdict = Verdict(guarded.compiled)
        self.path = request.rel_url.raw_path
        self.spent = 0.0
        self.said = ""
        self.captures = guard.capture is not None and guarded.release.capture
        self.asked: list[str] = []
        self.hides = self.path == RESPONSES and guarded.release.system_prompt is not None
        """Whether a Response would repeat the system prompt among its instructions."""
        self.own: Any = None
        """The instructions that the client sent."""

    def headers(self) -> dict[str, str]:
        """What every answer of the guard carries."""
        headers = {HEADER: self.verdict.text()}
        if self.guarded.release.notice:
            headers["x-ai-notice"] = self.guarded.release.notice
        return headers

    async def run(self) -> web.StreamResponse:
        """The answer; raises Refusal."""
        asks_models = self.request.method == "GET" and self.path == MODELS
        if not asks_models and (self.request.method != "POST" or self.path not in PATHS):
            raise Refusal(404, "not_found", f"{self.path[:100]}: there is no such path")
        if self.request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "unsupported_encoding", "body: is compressed; send it as it is")
        try:
            body = b"" if asks_models else await self._looked_at(await self.request.read())
        except web.HTTPRequestEntityTooLarge:
            raise Refusal(413, "too_large", "body: is too large; send less") from None
        upstream = await self._ask(body)
        try:
            if upstream.content_type == "text/event-stream":
                return await Relay(self, upstream).run()
            return await self._whole(upstream)
        finally:
            # Read to its end it goes back to the pool; else the model stops at once.
            upstream.release() if upstream.content.at_eof() else upstream.close()

    async def _looked_at(self, raw: bytes) -> bytes:
        """The body as it goes on; raises Refusal."""
        started = time.perf_counter()
        body = parse_body(raw)
        release, compiled = self.guarded.release, self.guarded.compiled
        if body.get("model") not in self.guarded.served:
            message = f"model: {str(body.get('model'))[:100]!r} is not what this address serves"
            raise Refusal(404, "model_not_found", message, "model")
        try:
            naming = self.guarded.naming
        except InputError as error:
            raise Refusal(503, "guard_unavailable", str(error)) from None
        look = Inspector(
            compiled.input, naming, keep=self.captures or compiled.policy.judge is not None
        )
        request = Request(self.path, body, look)
        try:
            if len(raw) > LARGE:
                await asyncio.to_thread(request.inspect)
            else:
                request.inspect()
        except Blocked as blocked:
            self.verdict.blocked = True
            raise refused(blocked) from None
        except RecursionError:
            raise Refusal(400, "invalid_json", "body: too deep; send less of it") from None
        finally:
            self.verdict.input = look.hits
            self.asked = look.texts or []
            self.spent += time.perf_counter() - started
        await self.judge("\n".join(self.asked), "input")
        changed = request.changed
        if release.system_prompt and self.path != EMBEDDINGS:
            self.own = body.get("instructions")
            add_system_prompt(self.path, body, release.system_prompt)
            changed = True
        if body.get("stream") and self.path in (CHAT, COMPLETIONS):
            options = body.get("stream_options") or {}
            if not isinstance(options, dict):
                raise Refusal(400, "invalid_json", "stream_options: is no object", "stream_options")
            if options.get("include_usage") is not True:
                body["stream_options"] = {**options, "include_usage": True}
                changed = True
        return json.dumps(body).encode() if changed else raw

    async def judge(self, text: str, what: str) -> None:
        """Ask the policy's judge, if it has one; raises Refusal where the text may not pass."""
        judge = self.guarded.compiled.policy.judge
        if judge is None or not text.strip():
            return
        try:
            passes = await may_pass(self.session, judge, text)
        except DependencyError as error:
            raise Refusal(503, "guard_unavailable", f"{error}; try again later") from error
        if not passes:
            self.verdict.blocked = True
            hits = self.verdict.input if what == "input" else self.verdict.output
            hits["judge"] = hits.get("judge", 0) + 1
            raise Refusal(400, "content_filter", f"{what}: the judge does not let it pass")

    async def keep(self, answer: str) -> None:
        """Keep what was asked and answered, where the release wants it."""
        capture = self.guard.capture
        if capture is None or not self.captures:
            return
        headers, release = self.request.headers, self.guarded.release
        who = (headers.get("x-kuznia-caller", ""), headers.get("x-request-id", ""))
        parts = {"input": "\n".join(self.asked), "output": answer}
        naming = self.guard.watched.current.keys.naming(release.tenant)
        self.verdict.content = await keep(
            capture, (release.tenant, *who), parts, naming, self.guard.days
        )

    async def _ask(self, body: bytes) -> aiohttp.ClientResponse:
        """The model's answer, its body unread; asked twice if a kept connection was closed."""
        theirs = self.request.headers
        headers = {name: theirs[name] for name in _PASSED_ON if name in theirs}
        headers |= {"content-type": "application/json", "accept-encoding": "identity"}
        url = self.guarded.release.url + self.path

        async def ask() -> aiohttp.ClientResponse:
            data = io.BytesIO(body) if len(body) > LARGE else body or None
            return await self.session.request(
                self.request.method, url, data=data, headers=headers, allow_redirects=False
            )

        try:
            try:
                return await ask()
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if isinstance(error, aiohttp.ClientConnectorError):
                    raise
                return await ask()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(error) from error

    async def _whole(self, upstream: aiohttp.ClientResponse) -> web.Response:
        """An answer that comes in one piece."""
        try:
            raw = await upstream.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(error) from error
        started = time.perf_counter()
        look = Inspector(self.guarded.compiled.output, self.naming(), keep=self.captures)
        if (look.rules or self.captures or self.hides) and self.path in TEXTS and raw:
            work = asyncio.to_thread(self._scrubbed, raw, look) if len(raw) > LARGE else None
            raw = await work if work else self._scrubbed(raw, look)
        self.verdict.output = look.hits
        self.spent += time.perf_counter() - started
        await self._judge_reply(raw)
        await self.keep("\n".join(look.texts or []))
        back = {name: upstream.headers[name] for name in _PASSED_BACK if name in upstream.headers}
        kind = upstream.headers.get("content-type", "application/json")
        headers = {**back, **self.headers(), "content-type": kind}
        # vLLM's 503 is a full queue; here that is a model or a part of the guard that is away.
        status = 429 if upstream.status == 503 else upstream.status
        return web.Response(status=status, body=raw, headers=headers)

    def naming(self) -> Naming | None:
        """How this tenant's values are named, where the policy does that."""
        return self.guarded.naming if self.guarded.compiled.policy.pseudonymises else None

    def _scrubbed(self, raw: bytes, look: Inspector) -> bytes:
        try:
            reply = json.loads(raw)
        except ValueError:
            try:
                return look.text(raw.decode(errors="replace"), "answer").encode(errors="replace")
            except Blocked:
                self.verdict.blocked = True
                return b""
        if self.hides and isinstance(reply, dict) and "instructions" in reply:
            reply["instructions"], raw = self.own, b""
        seen, blocked = inspect_reply(self.path, reply, look)
        self.verdict.blocked = self.verdict.blocked or blocked
        return raw if raw and seen == reply else json.dumps(seen).encode()

    async def _judge_reply(self, raw: bytes) -> None:
        if self.guarded.compiled.policy.judge is None or self.path not in TEXTS or not raw:
            return
        look = Inspector(self.guarded.compiled.output, self.naming(), keep=True)
        inspect_reply(self.path, json.loads(raw), look)
        await self.judge("\n".join(look.texts or []), "output")


def what_was_done(refusal: Refusal) -> str:
    """A refusal as the metric calls it."""
    if refusal.code == "content_filter":
        return "block"
    return "fault" if refusal.status >= 500 else "refuse"


def _unreachable(error: Exception) -> Refusal:
    message = f"the model does not answer ({type(error).__name__}); try again later"
    return Refusal(503, "model_unavailable", message)


def _error(refusal: Refusal, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(refusal.body(), status=refusal.status, headers=headers)
