"""What the built-in rules look for: shapes, and the check digits that cut false hits.

A check is given folded text as UTF-8 and where a shape matched, `(text, start, end)`. It answers
(end, value): the hit may be shorter than the shape, its value has one form however it was written;
or the position from which to look again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Check = Callable[[bytes, int, int], tuple[int, bytes] | int]

_DIGITS = re.compile(rb"[0-9]+")
_NOT_DIGITS = re.compile(rb"[^0-9]+")


@dataclass(frozen=True)
class Detector:
    """A shape. One with `ending` goes on until that matches, however long it is."""

    pattern: str
    check: Check | None = None
    ending: str = ""
    ending_belongs: bool = False


def _cut_from_digits(text: bytes, start: int, end: int) -> int | None:
    """None where no digit touches the match; else where to look again."""
    if again := _cut_from_the_left(text, start):
        return again
    return start + 1 if text[end : end + 1].isdigit() else None


def _cut_from_the_left(text: bytes, start: int) -> int | None:
    if not start or not text[start - 1 : start].isdigit():
        return None
    run = _DIGITS.match(text, start)
    return run.end() if run else start + 1


def _sum(digits: bytes, weights: Sequence[int]) -> int:
    return sum((digit - 48) * weight for digit, weight in zip(digits, weights, strict=False))


def is_pesel(digits: bytes) -> bool:
    """Eleven digits: a date of birth, a number, a check digit."""
    month, day = int(digits[2:4]) % 20, int(digits[4:6])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return False
    return _sum(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def is_nip(digits: bytes) -> bool:
    """Ten digits, the last of them the check digit modulo 11; no office begins with 0."""
    return digits[:1] != b"0" and _sum(digits, (6, 5, 7, 2, 3, 4, 5, 6, 7)) % 11 == digits[9] - 48


def is_regon(digits: bytes) -> bool:
    """Nine digits, or fourteen for a branch, whose first nine are the firm's."""
    if digits.strip(b"0") == b"" or _sum(digits, (8, 9, 2, 3, 4, 5, 6, 7)) % 11 % 10 != (
        digits[8] - 48
    ):
        return False
    weights = (2, 4, 8, 5, 0, 9, 7, 3, 6, 1, 2, 4, 8)
    return len(digits) == 9 or _sum(digits, weights) % 11 % 10 == digits[13] - 48


_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def is_card(digits: bytes) -> bool:
    """13 to 19 digits whose Luhn sum is a multiple of 10; networks begin with 2 to 6."""
    if not (13 <= len(digits) <= 19 and digits[:1] in (b"2", b"3", b"4", b"5", b"6")):
        return False
    doubled = sum(_DOUBLED[digit - 48] for digit in digits[-2::-2])
    return (doubled + sum(digits[-1::-2]) - 48 * len(digits[-1::-2])) % 10 == 0


def _numbers(valid: Callable[[bytes], bool]) -> Check:
    def check(text: bytes, start: int, end: int) -> tuple[int, bytes] | int:
        if again := _cut_from_digits(text, start, end):
            return again
        digits = _NOT_DIGITS.sub(b"", text[start:end])
        return (end, digits) if valid(digits) else start + 1

    return check


def _card(text: bytes, start: int, end: int) -> tuple[int, bytes] | int:
    """The longest run of whole groups that is a card number: more digits may follow it."""
    if again := _cut_from_the_left(text, start):
        return again
    if text[end : end + 1].isdigit():  # The last group goes on: it is no part of the number.
        end = max(text.rfind(b" ", start, end), text.rfind(b"-", start, end))
    groups = list(_DIGITS.finditer(text, start, end)) if end > start else []
    while groups:
        digits = b"".join(group[0] for group in groups)
        if is_card(digits):
            return groups[-1].end(), digits
        groups.pop()
    run = _DIGITS.match(text, start)
    return run.end() if run else start + 1


_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
"""Countries by the length of their IBAN, from the registry of ISO 13616."""
_LENGTHS = {
    country.encode(): length for length, names in _COUNTRIES.items() for country in names.split()
}
_SEPARATORS = re.compile(rb"[ -]")


def is_iban(value: bytes) -> bool:
    """Letters and digits without separators, modulo 97."""
    moved = value[4:] + value[:4]
    return int("".join(str(int(chr(each), 36)) for each in moved)) % 97 == 1


def _iban(text: bytes, start: int, end: int) -> tuple[int, bytes] | int:
    value = _SEPARATORS.sub(b"", text[start:end]).upper()
    length = _LENGTHS.get(value[:2], 0)
    if not length or len(value) < length or not is_iban(value[:length]):
        return start + 1
    stop, left = start, length
    while left:
        left -= text[stop] not in b" -"
        stop += 1
    return stop, value[:length]


def _account(text: bytes, start: int, end: int) -> tuple[int, bytes] | int:
    """A Polish account number without its country."""
    if again := _cut_from_digits(text, start, end):
        return again
    value = b"PL" + _NOT_DIGITS.sub(b"", text[start:end])
    return (end, value) if is_iban(value) else start + 1


def _phone(text: bytes, start: int, end: int) -> tuple[int, bytes] | int:
    if again := _cut_from_digits(text, start, end):
        return again
    digits = _NOT_DIGITS.sub(b"", text[start:end])
    if text[start : start + 1] != b"+" and digits[:2] == b"00":
        digits = digits[2:]
    elif text[start : start + 1] != b"+" and len(digits) == 9:
        digits = b"48" + digits
    return end, b"+" + digits


def _email(text: bytes, start: int, end: int) -> tuple[int, bytes] | int:
    return end, text[start:end].lower()


