"""Envoy's clusters: every release, and what the gateway itself asks."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from kuznia.gateway.places import JSON, Places, address
from kuznia.gateway.table import Table, Target

MOST = 100_000
"""Requests in progress where nothing is said; Envoy's own 1024 is few for streams."""


def cluster(target: Target, places: Places) -> dict[str, Any]:
    made = upstream(target.id, target.address if target.guard == "off" else places.guard)
    made["circuit_breakers"] = {
        "thresholds": [
            {
                "max_requests": target.concurrency or MOST,
                "max_connections": MOST,
                "max_pending_requests": MOST,
            }
        ]
    }
    return made


def upstream(name: str, where: str, http2: bool = False) -> dict[str, Any]:
    host, _, port = where.rpartition(":")
    numeric = host.replace(".", "").isdigit()
    # A changed cluster takes over once its name is resolved: nothing is lost in between.
    by_name = {
        "dns_lookup_family": "ALL",
        "dns_refresh_rate": "10s",
        "respect_dns_ttl": True,
    }
    options: dict[str, Any] = (
        {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    )
    return {
        "@type": f"{JSON}/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC" if numeric else "STRICT_DNS",
        "connect_timeout": "2s",
        "lb_policy": "LEAST_REQUEST",
        **({} if numeric else by_name),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(host, int(port))}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{JSON}/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": options,
                "common_http_protocol_options": {
                    # Shorter than the 5 s after which uvicorn closes: nobody meets a closed door.
                    "idle_timeout": "3s",
                    # A Service picks a pod when a connection is made; one that is never idle
                    # would go on asking a pod that is to end.
                    "max_connection_duration": "5s",
                },
            }
        },
    }


def limits_cluster(places: Places) -> dict[str, Any]:
    return upstream("limits", places.limits, http2=True)


def issuer_clusters(table: Table) -> list[dict[str, Any]]:
    made = []
    for index, issuer in enumerate(table.access.issuers):
        parts = urlsplit(issuer.jwks)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        cluster = upstream(f"issuer-{index}", f"{parts.hostname}:{port}")
        if parts.scheme == "https":
            roots = {"filename": "/etc/ssl/certs/ca-certificates.crt"}
            names = [{"san_type": "DNS", "matcher": {"exact": parts.hostname}}]
            cluster["transport_socket"] = {
                "name": "tls",
                "typed_config": {
                    "@type": f"{JSON}/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "sni": parts.hostname,
                    "common_tls_context": {
                        "validation_context": {
                            "trusted_ca": roots,
                            "match_typed_subject_alt_names": names,
                        }
                    },
                },
            }
        made.append(cluster)
    return made


def admin_cluster(places: Places) -> dict[str, Any]:
    return {
        "name": "admin",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "admin",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(places.admin)}}}}]}
            ],
        },
    }
