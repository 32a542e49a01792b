"""Folders that are only read, of which we know what is in them: https:// and hf://.

Artifactory and the like answer a GET of a file's path; the hub does so at
<repo>/resolve/<revision>/<path>. Nothing is listed: a manifest says what there is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from kuznia.errors import DependencyError, InputError
from kuznia.store.objects import folder_of, open_store

if TYPE_CHECKING:
    import httpx

SECONDS = 60.0
"""Without a byte for so long, the other side does not answer."""

_HUB = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/@]+)(?P<path>/.*)?")


class Source(Protocol):
    """A folder to read from. Raises FileNotFoundError for an absent key, InputError where nothing
    may be read there and DependencyError where nobody answers."""

    def uri_of(self, key: str) -> str:
        """The full URI of a key."""

    def read(self, key: str) -> bytes:
        """The whole value of a small key."""

    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of a key from byte `start` on, in pieces."""


class WebFolder:
    """The folder at `uri`, read from the address `url` with `token` if there is one."""

    def __init__(self, uri: str, url: str, token: str | None) -> None:
        import httpx

        self.uri, self._url = uri.rstrip("/"), url.rstrip("/")
        headers = {"Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        # A redirect to another host loses the token, as it should.
        self._client = httpx.Client(headers=headers, timeout=SECONDS, follow_redirects=True)

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def read(self, key: str) -> bytes:
        return b"".join(self.stream(key))

    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        with self._get(key, start) as answer:
            # A server that knows no ranges sends all of it.
            unwanted = start if answer.status_code == 200 else 0
            for chunk in answer.iter_bytes():
                yield chunk[unwanted:]
                unwanted = max(0, unwanted - len(chunk))

    @contextmanager
    def _get(self, key: str, start: int) -> Iterator[httpx.Response]:
        import httpx

        place = self.uri_of(key)
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with self._client.stream("GET", f"{self._url}/{key}", headers=headers) as answer:
                status = answer.status_code
                if status == 404:
                    raise FileNotFoundError(place)
                if status in (401, 403):
                    raise InputError(
                        f"{place}: may not be read ({status}); set KUZNIA_HTTP_TOKEN (HF_TOKEN for "
                        "hf://) to a token that may"
                    )
                if status not in (200, 206):
                    raise DependencyError(f"{place}: answers {status}; try again later")
                yield answer
        except httpx.HTTPError as error:
            raise DependencyError(
                f"{place}: does not answer ({error or type(error).__name__}); check the address "
                "and the network and run the same command again"
            ) from error


def open_source(uri: str) -> Source:
    """The folder at `uri`: s3://, gs://, file:// (which must exist), https:// or
    hf://<repo>@<revision>/<path>.

    Tokens come from KUZNIA_HTTP_TOKEN and HF_TOKEN, credentials as `open_store` says.
    """
    if match := _HUB.fullmatch(uri):
        from huggingface_hub import constants

        hub = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
        url = f"{hub.rstrip('/')}/{match['repo']}/resolve/{match['revision']}{match['path'] or ''}"
        return WebFolder(uri, url, os.environ.get("HF_TOKEN"))
    if uri.startswith("https://"):
        return WebFolder(uri, uri, os.environ.get("KUZNIA_HTTP_TOKEN"))
    if uri.startswith("file://") and not folder_of(uri).is_dir():
        raise InputError(f"{uri}: is not there; correct uri, or mount the volume that has it")
    if uri.startswith(("s3://", "gs://", "file://")):
        return open_store(uri)
    raise InputError(f"{uri}: cannot be read; use s3://, gs://, https://, hf:// or file://")
