"""The audit log as it lies in a store: every kind of tampering is seen, and what people may do."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.main import main
from kuznia.audit import notes
from kuznia.audit.chain import leaf, line_of, moment, root, seal
from kuznia.audit.content import ContentStore, Erased
from kuznia.audit.keys import pem, private_key, public_keys
from kuznia.audit.lifecycle import Operator, events, holds, span_of_quarter
from kuznia.audit.pseudonyms import Pseudonyms
from kuznia.audit.streams import publish
from kuznia.audit.verify import Span, verify
from kuznia.contracts.audit import NOTHING, Header, Record
from kuznia.contracts.base import canonical_json
from kuznia.errors import InputError
from kuznia.store.objects import open_store

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = [KEY.public_key()]
DAY = 86400.0
T0 = 1_790_000_000.0
STREAM = Path("audit/acme/gateway-0")


def write_stream(
    folder: Path,
    writer: str = "gateway-0",
    tenant: str = "acme",
    sizes: tuple[int, ...] = (4, 1, 3),
    start: float = T0,
    caller: str = "",
) -> None:
    """A stream of segments of these sizes, five minutes apart, and its anchors."""
    stores = [open_store(str(folder / "store")), open_store(str(folder / "anchors"))]
    seq, prev, note = 0, NOTHING, None
    for number, size in enumerate(sizes):
        header = Header(tenant=tenant, writer=writer, first=seq + 1, prev=prev)
        first, lines, at = seq + 1, [], start + 300 * number
        for _ in range(size):
            seq += 1
            one = Record(
                seq=seq,
                prev=prev,
                tenant=tenant,
                id=f"{writer}-{seq}",
                start=moment(at + seq),
                caller=caller,
                model="acme/support",
                status=200 if seq % 2 else 403,
            )
            lines.append(line_of(one))
            prev = leaf(lines[-1]).hex()
        body, checkpoint = seal(header, lines, note, at + 300)
        note = notes.sign(checkpoint, KEY)
        publish(stores, tenant, writer, first, body, note)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_stream(tmp_path)
    return tmp_path


def findings(log: Path, anchors: bool = True) -> list[str]:
    stores = [open_store(str(log / name)) for name in ("store", "anchors")]
    return verify(stores[0], PUBLIC, stores[1] if anchors else None).findings


def rewrite(log: Path, name: str, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of a segment."""
    path = log / "store" / STREAM / name
    path.write_bytes(b"\n".join(change(path.read_bytes().split(b"\n"))))


def test_what_was_not_touched_verifies(log: Path) -> None:
    report = verify(open_store(str(log / "store")), PUBLIC, open_store(str(log / "anchors")))
    assert (report.streams, report.segments, report.records) == (1, 3, 8)
    assert report.findings == report.notes == []


FIRST, SECOND, THIRD = (f"{number:012d}" for number in (1, 5, 6))


def rechained(lines: list[bytes]) -> list[bytes]:
    """Change record 2, and every hash after it, as a clever forger would."""
    values = [json.loads(line) for line in lines[1:-1]]
    values[1]["status"] = 200
    for before, value in itertools.pairwise(values):
        value["prev"] = leaf(canonical_json(before)).hex()
    return [lines[0], *map(canonical_json, values), b""]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda s: [*s[:2], s[2].replace(b"403", b"200"), *s[3:]], ["record 2 was edited"]),
        (lambda s: [*s[:4], s[4].replace(b"403", b"200"), *s[5:]], ["record 4 was edited"]),
        (lambda s: [*s[:2], *s[3:]], ["record 2 is missing; deleted, or made unreadable"]),
        (lambda s: [s[0], s[1], s[3], s[2], *s[4:]], ["its records are not in their order"]),
        (lambda s: [*s[:3], s[2], *s[3:]], ["a record is there twice; it was added"]),
        (lambda s: [*s[:3], b""], ["was cut off after record 2; 2 are missing"]),
        (
            lambda s: [*s[:4], s[4][:20]],
            ["was cut off after record 3; 1 are missing", "ends in the middle of a line"],
        ),
        (lambda s: [s[0].replace(b"acme", b"beta"), *s[1:]], ["its first line, the header, was "]),
        (
            lambda s: [*s[:5], s[4].replace(b'"seq":4', b'"seq":9'), b""],
            ["1 lines are no records of this segment; added, or made so"],
        ),
        (rechained, ["record 4 was edited"]),
    ],
)
def test_changes_within_a_segment_are_named(
    log: Path, change: Callable[[list[bytes]], list[bytes]], found: list[str]
) -> None:
    rewrite(log, f"{FIRST}.jsonl", change)
    place = f"{STREAM}/{FIRST}.jsonl: "
    got = findings(log, anchors=False)
    assert len(got) == len(found)
    assert all(line.startswith(place + start) for line, start in zip(got, found, strict=True))


