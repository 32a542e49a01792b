"""Where texts are in whole replies: everywhere but in what a machine wrote for a machine.

What repeats the text in another form (log probabilities, token numbers) is taken out.
"""

from __future__ import annotations

from typing import Any

from kuznia.guard.inspector import Blocked, Inspector
from kuznia.guard.requests import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES

MACHINE = frozenset(
    (
        *("id", "object", "model", "created", "created_at", "completed_at", "role", "type"),
        *("finish_reason", "status", "index", "output_index", "content_index", "summary_index"),
        *("sequence_number", "item_id", "call_id", "tool_call_id", "response_id", "usage"),
        *("system_fingerprint", "service_tier", "kuznia_guard", "previous_response_id"),
    )
)
"""Fields in which nothing is looked for."""
REPEATS = frozenset(
    (
        *("logprobs", "top_logprobs", "prompt_logprobs", "token_ids", "prompt_token_ids"),
        *("encrypted_content", "tokens", "token_logprobs"),
    )
)
"""Fields that would give away what the rules take out."""


def scrub(value: Any, look: Inspector, where: str) -> Any:
    """`value` as it may leave; raises Blocked."""
    if isinstance(value, str):
        return look.text(value, where)
    if isinstance(value, list):
        return [scrub(each, look, f"{where}[{place}]") for place, each in enumerate(value)]
    if not isinstance(value, dict):
        return value
    left = {}
    for key, each in value.items():
        if key in MACHINE:
            left[key] = each
        elif key in REPEATS:
            left[key] = [] if isinstance(each, list) else None
        elif key == "arguments" and isinstance(each, str):
            left[key] = look.arguments(each, f"{where}.{key}")
        else:
            left[key] = scrub(each, look, f"{where}.{key}")
    return left


def inspect_reply(path: str, reply: Any, look: Inspector) -> tuple[Any, bool]:
    """The reply as it may leave, and whether a rule blocked some of it.

    A choice that is blocked is empty with the finish reason content_filter, as clients know it;
    the others stay. A blocked Response is incomplete for that reason.
    """
    if not look.rules or path == EMBEDDINGS or not isinstance(reply, dict):
        return reply, False
    try:
        if path in (CHAT, COMPLETIONS) and isinstance(reply.get("choices"), list):
            return _choices(path, reply, look)
        return scrub(reply, look, "answer"), False
    except Blocked:
        return _blocked_reply(path, reply), True


def _choices(path: str, reply: dict[str, Any], look: Inspector) -> tuple[Any, bool]:
    blocked, choices = False, []
    for place, choice in enumerate(reply["choices"]):
        try:
            choices.append(scrub(choice, look, f"choices[{place}]"))
        except Blocked:
            blocked = True
            choices.append(_blocked_choice(path, place))
    rest = {key: value for key, value in reply.items() if key != "choices"}
    return {**scrub(rest, look, "answer"), "choices": choices}, blocked


def _blocked_choice(path: str, place: int) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": place, "logprobs": None, "finish_reason": "content_filter"}
    if path == CHAT:
        return {**choice, "message": {"role": "assistant", "content": "", "refusal": None}}
    return {**choice, "text": ""}


_KEPT = frozenset(("id", "object", "created", "created_at", "model", "usage"))


def _blocked_reply(path: str, reply: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {key: reply[key] for key in reply.keys() & _KEPT}
    if path == RESPONSES:
        defaults = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
        reason = {"reason": "content_filter"}
        return {**kept, **defaults, "status": "incomplete", "incomplete_details": reason,
                "error": None, "output": []}  # fmt: skip
    return {**kept, "choices": [_blocked_choice(path, 0)]}
