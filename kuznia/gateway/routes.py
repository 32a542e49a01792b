"""Envoy's routes: what a name that a client asks for stands for."""

from __future__ import annotations

import json
from typing import Any

from kuznia.gateway.places import JSON
from kuznia.gateway.table import Table, Target

NOTICE = "This answer was made by an AI system."
"""What people are told where nothing else is set."""
LONGEST = "3600s"
"""From request to the end of its answer."""
LIMITS = ("minute", "month")


def routes(table: Table) -> dict[str, Any]:
    """One route for each name, found by one look-up."""
    named = table.by_name()
    found = {
        name: _route(target, named.get(f"{target.name}:staging")) for name, target in named.items()
    }
    nothing = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 404, "body": {"inline_string": "no such path"}},
    }
    host: dict[str, Any] = {
        "name": "gateway",
        "domains": ["*"],
        "matcher": {
            "matcher_tree": {
                "input": {
                    "name": "route",
                    "typed_config": {
                        "@type": f"{JSON}/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
                        "header_name": "x-kuznia-route",
                    },
                },
                "exact_match_map": {
                    "map": {name: _action(route) for name, route in sorted(found.items())}
                },
            },
            "on_no_match": _action(nothing),
        },
        "typed_per_filter_config": {
            "limits": {
                "@type": f"{JSON}/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute",
                "rate_limits": asked_limits(),
            }
        },
    }
    if not found:
        host["matcher"] = {"on_no_match": _action(nothing)}
    return {
        "@type": f"{JSON}/envoy.config.route.v3.RouteConfiguration",
        "name": "gateway",
        "virtual_hosts": [host],
        "request_headers_to_remove": ["x-kuznia-route"],
    }


def asked_limits() -> list[dict[str, Any]]:
    """What the limit service is asked: requests and tokens of tenant, caller and release.

    Requests count when they come; tokens are looked at then, and counted when they are known.
    """
    second: tuple[dict[str, Any], ...] = ({}, _known("key", "caller"), _known("release", "release"))
    made: list[dict[str, Any]] = []
    for what in ("requests", "tokens"):
        for unit in LIMITS:
            counter = f"{what}_per_{unit}"
            # Known only where a limit of this kind applies: nothing else is asked.
            first = _known(counter, "tenant")
            last = {"generic_key": {"descriptor_key": "what", "descriptor_value": counter}}
            for middle in second:
                actions = [first, *([middle] if middle else []), last]
                if what == "requests":
                    made.append({"actions": actions})
                    continue
                made.append({"actions": actions, "hits_addend": {"number": 0}})
                made.append(
                    {
                        "actions": actions,
                        "hits_addend": {"format": "%DYNAMIC_METADATA(llm:tokens)%"},
                        "apply_on_stream_done": True,
                    }
                )
    return made


def _known(name: str, entry: str) -> dict[str, Any]:
    """An entry of a list: what authorise.lua left in the request's metadata; without it, no list.

    Headers would be gone by the time that tokens are counted.
    """
    key = {"key": "kuznia", "path": [{"key": name}]}
    return {"metadata": {"descriptor_key": entry, "metadata_key": key, "source": "DYNAMIC"}}


def _action(route: dict[str, Any]) -> dict[str, Any]:
    typed = {"@type": f"{JSON}/envoy.config.route.v3.Route", **route}
    return {"action": {"name": "route", "typed_config": typed}}


def _release(target: Target) -> dict[str, Any]:
    """What authorise.lua reads of a release; `about` goes into the audit log as it is."""
    about = {
        "model": target.name,
        "release": target.id,
        "version": target.version,
        "digest": target.digest,
        "risk": target.risk,
    }
    return {
        "id": target.id,
        "model": target.name,
        "stage": target.stage,
        "risk": target.risk,
        "about": json.dumps(about, separators=(",", ":"))[1:-1],
    }


def _route(target: Target, staging: Target | None) -> dict[str, Any]:
    release = _release(target)
    if target.limited:
        release["limited"] = list(target.limited)
    if target.split and staging:
        release |= {"split": target.split, "arm": _release(staging)}
    made: dict[str, Any] = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": target.id,
            # Until the whole answer is there: long for a stream, and yet an end.
            "timeout": "0s",
            "max_stream_duration": {"max_stream_duration": LONGEST},
            # A model may think for longer than the listener lets a stream be silent.
            "idle_timeout": LONGEST,
            "retry_policy": {"retry_on": "connect-failure,reset-before-request", "num_retries": 2},
        },
        "metadata": _metadata({"release": release}),
    }
    if target.risk != "minimal":
        # AI Act, Article 50: people are told, and what is made is marked.
        # To Envoy a % begins a command; two are one that is said.
        notice = (target.notice or NOTICE).replace("%", "%%")
        made["response_headers_to_add"] = [
            {"header": {"key": key, "value": value}}
            for key, value in (("x-ai-generated", "true"), ("x-ai-notice", notice))
        ]
    return made


def _metadata(value: dict[str, Any]) -> dict[str, Any]:
    return {"filter_metadata": {"envoy.filters.http.lua": value}}
