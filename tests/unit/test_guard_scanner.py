"""The guard's core: nothing of a match leaves, everything else does, however the text is cut."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuznia.guard.rules import Compiled, compile_policy
from kuznia.guard.scanner import Block, Emit, Scanner
from kuznia.guard.verdict import pseudonyms
from tests.fixtures.planted import (
    DENIED,
    MADE,
    cut,
    disguised,
    iban,
    pesel,
    policy,
    prose,
    seeds,
    token,
)

EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)
places = st.lists(st.integers(0, 10_000), max_size=12)
labels = st.sampled_from(sorted(MADE))


def scan(compiled: Compiled, pieces: list[str], in_json: bool = False) -> tuple[str, str | None]:
    """What came out, and the rule that blocked."""
    scanner = Scanner(compiled.output, pseudonyms(b"k" * 32), in_json=in_json)
    outcomes = [each for piece in pieces for each in scanner.feed(piece)] + scanner.finish()
    blocks = [each.rule for each in outcomes if isinstance(each, Block)]
    text = "".join(each.text for each in outcomes if isinstance(each, Emit))
    return text, blocks[0] if blocks else None


@EXAMPLES
@given(seeds, labels, prose, prose, places, st.booleans())
def test_a_planted_secret_is_replaced_whole(
    rng: random.Random, label: str, before: str, after: str, where: list[int], hidden: bool
) -> None:
    secret = MADE[label](rng)
    written = disguised(secret, rng) if hidden else secret
    text = f"{before} {written} {after}"
    expected = f"{before} [{label}] {after}"
    compiled = policy()
    assert scan(compiled, [text]) == (expected, None)
    assert scan(compiled, cut(text, where)) == (expected, None)
    assert scan(compiled, list(text)) == (expected, None)


@pytest.mark.parametrize("label", sorted(MADE))
@pytest.mark.parametrize("mode", ["window", "sentence", "buffer"])
def test_it_is_replaced_wherever_the_text_is_cut(label: str, mode: str) -> None:
    secret = MADE[label](random.Random(7))
    text = f"Oto: {secret}, i dalej. Koniec"
    compiled = policy("mask", mode)  # type: ignore[arg-type]
    for place in range(len(text) + 1):
        assert scan(compiled, [text[:place], text[place:]]) == (
            f"Oto: [{label}], i dalej. Koniec",
            None,
        )


@pytest.mark.parametrize("mode", ["window", "sentence", "buffer"])
def test_a_block_lets_nothing_of_the_match_out(mode: str) -> None:
    compiled = policy("block", mode)  # type: ignore[arg-type]
    for label, make in MADE.items():
        secret = make(random.Random(3))
        out, rule = scan(compiled, list(f"Tu {secret} koniec"))
        assert rule == label.lower()
        assert "Tu ".startswith(out)


ANYTHING = st.text(
    st.sampled_from('0123456789 -+.@()ABPLabcekosyJ_/:\n\\"ąо\u200b４') | st.characters(),
    max_size=200,
)


@EXAMPLES
@given(ANYTHING, seeds, labels, places, st.booleans())
def test_pieces_make_no_difference(
    noise: str, rng: random.Random, label: str, where: list[int], in_json: bool
) -> None:
    middle = MADE[label](rng) + rng.choice(["", " ", token(rng), pesel(rng)])
    text = noise[:100] + middle + noise[100:]
    compiled = policy()
    assert scan(compiled, cut(text, where), in_json) == scan(compiled, [text], in_json)


@EXAMPLES
@given(st.text(st.characters(exclude_characters="0123456789@"), max_size=300), places)
def test_text_without_matches_comes_out_as_it_was(text: str, where: list[int]) -> None:
    compiled = policy("mask", "window", "pesel", "iban", "card", "email", "nip", "regon")
    if compiled.output.is_clean(text):
        assert scan(compiled, cut(text, where)) == (text, None)


def test_prose_is_not_held_back() -> None:
    scanner = Scanner(policy().output)
    held = 0
    sent = 0
    text = "Zgodnie z regulaminem klient może złożyć reklamację w ciągu dwóch lat. " * 5
    for place, character in enumerate(text):
        sent += sum(len(each.text) for each in scanner.feed(character) if isinstance(each, Emit))
        held = max(held, place + 1 - sent)
    assert held <= 16, "a word at most"


@EXAMPLES
@given(seeds, places)
def test_arguments_stay_json(rng: random.Random, where: list[int]) -> None:
    number = pesel(rng)
    escaped = "".join(f"\\u{ord(digit):04x}" if rng.random() < 0.4 else digit for digit in number)
    bare = number if number[0] != "0" else "1"
    text = (
        f'{{"a": {bare}, "b": "x \\"{escaped}\\" \\\\n{number}", "c": "{iban(rng)}", "d": [true]}}'
    )
    out, rule = scan(policy("mask", "window", "pesel", "iban"), cut(text, where), in_json=True)
    assert rule is None
    found = json.loads(out)
    assert found["b"] == 'x "[PESEL]" \\n[PESEL]'
    assert found["c"] == "[IBAN]"
    assert found["a"] == ("[PESEL]" if bare == number else 1)


@EXAMPLES
@given(seeds)
def test_flushed_text_that_turns_out_to_be_half_a_match_blocks(rng: random.Random) -> None:
    secret = pesel(rng)
    for place in range(1, len(secret)):
        scanner = Scanner(policy("mask", "window", "pesel").output)
        scanner.feed(secret[:place])
        scanner.flush()
        outcomes = scanner.feed(secret[place:]) + scanner.finish()
        assert outcomes == [Block("pesel", "part of it was already sent")]


def test_equal_values_have_equal_pseudonyms_however_written() -> None:
    compiled = policy("pseudonymise")
    out, _ = scan(compiled, ["PL61109010140000071219812874 i PL61 1090 1014 0000 0712 1981 2874"])
    first, second = out.split(" i ")
    assert first == second and first.startswith("<IBAN:") and len(first) == 19
    naming = pseudonyms(b"other" * 8)
    assert naming("IBAN", b"PL61109010140000071219812874") != first


def test_a_key_without_an_end_is_not_held_for_ever() -> None:
    text = "-----BEGIN PRIVATE KEY-----\n" + "A" * 200_000
    assert scan(policy(), cut(text, list(range(0, 200_000, 997)))) == ("", "secret")
    assert scan(policy(), ["-----BEGIN PRIVATE KEY-----\nAAAA"]) == ("[SECRET]", None)


def test_invisible_floods_are_blocked() -> None:
    text = "4405140" + "\u200b" * 100_000 + "1359"
    assert scan(policy(), cut(text, list(range(0, 100_000, 5000)))) == ("", "overflow")


HOSTILE = {
    "digits": "1", "groups": "1111 ", "cards": "4111 1111 1111 1111 ", "addresses": "a@b.pl ",
    "half addresses": "a@", "domains": "a.b.", "accounts": "PL61 1090 ",
    "tokens": "sk-" + "a" * 24 + " ", "invisible": "\u200bx",
    "begins": "-----BEGIN PRIVATE KEY-----", "polish": "ą1 ",
    "jwt": "eyJ",
    "phrases": "ignore all, all, previous, all, ", "phones": "+48 60 1 ", "words": "projekt Żura ",
    "escapes": "\\u0034",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_time_is_linear(name: str) -> None:
    unit = HOSTILE[name]
    compiled = policy("flag")

    def cost(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            scan(compiled, [text], in_json=name == "escapes")
            best = min(best, time.process_time() - start)
        return best

    cost(10_000)  # RE2 builds its tables as it goes.
    small, large = cost(2_000), cost(20_000)
    # Quadratic work would be a hundred times as much.
    assert large < 30 * max(small, 0.002)


def test_denied_words_are_found_as_people_write_them() -> None:
    compiled = policy()
    for text in ("PROJEKT ŻURAW", "projekt  zuraw", "Projekt\nŻ\u200buraw", "рrojekt żurаw"):
        assert scan(compiled, [f"to {text}!"]) == ("to [DENY]!", None)
    assert scan(compiled, [f"{DENIED}ie"]) == (f"{DENIED}ie", None)
    russian = compile_policy(compiled.policy, ("Вино",))
    assert scan(russian, ["белое ВИНО, вино"]) == ("белое [DENY], [DENY]", None)