@pytest.mark.parametrize(
    ("remove", "found"),
    [
        ([f"{SECOND}.jsonl"], f"{SECOND}.jsonl: is missing, with records 5 to 5"),
        (
            [f"{SECOND}.jsonl", f"{SECOND}.checkpoint"],
            f"{THIRD}.checkpoint: records 5 to 5 before it are missing",
        ),
        ([f"{SECOND}.checkpoint"], f"{SECOND}.jsonl: has no checkpoint; it was removed"),
    ],
)
def test_what_was_removed_within_a_stream_is_named(
    log: Path, remove: list[str], found: str
) -> None:
    for name in remove:
        (log / "store" / STREAM / name).unlink()
    assert any(line.startswith(f"{STREAM}/{found}") for line in findings(log, anchors=False))


def test_anchors_know_a_tail_that_was_cut_off_and_a_stream_that_is_gone(log: Path) -> None:
    for kind in ("jsonl", "checkpoint"):
        (log / "store" / STREAM / f"{THIRD}.{kind}").unlink()
    assert findings(log, anchors=False) == []
    (line,) = findings(log)
    assert "the end of the stream was cut off" in line
    shutil.rmtree(log / "store" / STREAM)
    assert findings(log) == [f"{STREAM}: is missing, the whole stream; the anchors know it"]


def test_a_log_made_anew_with_the_real_key_differs_from_its_anchors(log: Path) -> None:
    shutil.rmtree(log / "store")
    shutil.move(log / "anchors", log / "kept")
    write_stream(log, sizes=(3, 2, 3))
    assert findings(log, anchors=False) == []
    shutil.rmtree(log / "anchors")
    shutil.move(log / "kept", log / "anchors")
    assert any("differs from its copy in the anchors" in line for line in findings(log))


def test_another_key_and_a_changed_checkpoint_are_told_apart(log: Path) -> None:
    other = [Ed25519PrivateKey.generate().public_key()]
    found = verify(open_store(str(log / "store")), other).findings
    assert len(found) == 3 and all("is signed by another key" in line for line in found)
    assert verify(open_store(str(log / "store")), [*other, *PUBLIC]).findings == []
    path = log / "store" / STREAM / f"{FIRST}.checkpoint"
    path.write_bytes(path.read_bytes().replace(b"first 1", b"first 2"))
    assert any("is not what was signed" in line for line in findings(log, anchors=False))
    path.write_bytes(b"\xff no note")
    assert any("is no checkpoint" in line for line in findings(log, anchors=False))


