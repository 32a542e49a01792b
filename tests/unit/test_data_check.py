from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from kuznia.contracts.runspec import Columns, Data
from kuznia.errors import InputError
from steps.data_check import check
from steps.messages import content_key, estimated_tokens, fewest_tokens, prompt_key, tidy
from steps.splits import Split

COLUMNS = Columns(prompt="question", response="answer")


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def alpaca(*numbers: int) -> list[dict[str, str]]:
    return [{"instruction": f"What is {n}?", "input": "", "output": f"It is {n}"} for n in numbers]


def checked(
    folder: Path, train: Path, test: Path | None = None, form: Any = "alpaca", **settings: Any
) -> dict[str, Split]:
    columns = settings.pop("columns", None)
    fraction = settings.pop("test_fraction", 0.1)
    data = Data(
        train=str(train),
        test=str(test) if test else None,
        format=form,
        columns=columns,
        test_fraction=fraction,
    )
    given = {"seed": 1, "cutoff": 100, "system": None} | settings
    return check(data, folder=folder / "out", **given)


def refused(folder: Path, *arguments: Any, **settings: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        checked(folder, *arguments, **settings)
    return caught.value.problems


def rows_of(split: Split) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in split.path.read_text("utf-8").splitlines()]


USER = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "Me."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("form", "row", "messages"),
    [
        ("alpaca", {"instruction": "Who?", "output": "Me."}, [USER, ANSWER]),
        (
            "alpaca",
            {"instruction": "Who", "input": "are you?", "system": "Be brief.", "output": "Me."},
            [SYSTEM, {"role": "user", "content": "Who\nare you?"}, ANSWER],
        ),
        (
            "alpaca",
            {"instruction": "Who?", "output": "Me.", "history": [["Hi", "Ho"]]},
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Ho"},
                USER,
                ANSWER,
            ],
        ),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "human", "value": "Who?"},
                    {"from": "gpt", "value": "Me."},
                ],
                "system": "Be brief.",
            },
            [SYSTEM, USER, ANSWER],
        ),
        ("openai", {"messages": [SYSTEM, USER, ANSWER]}, [SYSTEM, USER, ANSWER]),
    ],
)
def test_every_format_becomes_messages(
    tmp_path: Path, form: str, row: dict[str, Any], messages: list[dict[str, str]]
) -> None:
    other = json.loads(json.dumps(row).replace("Me.", "You."))
    train = jsonl(tmp_path / "train.jsonl", [row, other])
    test = jsonl(tmp_path / "test.jsonl", [json.loads(json.dumps(row).replace("Who", "Why"))])
    assert rows_of(checked(tmp_path, train, test, form)["train"])[0] == messages


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_from_a_spreadsheet(tmp_path: Path, mark: str) -> None:
    header = ["id", "question", "answer"]
    lines = [header, ["1", '"Two\nlines, one; row\t?"', "yes"], ["2", "Żółw?", "tak"]]
    train = tmp_path / "train.csv"
    text = "\n".join(mark.join(fields) for fields in lines) + "\n\n"
    train.write_text("\ufeff" + text, "utf-8")
    test = tmp_path / "test.csv"
    test.write_text("question,answer\nOther?,no\n", "utf-8")
    splits = checked(tmp_path, train, test, "csv", columns=COLUMNS)
    assert [row[0]["content"] for row in rows_of(splits["train"])] == [
        "Two\nlines, one; row\t?",
        "Żółw?",
    ]


def test_a_json_array(tmp_path: Path) -> None:
    train = tmp_path / "train.json"
    train.write_text(json.dumps(alpaca(1, 2), indent=1))
    test = jsonl(tmp_path / "test.jsonl", alpaca(3))
    assert checked(tmp_path, train, test)["train"].kept == 2


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", alpaca(*range(50)))
    first = {name: split.path.read_bytes() for name, split in checked(tmp_path, train).items()}
    second = {name: split.path.read_bytes() for name, split in checked(tmp_path, train).items()}
    assert first == second
    other = checked(tmp_path, train, seed=2)
    assert other["test"].path.read_bytes() != first["test"]


