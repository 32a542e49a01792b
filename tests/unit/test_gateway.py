"""The gateway's Envoy, running: who gets in, where they get to, and what is on record."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import openai
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from kuznia.contracts.soft import Soft
from kuznia.errors import DependencyError, InputError
from kuznia.gateway.folder import compiled, validate, write
from kuznia.gateway.softly import softened
from kuznia.gateway.table import Table
from kuznia.signing import public_pem
from tests.fixtures.gateway_case import CHAT, Access, Running, Upstream, running, target

TENANTS = ("acme", "globex", "initech")
MODELS = ("support", "tiny", "doctor")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


def table_on(port: int) -> Table:
    return Table(
        targets=(
            target("acme/support", port, risk="limited"),
            target("acme/support", port, "staging", risk="limited"),
            target("acme/doctor", port, "staging", risk="high"),
            target("acme/half", port, split=50),
            target("acme/half", port, "staging"),
            target("acme/narrow", port, concurrency=1),
            target("globex/support", port),
            target("initech/tiny", port, risk="limited"),
        ),
        hosts={"acme.llm.example.org": "acme", "globex.llm.example.org": "globex"},
        groups={"acme-users": {"acme": ("production",)}},
    )


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("gateway"), table_on(upstream.port)) as made:
        yield made


def chat(client: httpx.Client, model: str, path: str = CHAT, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Who are you?"}]}
    return client.post(path, json=body, **more)


def who(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def test_a_name_leads_to_its_release(gateway: Running) -> None:
    with gateway.client() as client:
        assert who(chat(client, "acme/support")) == "acme/support@production"
        assert who(chat(client, "acme/support:production")) == "acme/support@production"
        assert who(chat(client, "acme/support:staging")) == "acme/support@staging"
        assert who(chat(client, "acme/doctor")) == "acme/doctor@staging"
        by_path = chat(client, "acme/support", "/acme/support/v1/chat/completions?x=1")
        assert who(by_path) == "acme/support@production"
        by_host = chat(client, "acme/support", headers={"Host": "acme.llm.example.org"})
        assert who(by_host) == "acme/support@production"
        assert by_host.headers["x-ai-generated"] == "true"
        assert "AI system" in by_host.headers["x-ai-notice"]


def test_the_upstream_learns_who_asks_and_nothing_that_a_client_says(
    gateway: Running, upstream: Upstream
) -> None:
    lies = {
        "x-kuznia-release": "globex/support@production",
        "x-kuznia-route": "globex/support",
        "x-kuznia-tenant": "globex",
        "x-kuznia-caller": "root",
        "x-request-id": "mine",
        "x-envoy-original-path": "/elsewhere",
    }
    with gateway.client(sub="bert") as client:
        reply = chat(client, "acme/support", headers=lies)
    assert who(reply) == "acme/support@production"
    seen = {name.lower(): value for name, value in upstream.asked[-1]["headers"].items()}
    assert seen["x-kuznia-tenant"] == "acme"
    assert seen["x-kuznia-caller"] == "bert"
    assert seen["x-request-id"] == reply.headers["x-request-id"] != "mine"
    assert not {"authorization", "x-kuznia-route"} & set(seen)
    assert upstream.asked[-1]["path"] == CHAT


REFUSED: dict[str, tuple[int, str, dict[str, Any], Callable[[httpx.Client], httpx.Response]]] = {
    "no such model": (404, "model_not_found", {}, lambda c: chat(c, "acme/nothing")),
    "a name that is none": (404, "model_not_found", {}, lambda c: chat(c, "../acme/support")),
    "no model": (400, "invalid_request", {}, lambda c: c.post(CHAT, json={})),
    "a model that is a number": (
        400,
        "invalid_request",
        {},
        lambda c: c.post(CHAT, json={"model": 1}),
    ),
    "no JSON": (400, "invalid_request", {}, lambda c: c.post(CHAT, content=b"model=acme/support")),
    "another tenant's model": (403, "permission_denied", {}, lambda c: chat(c, "globex/support")),
    "a tenant that is none": (403, "permission_denied", {}, lambda c: chat(c, "nobody/nothing")),
    "another tenant's path": (
        *(403, "permission_denied", {}),
        lambda c: chat(c, "acme/support", "/globex/support/v1/chat/completions"),
    ),
    "another model in the path": (
        *(403, "permission_denied", {}),
        lambda c: chat(c, "acme/support", "/acme/doctor/v1/chat/completions"),
    ),
    "another tenant's host": (
        *(403, "permission_denied", {}),
        lambda c: chat(c, "acme/support", headers={"Host": "globex.llm.example.org"}),
    ),
    "a model not in the key": (
        *(403, "permission_denied", {"models": ["acme/doctor"]}),
        lambda c: chat(c, "acme/support"),
    ),
    "a stage not in the key": (
        *(403, "permission_denied", {"stages": ["production"]}),
        lambda c: chat(c, "acme/support:staging"),
    ),
    "a risk class not in the key": (
        *(403, "permission_denied", {"risks": ["minimal", "limited"]}),
        lambda c: chat(c, "acme/doctor"),
    ),
    "a key without claims": (
        *(403, "permission_denied", {"models": None, "stages": None, "risks": None}),
        lambda c: chat(c, "acme/support"),
    ),
    "a key of no tenant": (
        403,
        "permission_denied",
        {"tenant": None},
        lambda c: chat(c, "acme/support"),
    ),
    "an expired key": (401, "invalid_api_key", {"exp": 1}, lambda c: chat(c, "acme/support")),
    "a key of another issuer": (
        401,
        "invalid_api_key",
        {"iss": "me"},
        lambda c: chat(c, "acme/support"),
    ),
    "a key for another service": (
        403,
        "permission_denied",
        {"aud": "x"},
        lambda c: chat(c, "acme/support"),
    ),
    "another method": (404, "not_found", {}, lambda c: c.get(CHAT)),
    "vLLM's own path": (404, "not_found", {}, lambda c: c.post("/v1/load_lora_adapter", json={})),
    "a path beside the API": (404, "not_found", {}, lambda c: c.get("/metrics")),
    "a path that climbs": (404, "not_found", {}, lambda c: c.post("/v1/../metrics", json={})),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_as_openai_words_it(gateway: Running, upstream: Upstream, case: Any) -> None:
    status, code, claims, ask = case
    before = len(upstream.asked)
    with gateway.client(**claims) as client:
        reply = ask(client)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert len(upstream.asked) == before


def test_no_key_and_a_key_by_somebody_else(gateway: Running) -> None:
    assert httpx.post(f"{gateway.url}{CHAT}", json={}, trust_env=False).status_code == 401
    mine, gateway.key = gateway.key, ec.generate_private_key(ec.SECP256R1())
    try:
        with gateway.client() as client:
            assert chat(client, "acme/support").status_code == 401
    finally:
        gateway.key = mine


def test_claims_of_odd_shapes_open_nothing(gateway: Running, upstream: Upstream) -> None:
    before = len(upstream.asked)
    odd: list[Any] = [{"a": 1}, ["x"], 7, True, "acme\r\nx: y"]
    for value in odd:
        for claim in ("tenant", "models", "stages", "risks"):
            with gateway.client(**{claim: value}) as client:
                reply = chat(client, "acme/support")
                assert reply.status_code in (401, 403, 500), (claim, value)
                assert client.get("/v1/models").status_code in (200, 401, 403, 500)
    assert len(upstream.asked) == before
    for name in odd:
        with gateway.client(sub=name, jti=name) as client:
            if chat(client, "acme/support").status_code == 200:
                seen = {key.lower() for key in upstream.asked[-1]["headers"]}
                assert "x" not in seen


def test_a_script_that_fails_lets_nobody_in(upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, table_on(upstream.port)) as made, made.client() as client:
        assert chat(client, "acme/support").status_code == 200
        (made.places.folder / "policy.lua").write_text("-- nothing in it\nreturn {}\n")
        time.sleep(2.1)
        before = len(upstream.asked)
        reply = chat(client, "acme/support")
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "server_error")
        (made.places.folder / "policy.lua").write_text("-- no Lua\nreturn {\n")
        time.sleep(2.1)
        assert chat(client, "acme/support").status_code == 500, "the last one that loads"
        assert len(upstream.asked) == before


def test_the_list_has_what_the_caller_may_use(gateway: Running) -> None:
    def names(path: str = "/v1/models", **claims: Any) -> list[str]:
        with gateway.client(**claims) as client:
            return [each["id"] for each in client.get(path).json()["data"]]

    assert names(tenant="globex") == ["globex/support", "globex/support:production"]
    assert names(models=["acme/support"], stages=["production"]) == [
        "acme/support",
        "acme/support:production",
    ]
    assert names("/acme/doctor/v1/models") == ["acme/doctor", "acme/doctor:staging"]
    assert "acme/doctor" not in names(risks=["minimal", "limited"])
    assert names(tenant="nobody") == []


def test_the_official_client_works_unchanged(gateway: Running) -> None:
    with openai.OpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=gateway.token(),
        max_retries=0,
        http_client=httpx.Client(trust_env=False),
    ) as client:
        messages: Any = [{"role": "user", "content": "Who are you?"}]
        whole = client.chat.completions.create(model="acme/support", messages=messages)
        assert whole.choices[0].message.content == "acme/support@production"
        assert whole.usage and whole.usage.total_tokens == 12
        pieces = client.chat.completions.create(
            model="acme/support", messages=messages, stream=True
        )
        text = "".join(c.choices[0].delta.content or "" for c in pieces if c.choices)
        assert text == "I am acme/support@production"
        tool: Any = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
        called = client.chat.completions.create(
            model="acme/support", messages=messages, tools=[tool]
        )
        assert called.choices[0].message.tool_calls[0].function.name == "look_up"  # type: ignore
        made = client.embeddings.create(model="acme/support", input="text", encoding_format="float")
        assert made.data[0].embedding == [0.5, 0.25]
        assert {each.id for each in client.models.list()} >= {"acme/support", "acme/half"}
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model="globex/support", messages=messages)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="acme/nothing", messages=messages)
    with (
        openai.OpenAI(
            base_url=f"{gateway.url}/v1",
            api_key="sk-wrong",
            max_retries=0,
            http_client=httpx.Client(trust_env=False),
        ) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_every_request_is_on_record_before_its_answer(gateway: Running) -> None:
    with gateway.client(sub="carla", jti="key-1") as client:
        good = chat(client, "acme/support")
        denied = chat(client, "globex/support")
        body = {"model": "acme/support", "stream": True, "messages": []}
        streamed = client.post(CHAT, json=body)
    lines = gateway.lines()
    of = {
        reply: [line for line in lines if line["id"] == reply.headers["x-request-id"]]
        for reply in (good, denied, streamed)
    }
    for found in of.values():
        assert [line["e"] for line in found] == ["in", "out"]
    first, last = of[good]
    assert (first["method"], first["path"], first["ip"]) == ("POST", CHAT, "127.0.0.1")
    digest = target("acme/support", 1).digest
    assert {key: last[key] for key in last if key not in ("id", "t", "e")} == {
        "status": 200,
        "tenant": "acme",
        "caller": "carla",
        "key": "key-1",
        "model": "acme/support",
        "release": "acme/support@production",
        "version": digest[:12],
        "digest": digest,
        "risk": "limited",
        "guard": None,
    }
    assert of[denied][1]["status"] == 403
    assert of[denied][1]["reason"] == "this key is not of that tenant"
    wanted = {reply.headers["x-request-id"] for reply in of}
    for _ in range(50):
        ends = {end["id"]: end for end in gateway.ends() if end["id"] in wanted}
        if len(ends) == len(wanted):
            break
        time.sleep(0.1)
    for reply in (good, streamed):
        end = ends[reply.headers["x-request-id"]]
        assert (end["tokens_in"], end["tokens_out"]) == (5, 7)
        assert end["arm"] == "acme/support@production"


def test_what_was_answered_is_on_record_though_envoy_is_killed(
    upstream: Upstream, tmp_path: Path
) -> None:
    answered: list[str] = []
    with running(tmp_path, table_on(upstream.port)) as made:
        for _ in range(3):
            threads = [threading.Thread(target=_ask_on, args=(made, answered)) for _ in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(0.4)
            made.kill()
            for thread in threads:
                thread.join()
            made.start()
        outs = [line["id"] for line in made.lines() if line["e"] == "out"]
    assert len(answered) > 20
    assert set(answered) <= set(outs)
    assert len(outs) == len(set(outs))


def _ask_on(made: Running, answered: list[str]) -> None:
    """Ask until the gateway is gone, right and wrong by turns."""
    with made.client() as client:
        for number in range(10_000):
            try:
                reply = chat(client, ("acme/support", "globex/support")[number % 2])
            except httpx.TransportError:
                return
            answered.append(reply.headers["x-request-id"])


def test_a_log_that_cannot_be_written_stops_everything(upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, table_on(upstream.port)) as made, made.client() as client:
        made.kill()
        now = int(time.time()) // 60
        files = [made.places.spool / f"requests-{now + more}.jsonl" for more in range(3)]
        for path in files:
            path.unlink(missing_ok=True)
            # Every write to it fails: no space left.
            path.symlink_to("/dev/full")
        before = len(upstream.asked)
        made.start()
        for model in ("acme/support", "globex/support"):
            reply = chat(client, model)
            assert reply.status_code == 503
            assert "audit log cannot be written" in reply.json()["error"]["message"]
        assert len(upstream.asked) == before
        for path in files:
            path.unlink()
        assert who(chat(client, "acme/support")) == "acme/support@production"


def test_a_revoked_key_and_a_new_release_without_a_restart(
    gateway: Running, upstream: Upstream
) -> None:
    with gateway.client(jti="stolen") as client:
        assert chat(client, "acme/support").status_code == 200
        old = gateway.table
        more = target("acme/fresh", upstream.port)
        gateway.bring(
            old.model_copy(update={"targets": (*old.targets, more)}), {"stolen": 2_000_000_000}
        )
        began = time.monotonic()
        while (reply := chat(client, "acme/support")).status_code == 200:
            assert time.monotonic() - began < 10
            time.sleep(0.1)
        assert (reply.status_code, "revoked" in reply.text) == (401, True)
    with gateway.client() as client:
        while chat(client, "acme/fresh").status_code == 404:
            assert time.monotonic() - began < 10
            time.sleep(0.1)
        gateway.bring(old, {})


def test_a_split_is_by_caller_and_about_even(gateway: Running) -> None:
    arms: dict[str, set[str]] = {}
    for number in range(60):
        with gateway.client(sub=f"caller-{number}", stages=["production"]) as client:
            arms[f"caller-{number}"] = {who(chat(client, "acme/half")) for _ in range(2)}
    assert all(len(found) == 1 for found in arms.values())
    staging = sum(found == {"acme/half@staging"} for found in arms.values())
    assert 15 <= staging <= 45


def test_more_than_it_may_have_at_once_and_a_full_queue_are_429(
    gateway: Running, upstream: Upstream
) -> None:
    upstream.slow = 0.5
    replies: list[httpx.Response] = []
    try:
        with gateway.client() as client:
            threads = [
                threading.Thread(target=lambda: replies.append(chat(client, "acme/narrow")))
                for _ in range(3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        upstream.slow = 0.0
    assert sorted(reply.status_code for reply in replies) == [200, 429, 429]
    (refused, _) = [reply for reply in replies if reply.status_code == 429]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(refused.headers["retry-after"]) >= 1
    upstream.status = 503
    try:
        with gateway.client() as client:
            full = chat(client, "acme/support")
    finally:
        upstream.status = 200
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")


def test_a_model_may_be_silent_for_longer_than_a_client(upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, table_on(upstream.port)) as made:
        listeners = (made.places.folder / "listeners.json").read_text()
        short = listeners.replace('"stream_idle_timeout":"300s"', '"stream_idle_timeout":"1s"')
        assert short != listeners
        made.kill()
        write({"listeners.json": short}, made.places.folder)
        made.start()
        upstream.slow = 2.5
        try:
            with made.client() as client:
                assert who(chat(client, "acme/support")) == "acme/support@production"
                upstream.slow = 0.0
                streamed = chat_stream(client, "acme/support", pace=2.5)
        finally:
            upstream.slow = 0.0
    assert streamed.endswith("data: [DONE]\n\n")


def chat_stream(client: httpx.Client, model: str, **more: Any) -> str:
    body = {"model": model, "messages": [], "stream": True, **more}
    return client.post(CHAT, json=body).text


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json;charset=UTF-8", 200),
        ("application/json; charset=UTF-8", 200),
        ("application/json;charset=utf-8", 200),
        ('Application/JSON ; charset="utf-8"', 200),
        ("application/jsonp", 400),
        ("text/plain; application/json", 400),
    ],
)
def test_json_by_whatever_name(gateway: Running, kind: str, status: int) -> None:
    body = json.dumps({"model": "acme/support", "messages": []})
    with gateway.client() as client:
        reply = client.post(CHAT, content=body, headers={"Content-Type": kind})
    assert reply.status_code == status, reply.text


def test_a_notice_is_said_as_it_is_written(upstream: Upstream, tmp_path: Path) -> None:
    notice = "100% written by AI, %REQ(authorization)% too"
    table = Table(targets=(target("acme/marked", upstream.port, risk="limited", notice=notice),))
    with running(tmp_path, table) as made, made.client() as client:
        assert chat(client, "acme/marked").headers["x-ai-notice"] == notice


def test_no_connection_to_a_model_is_asked_for_long(gateway: Running, upstream: Upstream) -> None:
    """A pod that is to end waits for that; nothing is lost when a connection is renewed."""
    began = time.monotonic()
    used: dict[int, list[float]] = {}
    with gateway.client() as client:
        while (now := time.monotonic()) < began + 12:
            assert who(chat(client, "acme/support")) == "acme/support@production"
            used.setdefault(upstream.asked[-1]["port"], []).append(now)
            time.sleep(0.02)
    lives = [times[-1] - times[0] for times in used.values()]
    assert len(lives) >= 2 and 4 < max(lives) < 6, lives


def test_a_client_that_leaves_stops_the_model(gateway: Running, upstream: Upstream) -> None:
    upstream.slow, before = 5.0, upstream.cancelled
    try:
        with gateway.client() as client, pytest.raises(httpx.ReadTimeout):
            chat(client, "acme/support", timeout=0.3)
        for _ in range(50):
            if upstream.cancelled > before:
                break
            time.sleep(0.1)
    finally:
        upstream.slow = 0.0
    assert upstream.cancelled == before + 1


SMUGGLED = {
    "two lengths": "Content-Length: 5\r\nContent-Length: 60\r\n\r\n",
    "length and chunks": "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    "GET /metrics HTTP/1.1\r\n\r\n",
    "odd chunks": "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "underscores": "X_Kuznia_Release: globex/support@production\r\nContent-Length: 0\r\n\r\n",
    "a folded header": "X-A: b\r\n\tc: d\r\nContent-Length: 0\r\n\r\n",
    "a space in a name": "X-Kuznia-Route : globex/support\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("rest", SMUGGLED.values(), ids=SMUGGLED)
@pytest.mark.parametrize("path", [CHAT, "/v1%2fchat/completions", "/acme%2fsupport/v1/models"])
def test_nothing_is_smuggled(gateway: Running, upstream: Upstream, path: str, rest: str) -> None:
    before = len(upstream.asked)
    with socket.create_connection(("127.0.0.1", gateway.places.port), 5) as line:
        line.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {gateway.token()}\r\n{rest}".encode()
        )
        line.settimeout(5)
        answer = line.recv(65536).decode()
    assert answer.split()[1] in ("400", "403", "404", "501"), answer
    assert len(upstream.asked) == before


def http2(made: Running, headers: list[tuple[str, str]], body: bytes) -> int:
    """The status of one HTTP/2 request with these headers as they are; 0 where it is reset."""
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    )
    with socket.create_connection(("127.0.0.1", made.places.port), 5) as line:
        connection.initiate_connection()
        connection.send_headers(1, headers)
        connection.send_data(1, body, end_stream=True)
        line.sendall(connection.data_to_send())
        while data := line.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    return int(dict(event.headers)[b":status"])
                if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    return 0
            line.sendall(connection.data_to_send())
    return 0


TRICKS: dict[str, list[tuple[str, str]]] = {
    "another host in host": [("host", "globex.llm.example.org")],
    "another path": [(":path", "/globex/support/v1/chat/completions")],
    "chunks": [("transfer-encoding", "chunked")],
    "capitals": [("X-Kuznia-Release", "globex/support@production")],
    "a line end": [("x-a", "b\r\nx-kuznia-release: globex/support@production")],
    "another length": [("content-length", "3")],
    "a pseudo-header late": [("x-a", "b"), (":authority", "globex.llm.example.org")],
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
def test_tricks_of_http2_lead_nowhere_else(
    gateway: Running, upstream: Upstream, trick: list[tuple[str, str]]
) -> None:
    body = b'{"model": "acme/support", "messages": []}'
    plain = [
        *((":method", "POST"), (":scheme", "http"), (":authority", "acme.llm.example.org")),
        *((":path", CHAT), ("content-type", "application/json")),
        ("authorization", f"Bearer {gateway.token()}"),
    ]
    assert http2(gateway, plain, body) == 200
    before = len(upstream.asked)
    status = http2(gateway, plain + trick, body)
    asked = upstream.asked[before:]
    assert {each["headers"]["x-kuznia-release"] for each in asked} <= {"acme/support@production"}
    assert status in (0, 200, 400, 403), status
    assert (status == 200) == bool(asked)


def test_a_request_that_is_too_large(upstream: Upstream, tmp_path: Path) -> None:
    table = table_on(upstream.port).model_copy(update={"access": Access(largest_request_mib=1)})
    with running(tmp_path, table) as made, made.client() as client:
        messages = [{"role": "user", "content": "x" * 2**20}]
        body = {"model": "acme/support", "messages": messages}
        reply = client.post(CHAT, json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
        body["messages"] = [{"role": "user", "content": "x" * 900_000}]
        assert client.post(CHAT, json=body).status_code == 200


def random_table(seed: int, port: int) -> Table:
    """Tenants, models, stages, risk classes, splits and hosts, as it comes."""
    dice = random.Random(seed)
    found = []
    for tenant in TENANTS:
        for model in MODELS:
            stages = dice.sample(["production", "staging"], dice.randint(0, 2))
            for stage in stages:
                more = {"risk": dice.choice(["minimal", "limited", "high"])}
                split = dice.choice([0, 50]) if len(stages) == 2 and stage == "production" else 0
                found.append(target(f"{tenant}/{model}", port, stage, split=split, **more))
    hosts = {f"{tenant}.llm.example.org": tenant for tenant in TENANTS if dice.random() < 0.7}
    return Table(targets=tuple(found), hosts=hosts)


NAMES = st.builds(
    "{}/{}{}".format,
    st.sampled_from(TENANTS),
    st.sampled_from(MODELS),
    st.sampled_from(["", ":staging", ":production", ":x"]),
)
ODD = st.sampled_from(
    ["acme", "globex", "a/", "..", "%2e%2e", "acme%2fsupport", "ACME", "*", "a b", "models"]
)
ASKED = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(TENANTS),
        "models": st.lists(st.one_of(NAMES, st.just("*")), max_size=2),
        "risks": st.lists(st.sampled_from(["minimal", "limited", "high", "*"]), max_size=2),
        "stages": st.lists(st.sampled_from(["production", "staging", "*"]), max_size=2),
        "asked": st.one_of(NAMES, ODD),
        "again": st.one_of(st.none(), NAMES),
        "path": st.one_of(
            st.just(CHAT),
            st.builds("/{}/{}/v1/chat/completions".format, ODD, ODD),
            st.builds("/{}/v1/chat/completions".format, NAMES),
            st.builds("/v1/{}/chat/completions".format, ODD),
            st.builds("/v1/chat/completions;{}".format, ODD),
        ),
        "host": st.sampled_from(
            ["x", "acme.llm.example.org", "globex.llm.example.org:443", "GLOBEX.llm.example.org"]
        ),
        "header": st.sampled_from(
            [
                *("x-kuznia-route", "x-kuznia-release", "x-kuznia-tenant", "x-original-url"),
                *("x-rewrite-url", "x-forwarded-host", "x-http-method-override"),
            ]
        ),
        "value": NAMES,
    }
)


@pytest.mark.parametrize("seed", range(4))
def test_no_tenant_reaches_another(upstream: Upstream, tmp_path: Path, seed: int) -> None:
    with running(tmp_path, random_table(seed, upstream.port)) as made:

        @settings(max_examples=60, deadline=None, derandomize=True, database=None)
        @given(asked=ASKED)
        def ask(asked: dict[str, Any]) -> None:
            _ask_as(made, upstream, asked)

        ask()


def _ask_as(made: Running, upstream: Upstream, asked: dict[str, Any]) -> None:
    again = f', "model": {json.dumps(asked["again"])}' if asked["again"] is not None else ""
    body = f'{{"model": {json.dumps(asked["asked"])}, "messages": []{again}}}'
    before, lines = len(upstream.asked), len(made.lines())
    claims = {key: asked[key] for key in ("tenant", "models", "risks", "stages")}
    headers = {"Content-Type": "application/json", "Host": asked["host"]}
    with made.client(**claims) as client:
        reply = client.post(
            asked["path"], content=body, headers=headers | {asked["header"]: asked["value"]}
        )
    # What is no valid path never reaches a filter; Envoy's own line has it.
    written = [line["e"] for line in made.lines()[lines:]]
    assert written in (["in", "out"], []), written
    if reply.status_code != 200:
        assert reply.status_code in (400, 401, 403, 404)
        assert len(upstream.asked) == before
        return
    found = next(each for each in made.table.targets if each.id == who(reply))
    assert found.tenant == asked["tenant"]
    assert {found.name, "*"} & set(asked["models"])
    assert {found.risk, "*"} & set(asked["risks"])
    main = found.stage if ":" in asked["asked"] else "production"
    arm = any(each.name == found.name and each.split for each in made.table.targets)
    stages = {found.stage, "*"} | ({main} if arm else set())
    assert stages & set(asked["stages"])
    assert found.name == str(upstream.asked[-1]["body"]["model"]).partition(":")[0]


def test_keys_rotate_and_releases_change_without_a_lost_request(
    upstream: Upstream, tmp_path: Path
) -> None:
    """Listener, routes and clusters are replaced under load; tokens of both keys are good."""
    with running(tmp_path, table_on(upstream.port)) as made:
        old, new = made.key, ec.generate_private_key(ec.SECP256R1())
        pems = tuple(public_pem(key.public_key()).decode() for key in (old, new))
        stop, replies = threading.Event(), list[int]()

        def ask_on() -> None:
            with made.client() as client:
                while not stop.is_set():
                    replies.append(chat(client, "acme/support").status_code)

        threads = [threading.Thread(target=ask_on) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(4):
            more = tuple(target(f"acme/more-{n}", upstream.port) for n in range(turn))
            table = table_on(upstream.port)
            keys = pems if turn % 2 == 0 else pems[:1]
            made.bring(
                table.model_copy(
                    update={"access": Access(keys=keys), "targets": (*table.targets, *more)}
                )
            )
            time.sleep(0.5)
        made.bring(made.table.model_copy(update={"access": Access(keys=pems)}))
        time.sleep(1)
        made.key = new
        with made.client() as client:
            assert chat(client, "acme/more-2").status_code == 200
        stop.set()
        for thread in threads:
            thread.join()
    assert len(replies) > 50
    assert set(replies) == {200}


def test_soft_words_and_what_is_wrong_with_them() -> None:
    table = table_on(1)
    soft = Soft.model_validate(
        {"models": {"acme/support": {"title": "Help", "notice": "A machine."}}}
    )
    found = {each.id: each for each in softened(table, soft, "soft.yaml").targets}
    assert found["acme/support@staging"].title == "Help"
    assert found["globex/support@production"].title == ""
    wrong = Soft.model_validate(
        {
            "models": {
                "acme/asleep": {"deny_words": ["secret"]},
                "acme/support": {"system_prompt": "Be kind."},
                "globex/support": {"deny_words": ["secret"]},
            }
        }
    )
    with pytest.raises(InputError) as error:
        softened(table, wrong, "soft.yaml")
    assert [problem.partition(": ")[2].partition(":")[0] for problem in error.value.problems] == [
        "models.acme/support",
        "models.globex/support",
    ]


def test_envoy_refuses_what_it_would_not_take(gateway: Running) -> None:
    made = compiled(gateway.table, gateway.places, {})
    broken = made | {
        "routes.json": made["routes.json"].replace('"timeout":"0s"', '"timeout":"soon"')
    }
    with pytest.raises(InputError, match="Envoy refuses the configuration"):
        validate(broken, gateway.envoy)


def test_a_check_that_is_killed_is_no_verdict(gateway: Running, tmp_path: Path) -> None:
    killed = tmp_path / "envoy"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    with pytest.raises(DependencyError, match="signal 9"):
        validate(compiled(gateway.table, gateway.places, {}), killed)


def test_access_names_that_it_answers_to(upstream: Upstream, tmp_path: Path) -> None:
    table = table_on(upstream.port).model_copy(
        update={"access": Access(hosts=("llm.example.org",))}
    )
    with running(tmp_path, table) as made, made.client() as client:
        assert (
            chat(client, "acme/support", headers={"Host": "other.example.org"}).status_code == 404
        )
        named = chat(client, "acme/support", headers={"Host": "llm.example.org"})
        assert named.status_code == 200
