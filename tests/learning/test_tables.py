"""Tables of the user's: the same cells mean the same in every format, and each error says file,
place and column.
"""

import csv
import datetime
import decimal
import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inputs.files import FileProblem
from learning.data import tables
from learning.data.cells import spelled
from learning.data.tables import DataError, Layout, read_file, read_object

FORMATS = ("csv", "tsv", "txt", "jsonl", "ndjson", "parquet", "dataset")
WORDS = [
    ("a b", "warm"),
    ("größer", "cold"),
    ('he said "no"', "warm"),
    ("x", "cold"),
    ("y", "warm"),
    ("z", "cold"),
]


def write(folder, kind: str, rows, columns=("text", "label")):
    """The rows as a file of that kind, or as a `datasets.Dataset`; cells that are no text need
    jsonl, parquet or dataset.
    """
    file = folder / f"d.{kind}"
    if kind in ("csv", "txt"):
        with file.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([columns, *rows])
    elif kind == "tsv":
        file.write_text(
            "".join("\t".join(map(str, row)) + "\n" for row in [columns, *rows]), encoding="utf-8"
        )
    elif kind in ("jsonl", "ndjson"):
        file.write_text(
            "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows),
            encoding="utf-8",
        )
    else:
        table = pa.table(
            {
                name: list(column)
                for name, column in zip(columns, zip(*rows, strict=True), strict=True)
            }
        )
        if kind == "dataset":
            from datasets import Dataset

            return Dataset(table)
        pa.parquet.write_table(table, file)
    return file


def read(source, **layout):
    return (read_file if hasattr(source, "suffix") else read_object)(source, Layout(**layout))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_cells(tmp_path, kind):
    table = read(write(tmp_path, kind, WORDS))
    assert list(zip(table.cells["text"], table.cells["label"], strict=True)) == WORDS
    place = table.place(4)
    assert place.endswith(
        "row 5 (line 6)"
        if kind in ("csv", "tsv", "txt")
        else "row 5 (line 5)"
        if "json" in kind
        else "row 5"
    )


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"text": "label"}, "text and label are both column 'label': each needs its own"),
        ({"text_b": "text"}, "text and text_b are both column 'text'"),
        ({"text": 1, "text_b": 2, "label": "2"}, "text_b and label are both column '2'"),
    ],
)
def test_one_column_is_no_two_parts_of_a_text(layout, said):
    with pytest.raises(DataError, match=said):
        Layout(**layout)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", ["text", "label", "who"])
@pytest.mark.parametrize("blank", ["", "  \u00a0", "\u200b\ufeff", None, float("nan")], ids=repr)
def test_a_blank_cell_is_an_error_at_its_place_or_left_out_when_asked(
    tmp_path, kind, column, blank
):
    if not isinstance(blank, str) and kind in ("csv", "tsv", "txt"):
        blank = ""  # so they are written there
    if isinstance(blank, float) and kind in ("parquet", "dataset"):
        blank = None  # Arrow has one type a column; a whole column of numbers is tried below
    rows = [[*row, "me"] for row in WORDS]
    names = ("text", "label", "who")
    rows[4][names.index(column)] = blank
    source = write(tmp_path, kind, rows, names)
    with pytest.raises(
        DataError, match=rf"row 5.*, column '{column}': no (text|label|client) \(.*skip_blank: true"
    ):
        read(source, client="who")
    table = read(source, client="who", skip_blank=True)
    assert len(table) == 5
    assert table.remarks == [
        f"{table.source}: left out for want of a text, a label or a client: 1 row"
    ]
    assert table.place(4).partition(" (")[0].endswith("row 6")


