"""How a program in a pod says why it failed: on standard error, and where Kubernetes looks.

Kubernetes shows what a container wrote to its termination log as its message, and Argo makes it
the message of the node: `main: Error (exit code 2): error: config: seed: -1 is below 0; ...`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from kuznia.errors import InputError, KuzniaError

_LIMIT = 4096
"""Bytes that Kubernetes keeps."""
_SHORT = 1024
"""Bytes for what is retried: a workflow keeps the message of every attempt, and hands all of them
to its exit handler as one argument, which may have 128 KiB."""


def report(problems: Sequence[str], retried: bool = False) -> None:
    """Print each problem as `error: <problem>` and leave the lines in the termination log.

    `retried` says that the caller may be started again after this failure.
    """
    lines = [f"error: {problem}" for problem in problems]
    for line in lines:
        print(line, file=sys.stderr)
    _leave("\n".join(lines), _SHORT if retried else _LIMIT)


def report_failure(error: KuzniaError) -> int:
    """Report what a program failed with; returns its exit code."""
    if isinstance(error, InputError):
        report(error.problems)
    else:
        report([str(error)], retried=True)
    return error.exit_code


def report_bugs() -> None:
    """From now on the last line of an exception that nobody catches is left there, too."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        _leave("error: " + traceback.format_exception_only(error)[-1].strip(), _SHORT)

    sys.excepthook = hook


def _leave(text: str, limit: int) -> None:
    log = Path(os.environ.get("KUZNIA_TERMINATION_LOG") or "/dev/termination-log")
    if not log.is_file() or not os.access(log, os.W_OK):
        return
    whole = text.encode()
    end = b"\nerror: more in the log"
    if len(whole) > limit:
        whole = whole[: limit - len(end)].decode(errors="ignore").encode() + end
    try:
        log.write_bytes(whole)
    except OSError as error:
        # A full disk must not hide the failure itself.
        print(f"{log}: {error.strerror}; the reason is above only", file=sys.stderr)
