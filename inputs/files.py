"""Reading a file of the user's: bounded, decoded, and every failure a `FileProblem` that names
file, place and cause.

Whatever reads such a file goes through here, so that a device node, a pipe, a binary file, a
foreign encoding, a bottomless nesting or a surprise of some library's reader is one line for the
user, never a traceback.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_BYTES = 256 * 2**20  # of a text file that is read whole
MOST_YAML_DEPTH = 64
MOST_LINES = 20_000_000  # of a file that is read line by line
MOST_CELL_CHARACTERS = 16 * 2**20  # of one cell of a CSV file
_MARKS = (  # byte-order marks, the longer first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NOT_OF_FILES = {
    "idna",
    "punycode",
    "unicode-escape",
    "raw-unicode-escape",
}  # slow, or not meant for whole texts


class FileProblem(ValueError):
    """A file of the user's cannot be used; the message is `file, place: cause` in one line."""


def located(path: str | Path, folder: str | Path = "") -> Path:
    """A path as a user gives it: `~` is the home folder, and what is not absolute starts in
    `folder`.

    Raises FileProblem for the home of somebody who has none here.
    """
    try:
        return Path(folder) / Path(path).expanduser()
    except RuntimeError as error:
        raise FileProblem(f"{path}: {first_line(error)}") from None


