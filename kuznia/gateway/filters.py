"""What Envoy does with every request, filter by filter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kuznia.gateway.places import JSON, Places
from kuznia.gateway.policy import AUDIENCE, ISSUER
from kuznia.gateway.table import Table
from kuznia.tree import PLATFORM

LUA = Path(__file__).parent / "lua"
TOKENS = (
    ("prompt_tokens", "tokens_in"),
    ("input_tokens", "tokens_in"),
    ("completion_tokens", "tokens_out"),
    ("output_tokens", "tokens_out"),
    ("total_tokens", "tokens"),
)
"""Keys of `usage` in the answers of the OpenAI API, and ours in Envoy's metadata."""
JSON_TYPES = r"(?i)application/json[ \t]*(;.*)?"
"""Content types of bodies that are read: JSON in any case, whatever its parameters."""


def chain(table: Table, places: Places) -> list[dict[str, Any]]:
    """The filters in the order that a request passes them; answers pass them backwards."""
    wanted = tokens(table)
    return [
        http_filter(
            "record",
            "lua.v3.Lua",
            default_source_code={"inline_string": lua("record.lua", SPOOL=places.spool)},
        ),
        # Envoy takes no empty set of keys; without claims, authorise.lua lets nobody in.
        *([http_filter("tokens", "jwt_authn.v3.JwtAuthentication", **wanted)] if wanted else []),
        http_filter("model", "json_to_metadata.v3.JsonToMetadata", **model_and_usage()),
        http_filter("streamed-usage", "sse_to_metadata.v3.SseToMetadata", **streamed_usage()),
        http_filter(
            "authorise",
            "lua.v3.Lua",
            default_source_code={"inline_string": lua("authorise.lua", FOLDER=places.folder)},
        ),
        http_filter("limits", "ratelimit.v3.RateLimit", **limits()),
        http_filter("router", "router.v3.Router"),
    ]