def test_text_is_stripped_and_composed(tmp_path: Path) -> None:
    odd = [{"instruction": unicodedata.normalize("NFD", "  Żółć?\n"), "output": "\ttak "}]
    train = jsonl(tmp_path / "train.jsonl", odd + alpaca(1))
    splits = checked(tmp_path, train, jsonl(tmp_path / "test.jsonl", alpaca(2)))
    assert rows_of(splits["train"])[0] == [
        {"role": "user", "content": "Żółć?"},
        {"role": "assistant", "content": "tak"},
    ]


def test_what_is_dropped_is_counted_and_named(tmp_path: Path) -> None:
    rows = [
        *alpaca(1, 2),
        {"instruction": " ", "output": "x"},
        {"instruction": "Empty?", "output": None},
        {"instruction": "What is 1? ", "output": "It is 1"},
        {"instruction": "Long", "output": "word " * 400},
    ]
    splits = checked(
        tmp_path,
        jsonl(tmp_path / "train.jsonl", rows),
        jsonl(tmp_path / "test.jsonl", alpaca(3)),
    )
    report = splits["train"].report()
    assert (report.rows_read, report.rows) == (6, 2)
    assert (report.empty, report.duplicates, report.over_long) == (2, 1, 1)
    assert report.examples[:3] == (
        "train.jsonl:3: empty question",
        "train.jsonl:4: empty answer",
        "train.jsonl:5: the same as train.jsonl:1",
    )
    assert report.examples[3].endswith("tokens, cutoff_len is 100")
    assert 0 < report.tokens_p50 <= report.tokens_p95 <= report.tokens_max <= 100


def test_a_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path, tmp_path / "none.jsonl", tmp_path / "no-test.jsonl") == [
        "data.train: none.jsonl does not exist; correct the path",
        "data.test: no-test.jsonl does not exist; correct the path",
    ]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.jsonl").write_bytes(content)
    assert refused(tmp_path, tmp_path / "train.jsonl") == [
        "train.jsonl: is empty; put at least two rows into it"
    ]


def test_malformed_lines_are_all_named_by_number(tmp_path: Path) -> None:
    lines = ['{"instruction": "a", "output": "b"}', '{"instruction": ', "", "[1]", '"text"', "{}"]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert refused(tmp_path, tmp_path / "train.jsonl") == [
        "train.jsonl:2: is not JSON (Expecting value at column 16); write one JSON object a line",
        "train.jsonl:4: is not a JSON object; write one JSON object a line",
        "train.jsonl:5: is not a JSON object; write one JSON object a line",
        "train.jsonl:6: has no key 'instruction' (it has none); format alpaca needs instruction "
        "and output",
    ]


def test_many_faults_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{\n" * 33)
    problems = refused(tmp_path, tmp_path / "train.jsonl")
    assert len(problems) == 21
    assert problems[-1] == "train.jsonl: and 13 more faults like these"


def test_faults_of_both_files_come_together(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{\n")
    (tmp_path / "test.jsonl").write_text("{\n")
    problems = refused(tmp_path, tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    assert [problem.split(":")[0] for problem in problems] == ["train.jsonl", "test.jsonl"]


def test_a_broken_array_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('[\n{"instruction": "a"},\n')
    (problem,) = refused(tmp_path, tmp_path / "train.json")
    assert problem.startswith("train.json:3: is not JSON (")
    assert problem.endswith("close the array or write JSONL")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            '{"instruction": "a", "output": "b"}\n{"instruction": "żółw"}'.encode("cp1250"),
            "train.jsonl:2: is not UTF-8 (byte 0xbf); save the file as UTF-8",
        ),
        ('{"instruction": "a"}'.encode("utf-16"), "train.jsonl: is UTF-16; save it as UTF-8"),
    ],
)
def test_another_encoding(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "train.jsonl").write_bytes(content)
    assert refused(tmp_path, tmp_path / "train.jsonl") == [problem]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "question,anwser\na,b\n",
            ["train.csv:1: has no column 'answer'; did you mean 'anwser'?"],
        ),
        (
            "x,y\na,b\n",
            [
                "train.csv:1: has no column 'question'; it has x, y",
                "train.csv:1: has no column 'answer'; it has x, y",
            ],
        ),
        (
            "question,answer\na,b,c\nd,e\n",
            [
                "train.csv:2: has 3 fields, the first line 2; put quotes around texts that hold "
                "the separator"
            ],
        ),
        (
            'question,answer\na,b\n"c,d\n',
            ["train.csv:3: is not CSV (unexpected end of data); close the quotes of this row"],
        ),
    ],
)
def test_csv_faults(tmp_path: Path, text: str, problems: list[str]) -> None:
    (tmp_path / "train.csv").write_text(text)
    assert refused(tmp_path, tmp_path / "train.csv", form="csv", columns=COLUMNS) == problems