def test_columns_of_several_types_or_texts_that_are_none_are_remarked(tmp_path):
    rows = [
        {"text": ["a", 5, True, 2.5][i % 4], "label": [1, "1", 1.0, True][i % 4]} for i in range(8)
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = read(tmp_path / "d.jsonl")
    assert table.cells["text"][:4] == ["a", "5", "True", "2.5"]
    assert [remark.partition(", ")[2] for remark in table.remarks] == [
        "column 'text': holds 4 numbers, 2 text, 2 truth values, read as they are spelled",
        "column 'label': holds 4 numbers, 2 text, 2 truth values, read as they are spelled",
    ]
    numbers = pa.table({"text": [1, 2], "label": [1, 0]})
    assert read(numbers).remarks == [
        "Table, column 'text': holds 2 numbers, read as they are spelled"
    ]
    assert read(pa.table({"text": ["a", "b"], "label": [1.0, 0.0]})).remarks == []
    assert read(write(tmp_path, "csv", WORDS)).remarks == []


def test_of_a_pair_of_texts_one_may_be_blank(tmp_path):
    pairs = [("a", "", "x"), ("", "b", "y"), ("c", "d", "x")]
    source = write(tmp_path, "csv", pairs, ("text", "other", "label"))
    assert read(source, text_b="other").cells["text_b"] == ["", "b", "d"]
    source = write(tmp_path, "csv", [*pairs, ("", " ", "x")], ("text", "other", "label"))
    with pytest.raises(DataError, match=r"row 4 .line 5., column 'text': no text"):
        read(source, text_b="other")


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("as it is ", "as it is "),
        (None, None),
        (float("nan"), None),
        (np.float32("nan"), None),
        (decimal.Decimal("NaN"), None),
        (5, "5"),
        (1.0, "1.0"),
        (np.int64(7), "7"),
        (np.str_("x"), "x"),
        (True, "True"),
        (decimal.Decimal("1.50"), "1.50"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 1, 2, 3), "2024-02-29 01:02:03"),
        (float("inf"), "inf"),
        ("größe".encode(), "größe"),
        (bytearray(b"x"), "x"),
    ],
    ids=repr,
)
def test_what_a_cell_says(cell, says):
    assert spelled(cell, "a text") == says


@pytest.mark.parametrize(
    ("cell", "refused"),
    [
        (["warm"], r"holds a list, \['warm'\], not a text"),
        (("a", "b"), "holds a list"),
        ({"role": "user"}, r"holds an object, \{'role': 'user'\}, not a text"),
        ([{"role": "user", "content": "x" * 100}], r"holds a list, .*\.\.\., not a text"),
        (b"\xff\xfe", "holds binary data that is not UTF-8"),
        ("broken \ud83d", r"holds half a character, '\\ud83d'"),
        ("a\0b", "holds a NUL"),
        (np.zeros(2), "holds a value of type ndarray"),
        (object, "holds a value of type type"),
        (10**5000, "limit"),
    ],
    ids=lambda value: str(type(value)),
)
def test_what_no_cell_may_hold(cell, refused):
    with pytest.raises(ValueError, match=refused) as raised:
        spelled(cell, "a text")
    assert len(str(raised.value)) < 200


STRANGE = {
    "list": pa.array([["a"], ["b"]]),
    "struct": pa.array([{"role": "user"}, {"role": "bot"}]),
    "map": pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())),
    "chat": pa.array([[{"role": "user", "content": "hi"}]] * 2),
}


@pytest.mark.parametrize("column", ["text", "label"])
@pytest.mark.parametrize("kind", STRANGE)
def test_nested_columns_are_refused_with_their_type(tmp_path, kind, column):
    from datasets import Dataset

    table = (
        pa.table({"text": ["a", "b"], "label": ["x", "y"]})
        .drop_columns(column)
        .append_column(column, STRANGE[kind])
    )
    pa.parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(
        DataError, match=rf"d\.parquet: column '{column}' is of type .*(list|struct|map)<"
    ):
        read(tmp_path / "d.parquet")
    with pytest.raises(
        DataError, match=rf"(Table|Dataset), row 1, column '{column}': holds (a list|an object)"
    ):
        read(table)
    if kind != "map":
        with pytest.raises(
            DataError, match=f"Dataset, row 1, column '{column}': holds (a list|an object)"
        ):
            read(Dataset(table))
        rows = [json.dumps(row) for row in table.to_pylist()]
        (tmp_path / "d.jsonl").write_text("\n".join(rows))
        with pytest.raises(
            DataError,
            match=rf"d\.jsonl, row 1 .line 1., column '{column}': holds (a list|an object)",
        ):
            read(tmp_path / "d.jsonl")