def http_filter(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    names = {"tokens": "envoy.filters.http.jwt_authn", "authorise": "envoy.filters.http.lua"}
    return {
        "name": names.get(name, name),
        "typed_config": {"@type": f"{JSON}/envoy.extensions.filters.http.{kind}", **settings},
    }


def lua(name: str, **constants: Path) -> str:
    text = "\n".join((LUA / each).read_text("utf-8") for each in ("json.lua", name))
    for key, value in constants.items():
        text = text.replace(f"@{key}@", str(value))
    return text


def tokens(table: Table) -> dict[str, Any]:
    """jwt_authn: the platform's own keys, and each identity provider; empty where there is none."""
    shared = {
        "payload_in_metadata": "token",
        "clock_skew_seconds": 30,
        "jwt_cache_config": {"jwt_cache_size": 1000, "jwt_max_token_size": 4096},
    }
    providers: dict[str, Any] = {}
    if table.access.keys:
        providers[ISSUER] = {
            "issuer": ISSUER,
            "audiences": [AUDIENCE],
            "local_jwks": {"inline_string": _jwks(table.access.keys)},
            **shared,
        }
    for index, issuer in enumerate(table.access.issuers):
        providers[f"issuer-{index}"] = {
            "issuer": issuer.issuer,
            "audiences": list(issuer.audiences),
            "remote_jwks": {
                "http_uri": {"uri": issuer.jwks, "cluster": f"issuer-{index}", "timeout": "5s"},
                "cache_duration": "300s",
                # Before the listener takes over, so that a change refuses nobody.
                "async_fetch": {"fast_listener": False},
                "retry_policy": {"num_retries": 2},
            },
            **shared,
        }
    if not providers:
        return {}
    wanted: dict[str, Any] = {"provider_name": next(iter(providers))}
    if len(providers) > 1:
        wanted = {"requires_any": {"requirements": [{"provider_name": name} for name in providers]}}
    return {"providers": providers, "rules": [{"match": {"prefix": "/"}, "requires": wanted}]}


def _jwks(keys: tuple[str, ...]) -> str:
    """Public keys (PEM) as a JSON Web Key Set; InputError for what is no such key."""
    from kuznia.keys.issuer import jwks_of, public_key

    found = [
        public_key(f"{PLATFORM}: access.keys.{index}", pem.encode())
        for index, pem in enumerate(keys)
    ]
    return json.dumps(jwks_of(found), sort_keys=True)


def _rule(path: tuple[str, ...], key: str, kind: str = "NUMBER") -> dict[str, Any]:
    return {
        "selectors": [{"key": part} for part in path],
        "on_present": {"metadata_namespace": "llm", "key": key, "type": kind},
    }


def model_and_usage() -> dict[str, Any]:
    json_types = {"allow_content_types_regex": {"regex": JSON_TYPES}}
    usage = [_rule(("usage", theirs), ours) for theirs, ours in TOKENS]
    return {
        "request_rules": {"rules": [_rule(("model",), "model", "PROTOBUF_VALUE")]} | json_types,
        "response_rules": {"rules": usage} | json_types,
    }


def streamed_usage() -> dict[str, Any]:
    rules = [_rule(("usage", theirs), ours) for theirs, ours in TOKENS]
    rules += [_rule(("response", "usage", theirs), ours) for theirs, ours in TOKENS]
    rules.append(_rule(("kuznia_guard",), "guard", "STRING"))
    parser = {
        "@type": f"{JSON}/envoy.extensions.content_parsers.json.v3.JsonContentParser",
        "rules": [{"rule": rule} for rule in rules],
    }
    return {
        "response_rules": {
            "content_parser": {"name": "envoy.content_parsers.json", "typed_config": parser},
            "max_event_size": 2**20,
        }
    }


def limits() -> dict[str, Any]:
    return {
        "domain": "kuznia",
        "timeout": "0.1s",
        # What counts is down: people work on, and a metric says so.
        "failure_mode_deny": False,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "rate_limit_service": {
            "grpc_service": {"envoy_grpc": {"cluster_name": "limits"}},
            "transport_api_version": "V3",
        },
    }


def access_log(places: Places) -> dict[str, Any]:
    line = {
        "e": "end",
        "id": "%REQ(X-REQUEST-ID)%",
        "t": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "ms": "%DURATION%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "tokens_in": "%DYNAMIC_METADATA(llm:tokens_in)%",
        "tokens_out": "%DYNAMIC_METADATA(llm:tokens_out)%",
        "guard": "%DYNAMIC_METADATA(llm:guard)%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "host": "%REQ(:AUTHORITY)%",
        "ip": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
        "arm": "%UPSTREAM_CLUSTER%",
        "who": "%DYNAMIC_METADATA(kuznia:who)%",
    }
    return {
        "name": "ends",
        "typed_config": {
            "@type": f"{JSON}/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(places.spool / "ends.jsonl"),
            "log_format": {"json_format": line},
        },
    }


def local_replies() -> dict[str, Any]:
    """Every refusal as OpenAI's API words it."""

    def body(message: str, kind: str, code: str) -> dict[str, Any]:
        error = {"message": message, "type": kind, "param": None, "code": code}
        return {"json_format": {"error": error}}

    def when(statuses: tuple[int, int], made: dict[str, Any]) -> dict[str, Any]:
        compared = [
            {
                "status_code_filter": {
                    "comparison": {
                        "op": op,
                        "value": {"default_value": value, "runtime_key": f"kuznia.{op}.{value}"},
                    }
                }
            }
            for op, value in zip(("GE", "LE"), statuses, strict=True)
        ]
        return {"filter": {"and_filter": {"filters": compared}}, "body_format_override": made}

    said = "%LOCAL_REPLY_BODY%"
    return {
        "mappers": [
            {
                "filter": {"response_flag_filter": {"flags": ["UO"]}},
                "status_code": 429,
                "body_format_override": body(
                    "too many requests are in progress; try again in a moment",
                    "rate_limit_error",
                    "rate_limit_exceeded",
                ),
            },
            when((401, 401), body(said, "invalid_request_error", "invalid_api_key")),
            when((403, 403), body(said, "invalid_request_error", "permission_denied")),
            when((404, 404), body(said, "invalid_request_error", "%RESP(X-KUZNIA-CODE)%")),
            when(
                (413, 413),
                body("the request is too large", "invalid_request_error", "request_too_large"),
            ),
            when(
                (429, 429),
                body(
                    "a limit is reached; wait as long as retry-after says",
                    "rate_limit_error",
                    "rate_limit_exceeded",
                ),
            ),
            when((400, 499), body(said, "invalid_request_error", "invalid_request")),
            when((500, 599), body(said, "server_error", "server_error")),
        ]
    }
