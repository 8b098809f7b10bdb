"""Datasets: own files in every format, errors that say what is there, splits and pairs, and the
fetched sets' sizes.
"""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inputs.files import FileProblem
from learning.backbones import assets
from learning.data import texts as data
from learning.data.texts import DataError, TextDataset

ROWS = [
    {"sentence": 'He said "fine", twice', "label": "pos", "writer": "007"},
    {"sentence": "never again", "label": "neg", "writer": "007"},
    {"sentence": "größer, schöner", "label": "pos", "writer": "12"},
]


def write(folder, kind: str, rows=ROWS):
    file = folder / f"reviews.{kind}"
    if kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    elif kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "csv":
        quoted = [
            ",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows
        ]
        file.write_text(
            "\ufeff" + "\n".join(["sentence,label,writer", *quoted]) + "\n", encoding="utf-8"
        )
    else:
        file.write_text(
            "\n".join("\t".join(row) for row in [rows[0], *(row.values() for row in rows)]),
            encoding="utf-8",
        )
    return file


def made_up(n: int, n_classes: int = 3, official: int | None = None) -> TextDataset:
    split = (np.arange(official), np.arange(official, n)) if official is not None else None
    labels = np.random.default_rng(0).integers(0, n_classes, n)
    return TextDataset(
        "made-up", [f"text {i}" for i in range(n)], None, labels, ("a", "b", "c"), None, split
    )


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_the_same_rows_in_every_format_are_the_same_dataset(tmp_path, kind):
    loaded = data.load({"path": write(tmp_path, kind), "text": "sentence", "client": "writer"})
    assert (
        loaded.name == "reviews" and loaded.second_texts is None and loaded.official_split is None
    )
    assert loaded.texts == [row["sentence"] for row in ROWS]
    assert loaded.class_names == ("neg", "pos")
    assert loaded.labels.dtype == np.int64 and loaded.labels.tolist() == [1, 0, 1]
    assert loaded.clients.tolist() == ["007", "007", "12"]  # an identifier keeps its zeros


def test_a_datasets_dataset_needs_no_file():
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(
        {"a": Value("string"), "b": Value("string"), "y": ClassLabel(names=["no", "yes"])}
    )
    table = Dataset.from_dict({"a": ["x", "y"], "b": ["u", "v"], "y": [1, 0]}, features=features)
    loaded = data.load({"dataset": table, "text": "a", "text_b": "b", "label": "y"})
    assert (loaded.texts, loaded.second_texts) == (["x", "y"], ["u", "v"])
    assert loaded.class_names == ("no", "yes") and loaded.labels.tolist() == [1, 0]
    assert data.load(Dataset.from_dict({"text": ["x", "y"], "label": [5, 3]})).class_names == (
        "3",
        "5",
    )


def test_a_test_file_is_an_official_split(tmp_path):
    train, test = write(tmp_path, "csv"), tmp_path / "test.csv"
    test.write_text("sentence,label\nso so,pos\n")
    loaded = data.load({"path": train, "test": test, "text": "sentence"})
    assert [part.tolist() for part in loaded.official_split] == [[0, 1, 2], [3]]
    assert loaded.class_names == ("neg", "pos")
    assert loaded.sources == (
        f"{train}: 3 rows, split at commas (guessed), utf-8",
        f"{test}: 1 row, split at commas (guessed), utf-8",
    )


