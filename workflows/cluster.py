"""One namespace of a cluster, asked with the person's own kubeconfig; needs no argo-server.

`workflows/on_cluster.py` starts runs there, `workflows/follow.py` follows them.
"""

from __future__ import annotations

import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from kuznia.errors import DependencyError, InputError, KuzniaError

RIGHTS = {
    "configmaps": ("get",),
    "workflowtemplates": ("get", "list"),
    "workflows": ("create", "get", "list", "patch", "delete"),
    "pods": ("list",),
    "pods/log": ("get",),
}
"""What a person must be allowed in the tenant's namespace; `patch` is for stopping a run."""

_ARGO = "/apis/argoproj.io/v1alpha1"
_METHODS = {"get": "GET", "list": "GET", "create": "POST", "delete": "DELETE"}
_TIMEOUT = (5, 30)
"""Seconds to connect, and to wait for an answer."""


class Cluster:
    """One namespace of a cluster.

    Every call raises InputError where the person may not do that or something is not installed,
    and DependencyError where the API server does not answer.
    """

    def __init__(self, namespace: str | None = None, context: str | None = None) -> None:
        """Without a namespace, the one of the kubeconfig's context or of the pod this runs in."""
        self._context = context
        self._connect()
        self._namespace = namespace

    @cached_property
    def namespace(self) -> str:
        if found := self._namespace or self._default_namespace:
            return found
        raise InputError("kubeconfig: names no namespace; give it: --namespace <tenant>-training")

    def get(self, resource: str, name: str) -> dict[str, Any] | None:
        """The object, or None where it is not there."""
        return self._object(self._ask("get", resource, name))

    def find(self, resource: str, **query: str) -> list[dict[str, Any]]:
        """All objects of a kind that the query (labelSelector, ...) fits."""
        found = self._object(self._ask("list", resource, query=query)) or {}
        items: list[dict[str, Any]] = found.get("items", [])
        return items

    def create(self, resource: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The new object, or None where there is one of that name."""
        return self._object(self._ask("create", resource, body=body, missing=(409,)))

    def delete(self, resource: str, name: str, options: dict[str, Any]) -> None:
        """Ask for its deletion; one that is gone, or is not as `options` say, is left alone."""
        self._ask("delete", resource, name, body=options)

    def log(self, pod: str, **query: str) -> str:
        """Standard output and error of a step's container; empty if it is not there (yet)."""
        query |= {"container": "main"}
        # 400: the container has not started.
        answer = self._ask("get", "pods/log", pod, missing=(400, 404), query=query)
        return answer.decode(errors="replace") if answer else ""

    def _connect(self) -> None:
        import urllib3
        from kubernetes import client, config

        configuration = client.Configuration()
        # Failures are told and handled here, not by urllib3's own attempts and warnings.
        configuration.retries = False
        place = os.environ.get("KUBECONFIG") or "~/.kube/config"
        self._default_namespace: str | None = None
        try:
            config.load_kube_config(place, self._context, configuration)
            contexts, active = config.list_kube_config_contexts(place)
            named = [each for each in contexts if each["name"] == self._context] or [active]
            self._default_namespace = named[0]["context"].get("namespace")
        except (config.ConfigException, yaml.YAMLError, OSError) as error:
            account = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
            if self._context or not account.exists():
                reason = " ".join(str(error).split()).rstrip(".")
                raise DependencyError(
                    f"kubeconfig {place}: {reason}; log in to the cluster or set KUBECONFIG"
                ) from None
            config.load_incluster_config(configuration)
            self._default_namespace = account.read_text("utf-8").strip()
        if not configuration.verify_ssl:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self.host: str = configuration.host
        self._client = client.ApiClient(configuration)

    @staticmethod
    def _object(answer: bytes | None) -> dict[str, Any] | None:
        return None if answer is None else dict(json.loads(answer))

    def _ask(
        self,
        verb: str,
        resource: str,
        name: str = "",
        *,
        body: dict[str, Any] | None = None,
        query: dict[str, str] | None = None,
        missing: tuple[int, ...] = (404, 409),
        again: bool = True,
    ) -> bytes | None:
        """The API server's answer; None for a status in `missing`: not there, or there already."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json, */*", "Content-Type": "application/json"}
        # Not call_api: it falls over a connection that breaks during the TLS handshake.
        self._client.update_params_for_auth(headers, [], ["BearerToken"])
        try:
            answer: bytes = self._client.request(
                _METHODS[verb],
                self.host + self._path(resource, name),
                query_params=list((query or {}).items()),
                headers=headers,
                body=body,
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            ).data
        except ApiException as error:
            if error.status in missing:
                return None
            if error.status == 401 and again:
                # A login may have been renewed on disk since.
                self._connect()
                return self._ask(
                    verb, resource, name, body=body, query=query, missing=missing, again=False
                )
            place = "the cluster" if resource == "namespaces" else f"namespace {self.namespace}"
            status, reason = error.status, _reason(error)
            raise refusal(status, reason, verb, resource, place, self.host) from None
        except HTTPError as error:
            raise refusal(0, _reason(error), verb, resource, "", self.host) from None
        return answer

    def _path(self, resource: str, name: str) -> str:
        if resource == "namespaces":
            return f"/api/v1/namespaces/{name}"
        kind, _, part = resource.partition("/")
        root = _ARGO if kind.startswith("workflow") else "/api/v1"
        return "/".join(
            word for word in (f"{root}/namespaces/{self.namespace}", kind, name, part) if word
        )


def refusal(
    status: int, reason: str, verb: str, resource: str, place: str, host: str
) -> KuzniaError:
    """What a person is told when the API server answers `status`; 0 if it did not answer."""
    if status == 401:
        return InputError(f"{host}: does not know your login; log in to the cluster again")
    if status == 403 and (user := re.search(r'User "([^"]+)" cannot', reason)):
        return InputError(
            f"{place}: {user[1]} may not {verb} {resource}; ask who runs the platform for the "
            "tenant's role there, or name another namespace with --namespace"
        )
    if status in (0, 408, 429) or status >= 500:
        return DependencyError(
            f"{host}: the API server does not answer ({reason}); check the network and the "
            "kubeconfig and run the same command again"
        )
    return InputError(f"{place}: refuses to {verb} {resource}: {reason}; ask who runs the platform")


def _reason(error: Exception) -> str:
    """The API server's own words, or the innermost cause, on one line."""
    body = getattr(error, "body", None)
    try:
        text = json.loads(body)["message"] if body else ""
    except (ValueError, KeyError, TypeError):
        text = ""
    text = text or str(getattr(error, "reason", None) or error).rpartition(": ")[2]
    return " ".join(text.split())