TYPES = {
    "string": pa.array(["a", "b"]),
    "large_string": pa.array(["a", "b"], pa.large_string()),
    "string_view": pa.array(["a", "b"], pa.string_view()),
    "dictionary": pa.array(["a", "b"]).dictionary_encode(),
    "binary": pa.array([b"a", b"b"]),
    "large_binary": pa.array([b"a", b"b"], pa.large_binary()),
    "binary_view": pa.array([b"a", b"b"], pa.binary_view()),
    "fixed_binary": pa.array([b"a", b"b"], pa.binary(1)),
}
NUMBERS = {
    "int8": (pa.array([1, 0], pa.int8()), ["1", "0"]),
    "uint64": (pa.array([2**64 - 1, 0], pa.uint64()), [str(2**64 - 1), "0"]),
    "float16": (pa.array([np.float16(1), np.float16(0)]), ["1.0", "0.0"]),
    "float64": (pa.array([1.0, 0.0]), ["1.0", "0.0"]),
    "bool": (pa.array([True, False]), ["True", "False"]),
    "decimal": (pa.array([decimal.Decimal("1.00"), decimal.Decimal("0.00")]), ["1.00", "0.00"]),
    "date": (pa.array([datetime.date(2024, 1, 1)] * 2), ["2024-01-01"] * 2),
    "time": (pa.array([datetime.time(1, 2)] * 2), ["01:02:00"] * 2),
    "timestamp": (
        pa.array([datetime.datetime(2024, 1, 1)] * 2, pa.timestamp("us")),
        ["2024-01-01 00:00:00"] * 2,
    ),
}


