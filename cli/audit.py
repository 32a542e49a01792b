"""Read and check the audit log: every request to a model, answered or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.audit_keeping import erase, hold, retention
from cli.audit_options import (
    anchors,
    as_json,
    keys,
    public,
    secrets,
    secrets_at,
    span,
    span_of,
    store,
    store_at,
    tenant,
)
from cli.output import print_json, print_table
from kuznia import settings
from kuznia.errors import InputError

EPILOG = """\b
examples:
  kuznia audit verify
  kuznia audit search --tenant acme --since 2026-11-01 --status 403

Exit codes: 0 all is well, 2 the log was tampered with or an option is wrong, 3 a store does not
answer.
"""


@click.group(epilog=EPILOG)
def command() -> None:
    """Read and check the audit log: every request to a model, answered or refused."""


@command.command(
    epilog="example: kuznia audit verify s3://audit-bucket --key audit.pub --anchors s3://other"
)
@click.argument("where", metavar="[FOLDER|STORE]", required=False)
@keys
@anchors
@click.option("--tenant", help="Only this tenant's.")
@span
@as_json
def verify(
    where: str | None,
    keys: tuple[Path, ...],
    anchors: str | None,
    tenant: str | None,
    since: str,
    until: str,
    as_json: bool,
) -> None:
    """Check that nothing was changed, removed, moved or added; needs no network for a folder.

    With --since or --until, segments outside of that time need not be there, as in an export.
    One line for each finding, and exit code 2 if there is one.
    """
    from kuznia.audit.verify import verify as check

    copies = store_at(anchors) if anchors else None
    report = check(store_at(where), public(keys), copies, tenant, span_of(since, until))
    if as_json:
        print_json(vars(report))
    else:
        for note in report.notes:
            click.echo(f"note: {note}")
        click.echo(
            f"{report.records} records in {report.segments} segments of {report.streams} streams "
            f"verified; {report.expired} expired segments were removed by rule"
        )
    if report.findings:
        raise InputError(report.findings)
    if not report.streams:
        raise InputError(f"{where or settings.store_uri()}: has no audit log; correct the place")


@command.command(epilog="example: kuznia audit search --tenant acme --caller ada --json")
@store
@click.option("--tenant", help="Only this tenant's.")
@click.option("--caller", help="The name in the key; needs --secrets to know the pseudonym.")
@click.option("--model", help="As acme/support.")
@click.option("--status", type=int)
@click.option("--id", "request", help="x-request-id, as the answer's header has it.")
@click.option("--kind", help="request, hold, lift, erase or retention.")
@secrets
@span
@as_json
def search(
    store: str | None,
    tenant: str | None,
    caller: str | None,
    model: str | None,
    status: int | None,
    request: str | None,
    kind: str | None,
    secrets: str | None,
    since: str,
    until: str,
    as_json: bool,
) -> None:
    """Print the records that are asked for, one a line; it does not verify them."""
    from kuznia.audit.pseudonyms import Pseudonyms
    from kuznia.audit.search import Query
    from kuznia.audit.search import search as find
    from kuznia.audit.streams import streams

    where = store_at(store)
    wanted = {"model": model, "status": status, "id": request, "kind": kind}
    callers = None
    if caller is not None:
        known = Pseudonyms(secrets_at(secrets))
        tenants = {each.tenant for each in streams(where, tenant).values()}
        callers = {each: {name for _, name in known.known(each, caller)} for each in tenants}
        if not any(callers.values()):
            raise InputError(
                f"--caller: {known.uri} has no key of a pseudonym; name its store with --secrets"
            )
    equal = {name: value for name, value in wanted.items() if value is not None}
    found = find(where, Query(tenant, span_of(since, until), callers, equal))
    if as_json:
        print_json(list(found))
        return
    columns = ("time", "tenant", "kind", "id", "model", "status", "tokens", "why")
    print_table(columns, [_row(value) for value in found])


def _row(value: dict[str, Any]) -> list[str]:
    tokens = [value.get(name) for name in ("tokens_in", "tokens_out")]
    cells = (
        value.get("start") or value.get("time"),
        value["tenant"],
        value["kind"],
        value["id"],
        value.get("model"),
        value.get("status"),
        "+".join(str(count) for count in tokens if count is not None),
        value.get("reason") or value.get("ended"),
    )
    return [str(cell if cell is not None else "") for cell in cells]


@command.command(epilog="example: kuznia audit export evidence --tenant acme --since 2026-11-01")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@tenant
@store
@keys
@anchors
@span
def export(
    folder: Path,
    tenant: str,
    store: str | None,
    keys: tuple[Path, ...],
    anchors: str | None,
    since: str,
    until: str,
) -> None:
    """Write a tenant's log of some time for an authority: records, checkpoints, keys, a README."""
    from kuznia.audit.search import export as write

    copies = store_at(anchors) if anchors else None
    count = write(store_at(store), tenant, span_of(since, until), folder, public(keys), copies)
    click.echo(f"{count} segments in {folder}; {folder}/README.txt says how to check them")


for each in (hold, erase, retention):
    command.add_command(each)