@pytest.mark.parametrize("kinds", [("csv", "jsonl"), ("parquet", "tsv"), ("jsonl", "parquet")])
def test_classes_are_those_of_both_files_however_each_spells_them(tmp_path, kinds):
    rows = [{"sentence": f"text {i}", "label": str(i % 2), "writer": "w"} for i in range(20)]
    floats = [row | {"sentence": f"other {i}", "label": f"{i % 2}.0"} for i, row in enumerate(rows)]
    (tmp_path / "a").mkdir()
    spec = {
        "path": write(tmp_path, kinds[0], rows),
        "test": write(tmp_path / "a", kinds[1], floats),
        "text": "sentence",
    }
    loaded = data.load(spec)
    assert loaded.class_names == ("0", "1") and loaded.labels.tolist() == [0, 1] * 20
    assert not loaded.remarks and not loaded.keep_test_copies
    unknown = [*floats, rows[0] | {"sentence": "new", "label": "2"}]
    with pytest.raises(
        DataError, match=r"row 21.*class '2' is in the test file alone, .* has '0', '1'$"
    ):
        data.load(spec | {"test": write(tmp_path / "a", kinds[1], unknown)})


def test_a_test_file_that_tests_nothing_is_refused(tmp_path):
    rows = [{"sentence": f"text {i}", "label": "ab"[i % 2], "writer": "w"} for i in range(20)]
    train = write(tmp_path, "csv", rows)
    link = tmp_path / "link.csv"
    link.symlink_to(train)
    for same in (train, link):
        with pytest.raises(DataError, match="is the file that is trained on"):
            data.load({"path": train, "test": same, "text": "sentence"})
    (tmp_path / "a").mkdir()
    part = write(
        tmp_path / "a", "jsonl", [row | {"sentence": f" {row['sentence']}  "} for row in rows[:5]]
    )
    spec = {"path": train, "test": part, "text": "sentence"}
    with pytest.raises(
        DataError, match=r"reviews\.jsonl: every one of its 5 texts is in .*reviews\.csv too"
    ):
        data.load(spec)
    assert len(data.load(spec | {"keep_test_copies": True})) == 25


def test_copies_are_the_same_words_whatever_the_white_space():
    texts = ["a b", "A b", "c", "d", " a\tb ", "a B", "e", "c"]
    made = TextDataset("made", texts, None, np.zeros(8, dtype=np.int64), ("x", "y"))
    train, test = np.arange(4), np.arange(4, 8)
    assert data.copies(made, train, test).tolist() == [True, False, False, True]
    assert data.copies(made, train, test, in_any_case=True).tolist() == [True, True, False, True]
    paired = TextDataset("made", texts, ["1", "2"] * 4, np.zeros(8, dtype=np.int64), ("x", "y"))
    assert data.copies(paired, train, test).tolist() == [True, False, False, False]


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.sampled_from(["a", "b", " b", "c d", "c  d", "e"]), min_size=1, max_size=12),
    cut=st.integers(0, 12),
)
def test_copies_are_what_comparing_each_with_each_finds(texts, cut):
    made = TextDataset("made", texts, None, np.zeros(len(texts), dtype=np.int64), ("x", "y"))
    train, test = np.arange(len(texts))[:cut], np.arange(len(texts))[cut:]
    wanted = [any(texts[i].split() == texts[j].split() for j in train) for i in test]
    assert data.copies(made, train, test).tolist() == wanted


def test_numbered_classes_are_sorted_by_number(tmp_path):
    file = tmp_path / "n.csv"
    file.write_text("text,label\na,10\nb,9\nc,-1\n")
    assert data.load({"path": file}).class_names == ("-1", "9", "10")
    pa.parquet.write_table(
        pa.table({"text": ["a", "b"], "label": [1.0, 0.0]}), tmp_path / "n.parquet"
    )
    assert data.load({"path": tmp_path / "n.parquet"}).class_names == ("0", "1")


def test_what_was_left_out_or_is_perhaps_not_meant_is_remarked(tmp_path):
    file = tmp_path / "d.csv"
    file.write_text(
        "text,label\n"
        + "".join(f"t{i},{['Warm', 'warm', ''][i % 3]}\n" for i in range(30))
        + "x,None\n"
    )
    loaded = data.load({"path": file, "skip_blank": True})
    assert loaded.remarks == (
        f"{file}: left out for want of a text, a label or a client: 10 rows",
        "classes that look alike are kept apart: 'Warm' and 'warm'",
        "a class that is perhaps a missing value: 'None' (1)",
        "classes with a single text, which cannot be both learned and tested: 'None'",
    )