@pytest.mark.parametrize("name", [*TYPES, *NUMBERS])
def test_every_flat_arrow_type_says_what_it_spells(tmp_path, name):
    column, says = NUMBERS.get(name) or (TYPES[name], ["a", "b"])
    pa.parquet.write_table(pa.table({"text": column, "label": column}), tmp_path / "d.parquet")
    table = read(tmp_path / "d.parquet")
    assert table.cells == {"text": says, "label": says}


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            pa.array([b"a", b"\xff"]),
            "row 2, column 'label': holds binary data that is not UTF-8, b'.xff'",
        ),
        (pa.array([None, None]), "row 1, column 'label': no label .null"),
        (pa.array([1.0, float("nan")]), "row 2, column 'label': no label .nan"),
        (pa.array(["a", None]), "row 2, column 'label': no label .null"),
    ],
)
def test_what_is_missing_or_no_text_in_parquet_is_found_by_row(tmp_path, column, said):
    pa.parquet.write_table(pa.table({"text": ["a", "b"], "label": column}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=said):
        read(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    ("file", "content", "layout", "said"),
    [
        ("d.csv", "", {}, "d.csv is empty"),
        ("d.csv", "\ufeff\n\n", {}, "d.csv is empty"),
        ("d.csv", "text,label\n", {}, "d.csv has no rows"),
        ("d.csv", "text,label\n,\n,\n", {"skip_blank": True}, "d.csv has no rows but blank ones"),
        ("d.csv", "text,label,label\na,1,2\n", {}, "has 2 columns that are called 'label'"),
        (
            "d.csv",
            "text,label\na,1\n",
            {"text": "x"},
            "has no column 'x'; its columns: text, label; if its first line is a row",
        ),
        ("d.csv", "text,label\na,1\nb\n", {}, "d.csv, line 3: 1 cell, where the first line has 2$"),
        (
            "d.csv",
            "text,label\na,1\nb, c,1\n",
            {},
            "line 3: 3 cells, where the first line has 2; a cell that holds",
        ),
        ("d.csv", 'text,label\n"a\nb",1\nc\n', {}, "d.csv, line 4: 1 cell,"),
        (
            "d.csv",
            'text,label\n"a,1\nb,2\n',
            {},
            "d.csv, line 2: not a table of text .a quotation mark opens",
        ),
        ("d.csv", "text,label\na,1\n\0,2\n", {}, "d.csv, line 3: binary"),
        (
            "d.csv",
            "a,1\nb,2\n",
            {"header": False},
            "without a header, columns are named by number from 1 to 2 .got 'text'",
        ),
        ("d.csv", "a,1\nb,2\n", {"header": False, "text": 1, "label": 3}, "from 1 to 2 .got '3'"),
        ("d.csv", "text,label\na,1\n", {"delimiter": "::"}, "a delimiter is one character"),
        ("d.csv", "text,label\na,1\n", {"encoding": "klingon"}, "no encoding is called 'klingon'"),
        (
            "d.csv",
            f"text,label\na,{'9' * 5000}\n",
            {},
            "row 1 .line 2., column 'label': '9+'... has 5,000 characters",
        ),
        (
            "d.csv",
            f"text,label\n{'x' * 1_000_001},1\n",
            {},
            "column 'text': 1,000,001 characters, and a text may have 1,000,000",
        ),
        (
            "d.tsv",
            'text\tlabel\n"a\tb"\t1\n',
            {},
            "d.tsv, line 2: 3 cells, where the first line has 2$",
        ),
        ("d.csv", "Text,Label\na,1\n", {}, "its columns: Text, Label; did you mean 'Text'.$"),
        ("d.jsonl", "\n\n", {}, "has no rows"),
        (
            "d.jsonl",
            '{"text": "a", "label": 1}\nnope\n',
            {},
            "line 2, column 1: not JSON .*; each line is to hold one object",
        ),
        (
            "d.jsonl",
            '[{"text": "a", "label": 1}]',
            {},
            "line 1: expected an object .* found .*'text': 'a'",
        ),
        ("d.jsonl", "[\n", {}, "line 1, column 2: not JSON .*; each line is to hold one object"),
        ("d.jsonl", "3\n", {}, "line 1: expected an object .* found 3"),
        ("d.jsonl", "[" * 100_000, {}, "line 1: not JSON that can be read"),
        (
            "d.jsonl",
            '{"text": "a", "label": ' + "9" * 5000 + "}",
            {},
            "line 1: not JSON that can be read",
        ),
        ("d.jsonl", '{"text": "a", "label": 1, "label": 2}', {}, "line 1: .*'label' stands twice"),
        (
            "d.jsonl",
            '{"sentence": "a", "label": 1}',
            {},
            "line 1, has no column 'text'; its columns: sentence, label",
        ),
        (
            "d.jsonl",
            '{"text": "a\\u0000", "label": 1}',
            {},
            "row 1 .line 1., column 'text': holds a NUL",
        ),
        (
            "d.jsonl",
            '{"text": "a", "label": 1}',
            {"delimiter": ";"},
            "`delimiter` and `header` are for .csv",
        ),
        ("d.parquet", "PAR1", {}, "d.parquet: cannot be read as a Parquet table"),
        ("d.parquet", "", {"encoding": "utf-8"}, "`encoding` is for files of text"),
        (
            "d.json",
            "[]",
            {},
            "should end in .csv, .*; write each object of a list on a line of its own",
        ),
        ("d.csv.gz", "", {}, "should end in .csv, .*; unpack it first"),
        ("d.xlsx", "", {}, "should end in .csv, .*; save the sheet as CSV"),
        ("d", "", {}, "should end in .csv, .tsv, .txt, .jsonl, .ndjson, .parquet$"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, file, content, layout, said):
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises((DataError, FileProblem), match=said) as raised:
        read(tmp_path / file, **layout)
    assert file in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", tables.SUFFIXES)
def test_what_is_no_file_is_refused(tmp_path, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zeros{suffix}").symlink_to("/dev/zero")
    for name, said in (
        ("folder", "is a folder"),
        ("pipe", "not a regular file"),
        ("zeros", "not a regular"),
        ("no", "opened"),
    ):
        with pytest.raises(FileProblem, match=said):
            read(tmp_path / f"{name}{suffix}")


@pytest.mark.parametrize(
    "code", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le", "cp1252"]
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_by_mark_or_by_name(tmp_path, code, kind, end):
    text = end.join(["text,label", "größer,ä", "b,ö", ""])
    if kind == "jsonl":
        text = end.join(['{"text": "größer", "label": "ä"}', '{"text": "b", "label": "ö"}'])
    (tmp_path / f"d.{kind}").write_bytes(text.encode(code))
    named = None if code in ("utf-8", "utf-8-sig", "utf-16", "utf-32") else code
    table = read(tmp_path / f"d.{kind}", encoding=named)
    assert table.cells == {"text": ["größer", "b"], "label": ["ä", "ö"]}
    assert (named or code.removesuffix("-sig")).replace("latin-1", "iso8859-1") in table.how
    if named in ("latin-1", "cp1252"):
        with pytest.raises(
            FileProblem, match=rf"d\.{kind}, line {1 if kind == 'jsonl' else 2}: not utf-8 text"
        ):
            read(tmp_path / f"d.{kind}")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "~"])
@pytest.mark.parametrize("header", [True, False])
def test_delimiters_are_guessed_from_the_wanted_columns_or_named(tmp_path, delimiter, header):
    rows = [("one; two, three | four", "1"), ("five", "2"), ("six; seven", "1")]
    lines = [
        *([["id", "text", "label"]] if header else []),
        *([str(i), *row] for i, row in enumerate(rows)),
    ]
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter).writerows(lines)
    (tmp_path / "d.csv").write_text(written.getvalue())
    columns = {} if header else {"text": 2, "label": "3", "header": False}
    table = read(tmp_path / "d.csv", **columns, delimiter=delimiter if delimiter == "~" else None)
    assert list(zip(table.cells["text"], table.cells["label"], strict=True)) == rows
    assert ("(guessed)" in table.how) == (delimiter != "~")
    assert table.place(0).endswith("row 1 (line 2)" if header else "row 1 (line 1)")


def test_a_number_can_be_a_name(tmp_path):
    (tmp_path / "d.csv").write_text("1,2\na,x\n")
    assert read(tmp_path / "d.csv", text=1, label="2").cells == {"text": ["a"], "label": ["x"]}


def test_a_tab_can_be_named_as_people_write_it(tmp_path):
    (tmp_path / "d.csv").write_text('text\tlabel\n"a\tb"\t1\n')
    for name in ("tab", "\\t", "\t"):
        assert read(tmp_path / "d.csv", delimiter=name).cells["text"] == ["a\tb"]
    (tmp_path / "d.tsv").write_text('text\tlabel\n"a"\t1\n')
    assert read(tmp_path / "d.tsv").cells["text"] == [
        '"a"'
    ]  # a quotation mark is a character there


def test_class_names_of_a_dataset_and_its_unknown_labels():
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    table = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    assert read(table).cells["label"] == ["yes", "no"]
    hidden = Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    with pytest.raises(DataError, match="Dataset, row 2, column 'label': no label"):
        read(hidden)


def test_texts_that_no_memory_would_hold_are_refused_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_KEPT_BYTES", 100_000)
    rows = [("x" * 100, "warm")] * 1000
    for kind in ("csv", "jsonl"):
        with pytest.raises(
            DataError, match=r"row \d{3} .*: more than 0 MiB of texts; give it fewer rows"
        ):
            read(write(tmp_path, kind, rows))
    long = pa.table(
        {
            "text": pa.array(["x" * 10_000]).dictionary_encode().take(pa.array([0] * 5000)),
            "label": ["a"] * 5000,
        }
    )
    pa.parquet.write_table(long, tmp_path / "d.parquet")
    assert (tmp_path / "d.parquet").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"row \d+: more than 0 MiB"):
        read(tmp_path / "d.parquet")
    pa.parquet.write_table(
        pa.table({"text": ["x" * 1000] * 500, "label": ["a"] * 500}),
        tmp_path / "d.parquet",
        use_dictionary=False,
    )
    with pytest.raises(DataError, match=r"d\.parquet: 0 MiB of texts, more than the 0 MiB"):
        read(tmp_path / "d.parquet")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.binary(max_size=200),
    start=st.sampled_from([b"", b"text,label\n", b'{"text": ', b"PAR1", b"\xff\xfe"]),
)
def test_no_bytes_whatever_raise_anything_but_one_line(tmp_path, content, start):
    for suffix in tables.SUFFIXES:
        (tmp_path / f"d{suffix}").write_bytes(start + content)
        try:
            read(tmp_path / f"d{suffix}")
        except (DataError, FileProblem) as error:
            assert "\n" not in str(error) and len(str(error)) < 1000


def test_rows_without_number_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("inputs.files.MOST_LINES", 1000)
    pa.parquet.write_table(
        pa.table({"text": pa.nulls(5000), "label": pa.nulls(5000)}), tmp_path / "d.parquet"
    )
    with pytest.raises(DataError, match=r"d\.parquet: 5,000 rows, more than the 1,000"):
        read(tmp_path / "d.parquet", skip_blank=True)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.tuples(SCALARS, SCALARS), min_size=1, max_size=4))
def test_json_lines_of_any_cells_mean_what_their_spelling_means(tmp_path, rows):
    """What JSON can hold is read as the CSV file that spells it, or refused."""
    file = write(tmp_path, "jsonl", rows)
    try:
        found = read(file).cells
    except (DataError, FileProblem):
        assert any(
            cell in (None, "")
            or cell != cell
            or isinstance(cell, list)
            or not str(cell).strip()
            or "\0" in str(cell)
            for row in rows
            for cell in row
        )
        return
    if any(set(str(cell)) & set("\r\n") for row in rows for cell in row):
        # the csv module reads a lone carriage return as it was written, other line ends too; not
        # the subject here
        return
    assert (
        read(write(tmp_path, "csv", [[str(cell) for cell in row] for row in rows])).cells == found
    )
