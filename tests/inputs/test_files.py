"""Files of a user's: the right text for what is text, and one FileProblem with file and place for all else."""

import os
import random

import pytest

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
    with pytest.raises(FileProblem, match="no encoding is called 'latin-99'"):
        read_text(file, "latin-99")


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
    with pytest.raises(FileProblem, match=r"x: cannot be read as a table \('one'\)$"), reading("x", "a table"):
        raise KeyError("one") from RuntimeError("two\nlines")
    with pytest.raises(FileProblem, match="already said"), reading("x", "a table"):
        raise FileProblem("already said")


def test_no_bytes_whatever_raise_anything_else(tmp_path):
    rng, file = random.Random(0), tmp_path / "any"
    for _ in range(300):
        file.write_bytes(rng.randbytes(rng.randrange(200)))
        for read in (read_text, read_json, read_yaml, read_rows):
            try:
                read(file)
            except FileProblem as problem:
                assert "\n" not in str(problem)
