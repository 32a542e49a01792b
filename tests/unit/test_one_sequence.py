"""A batch as one sequence on a CPU: the numbers of the padded batch, for less work."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import said_by

SYSTEM = list(range(5, 25))
UNLEARNT = -100


def row(prompt: list[int], answer: list[int]) -> dict[str, Any]:
    """A row whose answer is learnt."""
    return {"input_ids": prompt + answer, "labels": [UNLEARNT] * len(prompt) + answer}


def cases() -> dict[str, list[dict[str, Any]]]:
    draw = random.Random(7)

    def words(count: int) -> list[int]:
        return [draw.randrange(5, 60) for _ in range(count)]

    common = [row(SYSTEM + words(draw.randrange(2, 9)), words(3)) for _ in range(8)]
    turns = row([*SYSTEM, 30, 31], [32, 33])
    more = row([34, 35], [36])
    two_turns = {key: turns[key] + more[key] for key in turns}
    cut = row([*SYSTEM, *words(4)], [])
    return {
        "common beginning": common,
        "two turns, and one cut before its answer": [two_turns, cut, *common[:2]],
        "nothing in common": [row([n, *words(n)], words(2)) for n in range(5, 9)],
        "the same row twice": [common[0], common[0]],
        "one begins like the other's answer": [
            row(SYSTEM, [40, 41, 42]),
            row([*SYSTEM, 40, 41], [43]),
        ],
        "learnt from the first token": [
            {"input_ids": each, "labels": each} for each in ([1, 2, 3, 4], [1, 2, 5, 6])
        ],
        "one row": common[:1],
        "long rows": [row(words(300), words(100)) for _ in range(8)],
        "nothing learnt": [cut, cut],
    }


@pytest.fixture(scope="module")
def said(
    tiny_base: Path, train_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What fixtures/one_sequence_case.py found."""
    configs = tmp_path_factory.mktemp("configs")
    text = json.dumps(cases())
    return said_by(train_python, "one_sequence_case.py", tiny_base, configs, text=text)


@pytest.mark.parametrize("name", [name for name in cases() if name != "nothing learnt"])
def test_loss_and_gradients_are_those_of_the_padded_batch(name: str, said: dict[str, Any]) -> None:
    found = said["batches"][name]
    padded, joined = found["losses"]
    assert joined == pytest.approx(padded, rel=1e-5)
    assert found["apart"] < 1e-4


def test_what_rows_begin_with_is_computed_once(said: dict[str, Any]) -> None:
    rows = cases()["common beginning"]
    found = said["batches"]["common beginning"]
    own = sum(len(each["input_ids"]) - 1 - len(SYSTEM) for each in rows)
    assert found["tokens"] == [8 * max(len(each["input_ids"]) for each in rows), len(SYSTEM) + own]
    assert found["head"] == 8 * 3


def test_only_a_batch_of_which_nothing_is_learnt_stays_as_it_is(said: dict[str, Any]) -> None:
    takes = {name: found["takes"] for name, found in said["batches"].items()}
    assert takes.pop("nothing learnt") == "padded"
    assert set(takes.values()) == {"joined"}


def test_only_where_it_comes_out_the_same(said: dict[str, Any]) -> None:
    assert said["possible"] == {
        "plain": True,
        "lora_dropout": False,
        "packing": False,
        "neat_packing": False,
        "neftune_noise_alpha": False,
        "label_smoothing_factor": False,
        "use_dft_loss": False,
        "eager": False,
        "use_cpu": False,
        "model_type": False,
        "sliding_window": False,
    }
