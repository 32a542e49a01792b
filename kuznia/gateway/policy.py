"""policy.lua: who may do what, as data for kuznia/gateway/lua/authorise.lua."""

from __future__ import annotations

from typing import Any

from kuznia.contracts.base import digest_of
from kuznia.gateway.table import Table

ISSUER = "kuznia"
AUDIENCE = "kuznia-gateway"
"""Claims `iss` and `aud` of the platform's own keys."""


def policy(table: Table, revoked: dict[str, int]) -> str:
    """policy.lua: hosts, groups and revoked keys, as data; its first line is its digest."""
    value = {
        "issuer": ISSUER,
        "hosts": table.hosts | dict.fromkeys(table.access.hosts, False),
        "any_host": not table.access.hosts,
        "groups": table.groups,
        "groups_claims": {each.issuer: each.groups for each in table.access.issuers},
        "revoked": dict.fromkeys(revoked, True),
    }
    return f"-- {digest_of(value)}\nreturn {_lua_value(value)}\n"


def models(table: Table) -> dict[str, str]:
    """models/<tenant>.lua for each tenant: what GET /v1/models may list, by file name."""
    lists: dict[str, list[dict[str, str]]] = {}
    for name, target in table.by_name().items():
        lists.setdefault(target.tenant, []).append(
            {
                "id": name,
                "model": target.name,
                "stage": target.stage,
                "risk": target.risk,
                "name": target.title or name,
                "description": target.description,
            }
        )
    return {
        f"models/{tenant}.lua": f"return {_lua_value(found)}\n" for tenant, found in lists.items()
    }


def _lua_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _lua_text(value)
    if isinstance(value, dict):
        entries = (f"[{_lua_text(key)}]={_lua_value(value[key])}" for key in sorted(value))
        return "{" + ",".join(entries) + "}"
    return "{" + ",".join(_lua_value(each) for each in value) + "}"


def _lua_text(text: str) -> str:
    """A Lua string: every byte that is not plain is written by its number."""
    plain = bytes(range(32, 127)).replace(b'"', b"").replace(b"\\", b"")
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03d}" for b in text.encode()) + '"'
