"""Telling people how a run ended: a Slack-compatible webhook and e-mail, as the environment says.

A message names no webhook address, password or token: those are in the addresses themselves.
"""

from __future__ import annotations

import os
import smtplib
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage
from email.utils import formatdate, parseaddr
from typing import Literal, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import httpx

from kuznia.contracts.base import Contract
from kuznia.contracts.steps import Verdict
from kuznia.errors import DependencyError, InputError, collected

TIMEOUT = 10.0
"""Seconds that a receiver has for each answer."""
PAUSES = (2.0, 8.0)
"""Seconds before the second and the third try."""
PLACES = ("KUZNIA_NOTIFY_WEBHOOK", "KUZNIA_SMTP_URL")


class Summary(Contract):
    """How a run ended, in a form for people, logs and metrics."""

    run: str
    tenant: str
    """Empty where the run spec does not say it legibly; so are the other texts."""
    model: str
    owner: str
    result: Literal["success", "failure", "error"]
    """error: Argo could not run it; failure: it ran and a step failed."""
    reason: str
    """Why, in one sentence; empty after a success."""
    step: str
    """The step that failed first."""
    fault: str
    """Kind of its failure; see kuznia.failures.Kind."""
    exit_code: int | None
    seconds: float
    """From the start of the run to its end."""
    version: str
    verdict: Verdict | Literal[""]
    trained: bool
    """Whether training was done, so that the next two say something."""
    queue_seconds: float
    """From the moment training could start to its start."""
    samples_per_second: float
    link: str
    """Page about the run, if KUZNIA_RUN_URL says where."""


@dataclass(frozen=True)
class Message:
    """What a receiver gets."""

    key: str
    """The same when the same end of the same run is told again."""
    subject: str
    lines: list[str]


def message_about(summary: Summary, key: str) -> Message:
    """What people are told of a run's end; `key` as in Message."""
    end = {"success": "succeeded", "failure": "failed", "error": "could not be run"}
    name = f"{summary.tenant}/{summary.model}" if summary.model else summary.run
    version = f"version {summary.version}, verdict {summary.verdict}" if summary.version else ""
    took = f"run {summary.run} took {timedelta(seconds=round(summary.seconds))}"
    owner = f"owner: {summary.owner}" if summary.owner else ""
    lines = [line for line in (summary.reason, version, took, owner, summary.link) if line]
    return Message(f"{summary.run}.{key}", f"{name} {end[summary.result]}", lines)


class Receiver(Protocol):
    """Where messages go. `send` raises DependencyError if another try may help, else InputError."""

    name: str

    def send(self, message: Message) -> None: ...


def receivers(environment: Mapping[str, str] = os.environ) -> list[Receiver]:
    """Every receiver that the environment names; InputError with all that is wrong with them."""
    found: list[Receiver] = []
    problems: list[str] = []
    webhook, smtp = (environment.get(place, "") for place in PLACES)
    with collected(problems):
        if webhook:
            found.append(Webhook(webhook))
    with collected(problems):
        if smtp:
            found.append(
                Mail(
                    smtp,
                    environment.get("KUZNIA_NOTIFY_EMAIL_FROM", ""),
                    environment.get("KUZNIA_NOTIFY_EMAIL_TO", ""),
                )
            )
    if problems:
        raise InputError(problems)
    return found


def deliver(receiver: Receiver, message: Message) -> None:
    """Send, with up to two more tries; raises what the last of them raised."""
    for pause in PAUSES:
        try:
            return receiver.send(message)
        except DependencyError:
            time.sleep(pause)
    return receiver.send(message)


class Webhook:
    """Slack's incoming webhook, and whatever takes the same: Mattermost, Rocket.Chat."""

    name = "webhook"

    def __init__(self, url: str) -> None:
        self._url = url
        self._parts = _address(PLACES[0], url, ("https", "http"))

    def send(self, message: Message) -> None:
        """POST {"text": ...}; any 2xx is delivered."""
        place = f"{PLACES[0]} ({self._parts.hostname})"
        text = "\n".join([f"*{_escaped(message.subject)}*", *map(_escaped, message.lines)])
        try:
            answer = httpx.post(self._url, json={"text": text}, timeout=TIMEOUT)
        except httpx.HTTPError as error:
            raise DependencyError(
                f"{place}: no answer ({type(error).__name__}); check the receiver and the "
                "namespace's network policy"
            ) from None
        if answer.is_success:
            return
        fault = f"{place}: answered {answer.status_code}"
        if answer.status_code in (408, 425, 429) or answer.is_server_error:
            raise DependencyError(f"{fault}; check the receiver")
        raise InputError(f"{fault}; put the address of a live incoming webhook there")