@pytest.mark.parametrize(
    ("file", "content", "spec", "message"),
    [
        (None, "", {"path": "absent.csv"}, r"absent\.csv: cannot be opened"),
        (None, "", {"path": "~nobody-here/a.csv"}, "~nobody-here"),
        (None, "", {"path": "a\0.csv"}, "cannot be opened"),
        (
            "d.csv",
            "text,label\na,1\nb,1\n",
            {},
            r"d\.csv, column 'label': every label is '1'; at least two classes",
        ),
        (
            "d.csv",
            "text,label\na,1\n",
            {"lable": "label"},
            "unknown key 'lable' in a dataset; allowed: client",
        ),
        (
            "d.csv",
            "text,id\n" + "".join(f"t{i},{i}\n" for i in range(20)),
            {"label": "id"},
            "column 'id': 20 classes for 20",
        ),
        (
            "d.csv",
            "text,label\na,1\nb,0\nc,01\n",
            {},
            r"d\.csv, row 3 .line 4., column 'label': the label '01'",
        ),
        (
            "d.jsonl",
            '{"text": "a", "label": 0.5}\n{"text": "b", "label": 1.0}\n',
            {},
            r"row 1 .line 1.*'0\.5' is a fraction",
        ),
        ("d.parquet", "not parquet", {}, "cannot be read as a Parquet table"),
    ],
)
def test_errors_in_files_say_what_was_found(tmp_path, file, content, spec, message):
    if file is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises((DataError, FileProblem), match=message):
        data.load({"path": tmp_path / file} | spec if file else spec)


def test_errors_in_names_say_what_there_is(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="did you mean 'trec-questions'"):
        data.load("trec-question")
    with pytest.raises(DataError, match="exactly one of name, path, dataset"):
        data.load({"text": "a"})
    with pytest.raises(DataError, match="takes no columns"):
        data.load({"name": "sms-spam", "text": "a"})
    with pytest.raises(DataError, match="got int"):
        data.load(3)
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path))
    with pytest.raises(assets.AssetMissing, match="run `mobifleet fetch trec-questions`"):
        data.load("trec-fine")


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 60),
    sizes=st.tuples(*[st.none() | st.integers(0, 60)] * 2),
    seed=st.integers(0, 99),
)
def test_split_is_disjoint_and_as_large_as_asked(n, sizes, seed):
    dataset, (train, test) = made_up(n), sizes
    if (train or 0) + (test or 0) > n:
        with pytest.raises(DataError, match=f"made-up has {n} texts"):
            data.split(dataset, train, test, np.random.default_rng(seed))
        return
    train_at, test_at = data.split(dataset, train, test, np.random.default_rng(seed))
    assert len(np.unique(np.concatenate([train_at, test_at]))) == len(train_at) + len(test_at) <= n
    assert train is None or len(train_at) == train
    assert test is None or len(test_at) == test
    if train is None or test is None:
        assert len(train_at) + len(test_at) == n
    if test is not None:
        smaller, same = data.split(dataset, (len(train_at)) // 2, test, np.random.default_rng(seed))
        assert np.array_equal(same, test_at) and np.array_equal(smaller, train_at[: len(smaller)])


def test_split_honours_the_official_one():
    dataset = made_up(50, official=30)
    train_at, test_at = data.split(dataset, 10, None, np.random.default_rng(0))
    assert len(train_at) == 10 and train_at.max() < 30 and sorted(test_at) == list(range(30, 50))
    with pytest.raises(
        DataError, match="has 20 test texts in its official split; 21 were asked for"
    ):
        data.split(dataset, None, 21, np.random.default_rng(0))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(10, 80), official=st.booleans(), seed=st.integers(0, 99))
