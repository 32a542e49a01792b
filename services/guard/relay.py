"""A streamed answer on its way: event by event, what must not leave held back."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from kuznia.guard.requests import RESPONSES
from kuznia.guard.response_streams import ResponseStream
from kuznia.guard.scanner import Block
from kuznia.guard.streams import ChoiceStream, Event, Stopped
from kuznia.guard.verdict import Refusal
from services.guard.sse import DONE, NotEvents, event_bytes, events

if TYPE_CHECKING:
    from services.guard.server import Exchange

_LAST = ("response.completed", "response.incomplete", "response.failed")


class Relay:
    """The answer to one request, as server-sent events."""

    def __init__(self, exchange: Exchange, upstream: aiohttp.ClientResponse) -> None:
        self._exchange, self._upstream = exchange, upstream
        self._rules = exchange.guarded.compiled.output
        kind = ResponseStream if exchange.path == RESPONSES else ChoiceStream
        self._stream: ChoiceStream | ResponseStream = kind(self._rules, exchange.naming())
        self._response = web.StreamResponse(status=upstream.status)
        self._answer: list[str] = []
        self._told = False
        """Whether the last event, with the verdict, is out."""

    async def run(self) -> web.StreamResponse:
        """Pass the answer on to its end, or to what stops it."""
        exchange = self._exchange
        headers = exchange.headers()
        headers |= {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        self._response.headers.update(headers)
        await self._response.prepare(exchange.request)
        try:
            if self._rules or exchange.captures or exchange.hides:
                await self._look()
            else:
                async for piece in self._upstream.content.iter_any():
                    await self._response.write(piece)
        except ConnectionResetError:
            raise  # The client is gone; what is below are faults of the model.
        except Stopped as stopped:
            exchange.verdict.blocked = True
            await self._fail(_blocked(stopped.block))
        except Refusal as refusal:
            exchange.said = "block" if refusal.code == "content_filter" else "fault"
            await self._fail(refusal)
        except (NotEvents, ValueError, aiohttp.ClientError, TimeoutError) as error:
            exchange.said = "fault"
            message = f"the model's answer broke off ({type(error).__name__}); try again"
            await self._fail(Refusal(502, "model_failed", message))
        finally:
            if exchange.captures and not self._told:
                exchange.guard.later(exchange.keep("".join(self._answer)))
        await self._response.write_eof()
        return self._response

    async def _look(self) -> None:
        async for name, data in events(self._upstream.content):
            if data == b"[DONE]":
                await self._end()
                await self._response.write(DONE)
            elif data:
                started = time.perf_counter()
                event = json.loads(data)
                response = event.get("response") if self._exchange.hides else None
                if response and "instructions" in response:
                    response["instructions"] = self._exchange.own
                try:
                    out = self._stream.event(event)
                except Stopped as stopped:
                    self._exchange.verdict.output = self._stream.hits
                    await self._send(stopped.events, name)
                    raise
                finally:
                    self._exchange.spent += time.perf_counter() - started
                await self._send(out, name)
            else:
                await self._response.write(b": keep-alive\n\n")
        await self._end(only_if_open=True)

    async def _send(self, out: list[Event], name: str) -> None:
        if not out:
            return
        if fresh := self._stream.fresh:
            text = "".join(fresh)
            fresh.clear()
            if self._exchange.captures:
                self._answer.append(text)
            await self._exchange.judge(text, "output")
        started = time.perf_counter()
        last = out[-1]
        if last.get("type") in _LAST or (last.get("choices") == [] and last.get("usage")):
            last["kuznia_guard"] = await self._verdict()
        data = b"".join(
            event_bytes(event, event.get("type", name) if name else "") for event in out
        )
        self._exchange.spent += time.perf_counter() - started
        await self._response.write(data)

    async def _end(self, only_if_open: bool = False) -> None:
        """What is still held back, and the verdict if no event took it."""
        try:
            rest = self._stream.end()
        except Stopped as stopped:
            self._exchange.verdict.output = self._stream.hits
            await self._send(stopped.events, "")
            raise
        await self._send(rest, "event" if isinstance(self._stream, ResponseStream) else "")
        if not self._told and not only_if_open and isinstance(self._stream, ChoiceStream):
            verdict = await self._verdict()
            last = {**self._stream.like, "choices": [], "kuznia_guard": verdict}
            await self._response.write(event_bytes(last))

    async def _verdict(self) -> str:
        """The whole verdict; what is kept of the request is kept first, to be named in it."""
        verdict = self._exchange.verdict
        if not self._told:
            self._told = True
            judged = {"judge": verdict.output["judge"]} if "judge" in verdict.output else {}
            verdict.output = self._stream.hits | judged
            await self._exchange.keep("".join(self._answer))
        return verdict.text()

    async def _fail(self, refusal: Refusal) -> None:
        """One last event that says why there is no more; no [DONE] follows it."""
        event: dict[str, Any] = refusal.body()
        name = ""
        if isinstance(self._stream, ResponseStream):
            error = event["error"]
            name = "error"
            event = {"type": name, "code": error["code"], "message": error["message"],
                     "param": None, "sequence_number": self._stream.next_number()}  # fmt: skip
        event["kuznia_guard"] = await self._verdict()
        await self._response.write(event_bytes(event, name))


def _blocked(block: Block) -> Refusal:
    message = f"the rule {block.rule} does not let the answer pass ({block.why})"
    return Refusal(400, "content_filter", message)