def test_csv_in_another_encoding_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes("question,answer\na,b\nżółw,c\n".encode("cp1250"))
    assert refused(tmp_path, tmp_path / "train.csv", form="csv", columns=COLUMNS) == [
        "train.csv:3: is not UTF-8 (byte 0xbf); save the file as UTF-8"
    ]


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    assert refused(tmp_path, tmp_path / "train.parquet") == [
        "train.parquet: format alpaca is read from .jsonl or .json, not from .parquet; convert "
        "the file or correct data.format"
    ]


ORDER = "a row is an optional system message, then user and assistant in turn"


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([ANSWER, USER], f"roles are assistant, user; {ORDER}"),
        ([USER, USER, ANSWER], f"roles are user, user, assistant; {ORDER}"),
        ([USER], f"roles are user; {ORDER}"),
        ([SYSTEM], f"roles are system; {ORDER}"),
        ([USER, SYSTEM, ANSWER], f"roles are user, system, assistant; {ORDER}"),
        ([], f"roles are none; {ORDER}"),
        (
            [{"role": "bot", "content": "x"}],
            "role 'bot' is not a role; choose one of system, user, assistant",
        ),
        (
            [{"role": "user", "content": ["x"]}],
            'content is not text but ["x"]; write it in quotes',
        ),
        (
            [{"role": "user", "content": "\ud83d"}],
            "content holds half of a character (a lone surrogate); remove it",
        ),
        ("x", "messages is not a list of objects; write [{'role': ..., ...}]"),
    ],
)
def test_wrong_roles(tmp_path: Path, messages: Any, fault: str) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    problems = refused(tmp_path, tmp_path / "train.jsonl", form="openai")
    assert problems == [f"train.jsonl:1: {fault}"]


def test_a_system_prompt_given_twice(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "a"},
        {"from": "human", "value": "b"},
        {"from": "gpt", "value": "c"},
    ]
    train = jsonl(tmp_path / "train.jsonl", [{"conversations": turns, "system": "d"}])
    assert refused(tmp_path, train, form="sharegpt") == [
        "train.jsonl:1: has a system prompt twice, as a key and as a turn; keep one"
    ]


