"""Files of a user's: the right text for what is text, and one FileProblem with file and place for
all else.
"""

import csv
import io
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inputs.files import (
    FileProblem,
    guess_delimiter,
    parse_json,
    read_bytes,
    read_json,
    read_rows,
    read_text,
    read_yaml,
    reading,
    regular_file,
    table_rows,
    text_lines,
    yaml_lines,
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_with_or_without_a_mark_is_decoded(tmp_path, encoding):
    file = tmp_path / "a.txt"
    file.write_text("größer\n€ 5\n", encoding=encoding, newline="")
    assert read_text(file) == "größer\n€ 5\n"


def test_an_encoding_without_a_mark_has_to_be_named(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("eins\nzwei\ngrößer\n".encode("latin-1"))
    with pytest.raises(FileProblem, match=r"a\.txt, line 3: not utf-8 text"):
        read_text(file)
    assert read_text(file, "latin-1") == "eins\nzwei\ngrößer\n"
    for name in ("latin-99", "hex", "punycode", "a\0b", "", "x" * 5000):
        for read in (read_text, lambda *of: list(text_lines(*of))):
            with pytest.raises(FileProblem, match="no encoding is called"):
                read(file, name)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_recognised_and_read_when_named(tmp_path, encoding):
    file = tmp_path / "a.txt"
    for text in ("eins\nzwei\n", "größer\nzwei\n"):
        file.write_bytes(text.encode(encoding))
        for read in (read_text, lambda path: list(text_lines(path))):
            with pytest.raises(
                FileProblem,
                match=f"if it is UTF-16, save it as UTF-8 .or set `encoding: {encoding}`",
            ):
                read(file)
        assert read_text(file, encoding) == text
        assert "".join(text_lines(file, encoding)) == text


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=12)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pieces=st.lists(TEXT, max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    code=st.sampled_from(["utf-8", "utf-16"]),
)
def test_lines_one_by_one_are_the_lines_of_the_whole(tmp_path, pieces, end, code):
    file, text = tmp_path / "a.txt", end.join(pieces)
    file.write_bytes(text.encode(code))
    assert "".join(text_lines(file)) == text
    wanted = io.StringIO(text, newline="").readlines()
    assert list(text_lines(file)) == wanted


def test_bytes_far_down_a_file_that_are_no_text_are_found_at_their_line(tmp_path):
    file = tmp_path / "a.txt"
    for ends in (b"\n", b"\r\n"):
        file.write_bytes((b"a line of text" + ends) * 40_000 + b"\xff" + ends)
        for read in (read_text, lambda path: list(text_lines(path))):
            with pytest.raises(FileProblem, match="line 40001: not utf-8 text"):
                read(file)


CELLS = st.lists(st.lists(TEXT, min_size=2, max_size=2), min_size=1, max_size=5)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=CELLS,
    delimiter=st.sampled_from([",", ";", "\t", "|", "~"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_table_of_any_cells_comes_back_cell_by_cell_with_its_lines(
    tmp_path, rows, delimiter, end
):
    written, lines = io.StringIO(), []
    writer = csv.writer(written, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    for row in rows:
        lines.append(len(io.StringIO(written.getvalue(), newline="").readlines()) + 1)
        writer.writerow(row)
    (tmp_path / "t.csv").write_bytes(written.getvalue().encode())
    assert list(table_rows(tmp_path / "t.csv", delimiter)) == list(zip(lines, rows, strict=True))


def test_quotes_that_are_not_closed_are_an_error_not_one_long_cell(tmp_path):
    file = tmp_path / "t.csv"
    for text, said in (
        (
            'a,b\n"one,1\ntwo,2\n',
            "line 2: not a table of text .a quotation mark opens a cell and none closes it",
        ),
        (
            'a,b\n1,2\n"one" more,1\n',
            "line 3: not a table of text .a quotation mark ends a cell before",
        ),
    ):
        file.write_text(text)
        with pytest.raises(FileProblem, match=said):
            list(table_rows(file, ","))
        assert len(list(table_rows(file, ",", quotes=False))) == 3
    with pytest.raises(FileProblem, match="a delimiter is one character"):
        list(table_rows(file, "::"))


def test_lines_without_number_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("inputs.files.MOST_LINES", 100)
    (tmp_path / "t.txt").write_text("\n" * 100)
    assert len(list(text_lines(tmp_path / "t.txt"))) == 100
    (tmp_path / "t.txt").write_text("\n" * 101)
    with pytest.raises(FileProblem, match=r"t\.txt: more than 100 lines"):
        list(text_lines(tmp_path / "t.txt"))


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("inputs.files.MOST_CELL_CHARACTERS", 1000)
    (tmp_path / "t.txt").write_text("short\n" + "x" * 2000)
    with pytest.raises(FileProblem, match="line 2: 1,000 characters or more"):
        list(text_lines(tmp_path / "t.txt"))


def test_what_is_no_regular_file_of_text_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"ab\n\0\1\2")
    for path, said in (
        (tmp_path / "none", "cannot be opened"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path / "binary", "line 2: binary"),
        ("a\0b", "cannot be opened"),
    ):
        with pytest.raises(FileProblem, match=said):
            read_text(path)
    with pytest.raises(FileProblem, match="6 bytes, more than the 5"):
        read_bytes(tmp_path / "binary", most_bytes=5)
    assert regular_file(tmp_path / "binary") == tmp_path / "binary"


def test_json_says_where_it_is_none(tmp_path):
    file = tmp_path / "a.json"
    for text, said in (
        ('{"a": 1,\n "b" 2}', "line 2, column 6"),
        ("[" * 100_000, "not JSON"),
        ("1" * 5_000, "not JSON"),
    ):
        file.write_text(text)
        with pytest.raises(FileProblem, match=said):
            read_json(file)
    assert parse_json('{"a": [1]}', "here") == {"a": [1]}


def test_yaml_says_where_it_is_none(tmp_path):
    file = tmp_path / "a.yaml"
    for text, said in (
        ("a: 1\nb: [", "line 2"),
        ("[" * 100_000, "not YAML"),
        ("a: !!python/name:os.system x", "not YAML"),
        ("a: 2001-99-99", "not YAML"),
    ):
        file.write_text(text)
        with pytest.raises(FileProblem, match=said):
            read_yaml(file)


@pytest.mark.parametrize(("delimiter"), [",", ";", "\t", "|"])
def test_rows_know_their_line_and_guess_their_delimiter(tmp_path, delimiter):
    file = tmp_path / "a.csv"
    file.write_text(f'a{delimiter}b\n\n"x\ny"{delimiter}2\n3{delimiter}4\n')
    assert read_rows(file) == [(1, ["a", "b"]), (3, ["x\ny", "2"]), (5, ["3", "4"])]
    assert guess_delimiter("a b\nc d\n") == ","


def test_a_reader_s_own_error_becomes_one_line(tmp_path):
    with (
        pytest.raises(FileProblem, match=r"x: cannot be read as a table \('one'\)$"),
        reading("x", "a table"),
    ):
        raise KeyError("one") from RuntimeError("two\nlines")
    with pytest.raises(FileProblem, match="already said"), reading("x", "a table"):
        raise FileProblem("already said")


def test_no_bytes_whatever_raise_anything_else(tmp_path):
    rng, file = random.Random(0), tmp_path / "any"
    for _ in range(300):
        file.write_bytes(rng.randbytes(rng.randrange(200)))
        for read in (
            read_text,
            read_json,
            read_yaml,
            read_rows,
            lambda path: list(text_lines(path)),
        ):
            try:
                read(file)
            except FileProblem as problem:
                assert "\n" not in str(problem)


@pytest.mark.parametrize(
    "deep", ["[" * 100_000, "{a: " * 50_000, "- " * 100_000, "a:\n" + " " * 5 + "- " * 70]
)
def test_yaml_that_is_nested_too_deep_is_refused_before_anything_recurses(tmp_path, deep):
    file = tmp_path / "a.yaml"
    file.write_text(deep)
    with pytest.raises(
        FileProblem, match=r"a\.yaml, line \d: not YAML that can be read \(nested too deep\)"
    ):
        read_yaml(file)


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "b: 1\na: &x {b: {c: *x}}\n"])
def test_yaml_that_stands_within_itself_is_refused_by_name(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(FileProblem, match=r"line \d: not YAML .*\(\*[ax] stands within itself\)"):
        read_yaml(file)
    file.write_text("a: &a [1]\nb: *a\n")
    assert read_yaml(file) == {"a": [1], "b": [1]}
    assert yaml_lines(file) == {(): 1, ("a",): 1, ("a", 0): 1, ("b",): 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", r"line 3: 'a' is given twice \(first in line 1\)"),
        ("a:\n- {b: 1}\n- c: 1\n  d: {e: 1, e: 2}\n", r"line 4: 'e' is given twice"),
    ],
)
def test_yaml_that_gives_a_key_twice_is_refused(tmp_path, text, says):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(FileProblem, match=says):
        read_yaml(file)
    file.write_text("a: {b: 1, '1': 2, 1: 3}\nc: {b: 1}\n")  # 1 and '1' are two keys
    assert read_yaml(file) == {"a": {"b": 1, "1": 2, 1: 3}, "c": {"b": 1}}
