"""A name server that knows every name as 127.0.0.1, so that releases have names as on a cluster."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

TTL = 30
"""Seconds, as a cluster's own name server says."""


@contextmanager
def name_server(core: int) -> Iterator[dict[str, Any]]:
    """Runs it; gives what Envoy's bootstrap needs to ask it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        process = get_context("fork").Process(target=_serve, args=(server, core), daemon=True)
        process.start()
        try:
            yield {
                "name": "envoy.network.dns_resolver.cares",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3"
                    ".CaresDnsResolverConfig",
                    "resolvers": [
                        {
                            "socket_address": {
                                "address": "127.0.0.1",
                                "port_value": server.getsockname()[1],
                            }
                        }
                    ],
                    "dns_resolver_options": {"no_default_search_domain": True},
                },
            }
        finally:
            process.terminate()
            process.join()


def _serve(server: socket.socket, core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        asked, client = server.recvfrom(2048)
        end = 12
        while asked[end]:
            end += asked[end] + 1
        question = asked[12 : end + 5]
        # Type A; for every other there is the name, and nothing else known of it.
        found = question[-4:-2] == b"\x00\x01"
        answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, TTL, 4) + bytes([127, 0, 0, 1])
        head = asked[:2] + b"\x81\x80" + struct.pack(">HHHH", 1, int(found), 0, 0)
        server.sendto(head + question + (answer if found else b""), client)