def test_all_rows_duplicate(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", alpaca(*[1] * 40))
    assert refused(tmp_path, train, jsonl(tmp_path / "test.jsonl", alpaca(2))) == [
        "train.jsonl: train: 1 of 40 rows kept; dropped 0 empty, 0 over-long, 39 duplicate; "
        "at least 2 different rows are needed, add some"
    ]


def test_no_test_row_left(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", alpaca(1, 2))
    test = jsonl(tmp_path / "test.jsonl", [{"instruction": "", "output": ""}])
    (problem,) = refused(tmp_path, train, test)
    assert problem.startswith("test.jsonl: test: 0 of 1 rows kept; dropped 1 empty")


def test_too_few_rows_to_split(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", alpaca(1, 2))
    (problem,) = refused(tmp_path, train, test_fraction=0.01)
    assert problem == (
        "data.test_fraction: 0.01 of 2 rows leaves none for testing; add rows, name a test file "
        "or raise data.test_fraction"
    )


def test_test_rows_inside_train(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", alpaca(*range(20)))
    spelt = [{"instruction": f"  WHAT is  {n} ?!", "output": "other"} for n in range(12)]
    problems = refused(tmp_path, train, jsonl(tmp_path / "test.jsonl", alpaca(99) + spelt))
    assert problems[0] == "test.jsonl:2: asks the same as train.jsonl:1; remove one of the two"
    assert problems[9] == "test.jsonl:11: asks the same as train.jsonl:10; remove one of the two"
    assert problems[10:] == ["and 2 more test rows ask what train rows ask"]


def test_rows_with_one_prompt_stay_together(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"Question {n}", "output": f"answer {k}"}
        for n in range(60)
        for k in range(3)
    ]
    splits = checked(tmp_path, jsonl(tmp_path / "train.jsonl", rows), test_fraction=0.2)
    prompts = {
        name: {row[0]["content"] for row in rows_of(split)} for name, split in splits.items()
    }
    assert not prompts["train"] & prompts["test"]
    assert splits["train"].kept + splits["test"].kept == 180
    assert 3 * 4 <= splits["test"].kept <= 3 * 22


def test_a_row_stays_in_its_split_when_others_are_added(tmp_path: Path) -> None:
    few = checked(tmp_path, jsonl(tmp_path / "few.jsonl", alpaca(*range(40))), test_fraction=0.3)
    tested = {row[0]["content"] for row in rows_of(few["test"])}
    many = checked(tmp_path, jsonl(tmp_path / "many.jsonl", alpaca(*range(90))), test_fraction=0.3)
    assert tested <= {row[0]["content"] for row in rows_of(many["test"])}


def test_a_small_file_still_gives_a_test_row(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", alpaca(*range(4)))
    splits = checked(tmp_path, train, test_fraction=0.001)
    assert (splits["train"].kept, splits["test"].kept) == (3, 1)


def test_progress_is_said(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", alpaca(*range(10_001)))
    said: list[int] = []
    checked(tmp_path, train, say=said.append)
    assert said == [10_000]


def test_an_added_system_prompt_counts(tmp_path: Path) -> None:
    assert estimated_tokens([USER, ANSWER], 30) == estimated_tokens([USER, ANSWER]) + 30
    assert estimated_tokens([SYSTEM, USER], 30) == estimated_tokens([SYSTEM, USER])
    assert estimated_tokens([{"role": "user", "content": "żółw"}]) > estimated_tokens(
        [{"role": "user", "content": "zolw"}]
    )


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Доставка занимает три дня, возврат возможен в течение месяца. ", 380),
        ("Доставка триває три дні, повернення можливе протягом місяця. ", 501),
        ("يستغرق التوصيل ثلاثة أيام، ويمكن الإرجاع خلال شهر واحد. ", 416),
        ("डिलीवरी में तीन दिन लगते हैं, और एक महीने में वापसी संभव है। ", 562),
        ("配送需要三天，一个月内可以退货。", 1436),
        ("配送には三日かかり、一か月以内なら返品できます。", 1224),
    ],
)
def test_no_row_is_dropped_that_has_room(tmp_path: Path, text: str, tokens: int) -> None:
    """`tokens` is what a modern tokenizer makes of 1,500 characters in that language."""
    long = (text * 100)[:1500]
    row = [{"role": "user", "content": long}, ANSWER]
    assert tokens / 3 < fewest_tokens(row) < tokens < estimated_tokens(row)
    rows = jsonl(tmp_path / "train.jsonl", [{"instruction": long, "output": n} for n in ("a", "b")])
    test = jsonl(tmp_path / "test.jsonl", alpaca(3))
    assert checked(tmp_path, rows, test, cutoff=tokens + 20)["train"].kept == 2
    assert fewest_tokens([SYSTEM, USER, ANSWER]) == estimated_tokens([SYSTEM, USER, ANSWER])


@pytest.mark.parametrize(
    ("one", "other"),
    [("What is C?", "What is C++?"), ("What is C++?", "What is C#?"), ("राम क्या", "राम क्य")],
)
def test_what_ends_no_sentence_tells_questions_apart(one: str, other: str) -> None:
    keys = [prompt_key([{"role": "user", "content": text}, ANSWER]) for text in (one, other)]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("mark", [".", " ?!", "…", "。", "？", "؟", "۔", "।"])
def test_what_ends_a_sentence_does_not(mark: str) -> None:
    keys = [prompt_key([{"role": "user", "content": text}]) for text in ("So", f"so{mark}")]
    assert keys[0] == keys[1]


def test_what_makes_rows_equal() -> None:
    ask = [{"role": "user", "content": "Is it?"}, ANSWER]
    again = [{"role": "user", "content": " is  IT "}, {"role": "assistant", "content": "No."}]
    assert prompt_key(ask) == prompt_key(again)
    assert content_key(ask) != content_key(again)
    assert prompt_key(ask) != prompt_key([SYSTEM, *ask])
    assert prompt_key([{"role": "user", "content": "?"}]) != prompt_key(
        [{"role": "user", "content": "!"}]
    )
    assert tidy([{"role": "system", "content": " "}, *ask]) == ask
