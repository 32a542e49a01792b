"""The guard as a server, in front of a small model server on loopback."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from kuznia.errors import InputError
from services.guard import metrics, sessions
from services.guard.__main__ import guarding, main
from services.guard.capture import Capture
from services.guard.config import Keys, Watched
from tests.fixtures.openai_upstream import Upstream
from tests.fixtures.planted import MADE

RELEASE = "acme/support@production"
HEADERS = {"x-kuznia-release": RELEASE, "x-request-id": "r-1", "x-kuznia-caller": "ola"}
MASK_ALL = [
    {"name": kind, "kind": kind, "action": "mask"}
    for kind in ("pesel", "iban", "card", "email", "secret", "deny")
]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"


@dataclass
class Setup:
    """A guard that listens, what is behind it, and somebody who asks."""

    upstream: Upstream
    url: str
    client: aiohttp.ClientSession
    config: Path
    watched: Watched
    told: list[str] = field(default_factory=list)

    async def ask(self, path: str, **body: Any) -> tuple[int, str, dict[str, Any]]:
        """Status, text, and the verdict in the headers."""
        body = {"model": "acme/support", **body}
        async with self.client.post(self.url + path, json=body, headers=HEADERS) as answer:
            verdict = json.loads(answer.headers.get("x-kuznia-guard", "{}"))
            return answer.status, await answer.text(), verdict


def config_of(url: str, **release: Any) -> dict[str, Any]:
    policy = release.pop("rules", MASK_ALL)
    mode, judge = release.pop("mode", "window"), release.pop("judge", None)
    more = release.pop("more", {})
    described = {"tenant": "acme", "model": "support", "stage": "production", "risk": "limited",
                 "version": "0" * 12, "digest": "0" * 64, "url": url, "policy": "own",
                 "served": ["acme/support"], "deny_words": ["projekt Żuraw"]}  # fmt: skip
    own = {"name": "own", "mode": mode, "rules": policy, "judge": judge, **more}
    return {"policies": {"own": own}, "releases": {RELEASE: {**described, **release}}}


@asynccontextmanager
async def listening(runner: web.AppRunner) -> AsyncIterator[str]:
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def running(
    folder: Path, store: Capture | None = None, master: str = "k" * 32, **release: Any
) -> AsyncIterator[Setup]:
    upstream = Upstream()
    behind = web.AppRunner(upstream.application(), handler_cancellation=True, shutdown_timeout=0.1)
    async with listening(behind) as address:
        config = folder / "guard.json"
        config.write_text(json.dumps(config_of(**{"url": address} | release)))
        told: list[str] = []
        watched = Watched(config, Keys(None, master), told.append)
        async with guarding(watched, store, 190, 8 << 20) as runner:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with aiohttp.ClientSession() as client:
                yield Setup(upstream, url, client, config, watched, told)


def texts(path: str, body: str) -> dict[tuple[int, str], str]:
    """What a client puts together from a stream, by choice and place."""
    found: dict[tuple[int, str], str] = {}

    def add(choice: int, place: str, text: str | None) -> None:
        found[choice, place] = found.get((choice, place), "") + (text or "")

    for block in body.split("\n\n"):
        data = block.rpartition("data: ")[2]
        if not data or data == "[DONE]":
            continue
        event = json.loads(data)
        if str(event.get("type", "")).endswith(".delta"):
            add(0, "content", event["delta"])
        for choice in event.get("choices", ()):
            if path == COMPLETIONS:
                add(choice["index"], "content", choice["text"])
            for name, value in choice.get("delta", {}).items():
                if name == "tool_calls":
                    add(choice["index"], "arguments", value[0]["function"].get("arguments"))
                elif name != "role":
                    add(choice["index"], name, value)
    return found


def on_loopback(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


SHAPES = [
    (CHAT, "content"), (CHAT, "reasoning_content"), (CHAT, "reasoning"), (CHAT, "refusal"),
    (CHAT, "arguments"), (COMPLETIONS, "content"), (RESPONSES, "content"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "shape"), SHAPES)
def test_no_stream_gives_a_secret_away_wherever_it_is_cut(
    path: str, shape: str, tmp_path: Path
) -> None:
    async def test() -> None:
        async with running(tmp_path) as setup:
            setup.upstream.shape = shape
            setup.upstream.choices = 1 if path == RESPONSES else 2
            secrets = ["PESEL", "DENY"] if shape != "content" else sorted(MADE)
            for label in secrets:
                secret = MADE[label](random.Random(5))
                setup.upstream.say = f"Oto {secret}; tyle"
                expected = f"Oto [{label}]; tyle"
                if shape == "arguments":
                    setup.upstream.say = json.dumps([setup.upstream.say])
                    expected = json.dumps([expected])
                every = range(4, len(setup.upstream.say) - 4)
                for place in every if label in ("PESEL", "DENY") else (5, 9, 20, len(every)):
                    setup.upstream.cuts = [place, place + 2]
                    ask = {"prompt": "x"} if path == COMPLETIONS else {"input": "x"}
                    ask = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else ask
                    status, body, _ = await setup.ask(path, stream=True, **ask)
                    assert status == 200
                    assert secret not in body
                    for choice in range(setup.upstream.choices):
                        assert texts(path, body)[choice, shape] == expected
                    assert "kuznia_guard" in body
                    assert '"logprob"' not in body and '"token"' not in body

    on_loopback(test)


@pytest.mark.parametrize(("path", "shape"), [*SHAPES, (EMBEDDINGS, "content")])
def test_no_whole_answer_and_no_request_gives_a_secret_away(
    path: str, shape: str, tmp_path: Path
) -> None:
    async def test() -> None:
        async with running(tmp_path) as setup:
            setup.upstream.shape = shape
            for label, make in MADE.items():
                secret = make(random.Random(9))
                setup.upstream.say = f"Oto {secret}; tyle"
                if shape == "arguments":
                    setup.upstream.say = json.dumps([setup.upstream.say])
                for body in requests_with(path, f"Pytam o {secret}!"):
                    status, text, verdict = await setup.ask(path, **body)
                    assert status == 200, text
                    assert secret not in json.dumps(setup.upstream.got[-1], ensure_ascii=False)
                    assert f"[{label}]" in json.dumps(setup.upstream.got[-1])
                    assert verdict["in"] == {label.lower(): 1}
                    if path != EMBEDDINGS:
                        assert secret not in text and f"Oto [{label}]; tyle" in text
                        assert verdict["out"] == {label.lower(): 1}
                        assert '"logprob"' not in text

    on_loopback(test)


def requests_with(path: str, text: str) -> list[dict[str, Any]]:
    """The text in every place that a request has for one."""
    parts = [{"type": "text", "text": text}]
    call = {
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": json.dumps([text])},
    }
    tool = {"type": "function", "function": {"name": "f", "description": text}}
    user = {"role": "user", "content": "x"}
    if path == CHAT:
        messages: list[Any] = [
            *({"role": role, "content": text} for role in ("system", "developer", "user")),
            {"role": "user", "content": parts},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": text},
            {"role": "assistant", "content": "x", "reasoning_content": text},
        ]
        schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"title": text}}}
        return [{"messages": [message]} for message in messages] + [
            {"messages": [user], "tools": [tool]},
            {"messages": [user], "response_format": schema},
            {"messages": [user], "stop": [text]},
            {"messages": [user], "chat_template_kwargs": {"note": text}},
        ]
    if path == COMPLETIONS:
        return [{"prompt": text}, {"prompt": ["x", text]}, {"prompt": "x", "suffix": text}]
    if path == EMBEDDINGS:
        return [{"input": text}, {"input": ["x", text]}, {"messages": [user | {"content": text}]}]
    item = {"role": "user", "content": [{"type": "input_text", "text": text}]}
    output = {"type": "function_call_output", "call_id": "c", "output": text}
    asked = {"type": "function_call", "call_id": "c", "name": "f", "arguments": json.dumps([text])}
    thought = {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": text}]}
    return [
        {"input": text}, {"input": "x", "instructions": text},
        *({"input": [each]} for each in (item, output, asked, thought)),
        {"input": "x", "tools": [{"type": "function", "name": "f", "description": text}]},
    ]  # fmt: skip


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, "unreadable_content",
     "messages[0].content[0]"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "unknown_field",
     "messages[0].content[0]"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "aside": "y"}]}, "unknown_field",
     "messages[0].aside"),
    (CHAT, {"messages": [], "chat_template": "{{ x }}"}, "unknown_field", "chat_template"),
    (CHAT, {"messages": {"role": "user"}}, "unknown_field", "messages"),
    (COMPLETIONS, {"prompt": [1, 2, 3]}, "unreadable_content", "prompt"),
    (COMPLETIONS, {"prompt": "x", "prompt_embeds": "AAAA"}, "unreadable_content", "prompt_embeds"),
    (EMBEDDINGS, {"input": [[1, 2], [3]]}, "unreadable_content", "input"),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "i"}]}, "unknown_field", "input[0]"),
    (RESPONSES, {"input": "x", "prompt": {"id": "p"}}, "unknown_field", "prompt"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "440514"},
     {"type": "text", "text": "01359"}]}]}, "content_filter", "messages[0].content"),
    (CHAT, {"messages": [], "metadata": {"44051401359": "x"}}, "content_filter", "metadata"),
]  # fmt: skip


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as setup:
            for path, body, code, param in REFUSED:
                status, text, verdict = await setup.ask(path, **body)
                error = json.loads(text)["error"]
                assert (status, error["code"], error["param"]) == (400, code, param)
                assert verdict["action"] == ("block" if code == "content_filter" else "pass")
            url = setup.url + CHAT
            raw = [
                (b'{"model":"a","model":"acme/support"}', "duplicate_key"),
                (b'{"messages":[{"content":"a","content":"b"}]}', "duplicate_key"),
                (b'{"model":NaN}', "invalid_json"), (b"[]", "invalid_json"),
                ('{"model":"ą"}'.encode("utf-16"), "invalid_json"),
                (b'{"a":' * 100_000, "invalid_json"), (b'{"model":"other/one"}', "model_not_found"),
            ]  # fmt: skip
            for body_bytes, code in raw:
                async with setup.client.post(url, data=body_bytes, headers=HEADERS) as answer:
                    assert (await answer.json())["error"]["code"] == code
            elsewhere = [
                (setup.url + "/v1/load_lora_adapter", HEADERS, 404), (url + "/", HEADERS, 404),
                (url, {**HEADERS, "x-kuznia-release": "acme/other@production"}, 404),
                (url, {}, 404),
                (url, {**HEADERS, "content-encoding": "zstd"}, 415),
            ]  # fmt: skip
            for address, headers, status in elsewhere:
                async with setup.client.post(address, data=b"{}", headers=headers) as answer:
                    assert answer.status == status
            large = io.BytesIO(b" " * (9 << 20))
            async with setup.client.post(url, data=large, headers=HEADERS) as answer:
                assert answer.status == 413
            assert setup.upstream.got == []
            status, _, _ = await setup.ask(COMPLETIONS, prompt="słowo " * 60_000 + "44051401359")
            assert status == 200 and setup.upstream.got[0]["prompt"].endswith(" [PESEL]")

    on_loopback(test)


def test_a_blocked_answer(tmp_path: Path) -> None:
    rules = [{"name": "deny", "kind": "deny", "action": "block"}]

    async def test() -> None:
        async with running(tmp_path, rules=rules) as setup:
            setup.upstream.say = "Mamy projekt Żuraw tutaj"
            messages = [{"role": "user", "content": "x"}]
            _, text, verdict = await setup.ask(CHAT, messages=messages)
            (choice,) = json.loads(text)["choices"]
            assert choice["finish_reason"] == "content_filter" and not choice["message"]["content"]
            assert verdict["action"] == "block" and verdict["out"] == {"deny": 1}
            _, text, _ = await setup.ask(RESPONSES, input="x")
            assert json.loads(text)["incomplete_details"] == {"reason": "content_filter"}
            for path, ask in ((CHAT, {"messages": messages}), (RESPONSES, {"input": "x"})):
                _, text, _ = await setup.ask(path, stream=True, **ask)
                assert "[DONE]" not in text and "projekt" not in text.replace("[", "")
                last = json.loads(text.strip().rpartition("data: ")[2])
                assert "content_filter" in (last.get("code"), last.get("error", {}).get("code"))
                assert json.loads(last["kuznia_guard"])["out"] == {"deny": 1}
            status, text, _ = await setup.ask(COMPLETIONS, prompt="projekt zuraw")
            assert status == 400 and json.loads(text)["error"]["code"] == "content_filter"

    on_loopback(test)


def test_texts_come_in_order_and_whole(tmp_path: Path) -> None:
    from kuznia.contracts.guard import Policy, Rule
    from kuznia.guard.rules import compile_policy
    from kuznia.guard.streams import ChoiceStream, Stopped

    rules = tuple(Rule.model_validate(rule) for rule in MASK_ALL)
    output = compile_policy(Policy(name="own", rules=rules)).output

    def chunk(**delta: Any) -> dict[str, Any]:
        return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    def call(index: int, text: str) -> dict[str, Any]:
        return {"index": index, "function": {"arguments": text}}

    stream = ChoiceStream(output, None)
    assert stream.event(chunk(reasoning_content="think 440514")) == [
        chunk(reasoning_content="think ")
    ]
    (event,) = stream.event(chunk(content="so "))
    assert event["choices"][0]["delta"] == {"content": "so ", "reasoning_content": "440514"}
    assert stream.event(chunk(tool_calls=[call(0, '{"a": "b')])) != []
    (event,) = stream.event(chunk(tool_calls=[call(1, '"')]))
    assert event["choices"][0]["delta"]["tool_calls"] == [call(0, "b"), call(1, '"')]
    with pytest.raises(Stopped, match="pesel"):
        stream.event(chunk(reasoning_content="01359 "))

    stream = ChoiceStream(output, None)
    stream.event(chunk(content="ends with 44051401359"))
    assert texts(CHAT, "".join(f"data: {json.dumps(each)}\n\n" for each in stream.end())) == {
        (0, "content"): "[PESEL]"
    }
    with pytest.raises(Stopped, match="pesel"):
        stream.event(chunk(tool_calls=[{"index": 0, "function": {"name": "f_44051401359"}}]))


def test_the_openai_client_works_unchanged(tmp_path: Path) -> None:
    def use(setup: Setup) -> None:
        with openai.OpenAI(
            base_url=f"{setup.url}/v1", api_key="none", default_headers=HEADERS, max_retries=0
        ) as client:
            setup.upstream.say = "Numer 44051401359."
            whole = client.chat.completions.create(
                model="acme/support", messages=[{"role": "user", "content": "x"}]
            )
            assert whole.choices[0].message.content == "Numer [PESEL]."
            with client.chat.completions.stream(
                model="acme/support", messages=[{"role": "user", "content": "x"}]
            ) as stream:
                final = stream.get_final_completion()
            assert final.choices[0].message.content == "Numer [PESEL]."
            assert final.usage and final.usage.completion_tokens == 5
            with client.responses.stream(model="acme/support", input="x") as answer:
                assert answer.get_final_response().output_text == "Numer [PESEL]."
            setup.upstream.shape = "arguments"
            setup.upstream.say = '{"who": "44051401359"}'
            with client.chat.completions.stream(
                model="acme/support", messages=[{"role": "user", "content": "x"}]
            ) as stream:
                message = stream.get_final_completion().choices[0].message
            assert message.tool_calls
            assert json.loads(message.tool_calls[0].function.arguments) == {"who": "[PESEL]"}
            found = client.embeddings.create(
                model="acme/support", input="x", encoding_format="float"
            )
            assert found.data[0].embedding == [0.5, 0.25]
            with pytest.raises(openai.BadRequestError, match="unreadable"):
                client.embeddings.create(model="acme/support", input=[[1, 2]])
            with pytest.raises(openai.NotFoundError):
                client.embeddings.create(model="acme/other", input="x")

    async def test() -> None:
        async with running(tmp_path) as setup:
            await asyncio.to_thread(use, setup)

    on_loopback(test)


def test_system_prompt_notice_usage_and_clean_text(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, system_prompt="Be kind.", notice="AI answers here.") as setup:
            for role, expected in (("user", "Be kind."), ("system", "Be kind.\n\nOwn.")):
                messages = [{"role": role, "content": "Own."}]
                status, _, _ = await setup.ask(CHAT, messages=messages, stream=True)
                first = setup.upstream.got[-1]["messages"][0]
                assert status == 200 and first == {"role": "system", "content": expected}
                assert setup.upstream.got[-1]["stream_options"] == {"include_usage": True}
            for stream in (False, True):
                ask = {"input": "x", "instructions": "Own.", "stream": stream}
                _, text, _ = await setup.ask(RESPONSES, **ask)
                assert setup.upstream.got[-1]["instructions"] == "Be kind.\n\nOwn."
                assert "Own." in text and "Be kind." not in text
            setup.upstream.say = "Zwykły tekst, 12 sztuk 😀 i „cudzysłów”. " * 9 + "sk-"
            _, text, _ = await setup.ask(CHAT, messages=[], stream=True)
            assert texts(CHAT, text)[0, "content"] == setup.upstream.say
            async with setup.client.post(
                setup.url + CHAT, json={"model": "acme/support", "messages": []}, headers=HEADERS
            ) as answer:
                assert answer.headers["x-ai-notice"] == "AI answers here."

    on_loopback(test)


def test_a_client_that_goes_away_stops_the_model(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as setup:
            setup.upstream.endless = True
            body = {"model": "acme/support", "messages": [], "stream": True}
            answer = await setup.client.post(setup.url + CHAT, json=body, headers=HEADERS)
            await answer.content.readany()
            answer.close()
            await asyncio.wait_for(setup.upstream.gone.wait(), 5)

    on_loopback(test)


def test_no_connection_to_a_model_is_asked_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "LIVES", 0.3)

    async def test() -> None:
        async with running(tmp_path) as setup:
            setup.upstream.endless = True
            body = {"model": "acme/support", "messages": [], "stream": True}
            async with setup.client.post(setup.url + CHAT, json=body, headers=HEADERS) as stream:
                await stream.content.readany()
                for _ in range(20):
                    assert (await setup.ask(COMPLETIONS, prompt="x"))[0] == 200
                    await asyncio.sleep(0.05)
                # What is under way on an old one goes on.
                assert b"more " in await stream.content.readany()
                assert not setup.upstream.gone.is_set()
            _, *plain = setup.upstream.ports
            asked = [plain.count(port) for port in set(plain)]
            assert len(asked) >= 3 and max(asked) <= 8

    on_loopback(test)


def test_the_configuration_is_watched_and_the_last_good_one_kept(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as setup:
            good = json.loads(setup.config.read_text())
            refused = metrics.RELOADS.labels("refused")._value.get()  # type: ignore[attr-defined]

            async def until(done: Callable[[], bool]) -> None:
                async with asyncio.timeout(2):
                    while not done():
                        await asyncio.sleep(0.05)

            def write(value: Any) -> None:
                new = setup.config.with_suffix(".new")
                new.write_text(value if isinstance(value, str) else json.dumps(value))
                new.replace(setup.config)

            good["releases"][RELEASE]["policy"] = "unheard-of"
            good["policies"]["own"]["rules"].append(
                {"name": "x", "kind": "pattern", "pattern": "a+", "action": "mask"}
            )
            write(good)
            await until(lambda: len(setup.told) == 2)
            assert "own: rule x" in setup.told[0] and "unheard-of" in setup.told[1]
            write("{")
            await until(lambda: len(setup.told) == 3)
            assert metrics.RELOADS.labels("refused")._value.get() == refused + 2  # type: ignore[attr-defined]
            assert (await setup.ask(COMPLETIONS, prompt="44051401359"))[2]["in"] == {"pesel": 1}
            good["policies"]["own"]["rules"] = []
            good["releases"][RELEASE] |= {"policy": "own", "deny_words": []}
            write(good)
            await until(lambda: len(setup.told) == 4)
            assert (await setup.ask(COMPLETIONS, prompt="44051401359"))[2]["in"] == {}

    on_loopback(test)


def test_pseudonyms_need_the_tenants_key(tmp_path: Path) -> None:
    rules = [{"name": "pesel", "kind": "pesel", "side": "input", "action": "pseudonymise"}]

    async def test() -> None:
        async with running(tmp_path, rules=rules) as setup:
            for text in ("44051401359", "440514 01359"):
                _, _, verdict = await setup.ask(COMPLETIONS, prompt=text)
                assert verdict["action"] == "pseudonymise"
            first, second = (body["prompt"] for body in setup.upstream.got)
            assert first == second and first.startswith("<PESEL:")
        async with running(tmp_path, rules=rules, master="") as setup:
            status, text, _ = await setup.ask(COMPLETIONS, prompt="x")
            assert status == 503 and "acme.key" in text
            (tmp_path / "acme.key").write_bytes(b"s" * 32)
            assert Keys(tmp_path).naming("acme") and not Keys(tmp_path).naming("other")

    on_loopback(test)


class Kept:
    """Stands in for the content store."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, str, str, dict[str, str]]] = []

    ref, sha256 = "content/x", "0" * 64

    def put(
        self, tenant: str, subject: str, request_id: str, parts: Mapping[str, str], expires: float
    ) -> Kept:
        self.parts.append((tenant, subject, request_id, dict(parts)))
        return self


