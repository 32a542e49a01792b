"""Limits: the file that is made of the registry, and the service that counts by it.

What both services must do alike is also asked of envoyproxy/ratelimit where KUZNIA_TEST_RATELIMIT
gives its host:port. Start it with the file that `python -m tests.unit.test_limits` prints.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kuznia.contracts.base import parse
from kuznia.contracts.limits import MOST, Limits
from kuznia.contracts.release import Release
from kuznia.contracts.tenant import Tenant
from kuznia.errors import DependencyError, InputError
from kuznia.gateway.limits import configuration, limited, text_of
from kuznia.tree import Deployed
from services.limits.counters import Hit, Memory, Shared
from services.limits.messages import METHOD, OK, OVER_LIMIT, SERVICE, Request, Response
from services.limits.rules import Node, read_rules
from services.limits.server import Service
from tests.fixtures.checkouts import release, tenant

MINUTE, MONTH = 2, 5
MONTH_SECONDS = 30 * 86_400
RELEASE = "acme/support@production"


def tenant_with(**more: Any) -> Tenant:
    found: Tenant = parse(Tenant, tenant() | more, "tenant.yaml")
    return found


def deployed(tenant: str = "acme", model: str = "support", **limits: int) -> Deployed:
    found: Release = parse(Release, release(tenant, model, limits=limits), "production.yaml")
    return Deployed(tenant, model, "production", found)


def registry_limits() -> dict[str, Any]:
    """The limits that the contract is tried on: within reach of callers alone, new in each test."""
    acme = tenant_with(
        limits={"requests_per_minute": MOST, "tokens_per_month": MOST},
        key_limits={"requests_per_month": 3, "tokens_per_month": 100, "requests_per_minute": 50},
    )
    return configuration({"acme": acme}, [deployed(tokens_per_minute=MOST)])


# the file


def test_the_file_says_what_the_registry_says() -> None:
    acme = tenant_with(limits={"tokens_per_month": 9, "requests_per_minute": 8})
    strict = tenant_with(key_limits={"requests_per_month": 7})
    value = configuration(
        {"beta": strict, "free": tenant_with(), "acme": acme},
        [deployed(), deployed("beta", "faq", tokens_per_minute=6)],
    )

    def rule(what: str, most: int) -> dict[str, Any]:
        rate = {"name": what, "unit": what.split("_")[2], "requests_per_unit": most}
        return {"key": "what", "value": what, "rate_limit": rate}

    assert value == {
        "domain": "kuznia",
        "descriptors": [
            {
                "key": "tenant",
                "value": "acme",
                "descriptors": [rule("requests_per_minute", 8), rule("tokens_per_month", 9)],
            },
            {
                "key": "tenant",
                "value": "beta",
                "descriptors": [
                    {"key": "caller", "descriptors": [rule("requests_per_month", 7)]},
                    {
                        "key": "release",
                        "value": "beta/faq@production",
                        "descriptors": [rule("tokens_per_minute", 6)],
                    },
                ],
            },
        ],
    }
    assert limited(acme.limits, Limits(requests_per_month=1)) == tuple(
        sorted({*limited(acme.limits), "requests_per_month"})
    )
    assert limited(acme.limits) and limited(strict.key_limits)
    assert limited(Limits(), Limits()) == ()


limits = st.builds(Limits, **dict.fromkeys(Limits.model_fields, st.none() | st.integers(1, MOST)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(limits, limits), max_size=4),
    st.dictionaries(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz")), limits, max_size=6),
    st.randoms(use_true_random=False),
)
def test_every_limit_is_met_by_what_envoy_asks_and_no_other(
    tenants: dict[str, tuple[Limits, Limits]], releases: dict[tuple[str, str], Limits], order: Any
) -> None:
    base, plain = tenant_with(), deployed()
    of = {
        name: base.model_copy(update={"limits": together, "key_limits": each})
        for name, (together, each) in tenants.items()
    }
    served = [
        Deployed(owner, model, "production", plain.release.model_copy(update={"limits": given}))
        for (owner, model), given in releases.items()
        if owner in of
    ]
    value = configuration(of, served)
    order.shuffle(served)
    assert configuration(dict(sorted(of.items(), reverse=True)), served) == value
    path = Path(os.environ["KUZNIA_HOME"]).parent / "limits.yaml"
    path.write_text(f"# Generated.\n{text_of(value)}", "utf-8")
    assert yaml.safe_load(text_of(value)) == value
    rules = read_rules(path)
    expected = 0
    for name, made in of.items():
        asked = [((), made.limits), ((("caller", "who/ever@x"),), made.key_limits)]
        asked += [
            ((("release", f"{name}/{each.model}@production"),), each.release.limits)
            for each in served
            if each.tenant == name
        ]
        for middle, given_limits in asked:
            for what, most in given_limits.model_dump().items():
                entries = request([("tenant", name), *middle, ("what", what)]).descriptors[0]
                rule = rules.meets(entries.entries)
                assert (rule.most if rule else None) == most
                assert rule is None or rule.limit.name == what
                expected += most is not None
    assert count_rules(rules.root) == expected


def count_rules(node: Node) -> int:
    return (node.rule is not None) + sum(count_rules(each) for each in node.next.values())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("domain: [", "not YAML"),
        ("descriptors: []", "domain: is missing; add it"),
        ("domain: k\ndescriptors: [{value: x}]", "descriptors.0.key: is missing; add it"),
        ("domain: k\ndescriptors: [{key: a, replaces: []}]", "replaces: is not a key here"),
        ("domain: k\ndescriptors: [{key: a, value: b*}]", "'b*' does not match"),
        (
            "domain: k\ndescriptors: [{key: a, rate_limit: {unit: week, requests_per_unit: 1}}]",
            "unit: 'week' is not one of",
        ),
        (
            "domain: k\ndescriptors: [{key: a, rate_limit: {unit: day, requests_per_unit: -1}}]",
            "-1 is below 0",
        ),
        ("domain: k\ndescriptors: [{key: a}, {key: a}]", "k: a: is there twice; remove one"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_rules(path)
    assert str(refused.value).startswith(f"{path}: ") and fault in str(refused.value)


def test_a_service_does_not_start_with_a_wrong_file(tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text("domain: [")
    done = refused_start(tmp_path / "limits.yaml")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}/limits.yaml: line 1")
    done = refused_start(tmp_path / "none.yaml")
    assert done.returncode == 2 and "none.yaml: No such file" in done.stderr


# what every such service does


def request(*lists: list[tuple[str, str]], hits: int = 0, each: int | None = None) -> Any:
    """A RateLimitRequest: `hits` for all, or `each` for every list by itself."""
    made = Request(domain="kuznia", hits=hits)
    for entries in lists:
        descriptor = made.descriptors.add()
        for key, value in entries:
            descriptor.entries.add(key=key, value=value)
        if each is not None:
            descriptor.hits.value = each
    return made


def caller(name: str, what: str) -> list[tuple[str, str]]:
    return [("tenant", "acme"), ("caller", name), ("what", what)]


def command(config: Path, *words: str | Path) -> list[str]:
    start = [sys.executable, "-m", "services.limits", "--config", config, "--port", "0", *words]
    return [str(word) for word in start]


def refused_start(config: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """The service where it should not begin."""
    return subprocess.run(
        command(config, *words), capture_output=True, text=True, check=False, timeout=30
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


Ask = Callable[[Any], Any]


@contextmanager
def client(address: str) -> Iterator[Ask]:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/{METHOD}",
            request_serializer=Request.SerializeToString,
            response_deserializer=Response.FromString,
        )
        yield lambda asked: call(asked, timeout=10)


@contextmanager
def running(config: Path, *words: str | Path) -> Iterator[tuple[Ask, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        command(config, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said = line_of(process)
        assert "listens at" in said, process.communicate()
        with client(said.split()[-1]) as ask:
            yield ask, process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    config = tmp_path_factory.mktemp("limits") / "limits.yaml"
    config.write_text(yaml.safe_dump(registry_limits()), "utf-8")
    with running(config) as (ask, _):
        yield ask


@pytest.fixture(params=["ours", "envoyproxy"])
def ask(request: pytest.FixtureRequest) -> Iterator[Ask]:
    if request.param == "ours":
        yield request.getfixturevalue("ours")
        return
    address = os.environ.get("KUZNIA_TEST_RATELIMIT")
    if not address:
        pytest.skip("set KUZNIA_TEST_RATELIMIT to host:port of an envoyproxy/ratelimit")
    with client(address) as asked:
        yield asked


@pytest.fixture
def who() -> str:
    """A caller who has not been counted yet."""
    return f"who-{uuid.uuid4().hex[:8]}@example.org"


def test_requests_pass_until_the_limit(ask: Ask, who: str) -> None:
    answers = [ask(request(caller(who, "requests_per_month"))) for _ in range(5)]
    assert [each.overall_code for each in answers] == [OK, OK, OK, OVER_LIMIT, OVER_LIMIT]
    assert [each.statuses[0].code for each in answers] == [OK, OK, OK, OVER_LIMIT, OVER_LIMIT]
    assert [each.statuses[0].limit_remaining for each in answers] == [2, 1, 0, 0, 0]
    other = ask(request(caller(f"{who}-2", "requests_per_month")))
    assert (other.overall_code, other.statuses[0].limit_remaining) == (OK, 2)


def test_a_status_says_which_limit_and_until_when(ask: Ask, who: str) -> None:
    asked = [caller(who, "requests_per_month"), caller(who, "requests_per_minute")]
    month, minute = ask(request(*asked)).statuses
    now = time.time()
    for status, name, unit, most, seconds in (
        (month, "requests_per_month", MONTH, 3, MONTH_SECONDS),
        (minute, "requests_per_minute", MINUTE, 50, 60),
    ):
        limit = status.current_limit
        assert (limit.name, limit.unit, limit.requests_per_unit) == (name, unit, most)
        ends = (now + status.duration_until_reset.seconds) % seconds
        assert min(ends, seconds - ends) <= 2


def test_tokens_are_asked_for_first_and_counted_at_the_end(ask: Ask, who: str) -> None:
    tokens = caller(who, "tokens_per_month")
    admitted = []
    for _ in range(5):
        admitted.append(ask(request(tokens, each=0)).overall_code == OK)
        if admitted[-1]:
            ask(request(tokens, each=30))
    assert admitted == [True, True, True, True, False]
    for _ in range(3):
        assert ask(request(tokens, each=0)).overall_code == OVER_LIMIT
    exact = caller(f"{who}-2", "tokens_per_month")
    assert ask(request(exact, hits=100)).statuses[0].limit_remaining == 0
    assert ask(request(exact, each=0)).overall_code == OK
    assert ask(request(exact)).overall_code == OVER_LIMIT


def test_a_lists_own_hits_win_over_the_requests(ask: Ask, who: str) -> None:
    asked = request(caller(who, "tokens_per_month"), caller(who, "requests_per_minute"), hits=7)
    asked.descriptors[0].hits.value = 20
    tokens, requests = ask(asked).statuses
    assert (tokens.limit_remaining, requests.limit_remaining) == (80, 43)


def test_one_list_over_its_limit_refuses_and_all_are_counted(ask: Ask, who: str) -> None:
    asked = request(
        [("tenant", "acme"), ("what", "requests_per_minute")],
        caller(who, "requests_per_month"),
        caller(who, "requests_per_minute"),
    )
    for _ in range(3):
        assert ask(asked).overall_code == OK
    refused = ask(asked)
    assert refused.overall_code == OVER_LIMIT
    assert [status.code for status in refused.statuses] == [OK, OVER_LIMIT, OK]
    assert refused.statuses[2].limit_remaining in (46, 49)  # 49: the minute has just ended.


@pytest.mark.parametrize(
    "entries",
    [
        [("tenant", "acme"), ("caller", "x"), ("what", "tokens_per_minute")],
        [("tenant", "acme"), ("caller", "x")],
        [("tenant", "acme"), ("what", "requests_per_minute"), ("more", "x")],
        [("tenant", "beta"), ("what", "requests_per_minute")],
        [("tenant", "acme"), ("release", "acme/faq@production"), ("what", "tokens_per_minute")],
        [("what", "requests_per_minute"), ("tenant", "acme")],
    ],
)
def test_what_has_no_limit_passes(ask: Ask, entries: list[tuple[str, str]]) -> None:
    answer = ask(request(entries, hits=MOST))
    assert (answer.overall_code, answer.statuses[0].code) == (OK, OK)
    assert not answer.statuses[0].HasField("current_limit")


def test_another_domain_has_no_limits(ask: Ask, who: str) -> None:
    asked = request(caller(who, "requests_per_month"), hits=9)
    asked.domain = "another"
    assert ask(asked).overall_code == OK


def test_a_request_that_asks_nothing_is_an_error(ask: Ask) -> None:
    for asked in (request(), Request(descriptors=request(caller("x", "y")).descriptors)):
        with pytest.raises(grpc.RpcError):
            ask(asked)


# ours


def written(path: Path, **key_limits: int) -> Path:
    value = configuration({"acme": tenant_with(key_limits=key_limits)}, [])
    partial = path.with_suffix(".partial")
    partial.write_text(text_of(value), "utf-8")
    partial.replace(path)
    return path


def test_a_window_ends_when_the_clock_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "limits.yaml", requests_per_minute=2, requests_per_month=5)
    service = Service(path, Memory(), print)
    asked = request(caller("me", "requests_per_minute"), caller("me", "requests_per_month"))

    def left(now: int) -> list[int]:
        answer = asyncio.run(service.decide(asked, now))
        return [status.limit_remaining for status in answer.statuses] + [answer.overall_code]

    start = MONTH_SECONDS * 600
    seen = [left(start + second) for second in (0, 59, 59, 60, 119, MONTH_SECONDS)]
    assert seen == [[1, 4, 1], [0, 3, 1], [0, 2, 2], [1, 1, 1], [0, 0, 1], [1, 4, 1]]
    # A clock that is set back gives nobody a new window.
    assert left(start) == [0, 3, 1]


def test_shadow_counts_and_lets_pass(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    rate = {"unit": "day", "requests_per_unit": 0}
    rule = {"key": "a", "rate_limit": rate, "shadow_mode": True}
    path.write_text(yaml.safe_dump({"domain": "kuznia", "descriptors": [rule]}))
    answer = asyncio.run(Service(path, Memory(), print).decide(request([("a", "b")]), 1))
    assert (answer.overall_code, answer.statuses[0].code) == (OK, OK)


def test_a_restart_forgets_no_month(tmp_path: Path) -> None:
    path = written(tmp_path / "limits.yaml", requests_per_month=5, requests_per_minute=50)
    asked = request(caller("me", "requests_per_month"))
    state = tmp_path / "folder" / "state.db"
    for end, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        with running(path, "--state", state) as (ask, process):
            ask(asked)
            ask(asked)
            if end == signal.SIGKILL:
                time.sleep(1.3)  # What is older than a tick is written down.
            process.send_signal(end)
            assert process.wait(10) == code
    with running(path, "--state", state) as (ask, _):
        assert [ask(asked).overall_code for _ in range(2)] == [OK, OVER_LIMIT]


def test_one_file_has_one_service(tmp_path: Path) -> None:
    first = Memory(tmp_path / "state.db")
    with pytest.raises(DependencyError, match=r"state\.db: .*end the other service"):
        Memory(tmp_path / "state.db")
    asyncio.run(first.close())
    (tmp_path / "state.db").write_bytes(b"no database" * 100)
    with pytest.raises(DependencyError, match="move a broken file away"):
        Memory(tmp_path / "state.db")


def test_a_full_disk_is_told_once_and_loses_no_count(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    memory = Memory(state)
    hit = Hit("key", MONTH_SECONDS, 1)
    now = int(time.time())
    assert memory._file
    (pages,) = memory._file.execute("PRAGMA page_count").fetchone()
    memory._file.execute(f"PRAGMA max_page_count = {pages}")
    many = [Hit(f"key-{n}" * 40, MONTH_SECONDS, 1) for n in range(100)]
    asyncio.run(memory.add([hit, *many], now))
    with pytest.raises(DependencyError, match="full"):
        memory.save()
    memory._file.execute("PRAGMA max_page_count = 1000000")
    asyncio.run(memory.close())
    assert asyncio.run(Memory(state).add([hit], now)) == [2]


def test_a_changed_file_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path / "limits.yaml", requests_per_month=1)
    asked = request(caller("me", "requests_per_month"))
    with running(path) as (ask, process):
        assert [ask(asked).overall_code for _ in range(2)] == [OK, OVER_LIMIT]
        written(path, requests_per_month=9)
        assert "read again" in line_of(process)
        assert ask(asked).statuses[0].limit_remaining == 6


def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "limits.yaml", requests_per_month=1)
    said: list[str] = []
    service = Service(path, Memory(), said.append)
    before = service.rules
    path.write_text("domain: kuznia\ndescriptors: [{}]\n")
    for _ in range(2):
        asyncio.run(service.reload())
    path.unlink()
    asyncio.run(service.reload())
    fault = "descriptors.0.key: is missing; add it"
    assert said == [
        f"{path}: {fault} (the limits of before stay)",
        f"{path}: No such file or directory; name the limits file that exists (the limits of "
        "before stay)",
    ]
    assert service.rules is before
    written(path, requests_per_month=2)
    asyncio.run(service.reload())
    assert said[2:] == [f"{path}: read again"] and service.rules is not before


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "limits.yaml", requests_per_month=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = refused_start(path, "--port", str(taken.getsockname()[1]))
        assert (done.returncode, "cannot listen there" in done.stderr) == (3, True)


# Redis


class Redis(threading.Thread):
    """The two commands of Redis that are used, over its protocol; a real one stands outside."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://user:secret@127.0.0.1:{self.listener.getsockname()[1]}"
        self.counts: dict[str, int] = {}
        self.start()

    def run(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            with peer, peer.makefile("rwb") as stream:
                while head := stream.readline():
                    words = []
                    for _ in range(int(head[1:])):
                        words.append(stream.read(int(stream.readline()[1:]) + 2)[:-2].decode())
                    stream.write(self._answer(*words))
                    stream.flush()

    def _answer(self, command: str, key: str = "", number: str = "", *_: str) -> bytes:
        if command == "INCRBY":
            self.counts[key] = self.counts.get(key, 0) + int(number)
            return b":%d\r\n" % self.counts[key]
        if command == "HELLO":
            return b"%1\r\n$5\r\nproto\r\n:3\r\n"
        return b":1\r\n" if command == "EXPIRE" else b"+OK\r\n"

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def test_several_services_count_in_one_redis_under_the_keys_of_the_go_service() -> None:
    redis = Redis()
    now = MONTH_SECONDS * 600 + 61

    async def add(*hits: Hit) -> list[int]:
        shared = Shared(os.environ.get("KUZNIA_TEST_REDIS") or redis.url)
        try:
            return await shared.add(hits, now)
        finally:
            await shared.close()

    who = uuid.uuid4().hex
    minute = Hit(f"kuznia_tenant_acme_caller_{who}_what_requests_per_minute_", 60, 1)
    month = Hit(f"kuznia_tenant_acme_caller_{who}_what_tokens_per_month_", MONTH_SECONDS, 30)
    assert asyncio.run(add(minute, month)) == [1, 30]
    assert asyncio.run(add(month, minute)) == [60, 2]
    if "KUZNIA_TEST_REDIS" not in os.environ:
        assert redis.counts == {f"{minute.key}{now - 1}": 2, f"{month.key}{now - 61}": 60}
    redis.close()


def test_without_redis_envoy_is_told_that_nobody_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "limits.yaml", requests_per_month=1)
    with (
        running(path, "--redis", "redis://user:secret@127.0.0.1:1") as (ask, _),
        pytest.raises(grpc.RpcError) as refused,
    ):
        ask(request(caller("me", "requests_per_month")))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "redis at 127.0.0.1:1" in refused.value.details()
    assert "secret" not in refused.value.details()


if __name__ == "__main__":
    print(text_of(registry_limits()))
