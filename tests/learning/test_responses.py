"""Data for language modelling: prompts with responses or plain text, from files, objects in memory,
pairs and sets with classes; what is refused; and topics, which nobody predicts.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from learning.data import texts as data
from learning.data.text_dataset import TextDataset, to_be_said
from learning.data.texts import DataError

SAID = [
    {"ask": "who is it?", "answer": "me", "about": "door", "by": "ann"},
    {"ask": "", "answer": "once upon a time", "about": "tale", "by": "bob"},
    {"ask": "who is it?", "answer": "nobody", "about": "door", "by": "ann"},
]
COLUMNS = {"prompt": "ask", "response": "answer"}


def load(spec, kind="language-modelling"):
    return data.load(spec, kind)


def write(path: Path, rows) -> Path:
    if path.suffix == ".jsonl":
        lines = [json.dumps(row) for row in rows]
    else:
        lines = [",".join(cells) for cells in (list(rows[0]), *(row.values() for row in rows))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_prompts_and_responses_of_a_file_with_topics_and_speakers(tmp_path, suffix):
    file = write(tmp_path / f"d{suffix}", SAID)
    loaded = load({"path": file, **COLUMNS, "label": "about", "client": "by"})
    assert loaded.texts == ["who is it?", "", "who is it?"] and loaded.second_texts is None
    assert loaded.responses == ["me", "once upon a time", "nobody"]
    assert loaded.class_names == ("door", "tale") and loaded.labels.tolist() == [0, 1, 0]
    assert loaded.clients.tolist() == ["ann", "bob", "ann"]
    # one topic may have one text: nobody learns it
    assert loaded.remarks == ("1 of 3 responses are said to nothing",)


def test_without_a_topic_all_are_of_one_and_no_column_is_looked_for(tmp_path):
    loaded = load({"path": write(tmp_path / "d.csv", SAID), **COLUMNS})
    assert loaded.class_names == ("text",) and loaded.labels.tolist() == [0, 0, 0]
    assert loaded.labels.dtype == np.int64 and loaded.clients is None
    alike = [row | {"about": "door"} for row in SAID]
    same = load({"path": write(tmp_path / "e.csv", alike), **COLUMNS, "label": "about"})
    assert same.class_names == ("door",)  # where labels are learned, one class is an error


def test_plain_text_is_said_to_nothing(tmp_path):
    file = write(tmp_path / "d.csv", [{"text": "a b"}, {"text": "c"}])
    loaded = load({"path": file})
    assert (loaded.texts, loaded.responses) == (["", ""], ["a b", "c"])
    with pytest.raises(DataError, match="has no column 'label'"):
        data.load({"path": file})


def test_the_second_of_a_pair_is_said_to_the_first(tmp_path):
    file = write(tmp_path / "d.csv", SAID)
    paired = load({"path": file, "text": "ask", "text_b": "answer"})
    named = load({"path": file, **COLUMNS})
    assert (paired.texts, paired.responses) == (named.texts, named.responses)
    assert paired.second_texts is None


def test_an_object_in_memory_needs_no_file():
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(
        {"q": Value("string"), "a": Value("string"), "topic": ClassLabel(names=["x", "y"])}
    )
    table = Dataset.from_dict({"q": ["u", "v"], "a": ["w", "z"], "topic": [1, 0]}, features)
    loaded = load({"dataset": table, "prompt": "q", "response": "a"})
    assert (loaded.texts, loaded.responses, loaded.class_names) == (
        ["u", "v"],
        ["w", "z"],
        ("text",),
    )
    loaded = load({"dataset": table, "prompt": "q", "response": "a", "label": "topic"})
    assert loaded.class_names == ("x", "y") and loaded.labels.tolist() == [1, 0]
    assert load(Dataset.from_dict({"text": ["one", "two"]})).responses == ["one", "two"]


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        ({"response": "answer"}, "language-modelling", "response: needs `prompt`.*is `text`$"),
        ({"prompt": "ask"}, "language-modelling", "prompt: needs `response`"),
        (COLUMNS | {"text": "by"}, "language-modelling", "text: and `response` are two ways"),
        (COLUMNS | {"text_b": "by"}, "language-modelling", "text_b: and `response` are two ways"),
        (
            COLUMNS | {"label": "ask"},
            "language-modelling",
            "prompt and label are both column 'ask'",
        ),
        ({"prompt": "ask", "response": "ask"}, "language-modelling", "are both column 'ask'"),
        (COLUMNS, "classification", "prompt: is for `kind: language-modelling`"),
        ({"text": "ask", "response": "answer"}, "regression", "response: is for `kind: language"),
        (COLUMNS | {"response": "anser"}, "language-modelling", "did you mean 'answer'"),
        (
            {},
            "language-modeling",
            "no kind of task is called 'language-modeling'; there are: class",
        ),
    ],
)
def test_columns_that_do_not_go_together_are_refused(tmp_path, spec, kind, said):
    file = write(tmp_path / "d.csv", SAID)
    with pytest.raises(DataError, match=said):
        load({"path": file, **spec}, kind)


def test_a_blank_response_is_an_error_at_its_place_or_left_out_when_asked(tmp_path):
    blank = {"ask": "hello?", "answer": " \u00a0", "about": "door", "by": "ann"}
    file = write(tmp_path / "d.csv", [SAID[0], blank, SAID[2]])
    spec = {"path": file, **COLUMNS}
    with pytest.raises(DataError, match=r"d\.csv, row 2 \(line 3\), column 'answer': no response"):
        load(spec)
    loaded = load(spec | {"skip_blank": True})
    assert loaded.responses == ["me", "nobody"]
    assert loaded.remarks == (
        f"{file}: left out for want of a response, a label or a client: 1 row",
    )


def test_a_topic_of_ids_is_refused_and_one_of_the_test_file_alone_is_not(tmp_path):
    rows = [
        {"ask": f"q{i}", "answer": f"a{i}", "about": f"t{i % 2}", "by": f"{i}"} for i in range(20)
    ]
    file = write(tmp_path / "d.csv", rows)
    with pytest.raises(DataError, match="column 'by': 20 classes for 20 texts"):
        load({"path": file, **COLUMNS, "label": "by"})
    new = [{"ask": "q", "answer": "new", "about": "unheard", "by": "x"}]
    spec = {"path": file, "test": write(tmp_path / "t.csv", new), **COLUMNS, "label": "about"}
    loaded = load(spec)
    assert loaded.class_names == ("t0", "t1", "unheard")
    assert [len(part) for part in loaded.official_split] == [20, 1]
    with pytest.raises(DataError, match="every one of its 5 texts is in"):
        load(spec | {"test": write(tmp_path / "t.csv", rows[:5])})


def test_copies_are_the_same_words_to_the_same_prompt():
    made = TextDataset(
        "made",
        ["hi", "hi", "", " hi ", "hi", "hi"],
        None,
        np.zeros(6, dtype=np.int64),
        ("text",),
        responses=["one", "two", "one", "one", "three", "One"],
    )
    train, test = np.arange(3), np.arange(3, 6)
    assert data.copies(made, train, test).tolist() == [True, False, False]
    assert data.copies(made, train, test, in_any_case=True).tolist() == [True, False, True]


def test_a_set_in_memory_is_turned_into_what_is_to_be_said_and_not_back():
    labels, names = np.array([0, 1]), ("a", "b")
    single = TextDataset("single", ["x", "y"], None, labels, names, np.array(["c", "d"]))
    said = data.fitted(single, "language-modelling")
    assert (said.texts, said.responses, said.class_names) == (["", ""], ["x", "y"], names)
    assert said.clients is single.clients and said.labels is labels
    assert data.fitted(single, "classification") is single
    pair = to_be_said(TextDataset("pair", ["x", "y"], ["u", "v"], labels, names))
    assert (pair.texts, pair.second_texts, pair.responses) == (["x", "y"], None, ["u", "v"])
    assert to_be_said(pair) is pair
    with pytest.raises(DataError, match="pair has responses to be said: for `kind: regression`"):
        data.fitted(pair, "regression")
