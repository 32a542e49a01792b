"""What the audit log's collector costs: processor time for each request, three lines to a record.

Requests come in batches of half a second's worth at 500 a second, and end one batch later, so that
each is also kept in the state while it is open. Sealing and shipping to a folder are included.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

from bench.results import machine, save, spread
from kuznia.audit.keys import private_key
from kuznia.audit.pseudonyms import Pseudonyms
from kuznia.audit.verify import verify
from kuznia.progress import say
from kuznia.store.objects import open_store
from services.audit.collector import Collector, Settings
from services.audit.shipper import Shipper
from services.audit.state import State

REQUESTS = 20_000
BATCH = 250
ROUNDS = 5


def main() -> None:
    """Measure, check that the log verifies, print the table, write results/audit_collect.json."""
    collecting, verifying = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            one, other = _round(Path(folder))
        collecting.append(one)
        verifying.append(other)
        say(f"{one:.1f} us to collect, {other:.1f} us to verify a request")
    save(
        "audit_collect",
        "The audit log, for each request",
        [
            {
                "what": "collect: three lines to one signed record",
                "us of a core": spread(collecting),
            },
            {"what": "kuznia audit verify", "us of a core": spread(verifying)},
        ],
        machine("cryptography", "obstore"),
        f"{REQUESTS} requests, {BATCH} a transaction (500 a second), {ROUNDS} rounds.",
    )


def _round(folder: Path) -> tuple[float, float]:
    """Microseconds a request: to collect, to verify."""
    os.environ["KUZNIA_HOME"] = str(folder / "home")
    spool = folder / "spool"
    spool.mkdir()
    kept = State(folder / "state", "bench")
    shipper = Shipper(kept.path, kept.writer, str(folder / "store"), None, say)
    names = Pseudonyms(open_store(str(folder / "secrets")))
    key = private_key(None)
    collector = Collector(Settings(spool), kept, key, names, shipper, say)
    used, before = 0.0, b""
    for first in range(0, REQUESTS + BATCH, BATCH):
        begun, ended = _lines(range(first, min(first + BATCH, REQUESTS)))
        for name, data in (
            (f"requests-{int(time.time()) // 60}.jsonl", begun),
            ("ends.jsonl", before),
        ):
            with (spool / name).open("ab", buffering=0) as file:
                file.write(data)
        before = ended
        start = time.process_time()
        collector.cycle()
        used += time.process_time() - start
    start = time.process_time()
    collector.seal_all()
    while collector.waiting():
        time.sleep(0.01)
    used += time.process_time() - start
    collector.close()
    shipper.end()
    kept.close()
    start = time.process_time()
    report = verify(open_store(str(folder / "store")), [key.public_key()])
    checking = time.process_time() - start
    assert (report.records, report.findings) == (REQUESTS, [])
    return used / REQUESTS * 1e6, checking / REQUESTS * 1e6


def _lines(numbers: range) -> tuple[bytes, bytes]:
    """What the gateway writes about these requests: to its own file, and to ends.jsonl."""
    begun, ended = [], []
    now = time.time()
    for number in numbers:
        name = f"5d0c8a4e-1c1b-4b7e-9d0e-{number:012d}"
        path = "/v1/chat/completions"
        verdict = {"policy": "0123456789ab", "action": "mask", "in": {"pesel": 2}, "out": {}}
        start = {"e": "in", "id": name, "t": now, "method": "POST", "path": path}
        head = {"e": "out", "id": name, "t": now + 0.1, "status": 200, "tenant": "acme"}
        head |= {"caller": f"caller-{number % 500}", "key": f"{number % 500:032x}"}
        head |= {"model": "acme/support", "release": "acme/support@production", "risk": "limited"}
        head |= {"version": "0123456789ab", "digest": "0123456789abcdef" * 4, "guard": verdict}
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(now))
        end = {"e": "end", "id": name, "t": stamp, "ms": 1500, "status": 200, "flags": "-"}
        end |= {"details": "via_upstream", "tokens_in": 12, "tokens_out": 34, "guard": None}
        end |= {"bytes_in": 100, "bytes_out": 900, "arm": "acme-support-production", "path": path}
        start |= {"host": "llm.example.org", "ip": "10.0.0.1:40000"}
        begun += [b"\n%b\n" % json.dumps(line).encode() for line in (start, head)]
        ended.append(json.dumps(end).encode() + b"\n")
    return b"".join(begun), b"".join(ended)


if __name__ == "__main__":
    main()