def test_a_stream_that_was_moved_to_another_tenant_is_seen(log: Path) -> None:
    shutil.copytree(log / "store" / STREAM, log / "store/audit/beta/gateway-0")
    (log / "store/audit/beta/stray.txt").write_text("?")
    report = verify(open_store(str(log / "store")), PUBLIC)
    assert any("is of acme/gateway-0 from 1 on; it was moved here" in x for x in report.findings)
    assert report.notes == ["audit/beta/stray.txt: is no part of the log; look who put it there"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_a_finding(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("log")
    write_stream(folder, sizes=(2, 2))
    paths = sorted((folder / "store").rglob("*.*"))
    path = data.draw(st.sampled_from(paths))
    body = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        body[at] ^= data.draw(st.integers(1, 255))
    else:
        del body[at : at + data.draw(st.integers(1, 40))]
    path.write_bytes(body)
    found = verify(open_store(str(folder / "store")), PUBLIC)
    assert found.findings, (path, at)


def test_the_tree_is_that_of_rfc_6962() -> None:
    def mth(lines: list[bytes]) -> bytes:
        if len(lines) == 1:
            return leaf(lines[0])
        k = 1
        while 2 * k < len(lines):
            k *= 2
        return hashlib.sha256(b"\1" + mth(lines[:k]) + mth(lines[k:])).digest()

    for count in range(1, 20):
        lines = [str(number).encode() for number in range(count)]
        assert root([leaf(line) for line in lines]) == mth(lines)


def test_a_checkpoint_is_a_signed_note_that_others_can_check(log: Path) -> None:
    note = (log / "store" / STREAM / f"{SECOND}.checkpoint").read_bytes()
    text, _, signature = note.decode().partition("\n\n")
    lines = text.split("\n")
    body = (log / "store" / STREAM / f"{SECOND}.jsonl").read_bytes().splitlines()
    assert lines[:3] == [
        "kuznia/audit/acme/gateway-0",
        "5",
        base64.b64encode(root([leaf(line) for line in body])).decode(),
    ]
    dash, name, signed = signature.strip().split(" ")
    assert (dash, name) == ("—", "kuznia-audit")
    raw = base64.b64decode(signed)
    name, identity, key = notes.verifier(PUBLIC[0]).split("+", 2)
    assert raw[:4].hex() == identity
    assert base64.b64decode(key) == b"\1" + PUBLIC[0].public_bytes_raw()
    PUBLIC[0].verify(raw[4:], (text + "\n").encode())


class Clock:
    """The time, as a test sets it."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_retention_removes_what_is_old_and_not_held_and_verify_knows(log: Path) -> None:
    store, copies = open_store(str(log / "store")), open_store(str(log / "anchors"))
    clock = Clock(T0 + 100 * DAY)
    operator = Operator(store, KEY, "ada", clock, copies)
    with pytest.raises(InputError, match="189 is below 190"):
        operator.retention("acme", 189)
    assert operator.retention("acme", 190) is None
    held = operator.hold("acme", Span(moment(T0 + 301), moment(T0 + 350)), "case 7")
    clock.now = T0 + 191 * DAY
    event = operator.retention("acme", 190)
    assert event and [each.first for each in event.removed] == [1, 6]
    report = verify(store, PUBLIC, copies)
    assert (report.findings, report.expired, report.segments) == ([], 2, 3)
    operator.lift("acme", held.id, "closed")
    assert holds(store, "acme") == []
    with pytest.raises(InputError, match=r"is no hold of acme; there are: none"):
        operator.lift("acme", held.id, "again")
    event = operator.retention("acme", 190)
    assert event and [each.first for each in event.removed] == [5]
    assert [each.kind for each in events(store, "acme")] == [
        "hold",
        "retention",
        "lift",
        "retention",
    ]
    assert verify(store, PUBLIC, copies).findings == []
    # Who removes a hold from the log cuts its tail off, or breaks its chain.
    for path in (log / "store/audit/acme/operator").glob("*1.*"):
        path.unlink()
    assert verify(store, PUBLIC, copies).findings != []


def test_a_removal_before_its_time_is_a_finding_even_if_it_is_signed(log: Path) -> None:
    store = open_store(str(log / "store"))
    digest = hashlib.sha256((log / "store" / STREAM / f"{FIRST}.checkpoint").read_bytes())
    removed = {"writer": "gateway-0", "first": 1, "checkpoint": digest.hexdigest()}
    operator = Operator(store, KEY, "eve", Clock(T0 + DAY))
    operator.log("acme", "retention", days=190, removed=[removed])
    store.delete(str(STREAM / f"{FIRST}.jsonl"))
    (line,) = verify(store, PUBLIC).findings
    assert "was removed on 2026-09-22, before its retention was over" in line


def test_two_operators_at_once_and_one_who_was_stopped(log: Path) -> None:
    store = open_store(str(log / "store"))
    one = Operator(store, KEY, "ada", Clock(T0))
    one.hold("acme", Span(), "first")
    one.hold("acme", Span(), "second")
    (log / "store/audit/acme/operator/000000000002.checkpoint").unlink()
    Operator(store, KEY, "bob", Clock(T0)).hold("acme", Span(), "third")
    assert [each.reason for each in events(store, "acme")] == ["first", "second", "third"]
    assert verify(store, PUBLIC).findings == []


def test_quarters() -> None:
    assert span_of_quarter("2026-Q4") == Span(
        "2026-10-01T00:00:00.000Z", "2026-12-31T23:59:59.999Z"
    )
    assert span_of_quarter("2026-Q1").until == "2026-03-31T23:59:59.999Z"


def test_content_is_encrypted_erased_by_its_key_and_ends(tmp_path: Path) -> None:
    store, keys = open_store(str(tmp_path / "content")), open_store(str(tmp_path / "keys"))
    kept = ContentStore(store, keys)
    now = time.time()
    hers = kept.put("acme", "ada", "r1", {"input": "Grüezi [NAME_1]", "output": "hi"}, now + DAY)
    his = kept.put("acme", "bob", "r2", {"input": "x"}, now + 2 * DAY)
    raw = store.read(hers.ref)
    assert hashlib.sha256(raw).hexdigest() == hers.sha256
    assert b"NAME_1" not in raw and "ada" not in hers.ref
    assert kept.get(hers.ref) == {"input": "Grüezi [NAME_1]", "output": "hi"}
    moved = his.ref.replace("-r2", "-r3")
    store.write(moved, store.read(his.ref))
    with pytest.raises(ValueError, match="is not what was put there"):
        kept.get(moved)
    with pytest.raises(ValueError, match="is no request id"):
        kept.put("acme", "ada", "../r1", {}, now)
    backup = store.read(hers.ref)
    assert kept.erase("acme", "ada") == 1
    store.write(hers.ref, backup)
    with pytest.raises(Erased):
        kept.get(hers.ref)
    assert kept.get(his.ref) == {"input": "x"}
    assert kept.expire(now + 3 * DAY, "acme", held=lambda tenant, day: True) == 0
    assert kept.expire(now + 3 * DAY) == 3
    assert kept.days("acme", "bob") == []


def kuznia(*words: object) -> Result:
    result = CliRunner().invoke(main, ["audit", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result
    return result


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A laptop whose log has records of ada and bob, and its anchors."""
    home = tmp_path / "home"
    monkeypatch.setenv("KUZNIA_STORE", str(tmp_path / "store"))
    (home / "keys").mkdir(parents=True)
    monkeypatch.setattr(f"{__name__}.KEY", private_key(None))
    names = Pseudonyms(open_store(str(home / "keys")))
    for number, name in enumerate(("ada", "bob")):
        write_stream(
            tmp_path, f"gw-{number}", sizes=(2, 1), caller=names.of("acme", name, moment(T0))
        )
    return tmp_path


def test_verify_says_what_it_found_and_ends_with_two(laptop: Path) -> None:
    good = kuznia("verify", "--anchors", laptop / "anchors")
    assert good.exit_code == 0
    assert good.output == (
        "6 records in 4 segments of 2 streams verified; 0 expired segments were removed by rule\n"
    )
    path = laptop / "store/audit/acme/gw-0/000000000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"403", b"200"))
    bad = kuznia("verify", "--json")
    assert bad.exit_code == 2
    assert "error: audit/acme/gw-0/000000000001.jsonl: record 2 was edited\n" in bad.output
    other = Ed25519PrivateKey.generate()
    (laptop / "other.pub").write_bytes(pem(other.public_key()))
    assert kuznia("verify", laptop / "store", "--key", laptop / "other.pub").exit_code == 2
    assert kuznia("verify", laptop / "nowhere").exit_code == 2
    (laptop / "empty").mkdir()
    assert "has no audit log" in kuznia("verify", laptop / "empty").output
    assert kuznia("verify", "--key", laptop / "store").exit_code == 2


def test_search_by_name_status_and_time(laptop: Path) -> None:
    found = json.loads(kuznia("search", "--caller", "bob", "--status", 403, "--json").output)
    assert [each["id"] for each in found] == ["gw-1-2"]
    assert kuznia("search", "--id", "gw-0-3").output.splitlines()[1].split()[1:5] == [
        "acme",
        "request",
        "gw-0-3",
        "acme/support",
    ]
    until = moment(T0 + 2)
    found = json.loads(kuznia("search", "--until", until, "--tenant", "acme", "--json").output)
    assert sorted(each["id"] for each in found) == ["gw-0-1", "gw-0-2", "gw-1-1", "gw-1-2"]
    assert "is no day or time" in kuznia("search", "--since", "yesterday").output
    shutil.rmtree(laptop / "home/keys/audit-keys")
    assert "has no key of a pseudonym" in kuznia("search", "--caller", "bob").output


def test_what_an_authority_gets_verifies_by_itself(laptop: Path) -> None:
    since, until = moment(T0 - 5), moment(T0 + 5)
    words = ("--tenant", "acme", "--since", since, "--until", until)
    out = kuznia("export", laptop / "out", *words, "--anchors", laptop / "anchors")
    assert out.output.startswith("2 segments in ")
    folder = laptop / "out"
    command = next(
        line for line in (folder / "README.txt").read_text().splitlines() if "kuznia audit" in line
    ).split()
    options = [
        str(folder / word) if word in (".", "anchors", "audit-1.pub") else word for word in command
    ]
    assert kuznia(*options[2:]).exit_code == 0
    assert kuznia("verify", folder, "--key", folder / "audit-1.pub").exit_code == 2
    assert "is not empty" in kuznia("export", folder, *words).output
    assert "has no log" in kuznia("export", laptop / "new", "--tenant", "beta").output


def test_erasing_is_refused_under_a_hold_and_leaves_the_chain_valid(laptop: Path) -> None:
    content = ContentStore(open_store(str(laptop / "store")), open_store(str(laptop / "home/keys")))
    ref = content.put("acme", "ada", "r1", {"input": "x"}, time.time() + DAY).ref
    held = json.loads(kuznia("hold", "--tenant", "acme", "--reason", "case 7", "--json").output)
    subject = ("erase", "--tenant", "acme", "--subject", "ada", "--reason", "her wish", "--yes")
    quarter = ("erase", "--tenant", "acme", "--quarter", "2026-Q3", "--reason", "old", "--yes")
    for words in (subject, quarter):
        refused = kuznia(*words)
        assert refused.exit_code == 2 and f"is under hold {held['id']}" in refused.output
    assert kuznia("hold", "--tenant", "acme", "--lift", held["id"]).exit_code == 0
    asked = CliRunner().invoke(main, ["audit", *subject[:-1]], input="n\n")
    assert asked.exit_code == 1
    assert content.get(ref) == {"input": "x"}
    assert kuznia(*subject).output == "1 keys and the content of 1 requests destroyed\n"
    with pytest.raises(Erased):
        content.get(ref)
    assert "lead to nobody" in kuznia(*quarter).output
    assert "has no pseudonym key of 2026-Q3" in kuznia(*quarter).output
    assert "give one of them" in kuznia("erase", "--tenant", "acme").output
    assert kuznia("verify").exit_code == 0
    kinds = json.loads(kuznia("search", "--tenant", "acme", "--kind", "erase", "--json").output)
    assert [each.get("quarter", "") for each in kinds] == ["", "2026-Q3"]
    assert "ada" not in json.dumps([each["subject"] for each in kinds if "subject" in each])


def test_retention_is_that_of_the_tenants_file(laptop: Path) -> None:
    words = ("retention", "--tenant", "acme")
    assert "has no tenant acme" in kuznia(*words, "--root", laptop).output
    assert kuznia(*words, "--days", 400).output == (
        "0 segments removed\n0 requests' content removed\n"
    )


def test_keys_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.pub").write_text("no key")
    with pytest.raises(InputError) as error:
        public_keys([tmp_path / "text.pub", tmp_path / "absent.pub"])
    assert len(error.value.problems) == 2
    with pytest.raises(InputError, match="is not a private Ed25519 key"):
        private_key(tmp_path / "text.pub")