_MOBILE = "(?:45|50|51|53|57|60|66|69|72|73|78|79|88)"
_TOKEN = r"[^A-Za-z0-9_.~+/=-]"
"""What ends a key or token."""
_PEM = r"(?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
_ALL = r"(?:all|any|the|your|my|of|these|those|every|everything|wszystkie|wszystkich|swoje|moje)"
_S = r"[\s,]{1,8}"

DETECTORS: dict[str, tuple[Detector, ...]] = {
    "pesel": (Detector(r"\d{6}[ -]?\d{5}", _numbers(is_pesel)),),
    "nip": (
        Detector(
            r"\d{10}|\d{3}[ -]\d{3}[ -]\d{2}[ -]\d{2}|\d{3}[ -]\d{2}[ -]\d{2}[ -]\d{3}",
            _numbers(is_nip),
        ),
    ),
    "regon": (
        Detector(r"\d{9}|\d{3}[ -]\d{3}[ -]\d{3}", _numbers(is_regon)),
        Detector(r"\d{9}[ -]?\d{5}", _numbers(is_regon)),
    ),
    "iban": (
        Detector(r"(?i:[A-Z]{2}\d{2})(?:[ -]?[A-Za-z0-9]){11,30}", _iban),
        Detector(r"\d{26}|\d{2}(?:[ -]\d{4}){6}", _account),
    ),
    "card": (
        Detector(
            r"\d{13,19}|\d{4}(?:[ -]\d{4}){2}(?:[ -]\d{1,7}){1,2}|\d{4}[ -]\d{6}[ -]\d{4,5}", _card
        ),
    ),
    "email": (
        Detector(
            r"[A-Za-z0-9._%+'-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}",
            _email,
        ),
    ),
    "phone": (
        Detector(r"(?:\+|00)[1-9]\d{0,2}(?:[ .()/-]{0,2}\d){6,13}", _phone),
        Detector(rf"{_MOBILE}\d{{7}}|\d{{3}}[ .-]\d{{3}}[ .-]\d{{3}}", _phone),
        Detector(r"\(?0?[1-9]\d\)?[ -]\d{3}[ -]?\d{2}[ -]?\d{2}", _phone),
        Detector(r"\(?0[1-9]\d{1,4}\)?[ /-]\d{3,5}(?:[ -]?\d{2,4}){0,2}", _phone),
    ),
    "secret": (
        Detector(f"-----BEGIN {_PEM}", ending=f"-----END {_PEM}", ending_belongs=True),
        Detector(r"eyJ[A-Za-z0-9_-]{10,900}\.[A-Za-z0-9_-]{2}", ending=_TOKEN),
        Detector(
            r"(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30}|github_pat_[A-Za-z0-9_]{22}"
            r"|sk-[A-Za-z0-9_-]{20}|[sr]k_(?:live|test)_[A-Za-z0-9]{16}|xox[abeoprs]-[A-Za-z0-9-]{10}"
            r"|AIza[0-9A-Za-z_-]{35}|glpat-[A-Za-z0-9_-]{20}|hf_[A-Za-z0-9]{30}|npm_[A-Za-z0-9]{36}"
            r"|dop_v1_[a-f0-9]{64}|AGE-SECRET-KEY-1[A-Z0-9]{20}|ya29\.[A-Za-z0-9_-]{20}",
            ending=_TOKEN,
        ),
        Detector(r"[A-Za-z][A-Za-z0-9+]{1,20}://[^\s:/@\"'<>\\]{1,64}:[^\s:/@\"'<>\\]{3,128}@"),
    ),
    "injection": (
        Detector(
            rf"(?i:(?:ignore|disregard|forget|override|bypass)(?:{_S}{_ALL}){{0,4}}{_S}"
            r"(?:previous|prior|above|earlier|preceding|former|system|initial|original)"
            rf"(?:{_S}{_ALL}){{0,2}}{_S}"
            r"(?:instructions?|prompts?|rules?|directions?|messages?|guidelines?|commands?))"
        ),
        Detector(
            rf"(?i:(?:zignoruj|ignoruj|pomin|zapomnij|zlekcewaz|porzuc)(?:{_S}o)?"
            rf"(?:{_S}{_ALL}){{0,3}}{_S}"
            r"(?:poprzedni|wczesniejsz|powyzsz|dotychczasow|systemow|pierwotn)[a-z]{1,4}"
            rf"{_S}(?:instrukcj|polece|zasad|wytyczn|regul|promp|komend)[a-z]{{0,6}})"
        ),
        Detector(
            rf"(?i:(?:reveal|print|show|repeat|output|leak)(?:{_S}(?:me|us|your|the|full|entire)){{0,3}}"
            rf"{_S}(?:system{_S}(?:prompt|message)|hidden{_S}instructions|initial{_S}prompt))"
        ),
        Detector(
            rf"(?i:(?:ujawnij|pokaz|wypisz|powtorz|podaj)(?:{_S}(?:mi|nam|swoj|caly|twoj)){{0,3}}"
            rf"{_S}(?:prompt{_S}systemowy|ukryte{_S}instrukcje|systemowy{_S}prompt))"
        ),
        Detector(rf"(?i:you{_S}are{_S}now{_S}(?:DAN|in{_S}developer{_S}mode|jailbroken))"),
        Detector(
            r"(?i:<\|(?:im_start|im_end|system|assistant|user|endoftext|eot_id|start_header_id"
            r"|end_header_id|begin_of_text)\|>|\[/?INST\]|<</?SYS>>)"
        ),
    ),
}
"""By the kind of rule. Diacritics are gone where `marks` are undone: the phrases have none."""