def regular_file(path: str | Path, most_bytes: int | None = None) -> Path:
    """The path itself, if it is a regular file of at most so many bytes.

    Raises FileProblem for what is missing, a folder, a device, a pipe, a socket, not readable, or
    too large.
    """
    path = Path(path)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FileProblem(f"{path}: cannot be opened ({_reason(error)})") from None
    if stat.S_ISDIR(found.st_mode):
        raise FileProblem(f"{path}: is a folder, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise FileProblem(f"{path}: is not a regular file (a device, pipe or socket)")
    if most_bytes is not None and found.st_size > most_bytes:
        raise FileProblem(
            f"{path}: {found.st_size:,} bytes, more than the {most_bytes:,} that are read of such "
            "a file"
        )
    return path


def read_bytes(path: str | Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file; FileProblem as for `regular_file`."""
    path = regular_file(path, most_bytes)
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({_reason(error)})") from None


def read_text(path: str | Path, encoding: str | None = None, most_bytes: int = MOST_BYTES) -> str:
    """The text of a file, line ends as they are: UTF-8, or UTF-16 and UTF-32 by their byte-order
    mark, or the encoding named.

    Raises FileProblem with the line at which the text is not of that encoding, or for a binary file
    (one that holds NUL).
    """
    raw = read_bytes(path, most_bytes)
    codec = _codec(path, raw[:4], encoding)
    try:
        text = raw.decode(codec)
    except UnicodeError as error:
        raise _undecodable(path, 0, error, codec, encoding, raw[:200]) from None
    if "\0" in text:
        raise _binary(path, text.count("\n", 0, text.index("\0")) + 1, raw[:200])
    return text.removeprefix("\ufeff")


def encoding_of(path: str | Path, encoding: str | None = None) -> str:
    """The encoding that a file of text is read in: the one named, the one of its mark, or utf-8;
    FileProblem for no file.
    """
    with regular_file(path).open("rb") as file:
        return _codec(path, file.read(4), encoding).removesuffix("-sig")


def text_lines(
    path: str | Path, encoding: str | None = None, most_bytes: int = MOST_BYTES
) -> Iterator[str]:
    """The lines of a file of text one by one, each with its end: a large file passes through little
    memory.

    Decoded and refused as by `read_text`; FileProblem too for a line of MOST_CELL_CHARACTERS or
    more.
    """
    path = regular_file(path, most_bytes)
    number = 0
    codec = ""
    start = b""
    try:
        with path.open("rb") as raw:
            start = raw.read(200)
            raw.seek(0)
            codec = _codec(path, start, encoding)
            with io.TextIOWrapper(raw, codec, newline="") as text:
                while line := text.readline(MOST_CELL_CHARACTERS):
                    if "\0" in line:
                        raise _binary(path, number + 1, start)
                    if number == MOST_LINES:
                        raise FileProblem(
                            f"{path}: more than {MOST_LINES:,} lines, too many for such a file"
                        )
                    if len(line) == MOST_CELL_CHARACTERS:
                        raise FileProblem(
                            f"{path}, line {number + 1}: {len(line):,} characters or more, too "
                            "long a line"
                        )
                    yield line if number else line.removeprefix("\ufeff")
                    number += 1
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({_reason(error)})") from None
    except UnicodeError as error:
        raise _undecodable(path, number, error, codec, encoding, start) from None


def _codec(path: str | Path, start: bytes, encoding: str | None) -> str:
    """The encoding named, or the one of the mark that the file starts with, or UTF-8."""
    if encoding is None:
        return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
    try:
        "a".encode(encoding)  # refuses what is a codec, but of no text, as hex is
        if (name := codecs.lookup(encoding).name) not in _NOT_OF_FILES:
            return name
    except (LookupError, ValueError):
        pass
    raise FileProblem(
        f"{path}: no encoding is called {encoding[:40]!r}; try utf-8, utf-16 or latin-1"
    )


def _undecodable(
    path: str | Path,
    lines_before: int,
    error: UnicodeError,
    codec: str,
    named: str | None,
    start: bytes,
) -> FileProblem:
    """Which line is not of that encoding: `lines_before` stand before the bytes that failed, and
    some within them.
    """
    good = getattr(error, "object", b"")[: getattr(error, "start", 0)].decode(codec, "ignore")
    line = lines_before + len(re.findall("\r\n|\r|\n", good)) + 1
    hint = (
        ""
        if named
        else _utf_16(start) or "; save it as UTF-8 (for a data set, `encoding` can be set)"
    )
    return FileProblem(f"{path}, line {line}: not {codec.removesuffix('-sig')} text{hint}")


def _binary(path: str | Path, line: int, start: bytes) -> FileProblem:
    return FileProblem(f"{path}, line {line}: binary, not text (it holds NUL){_utf_16(start)}")


def _utf_16(start: bytes) -> str:
    """What to do about a file that begins as UTF-16 without a mark does, with a NUL in every other
    byte; else nothing.
    """
    evens, odds = start[::2].count(0), start[1::2].count(0)
    likely = (
        "utf-16-be"
        if evens > len(start) / 4 >= odds
        else "utf-16-le"
        if odds > len(start) / 4 >= evens
        else None
    )
    return (
        f"; if it is UTF-16, save it as UTF-8 (or set `encoding: {likely}`, for a data set)"
        if likely
        else ""
    )


def read_json(path: str | Path, most_bytes: int = MOST_BYTES) -> Any:
    """What a JSON file holds; FileProblem with line and column where it is none."""
    return parse_json(read_text(path, most_bytes=most_bytes), str(path))


def parse_json(
    text: str, where: str, line: int = 1, loads: Callable[[str], Any] = json.loads
) -> Any:
    """What a JSON text holds that begins on that line of `where`; FileProblem with line and column
    where it is none.

    `loads` may be a stricter reader: a ValueError that it raises is worded as the file's fault,
    too.
    """
    try:
        return loads(text)
    except json.JSONDecodeError as error:
        place = f"{where}, line {line + error.lineno - 1}, column {error.colno}"
        raise FileProblem(f"{place}: not JSON ({error.msg})") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # a number of thousands of digits; thousands of brackets
        place = where if "\n" in text.strip() else f"{where}, line {line}"
        raise FileProblem(f"{place}: not JSON that can be read ({first_line(error)})") from None


def read_yaml(path: str | Path, most_bytes: int = MOST_BYTES) -> Any:
    """What a YAML file holds, plain data alone; FileProblem with line and column where it is
    none.
    """
    import yaml  # here, for `mobifleet --help` reads no YAML

    text = read_text(path, most_bytes=most_bytes)
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _require_shallow(
            path, yaml.parse(text, Loader=fast)
        )  # loading recurses, in C without a limit
        loader = fast(text)
        node = loader.get_single_node()
        _require_single_keys(path, node)
        return None if node is None else loader.construct_document(node)
    except FileProblem:
        raise
    except Exception:
        pass  # the other loader is eight times as slow, and says better where it is
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise FileProblem(f"{path}{place}: not YAML ({error.problem or error.context})") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError) as error:
        raise FileProblem(f"{path}: not YAML that can be read ({first_line(error)})") from None


def yaml_lines(path: str | Path) -> dict[tuple[str | int, ...], int]:
    """At which line each key of a YAML file stands, by the keys and numbers that lead to it; () is
    the whole. Nothing for a file that `read_yaml` refuses.
    """
    import yaml

    lines: dict[tuple[str | int, ...], int] = {}
    seen: set[int] = set()  # an alias is a node that was there before, or lies around it

    def note(node: Any, where: tuple[str | int, ...], line: int) -> None:
        lines[where] = line + 1
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                note(value, (*where, str(key.value)), key.start_mark.line)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                note(value, (*where, number), value.start_mark.line)

    try:
        note(yaml.compose(read_text(path), Loader=yaml.SafeLoader), (), 0)
    except (yaml.YAMLError, FileProblem, RecursionError):
        pass
    return lines


def _require_shallow(path: str | Path, events: Iterable[Any]) -> None:
    """Raise FileProblem for what whoever walks the data would walk too deep into, or for ever."""
    around: list[str | None] = []  # the anchors of what is open
    for event in events:
        kind = event.__class__.__name__
        place = f"{path}, line {event.start_mark.line + 1}"
        if kind.endswith("StartEvent"):
            around.append(getattr(event, "anchor", None))
        elif kind.endswith("EndEvent"):
            around.pop()
        elif kind == "AliasEvent" and event.anchor in around:
            raise FileProblem(
                f"{place}: not YAML that can be read (*{event.anchor} stands within itself)"
            )
        if len(around) > MOST_YAML_DEPTH:
            raise FileProblem(f"{place}: not YAML that can be read (nested too deep)")


def _require_single_keys(path: str | Path, root: Any) -> None:
    """Raise FileProblem for a mapping that gives a key twice: one of the two would be lost."""
    stack, seen = [] if root is None else [root], set()
    while stack:
        node = stack.pop()
        if id(node) in seen or not isinstance(node.value, list):
            continue
        seen.add(id(node))
        pairs = [pair for pair in node.value if isinstance(pair, tuple)]
        stack += [value for _, value in pairs] or node.value
        lines: dict[tuple[str, str], int] = {}
        for key, _ in pairs:
            line, name = key.start_mark.line + 1, (key.tag, str(key.value))
            if name in lines:
                what = f"{name[1][:60]!r} is given twice (first in line {lines[name]})"
                raise FileProblem(f"{path}, line {line}: {what}")
            lines[name] = line


def read_rows(
    path: str | Path, delimiter: str | None = None, encoding: str | None = None
) -> list[tuple[int, list[str]]]:
    """The rows of a table of text as (number of the line at which each begins, cells); blank rows
    are left out.

    Without a delimiter the one of comma, semicolon, tab and | that splits the first lines most
    evenly is taken.
    """
    delimiter = delimiter or guess_delimiter(first_lines(path, encoding))
    return [
        (line, row)
        for line, row in table_rows(path, delimiter, encoding)
        if any(cell.strip() for cell in row)
    ]


def table_rows(
    path: str | Path,
    delimiter: str,
    encoding: str | None = None,
    quotes: bool = True,
    lines: Iterable[str] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table of text one by one as (number of the line at which each begins, cells),
    without blank lines.

    With quotes, a cell in double quotes may hold the delimiter, line ends and doubled quotes; else
    they are characters. `lines`: those of the file, each with its end, where the caller has read
    them already. Raises FileProblem for what `text_lines` refuses, and for quotes that are not
    closed, or closed within a cell.
    """
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise FileProblem(
            f"{path}: a delimiter is one character, such as ; or a tab (got {delimiter!r})"
        )
    csv.field_size_limit(MOST_CELL_CHARACTERS)
    reader = csv.reader(
        lines or text_lines(path, encoding),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    line = 1
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise FileProblem(
            f"{path}, line {line}: not a table of text ({_words_of_csv(error)})"
        ) from None


def _words_of_csv(error: csv.Error) -> str:
    words = str(error)
    if "expected after" in words:
        return "a quotation mark ends a cell before its end: double those that belong to the text"
    return (
        "a quotation mark opens a cell and none closes it" if "unexpected end" in words else words
    )


def first_lines(path: str | Path, encoding: str | None = None) -> str:
    """The first lines of a file of text that are not blank, as many as a person would look at."""
    seen: list[str] = []
    for line in text_lines(path, encoding):
        if line.strip():
            seen.append(line)
        if len(seen) == 20 or sum(map(len, seen)) > 100_000:
            break
    return "".join(seen)


def guess_delimiter(text: str, fallback: str = ",") -> str:
    """The delimiter that splits the first twenty lines into the same number, the largest, of cells;
    else the fallback.
    """
    lines = [
        line
        for line in text[:100_000].splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ][:20]
    best, most = fallback, 1
    for candidate in (",", ";", "\t", "|"):
        counts = {len(row) for row in csv.reader(lines, delimiter=candidate)}
        if len(counts) == 1 and (count := counts.pop()) > most:
            best, most = candidate, count
    return best


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Whatever a library's reader raises within becomes a FileProblem: the file, what it should be,
    the library's words.

    Errors of our own (ValueErrors that already say whose fault it is) and a lack of memory pass as
    they are.

        with reading(file, "a Parquet table"):
            table = parquet.read_table(file)
    """
    try:
        yield
    except MemoryError:
        raise
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read as {what} ({_reason(error)})") from error
    except BaseException as error:
        # a reader written in Rust panics with an exception of its own, below Exception
        if is_ours(error) or not (
            isinstance(error, Exception) or type(error).__name__ == "PanicException"
        ):
            raise
        raise FileProblem(f"{path}: cannot be read as {what} ({first_line(error)})") from error


def is_ours(error: BaseException) -> bool:
    """Whether an error was worded here for the user: a ValueError of a class that one of our
    packages defines.
    """
    home = type(error).__module__.partition(".")[0]
    return isinstance(error, ValueError) and home in {
        "inputs",
        "learning",
        "devices",
        "network",
        "sim",
    }


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's own words (the next too where it ends in a colon), short enough
    for a terminal.

    Its type stands for words that say nothing.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    words = lines[0] if lines else ""
    if words.endswith(":") and len(lines) > 1:
        words += f" {lines[1]}"
    return words[:200] or type(error).__name__
