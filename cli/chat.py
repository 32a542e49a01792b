"""Talk to a served model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import httpx

EPILOG = """\b
examples:
  kuznia chat                                   whatever is served on port 8000
  kuznia chat support "What do you sell?"       one question
  echo "What do you sell?" | kuznia chat support
"""


@click.command(epilog=EPILOG)
@click.argument("model", required=False)
@click.argument("question", required=False)
@click.option(
    "--url",
    default="http://127.0.0.1:8000/v1",
    show_default=True,
    help="Base URL of an OpenAI API.",
)
@click.option("--key", envvar="KUZNIA_KEY", help="Key of a gateway; also in KUZNIA_KEY.")
@click.option("--system", help="System prompt.")
@click.option("--temperature", default=0.0, show_default=True, help="0 gives the likeliest answer.")
@click.option("--max-tokens", default=256, show_default=True, help="Longest answer.")
def command(
    model: str | None,
    question: str | None,
    url: str,
    key: str | None,
    system: str | None,
    temperature: float,
    max_tokens: int,
) -> None:
    """Ask MODEL: one QUESTION, the text on standard input, or a conversation until /exit.

    After each answer come the time to its first token and its tokens a second.
    """
    import httpx

    url = url.rstrip("/")
    piped = not sys.stdin.isatty()
    if question is None and piped:
        question = sys.stdin.read().strip() or None
    history = [{"role": "system", "content": system}] if system else []
    # No limit on reading: a long prompt on a CPU takes long to its first token.
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(None, connect=5)
    with httpx.Client(timeout=timeout, trust_env=False, headers=headers) as client:
        name = served_name(client, url, model)
        settings = {"model": name, "temperature": temperature, "max_tokens": max_tokens}
        if question is not None:
            _ask(client, url, settings, history, question)
            return
        if piped:
            return
        click.echo(f"{name} at {url}; /exit ends", err=True)
        while (question := _prompt()) != "/exit":
            if question:
                _ask(client, url, settings, history, question)


def served_name(client: httpx.Client, url: str, model: str | None) -> str:
    """The name under which the server has `model`, or what it serves first.

    Raises DependencyError if nothing answers, InputError if it serves something else.
    """
    import httpx

    from kuznia.errors import DependencyError, InputError

    try:
        reply = client.get(f"{url}/models")
        reply.raise_for_status()
    except httpx.HTTPError as error:
        raise DependencyError(
            f"{url}: no model answers ({error}); start one with `kuznia serve MODEL` or name "
            "its address with --url"
        ) from None
    names = [entry["id"] for entry in reply.json()["data"]]
    if model is None:
        return str(names[-1] if names[0].endswith(":base") else names[0])
    wanted = model.partition("@")[0].replace(".", "/")
    for name in names:
        if wanted in (name, name.rpartition("/")[2]):
            return str(name)
    plain = ", ".join(name for name in names if ":" not in name)
    raise InputError(
        f"{url}: serves {plain}, not {model}; ask for that or run `kuznia serve {model}`"
    )


def stream(
    client: httpx.Client, url: str, request: dict[str, Any], counts: dict[str, Any]
) -> Iterator[str]:
    """Pieces of the answer as they come; `counts` gets the usage at the end.

    Raises DependencyError if the server refuses or breaks off.
    """
    import httpx

    from kuznia.errors import DependencyError

    body = {**request, "stream": True, "stream_options": {"include_usage": True}}
    try:
        with client.stream("POST", f"{url}/chat/completions", json=body) as reply:
            if not reply.is_success:
                text = reply.read().decode(errors="replace")
                raise DependencyError(f"{url}: answers {reply.status_code}: {text[:500]}")
            for line in reply.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise DependencyError(f"{url}: {event['error']}")
                counts.update(event.get("usage") or {})
                for choice in event["choices"]:
                    if piece := choice["delta"].get("content"):
                        yield piece
    except httpx.HTTPError as error:
        raise DependencyError(
            f"{url}: broke off ({error}); see the server's log and ask again"
        ) from error


def _ask(
    client: httpx.Client,
    url: str,
    settings: dict[str, Any],
    history: list[dict[str, str]],
    question: str,
) -> None:
    history.append({"role": "user", "content": question})
    counts: dict[str, Any] = {}
    pieces: list[str] = []
    asked = first = last = time.monotonic()
    try:
        for piece in stream(client, url, {**settings, "messages": history}, counts):
            last = time.monotonic()
            first = first if pieces else last
            pieces.append(piece)
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo(" (stopped)", err=True, nl=False)
    click.echo()
    history.append({"role": "assistant", "content": "".join(pieces)})
    tokens = counts.get("completion_tokens", len(pieces))
    speed = (tokens - 1) / (last - first) if last > first else 0.0
    click.echo(
        click.style(
            f"first token {first - asked:.2f} s, {tokens} tokens, {speed:.1f} tokens/s",
            dim=True,
        ),
        err=True,
    )


def _prompt() -> str:
    import readline  # noqa: F401  (gives input() editing and history)

    try:
        return input("> ").strip()
    except EOFError:
        click.echo()
        return "/exit"
