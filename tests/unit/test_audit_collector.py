"""The collector: whatever happens to it, one record for each request, and a chain that verifies."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuznia.audit.chain import line_of
from kuznia.contracts.audit import Record
from kuznia.errors import DependencyError
from services.audit import collector as collecting
from services.audit import metrics
from services.audit import spool as spooling
from services.audit.__main__ import main, options
from services.audit.collector import Settings
from services.audit.records import parse, record
from tests.fixtures.audit_case import ANSWERED, REFUSED, Place, append, lines, minute


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_record_says_who_asked_what_of_which_version_and_nothing_of_the_content(
    place: Place,
) -> None:
    place.put(lines("a", at=1_790_000_000.123456))
    place.collect()
    (found,) = place.records()
    assert found.model_dump(exclude_defaults=True) == {
        "seq": 1,
        "prev": "0" * 64,
        "tenant": "acme",
        "id": "a",
        "start": "2026-09-21T14:13:20.123Z",
        "answered": "2026-09-21T14:13:20.223Z",
        "end": "2026-09-21T14:13:21.623Z",
        "ms": 1500,
        "method": "POST",
        "path": "/v1/chat/completions",
        "host": "h",
        "caller": found.caller,
        "key": "jti-1",
        "model": "acme/support",
        "release": "acme/support@production",
        "version": "0123456789ab",
        "digest": "0123456789ab" + "c" * 52,
        "risk": "limited",
        "arm": "acme-support-production",
        "policy": "0123456789ab",
        "guard": {"action": "mask", "input": {"pesel": 2}},
        "status": 200,
        "details": "via_upstream",
        "tokens_in": 12,
        "tokens_out": 34,
        "bytes_in": 100,
        "bytes_out": 900,
    }
    key = (place.state / "secrets/audit-keys/acme/2026-Q3").read_bytes()
    import hashlib
    import hmac

    assert found.caller == hmac.new(key, b"ada", hashlib.sha256).hexdigest()[:32]


def test_what_has_no_tenant_no_answer_or_is_no_http_has_a_record_too(place: Place) -> None:
    place.put(lines("refused", REFUSED))
    begin, _, end = lines("gone")
    place.put([begin, end])
    begin, _, end = lines("hung-up")
    who = '"tenant":"acme","caller":"ada","key":"jti-1","model":"acme/support"'
    place.put([begin, json.dumps(json.loads(end) | {"who": who}).encode()])
    nameless = json.loads(lines("x")[2]) | {"id": None, "status": 400}
    place.put([json.dumps(nameless).encode()])
    place.collect()
    found = {each.id if len(each.id) < 10 else "none": each for each in place.records()}
    hung_up = found.pop("hung-up")
    assert (hung_up.tenant, hung_up.key, hung_up.model) == ("acme", "jti-1", "acme/support")
    assert hung_up.caller and hung_up.answered is None
    assert {each.tenant for each in found.values()} == {"_unknown"}
    assert found["refused"].reason == "no key"
    assert found["refused"].caller == ""
    assert found["gone"].answered is None
    assert found["none"].status == 400


def test_the_last_word_of_the_guard_counts(place: Place) -> None:
    begin, out, end = lines("a")
    final = json.dumps({"policy": "0123456789ab", "action": "mask", "out": {"iban": "1"}})
    place.put([begin, out, json.dumps(json.loads(end) | {"guard": final}).encode()])
    begin, out, end = lines("b")
    place.put([begin, out, json.dumps(json.loads(end) | {"guard": "{torn"}).encode()])
    place.collect()
    first, second = sorted(place.records(), key=lambda each: each.id)
    assert first.guard and first.guard.output == {"iban": 1}
    assert second.guard and second.guard.input == {"pesel": 2}


def test_open_requests_wait_over_restarts_and_are_written_as_lost_under_a_new_epoch(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "OVERDUE", 0.1)
    (place.spool / "epoch").write_text("one")
    began = time.time() + 0.01
    for name in ("long", "killed"):
        begin, out, _ = lines(name, at=began)
        place.put([begin, out])
    place.collect()
    place.collect()
    assert place.records() == []
    place.put([lines("long", at=began)[2]])
    time.sleep(0.05)
    (place.spool / "epoch").write_text("two")
    with place.collector() as made:
        made.cycle()
        time.sleep(0.12)
        made.cycle()
    place.put([lines("killed", at=began)[2]])
    place.collect()
    assert {each.id: each.ended for each in place.records()} == {"long": "yes", "killed": "lost"}


def test_a_state_that_dies_with_its_pod_leaves_nothing_open(place: Place) -> None:
    place.put(lines("open")[:2])
    place.collect(last=True)
    assert [(each.id, each.ended) for each in place.records()] == [("open", "lost")]


def test_torn_lines_spoil_only_themselves(place: Place) -> None:
    before = metrics.TORN._value.get()
    one, two = lines("one"), lines("two")
    append(place.spool, minute(), b"\n" + one[0] + b"\n\n" + one[1][:30] + b"\n" + two[0] + b"\n")
    append(place.spool, minute(), b"\n" + two[1] + b"\n\n\xff{\n")
    # Envoy died within a line, and right after one, before its line end.
    append(place.spool, "ends.jsonl", one[2][:40] + one[2] + two[2] + b"\n")
    append(place.spool, "ends.jsonl", two[2][:20])
    place.collect()
    assert sorted(each.id for each in place.records()) == ["one", "two"]
    assert metrics.TORN._value.get() - before == 3


def test_files_that_are_over_are_removed_and_large_ones_renamed(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(spooling, "GRACE", 0.05)
    monkeypatch.setattr(spooling, "HELD", 0.05)
    monkeypatch.setattr(spooling, "AGAIN", 0.0)
    admin = tmp_path / "admin.sock"
    asked: list[bytes] = []

    def envoy(listening: socket.socket) -> None:
        while True:
            try:
                link, _ = listening.accept()
            except OSError:
                return
            with link:
                asked.append(link.recv(200))
                append(place.spool, "ends.jsonl", b"")
                link.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(admin))
        listening.listen()
        threading.Thread(target=envoy, args=(listening,), daemon=True).start()
        place.settings = Settings(place.spool, admin, rotate_bytes=100)
        place.put(lines("old"), back=2)
        place.put(lines("new"))
        with place.collector() as made:
            for _ in range(4):
                made.cycle()
                time.sleep(0.06)
            place.put(lines("later"))
            made.cycle()
            names = {path.name for path in place.spool.iterdir()}
        listening.shutdown(socket.SHUT_RDWR)
    assert names >= {"ends.jsonl", minute()} and len(names) == 3
    assert asked[0].startswith(b"POST /reopen_logs HTTP/1.1\r\n")
    place.settings = Settings(place.spool)
    place.collect()
    assert sorted(each.id for each in place.records()) == ["later", "new", "old"]


def test_while_the_key_of_a_pseudonym_cannot_be_had_the_request_waits(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "AGAIN", 0.0)
    place.put(lines("a"))
    # A folder where the tenant's folder should be a file cannot be read.
    blocked = place.state / "secrets" / "audit-keys"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("")
    place.collect()
    assert place.records() == []
    blocked.unlink()
    place.collect()
    assert [each.id for each in place.records()] == ["a"]


def test_a_full_disk_loses_nothing(place: Place) -> None:
    for number in range(300):
        place.put(lines(f"r{number}"))
    with place.collector() as made, pytest.raises(Exception, match="full"):
        made._kept.db.execute("PRAGMA max_page_count=20")
        made.cycle()
    with place.collector() as made:
        made.cycle(batch=collecting.SMALL)
        while not made.relieve() or made.waiting():
            time.sleep(0.01)
    place.collect()
    assert len({each.id for each in place.records()}) == len(place.records()) == 300


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.sampled_from(["line", "line", "line", "torn", "cycle", "restart", "epoch", "seal"]),
    ),
    max_size=60,
)


@settings(max_examples=25, deadline=None)
@given(events=EVENTS, tenants=st.lists(st.sampled_from(["acme", "beta", ""]), min_size=8))
def test_whatever_the_order_each_request_has_one_record(
    events: list[tuple[int, str]], tenants: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        # A minute in the future: every request begins before every epoch but the last.
        waiting = {
            number: lines(f"r{number}", ANSWERED | {"tenant": tenants[number]}, at=time.time() - 9)
            for number in range(8)
        }
        begun: set[int] = set()
        for number, event in events:
            if event == "line" and waiting[number]:
                begun.add(number)
                place.put([waiting[number].pop(0)])
            elif event == "torn":
                append(place.spool, "ends.jsonl", b'{"e":"end","id":"r1"' + b"\n" * (number % 2))
            elif event in ("cycle", "restart", "seal"):
                with place.collector() as made:
                    made.cycle()
                    if event == "seal":
                        made.seal_all()
            elif event == "epoch":
                (place.spool / "epoch").write_text(str(random.random()))
        # Those that have begun end, all others are never known.
        for number in begun:
            place.put(waiting[number])
        append(place.spool, "ends.jsonl", b"\n")
        place.collect(last=True)
        assert Counter(each.id for each in place.records()) == {f"r{each}": 1 for each in begun}


def test_killed_at_any_moment_it_neither_loses_nor_doubles(place: Place) -> None:
    chance = random.Random(6)
    count = 0
    for _ in range(3):
        process = place.start("--seal-records", "7", "--seal-seconds", "0.3")
        until = time.monotonic() + chance.uniform(0.1, 0.6)
        while time.monotonic() < until:
            place.put(lines(f"r{count}"))
            count += 1
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = place.start()
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0
    found = place.records()
    assert Counter(each.id for each in found) == {f"r{each}": 1 for each in range(count)}
    assert count > 100


def test_segments_wait_for_a_store_that_is_away(
    tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, to=s3_bucket)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for number in range(5):
        place.put(lines(f"r{number}"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    process = place.start("--seal-seconds", "0.05", "--patience", "0.2")
    time.sleep(0.3)
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    place.put(lines("later"))
    place.collect()
    assert sorted(each.id for each in place.records()) == ["later", *(f"r{n}" for n in range(5))]


def test_a_folder_that_cannot_be_made_is_a_store_that_is_away(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    place = Place(tmp_path, to=str(blocked / "store"))
    place.put(lines("a"))
    with place.collector() as made:
        made.cycle()
        made.seal_all()
        time.sleep(0.2)
        assert made.waiting() == 1
        made.measure()
    assert metrics.UNSHIPPED._value.get() == 1
    blocked.unlink()
    place.collect()
    assert [each.id for each in place.records()] == ["a"]


def test_a_segment_that_is_there_already_is_never_replaced(place: Place) -> None:
    from kuznia.audit.streams import publish

    publish([place.store], "acme", "w", 1, b"one", b"note")
    publish([place.store], "acme", "w", 1, b"one", b"note")
    with pytest.raises(DependencyError, match="another one is there already"):
        publish([place.store], "acme", "w", 1, b"two", b"note")


def test_what_is_wrong_at_the_start_is_said(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    words = place.command()[3:]
    words[words.index("laptop")] = "operator"
    assert main(words) == 2
    assert "is the name of `kuznia audit` itself" in capsys.readouterr().err
    with place.collector():
        assert main(place.command()[3:]) == 2
    assert "another collector works there" in capsys.readouterr().err
    assert "--spool" in options().format_help()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted({*ANSWERED, *json.loads(lines("x")[2]), "reason", "who"} - {"e", "id"})


@settings(max_examples=80, deadline=None)
@given(values=st.tuples(*[st.dictionaries(st.sampled_from(KEYS), JSON)] * 3))
def test_whatever_a_line_says_the_record_keeps_the_contract(
    values: tuple[dict[str, Any], ...],
) -> None:
    given = []
    for kind, value in zip(("in", "out", "end"), values, strict=True):
        (line,) = parse(json.dumps({**value, "e": kind, "id": "a"}).encode())
        given.append(line)
    value, _ = record("a", *given)
    made = Record.model_validate(value | {"seq": 1, "prev": "0" * 64})
    assert json.loads(line_of(made)) == value | {"seq": 1, "prev": "0" * 64}


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=60) | st.text().map(str.encode))
def test_no_bytes_upset_the_reader(raw: bytes) -> None:
    assert all(isinstance(line, dict) for line in parse(b'{"e":"in","id' + raw))