class Mail:
    """E-mail by SMTP: always encrypted where there is a password, else where the server offers."""

    name = "e-mail"

    def __init__(self, url: str, sender: str, recipients: str) -> None:
        problems = []
        self._sender = sender
        self._recipients = [name.strip() for name in recipients.split(",") if name.strip()]
        for place, names in (
            ("KUZNIA_NOTIFY_EMAIL_FROM", [sender]),
            ("KUZNIA_NOTIFY_EMAIL_TO", self._recipients or [""]),
        ):
            problems += [
                f"{place}: {name!r} is not an e-mail address; correct it"
                for name in names
                if "@" not in parseaddr(name)[1] or not name.isprintable()
            ]
        with collected(problems):
            self._parts = _address(PLACES[1], url, ("smtp", "smtps"))
        if problems:
            raise InputError(problems)

    def send(self, message: Message) -> None:
        """Hand the message to the server; a repeat has the same Message-ID."""
        place = f"{PLACES[1]} ({self._parts.hostname})"
        try:
            self._send(self._letter(message), place)
        except smtplib.SMTPAuthenticationError:
            raise InputError(f"{place}: refused user and password; correct them") from None
        except (smtplib.SMTPRecipientsRefused, smtplib.SMTPSenderRefused) as error:
            codes = (
                {code for code, _ in error.recipients.values()}
                if isinstance(error, smtplib.SMTPRecipientsRefused)
                else {error.smtp_code}
            )
            fault = f"{place}: refused sender or recipients ({', '.join(map(str, codes))})"
            if any(code < 500 for code in codes):
                raise DependencyError(f"{fault}; it may take them later") from None
            raise InputError(f"{fault}; correct KUZNIA_NOTIFY_EMAIL_FROM and _TO") from None
        except ssl.SSLCertVerificationError as error:
            raise InputError(
                f"{place}: its certificate is not trusted ({error.verify_message}); name the "
                "authority's file in SSL_CERT_FILE"
            ) from None
        except (OSError, smtplib.SMTPException) as error:
            code = f" {error.smtp_code}" if isinstance(error, smtplib.SMTPResponseException) else ""
            raise DependencyError(
                f"{place}: did not take the message ({type(error).__name__}{code}); check the "
                "server and the namespace's network policy"
            ) from None

    def _send(self, letter: EmailMessage, place: str) -> None:
        secure = self._parts.scheme == "smtps"
        host, trust = self._parts.hostname or "", ssl.create_default_context()
        with (
            smtplib.SMTP_SSL(host, self._parts.port or 465, timeout=TIMEOUT, context=trust)
            if secure
            else smtplib.SMTP(host, self._parts.port or 587, timeout=TIMEOUT)
        ) as server:
            server.ehlo()
            if not secure and server.has_extn("starttls"):
                server.starttls(context=trust)
                server.ehlo()
                secure = True
            if self._parts.username:
                if not secure:
                    raise InputError(
                        f"{place}: offers no STARTTLS, and a password is not sent in the clear; "
                        "use smtps:// or a server that encrypts"
                    )
                password = unquote(self._parts.password or "")
                server.login(unquote(self._parts.username), password)
            # Without the names: not every server takes a name's letters in an address.
            addresses = [parseaddr(each)[1] for each in (self._sender, *self._recipients)]
            server.send_message(letter, addresses[0], addresses[1:])

    def _letter(self, message: Message) -> EmailMessage:
        letter = EmailMessage()
        letter["Subject"] = message.subject
        letter["From"] = self._sender
        letter["To"] = ", ".join(self._recipients)
        letter["Date"] = formatdate(localtime=False)
        letter["Message-ID"] = f"<{message.key}@{parseaddr(self._sender)[1].rpartition('@')[2]}>"
        letter["Auto-Submitted"] = "auto-generated"
        letter.set_content("\n".join(message.lines) + "\n")
        return letter


def _address(place: str, url: str, schemes: tuple[str, ...]) -> SplitResult:
    """The parts of an address that is never repeated in a message: it holds a secret."""
    fault = f"{place}: is not an address; write {schemes[0]}://host/... there"
    try:
        parts = urlsplit(url)
        httpx.URL(url)
        if parts.scheme not in schemes or not parts.hostname or parts.port == 0:
            raise InputError(fault)
    except (ValueError, httpx.InvalidURL):
        raise InputError(fault) from None
    return parts


def _escaped(text: str) -> str:
    """Slack's three escapes, so that a file's text calls nobody and links nowhere."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