def test_content_is_kept_pseudonymised_where_the_release_wants_it(tmp_path: Path) -> None:
    async def test() -> None:
        kept = Kept()
        async with running(tmp_path, kept, rules=[], capture=True) as setup:
            setup.upstream.say = "Do jan@firma.pl piszemy."
            messages = [{"role": "user", "content": "mam 44051401359"}]
            _, _, verdict = await setup.ask(CHAT, messages=messages)
            assert verdict["content"] == {"ref": "content/x", "sha256": "0" * 64}
            _, text, _ = await setup.ask(CHAT, messages=messages, stream=True)
            assert "content/x" in text
            assert texts(CHAT, text)[0, "content"] == setup.upstream.say
            for tenant, subject, request_id, parts in kept.parts:
                assert (tenant, subject, request_id) == ("acme", "ola", "r-1")
                assert "44051401359" not in parts["input"] and "mam <PESEL:" in parts["input"]
                assert parts["output"].startswith("Do <EMAIL:")

    on_loopback(test)


def test_the_judge_is_asked_and_no_answer_is_a_no(tmp_path: Path) -> None:
    async def test() -> None:
        judging = Upstream()
        behind = web.AppRunner(judging.application(), shutdown_timeout=0.1)
        async with listening(behind) as address:
            judge = {"url": address, "model": "judge"}
            async with running(tmp_path, mode="sentence", judge=judge) as setup:
                judging.say = "No"
                setup.upstream.say = "Pierwsze zdanie. Drugie zdanie."
                messages = [{"role": "user", "content": "pytanie"}]
                assert (await setup.ask(CHAT, messages=messages))[0] == 200
                _, text, _ = await setup.ask(CHAT, messages=messages, stream=True)
                assert texts(CHAT, text)[0, "content"] == setup.upstream.say
                asked = [body["messages"][0]["content"] for body in judging.got]
                assert sum("Pierwsze zdanie. " in each for each in asked) == 2
                judging.say = "Yes"
                status, text, verdict = await setup.ask(CHAT, messages=messages)
                assert status == 400 and verdict["in"] == {"judge": 1}
                judging.say = "Perhaps"
                status, text, _ = await setup.ask(CHAT, messages=messages)
                assert status == 503 and "judge" in text

    on_loopback(test)


def test_a_model_that_does_not_answer(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, url="http://127.0.0.1:9") as setup:
            status, text, _ = await setup.ask(COMPLETIONS, prompt="x")
            assert status == 503 and json.loads(text)["error"]["code"] == "model_unavailable"
        async with running(tmp_path) as setup:
            setup.upstream.reply = {"error": {"message": "too long: 44051401359", "code": 400}}
            setup.upstream.status = 400
            status, text, _ = await setup.ask(COMPLETIONS, prompt="x")
            assert status == 400 and "too long: [PESEL]" in text
            setup.upstream.status = 503
            assert (await setup.ask(COMPLETIONS, prompt="x"))[0] == 429, "vLLM's queue is full"

    on_loopback(test)


def test_it_does_not_start_on_a_bad_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "guard.json"
    bad.write_text('{"releases": {"a": 1}}')
    assert main(["--config", str(bad)]) == 2
    assert f"{bad}: releases.a" in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "none.json")]) == 2
    with pytest.raises(InputError, match="shorter than"):
        Keys(None, "short")
