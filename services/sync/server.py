"""The sync's small HTTP server: /metrics, /healthz, and /webhook, which only wakes it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from kuznia.errors import KuzniaError
from kuznia.registry import Registry, mlflow_answers
from services.sync import metrics

LARGEST = 65536
"""Bytes of a webhook that are read."""
OLDEST = 300
"""Seconds after which a webhook counts as sent again by somebody else."""
EVENTS = ["model_version_alias.created"]


def is_signed(secret: str, headers: Any, body: bytes, now: float) -> bool:
    """Whether MLflow sent this: HMAC-SHA256 over `id.timestamp.body`, and not long ago."""
    delivery, sent = headers.get("X-MLflow-Delivery-Id", ""), headers.get("X-MLflow-Timestamp", "")
    if not sent.isdigit() or abs(now - int(sent)) > OLDEST:
        return False
    signed = hmac.new(secret.encode(), f"{delivery}.{sent}.".encode() + body, hashlib.sha256)
    expected = "v1," + base64.b64encode(signed.digest()).decode()
    return hmac.compare_digest(expected, headers.get("X-MLflow-Signature", ""))


def serve(port: int, secret: str, wake: threading.Event) -> ThreadingHTTPServer:
    """Start the server on a thread of its own; a webhook that is signed sets `wake`."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(HTTPStatus.OK, generate_latest(metrics.REGISTRY), CONTENT_TYPE_LATEST)
            elif self.path == "/healthz":
                self._answer(HTTPStatus.OK, b"ok\n")
            else:
                self._answer(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/webhook" or not secret:
                self._answer(HTTPStatus.NOT_FOUND)
            elif not length.isdigit() or int(length) > LARGEST:
                self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            elif not is_signed(secret, self.headers, self.rfile.read(int(length)), time.time()):
                metrics.WEBHOOKS.labels("refused").inc()
                self._answer(HTTPStatus.UNAUTHORIZED)
            else:
                metrics.WEBHOOKS.labels("taken").inc()
                wake.set()
                self._answer(HTTPStatus.NO_CONTENT)

        def _answer(self, status: HTTPStatus, body: bytes = b"", kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *words: Any) -> None:
            """Probes every few seconds are no news."""

    server = ThreadingHTTPServer(("", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def subscribe(registry: Registry, url: str, secret: str) -> str | None:
    """Have an MLflow send its alias moves to `url`, once; what is wrong if it will not."""
    from mlflow.exceptions import MlflowException

    try:
        with mlflow_answers(registry.uri):
            known = {hook.url: hook for hook in registry.client.list_webhooks()}
            if url in known:
                registry.client.update_webhook(known[url].webhook_id, secret=secret)
            else:
                registry.client.create_webhook("kuznia-sync", url, EVENTS, secret=secret)
    except (KuzniaError, MlflowException) as error:
        first = str(error).splitlines()[0]
        return f"MLflow at {registry.uri}: no webhook ({first}); it is looked at by the clock alone"
    return None
