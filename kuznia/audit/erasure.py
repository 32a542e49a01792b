"""Ending what is kept of people: their content, the way from their pseudonyms back to them."""

from __future__ import annotations

import re

from kuznia.audit.content import ContentStore
from kuznia.audit.lifecycle import (
    Operator,
    holds,
    refuse_if_held,
    span_of_day,
    span_of_quarter,
)
from kuznia.audit.pseudonyms import QUARTER, Pseudonyms
from kuznia.audit.verify import Span
from kuznia.errors import InputError
from kuznia.store.objects import Store


def erase_subject(
    operator: Operator,
    log: Store,
    content: Store,
    secrets: Store,
    tenant: str,
    subject: str,
    reason: str,
) -> str:
    """Destroy the keys of a person's content and the content; says what was done.

    InputError where a hold keeps some of it.
    """
    kept = ContentStore(content, secrets)
    days = kept.days(tenant, subject)
    refuse_if_held(log, tenant, [span_of_day(day) for day in days], f"content of {subject}")
    operator.log(tenant, "erase", subject=kept.subject(tenant, subject), reason=reason)
    count = kept.erase(tenant, subject)
    return f"{len(days)} keys and the content of {count} requests destroyed"


def erase_quarter(
    operator: Operator, log: Store, secrets: Store, tenant: str, quarter: str, reason: str
) -> str:
    """Destroy a quarter's pseudonym key; InputError where there is none or a hold keeps it."""
    if not re.fullmatch(QUARTER, quarter):
        raise InputError(f"--quarter: {quarter!r} is no quarter; write it as 2026-Q3")
    refuse_if_held(log, tenant, [span_of_quarter(quarter)], f"the key of {quarter}")
    names = Pseudonyms(secrets)
    if quarter not in dict(names.known(tenant, "")):
        raise InputError(f"{tenant}: has no pseudonym key of {quarter} in {secrets.uri}")
    operator.log(tenant, "erase", quarter=quarter, reason=reason)
    names.destroy(tenant, quarter)
    return f"the key of {quarter} is destroyed; its pseudonyms lead to nobody"


def expire(log: Store, content: Store, secrets: Store, tenant: str, now: float) -> int:
    """Remove a tenant's content past its end and not held; returns of how many requests."""
    held = [Span(each.since or "", each.until or "") for each in holds(log, tenant)]

    def is_held(_: str, day: str) -> bool:
        one = span_of_day(day)
        return any(each.touches(one.since, one.until) for each in held)

    return ContentStore(content, secrets).expire(now, tenant, is_held)
