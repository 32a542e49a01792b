"""Envoy's configuration from the table of releases: bootstrap, listener, clusters, routes.

The same bytes for the same table. What changes with a release is in clusters and routes, which
Envoy watches; who may do what is in policy.lua, which kuznia/gateway/lua/authorise.lua reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kuznia.gateway.clusters import admin_cluster, cluster, issuer_clusters, limits_cluster
from kuznia.gateway.filters import access_log, chain, http_filter, local_replies
from kuznia.gateway.places import JSON, Places, address
from kuznia.gateway.policy import models, policy
from kuznia.gateway.routes import routes
from kuznia.gateway.table import Table


def files(table: Table, places: Places, revoked: dict[str, int]) -> dict[str, str]:
    """Every file of the gateway's folder that Envoy reads, by name, in the order to write them.

    `revoked` has the keys that are no longer good, jti and expiry.
    """
    made = {
        "clusters.json": _resources(
            [cluster(each, places) for each in table.targets]
            + issuer_clusters(table)
            + [limits_cluster(places)]
        ),
        "routes.json": _resources([routes(table)]),
        "listeners.json": _resources(
            [listener(table, places), *([_stats(places)] if places.stats_port else [])]
        ),
    }
    if places.certificates:
        made["certificates.json"] = _resources([_secret(places.certificates)])
    made |= models(table)
    made["policy.lua"] = policy(table, revoked)
    made["envoy.json"] = _text(bootstrap(places))
    return made


def bootstrap(places: Places) -> dict[str, Any]:
    """What Envoy starts with; all else it watches."""

    def watched(name: str) -> dict[str, Any]:
        # A file that is moved there is read, and no other for its sake.
        return {
            "path_config_source": {"path": str(places.folder / name)},
            "resource_api_version": "V3",
        }

    return {
        "node": {"id": "kuznia", "cluster": "kuznia"},
        "admin": {"address": {"pipe": {"path": str(places.admin), "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": watched("listeners.json"),
            "cds_config": watched("clusters.json"),
        },
        "static_resources": {"clusters": [admin_cluster(places)] if places.stats_port else []},
        # Else all of them are added up every 5 s, and requests wait for 30 ms meanwhile.
        "stats_flush_on_admin": True,
        # Counters of ten thousand releases are made when they are needed.
        "deferred_stat_options": {"enable_deferred_creation_stats": True},
        # A thousand tenants' counters would cost more memory than all else.
        "stats_config": {
            "stats_matcher": {
                "exclusion_list": {
                    "patterns": [
                        {"safe_regex": {"regex": r"cluster\..*\.(circuit|ssl|http1|http2|lb_).*"}}
                    ]
                }
            }
        },
    }


def listener(table: Table, places: Places) -> dict[str, Any]:
    """The one way in."""
    chain: dict[str, Any] = {
        "filters": [
            {
                "name": "http",
                "typed_config": _manager(table, places),
            }
        ]
    }
    if places.certificates:
        source = {
            "path_config_source": {"path": str(places.folder / "certificates.json")},
        }
        chain["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": f"{JSON}/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                    "tls_certificate_sds_secret_configs": [
                        {"name": "gateway", "sds_config": source | {"resource_api_version": "V3"}}
                    ],
                },
            },
        }
    return {
        "@type": f"{JSON}/envoy.config.listener.v3.Listener",
        "name": "gateway",
        "address": address(places.host, places.port),
        "per_connection_buffer_limit_bytes": table.access.largest_request_mib * 2**20,
        "filter_chains": [chain],
    }


def _manager(table: Table, places: Places) -> dict[str, Any]:
    return {
        "@type": f"{JSON}/envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "gateway",
        "server_name": "kuznia",
        "use_remote_address": True,
        "generate_request_id": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "common_http_protocol_options": {
            "headers_with_underscores_action": "REJECT_REQUEST",
            "max_headers_count": 64,
            "idle_timeout": "3600s",
        },
        "max_request_headers_kb": 32,
        "request_headers_timeout": "10s",
        "request_timeout": "60s",
        "stream_idle_timeout": "300s",
        "delayed_close_timeout": "1s",
        "access_log": [access_log(places)],
        "local_reply_config": local_replies(),
        "rds": {
            "route_config_name": "gateway",
            "config_source": {
                "path_config_source": {"path": str(places.folder / "routes.json")},
                "resource_api_version": "V3",
            },
        },
        "http_filters": chain(table, places),
    }


def _stats(places: Places) -> dict[str, Any]:
    """Readiness and metrics, and nothing else of Envoy's own interface."""
    ways = [
        {"match": {"path": path}, "route": {"cluster": "admin"}}
        for path in ("/ready", "/stats/prometheus")
    ]
    manager = {
        "@type": f"{JSON}/envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "stats",
        "route_config": {
            "name": "stats",
            "virtual_hosts": [{"name": "stats", "domains": ["*"], "routes": ways}],
        },
        "http_filters": [http_filter("router", "router.v3.Router")],
    }
    return {
        "@type": f"{JSON}/envoy.config.listener.v3.Listener",
        "name": "stats",
        "address": address("0.0.0.0", places.stats_port or 0),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _secret(folder: Path) -> dict[str, Any]:
    return {
        "@type": f"{JSON}/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "gateway",
        "tls_certificate": {
            "certificate_chain": {"filename": str(folder / "tls.crt")},
            "private_key": {"filename": str(folder / "tls.key")},
            "watched_directory": {"path": str(folder)},
        },
    }


def _resources(found: list[dict[str, Any]]) -> str:
    return _text({"resources": found})


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
