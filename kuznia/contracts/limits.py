"""How much may be asked for, by whom."""

from __future__ import annotations

from pydantic import Field

from kuznia.contracts.base import Contract

MOST = 2**32 - 1
"""The rate limit service counts to 32 bits."""


class Limits(Contract):
    """What may pass in a minute and in a month; what is not set has no limit.

    A month is 30 days for everybody at once, counted from 1 January 1970, not the calendar's: so
    the rate limit service counts it.
    """

    requests_per_minute: int | None = Field(default=None, ge=1, le=MOST)
    requests_per_month: int | None = Field(default=None, ge=1, le=MOST)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=MOST)
    """Tokens of prompts and answers together."""
    tokens_per_month: int | None = Field(default=None, ge=1, le=MOST)

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return any(value is not None for value in self.model_dump().values())
