"""How Kuźnia fails, and what each failure means to whoever started the work.

KuzniaError                 exit 1   our bug, or a fault nobody foresaw
├── InputError              exit 2   a person's file is wrong; never retried
├── DependencyError         exit 3   store, tracker, network, port; retried
└── Preempted               exit 75  stopped after a checkpoint; retried, resumes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class KuzniaError(Exception):
    """Root of the tree; `exit_code` is what the process ends with."""

    exit_code = 1


class InputError(KuzniaError):
    """What a person wrote is wrong. Carries every problem found, one line each.

    Each problem names place, fault and way out:
    `train.yaml: seed: -1 is below 0; set a whole number from 0`.
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Add the problems of an InputError to others, so that all are named at once."""
    try:
        yield
    except InputError as error:
        problems += error.problems


class DependencyError(KuzniaError):
    """Something we rely on did not answer or had no room; trying again may help."""

    exit_code = 3


class Preempted(KuzniaError):
    """The step was told to stop, saved a checkpoint and ended; running it again resumes."""

    exit_code = 75
