"""Where texts are in requests of the OpenAI API. What is not known here is refused, by name.

Fields whose values are numbers, true, false or null may have any name: they are settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kuznia.guard.inspector import Blocked, Inspector
from kuznia.guard.verdict import Refusal

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
PATHS = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS)

_KNOWN = (
    "model user metadata stop encoding_format service_tier safety_identifier prompt_cache_key "
    "prompt_cache_retention reasoning_effort verbosity truncation stream_options tool_choice "
    "response_format logit_bias stop_token_ids bad_words allowed_token_ids guided_json "
    "guided_regex guided_choice guided_grammar structured_outputs chat_template_kwargs "
    "request_id priority truncate_prompt_tokens modalities vllm_xargs allowed_tools"
)
_SETTINGS = frozenset(_KNOWN.split())
_TEXTS = {
    CHAT: frozenset({"tools", "functions", "function_call", "documents"}),
    COMPLETIONS: frozenset({"suffix"}),
    RESPONSES: frozenset(
        {"instructions", "tools", "text", "reasoning", "include", "previous_response_id"}
    ),
    EMBEDDINGS: frozenset({"instruction"}),
}
_MESSAGE = frozenset(
    {"name", "tool_call_id", "refusal", "reasoning", "reasoning_content", "call_id"}
)
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "summary_text": "text",
               "reasoning_text": "text", "refusal": "refusal", "thinking": "thinking"}  # fmt: skip
_OTHER_PARTS = (
    "image_url input_image image image_pil audio_url input_audio audio video_url input_video "
    "file input_file image_embeds audio_embeds"
)
_UNREADABLE_PARTS = frozenset(_OTHER_PARTS.split())


def parse_body(body: bytes) -> dict[str, Any]:
    """The request as JSON; Refusal if it is none, or if readers could differ on what it says."""
    try:
        value = json.loads(
            body.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        why = "too deep" if isinstance(error, RecursionError) else str(error)
        raise Refusal(400, "invalid_json", f"body: not JSON ({why}); correct it") from None
    if not isinstance(value, dict):
        raise Refusal(400, "invalid_json", "body: not a JSON object; send one")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refusal(400, "duplicate_key", f"body: {twice[:40]!r} is there twice; keep one")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


class Request:
    """One request's body, looked at in place. `changed` says whether it differs from what came."""

    def __init__(self, path: str, body: dict[str, Any], inspector: Inspector) -> None:
        self.path, self.body, self._look = path, body, inspector
        self.changed = False

    def inspect(self) -> None:
        """Look at everything; raises Refusal, or Blocked by a rule."""
        if not self._look.rules and self._look.texts is None:
            return
        for name, value in list(self.body.items()):
            if new := self._field(name):
                self._set(self.body, name, new(value, name))
            elif value is not None and not isinstance(value, int | float):
                raise unknown(name)

    def _field(self, name: str) -> Callable[[Any, str], Any] | None:
        if name == "messages" and self.path in (CHAT, EMBEDDINGS):
            return self._messages
        if name == "prompt" and self.path == COMPLETIONS:
            return self._prompt
        if name == "input" and self.path == EMBEDDINGS:
            return self._prompt
        if name == "input" and self.path == RESPONSES:
            return self._input
        if name in ("prompt_embeds", "prompt_token_ids"):
            return self._unreadable
        if name in _TEXTS[self.path] or name in _SETTINGS:
            return self._look.tree if name not in ("model", "encoding_format") else _same
        return None

    def _set(self, where: dict[str, Any], key: str, value: Any) -> None:
        if where[key] != value:
            where[key] = value
            self.changed = True

    def _unreadable(self, value: Any, where: str) -> Any:
        if self._look.rules and self._look.rules.unreadable == "refuse":
            raise Refusal(
                400,
                "unreadable_content",
                f"{where}: the guard cannot read it (image, sound, file or token numbers); send "
                "text, or ask for a policy with unreadable: pass",
                where,
            )
        return value

    def _prompt(self, value: Any, where: str) -> Any:
        if isinstance(value, str):
            return self._look.text(value, where)
        if not isinstance(value, list):
            raise unknown(where)
        if any(isinstance(each, int | list) for each in value):
            return self._unreadable(value, where)
        return [self._prompt(each, f"{where}[{place}]") for place, each in enumerate(value)]

    def _messages(self, value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise unknown(where)
        return [self._message(each, f"{where}[{place}]") for place, each in enumerate(value)]

    def _message(self, value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise unknown(where)
        return {key: self._of_message(key, each, f"{where}.{key}") for key, each in value.items()}

    def _of_message(self, key: str, value: Any, where: str) -> Any:
        if key in ("content", "output", "summary"):
            return self._content(value, where)
        if key == "tool_calls" and isinstance(value, list):
            return [self._call(each, f"{where}[{place}]") for place, each in enumerate(value)]
        if key == "function_call":
            return self._call(value, where)
        if key == "arguments" and isinstance(value, str):
            return self._look.arguments(value, where)
        if key in ("audio", "encrypted_content") and value is not None:
            return self._unreadable(value, where)
        if key in _MESSAGE or key in ("role", "type", "id", "status"):
            return self._look.tree(value, where)
        if value is None or isinstance(value, int | float):
            return value
        raise unknown(where)

    def _call(self, value: Any, where: str) -> Any:
        """A tool call: `arguments` are JSON text, wherever they are in it."""
        if not isinstance(value, dict):
            return self._look.tree(value, where)
        return {
            key: self._look.arguments(each, f"{where}.{key}")
            if key == "arguments" and isinstance(each, str)
            else self._call(each, f"{where}.{key}")
            for key, each in value.items()
        }

    def _content(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, str):
            return value and self._look.text(value, where)
        if not isinstance(value, list):
            raise unknown(where)
        texts: list[str] = []
        parts = [self._part(each, f"{where}[{n}]", texts) for n, each in enumerate(value)]
        self._look.whole(texts, where)
        return parts

    def _part(self, value: Any, where: str, texts: list[str]) -> Any:
        if isinstance(value, str):
            texts.append(self._look.text(value, where))
            return texts[-1]
        kind = value.get("type") if isinstance(value, dict) else None
        if kind in _UNREADABLE_PARTS:
            return self._unreadable(value, where)
        if kind not in _TEXT_PARTS or not isinstance(value.get(_TEXT_PARTS[kind]), str):
            raise unknown(where)
        seen: dict[str, Any] = {
            key: each if key == "type" else self._look.tree(each, f"{where}.{key}")
            for key, each in value.items()
        }
        texts.append(seen[_TEXT_PARTS[kind]])
        return seen

    def _input(self, value: Any, where: str) -> Any:
        if isinstance(value, str):
            return self._look.text(value, where)
        if not isinstance(value, list):
            raise unknown(where)
        return [self._item(each, f"{where}[{place}]") for place, each in enumerate(value)]

    def _item(self, value: Any, where: str) -> Any:
        kind = value.get("type", "message") if isinstance(value, dict) else None
        if kind not in ("message", "function_call", "function_call_output", "reasoning"):
            raise unknown(where)
        return self._message(value, where)


def _same(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        raise unknown(where)
    return value


def unknown(where: str) -> Refusal:
    """What is said of a field that the guard does not know."""
    message = f"{where}: the guard does not know this field or its form; leave it out"
    return Refusal(400, "unknown_field", message, where)


def refused(blocked: Blocked) -> Refusal:
    """What is said where a rule blocks the input."""
    return Refusal(
        400,
        "content_filter",
        f"{blocked.where}: the rule {blocked.block.rule} does not let it pass "
        f"({blocked.block.why}); take it out",
        blocked.where,
    )


def add_system_prompt(path: str, body: dict[str, Any], prompt: str) -> None:
    """Put `prompt` before the messages; into the first one if that is a system message already,
    since many templates take only one. Completions and embeddings have no place for it."""
    if path == RESPONSES:
        own = body.get("instructions")
        body["instructions"] = f"{prompt}\n\n{own}" if own else prompt
    if path != CHAT:
        return
    messages = body.get("messages")
    if not isinstance(messages, list):
        return
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    content = first.get("content")
    if first.get("role") not in ("system", "developer") or not content:
        messages.insert(0, {"role": "system", "content": prompt})
    elif isinstance(content, str):
        messages[0] = {**first, "content": f"{prompt}\n\n{content}"}
    else:
        messages[0] = {**first, "content": [{"type": "text", "text": prompt}, *content]}
