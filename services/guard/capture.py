"""What is kept of requests to releases with capture: pseudonymised, encrypted, with an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

from kuznia.contracts.guard import Policy, Rule
from kuznia.errors import KuzniaError
from kuznia.guard.rules import Compiled, compile_policy
from kuznia.guard.scanner import Naming, Scanner
from kuznia.guard.verdict import text_of
from services.guard import metrics

PATIENCE = 5.0
"""Seconds that an answer waits for its content to be kept."""
PERSONAL = ("pesel", "nip", "regon", "iban", "card", "email", "phone", "secret")


class Capture(Protocol):
    """Keeps content; kuznia.audit.content.ContentStore is one."""

    def put(
        self, tenant: str, subject: str, request_id: str, parts: Mapping[str, str], expires: float
    ) -> Any:
        """Keep the parts of a request; returns its `ref` and `sha256`."""


@cache
def _personal() -> Compiled:
    rules = [{"name": kind, "kind": kind, "action": "pseudonymise"} for kind in PERSONAL]
    policy = Policy(
        name="capture", rules=tuple(Rule.model_validate(rule) for rule in rules), mode="window"
    )
    return compile_policy(policy)


def pseudonymised(text: str, naming: Naming | None) -> str:
    """`text` without personal data; where there is no key the names tell nothing apart."""
    scanner = Scanner(_personal().input, naming or (lambda label, value: f"[{label}]"))
    return text_of([*scanner.feed(text), *scanner.finish()])[0]


async def keep(
    capture: Capture,
    who: tuple[str, str, str],
    parts: Mapping[str, str],
    naming: Naming | None,
    days: int,
) -> dict[str, str] | None:
    """Keep the parts of a request by (tenant, subject, request id); where, None if it failed.

    An answer is not held up for a store that does not work: the metric says what is missing.
    """

    def put() -> Any:
        clean = {name: pseudonymised(text, naming) for name, text in parts.items()}
        return capture.put(*who, clean, time.time() + days * 86_400)

    try:
        kept = await asyncio.wait_for(asyncio.to_thread(put), PATIENCE)
    except (KuzniaError, OSError, ValueError, TimeoutError) as error:
        metrics.CAPTURES.labels("failed").inc()
        print(f"guard: content of {who[2]} is not kept: {type(error).__name__}", flush=True)
        return None
    metrics.CAPTURES.labels("kept").inc()
    return {"ref": kept.ref, "sha256": kept.sha256}
