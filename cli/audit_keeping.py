"""`kuznia audit` where it acts on the log: hold, erase, retention; each is itself on record."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cli.audit_options import (
    anchors,
    as_json,
    operator_of,
    private,
    reason,
    secrets,
    secrets_at,
    span,
    span_of,
    store,
    store_at,
    tenant,
)
from cli.output import print_json
from cli.where import root
from kuznia.errors import InputError


@click.command(
    epilog="example: kuznia audit hold --tenant acme --since 2026-11-01 --reason 'case 7'"
)
@tenant
@store
@private
@anchors
@span
@reason
@click.option("--lift", metavar="ID", help="End this hold instead.")
@as_json
def hold(
    tenant: str,
    store: str | None,
    private: Path | None,
    anchors: str | None,
    since: str,
    until: str,
    reason: str,
    lift: str | None,
    as_json: bool,
) -> None:
    """Keep a tenant's log of some time, whatever its retention; erasure is refused, too."""
    operator = operator_of(store, private, anchors)
    if lift:
        event = operator.lift(tenant, lift, reason)
    elif not reason:
        raise InputError("--reason: is missing; say why, it becomes part of the log")
    else:
        event = operator.hold(tenant, span_of(since, until), reason)
    if as_json:
        print_json(event.model_dump(mode="json", exclude_none=True))
    else:
        click.echo(f"{'hold ' + lift + ' is lifted' if lift else 'hold ' + event.id}")


@click.command(epilog="example: kuznia audit erase --tenant acme --subject ada --reason 'her wish'")
@tenant
@click.option("--subject", help="Destroy the keys of all content that is kept of this person.")
@click.option("--quarter", help="Destroy the key of callers' pseudonyms of a quarter: 2026-Q3.")
@store
@click.option("--content", help="Store of the content; that of the log unless given.")
@secrets
@private
@anchors
@reason
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(
    tenant: str,
    subject: str | None,
    quarter: str | None,
    store: str | None,
    content: str | None,
    secrets: str | None,
    private: Path | None,
    anchors: str | None,
    reason: str,
    yes: bool,
) -> None:
    """Destroy keys: of a person's content, or of a quarter's pseudonyms. The log stays valid.

    Without its key content cannot be read, from no backup either, and no pseudonym of that quarter
    leads back to a name. Refused while a hold keeps it.
    """
    from kuznia.audit import erasure

    problems = []
    if (subject is None) == (quarter is None):
        problems.append("--subject, --quarter: give one of them")
    if not reason:
        problems.append("--reason: is missing; say why, it becomes part of the log")
    if problems:
        raise InputError(problems)
    operator = operator_of(store, private, anchors)
    what = f"the content of {subject}" if subject else f"the names of {quarter}"
    if not yes:
        click.confirm(f"{tenant}: {what} can never be read again. Go on?", abort=True)
    where, kept = store_at(store), secrets_at(secrets)
    if subject:
        told = erasure.erase_subject(
            operator, where, store_at(content or store), kept, tenant, subject, reason
        )
    else:
        told = erasure.erase_quarter(operator, where, kept, tenant, str(quarter), reason)
    click.echo(told)


@click.command(epilog="example: kuznia audit retention --tenant acme --days 400")
@tenant
@store
@click.option("--days", type=int, help="Unless given, as the tenant's file says; 190 at least.")
@click.option("--content", help="Store of the content; that of the log unless given.")
@secrets
@private
@anchors
@root
def retention(
    tenant: str,
    store: str | None,
    days: int | None,
    content: str | None,
    secrets: str | None,
    private: Path | None,
    anchors: str | None,
    root: Path,
) -> None:
    """Remove segments past their retention, and content past its end; never what is held.

    Checkpoints stay, and the removal is itself a record: `verify` tells expired from missing.
    """
    from kuznia.audit import erasure

    if days is None:
        from kuznia.tree import read_tree

        tree, _ = read_tree(root)
        if tree is None or tenant not in tree.tenants:
            raise InputError(f"--days: {root} has no tenant {tenant}; give --days or --root")
        days = tree.tenants[tenant].retention.audit_days
    where = store_at(store)
    event = operator_of(store, private, anchors).retention(tenant, days)
    click.echo(f"{len(event.removed) if event else 0} segments removed")
    gone = erasure.expire(
        where, store_at(content or store), secrets_at(secrets), tenant, time.time()
    )
    click.echo(f"{gone} requests' content removed")