def test_pairs_are_balanced_true_and_keep_test_texts_apart(n, official, seed):
    dataset = made_up(n, official=n // 2 if official else None)
    pairs = data.pairs(dataset, np.random.default_rng(seed))
    label_of = dict(zip(dataset.texts, dataset.labels, strict=True))
    for first, second, same in zip(pairs.texts, pairs.second_texts, pairs.labels, strict=True):
        assert first != second and (label_of[first] == label_of[second]) == bool(same)
    texts = [
        {*(pairs.texts[i] for i in part), *(pairs.second_texts[i] for i in part)}
        for part in pairs.official_split
    ]
    assert not texts[0] & texts[1]
    if official:
        assert texts[0] <= set(dataset.texts[: n // 2])
    assert len(pairs) > 0.5 * n
    if n > 40:
        assert 0.4 < pairs.labels.mean() < 0.6


def fetched(name: str) -> TextDataset:
    kind = "language-modelling" if data.find(name).has_responses else "classification"
    try:
        return data.load(name, kind)
    except assets.AssetMissing as error:
        pytest.skip(str(error))


@pytest.mark.fetched
@pytest.mark.parametrize("info", data.names(), ids=lambda info: info.name)
def test_fetched_sets_are_what_the_listing_says(info):
    loaded = fetched(info.name)
    assert (len(loaded), len(loaded.class_names)) == (info.texts, info.classes)
    assert (loaded.clients is None) == (info.clients is None)
    assert info.clients is None or len(np.unique(loaded.clients)) == info.clients
    assert (loaded.official_split is not None) == info.official_split
    assert set(np.unique(loaded.labels)) == set(range(info.classes))
    assert all(text.strip() for text in (*loaded.texts, *(loaded.responses or ())))
    assert (loaded.responses is not None) == info.has_responses
    if loaded.second_texts is None and not info.official_split:
        said = zip(loaded.texts, loaded.responses or loaded.texts, strict=True)
        assert len(set(said)) == len(loaded)  # nothing can sit in train and test at once


@pytest.mark.fetched
def test_known_texts_have_their_known_labels():
    trec = fetched("trec-questions")
    question = "What is the chromosome number of an elephant ?"
    assert trec.class_names[trec.labels[trec.texts.index(question)]] == "NUM"
    films = fetched("rotten-tomatoes")
    assert np.bincount(films.labels).tolist() == [7368, 5384]  # fresh, rotten
    sizes = np.unique(films.clients, return_counts=True)[1]
    assert (sizes.min(), sizes.max(), (sizes >= 20).sum()) == (2, 35, 337)


def documented(first_column: str) -> dict[str, list[str]]:
    """Rows of the table in docs/data.md whose header starts with first_column, by the name in their
    first cell.
    """
    text = (Path(data.__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.split(f"| {first_column} |")[1].split("\n\n")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_documented_sizes_are_the_listed_ones():
    rows = documented("name | texts")
    assert set(rows) == {info.name for info in data.names()}
    for info in data.names():
        texts, classes, clients, split, _ = rows[info.name]
        assert sum(int(part.replace(",", "")) for part in texts.split("+")) == info.texts
        assert int(classes) == info.classes
        assert info.clients is None or f": {info.clients}" in clients
        assert info.official_split == (split != "drawn")
    rows = documented("asset | default")
    assert set(rows) == set(assets.table())
    for name, asset in assets.table().items():
        default, wheel, download, disk, _ = rows[name]
        assert asset.default == (default == "yes")
        assert all(
            f"{source.wheel.name} {source.wheel.version}" in wheel for source in asset.sources
        )
        assert float(re.match(r"[\d.]+", disk)[0]) == round(asset.disk_bytes / 1e6, 1)
        assert not download or float(re.match(r"[\d.]+", download)[0]) == round(
            asset.download_bytes / 1e6, 1
        )
