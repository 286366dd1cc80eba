"""A table in a file: CSV as spreadsheets and programs write it, or Parquet."""

import codecs
import csv
import io
import re
from pathlib import Path

import polars as pl

from ikebana.data.columns import RawTable, count_known_columns, find_standard_name
from ikebana.errors import PhotosError, get_first_line

# The most usual first: it wins where two are equally likely.
SEPARATORS = ",;\t|"
# What spreadsheets write above the header to name the separator.
SEPARATOR_HINT = re.compile(r'"?sep=([,;|:^~\t])"?', re.IGNORECASE)
LINE = re.compile(r"([^\r\n]*)(\r\n|\r|\n|\Z)")
# Lines of these characters alone are blank: spreadsheets fill empty rows with separators.
BLANK_CHARACTERS = f'{SEPARATORS}" \t\ufeff'
# A header of more characters is none.
MAX_HEADER_CHARACTERS = 2**16
# Characters of the table that an error shows.
MAX_SHOWN_CHARACTERS = 60

# UTF-32 first: its mark begins with that of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The first bytes of files that a user may rename to .csv.
FOREIGN_SIGNATURES = {
    b"PK\x03\x04": "a workbook or another zip archive",
    b"\xd0\xcf\x11\xe0": "an old workbook",
    b"PAR1": "Parquet",
    b"\x1f\x8b": "compressed with gzip",
}


def read(file: Path) -> RawTable:
    """Read a table as it is; CSV values are text.

    Raises:
        PhotosError: the file cannot be read, or its lines are no table.
    """
    return _read_parquet(file) if file.suffix.lower() == ".parquet" else _read_csv(file)


def _read_parquet(file: Path) -> RawTable:
    try:
        table = pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        what = f"this Parquet file cannot be read: {get_first_line(error)}"
        raise PhotosError(what, where=file, advice="check that the file is complete") from None
    return RawTable(file, tuple(table.columns), tuple(table.get_columns()))


def _read_csv(file: Path) -> RawTable:
    """Read every value as text; the first line that is not blank holds the names."""
    text, separator = _skip_preamble(_decode(_read_bytes(file), file))
    if not text:
        raise PhotosError("the table is empty", where=file, advice="start it with the line: path,label")
    separator = separator or _choose_separator(text)
    # Polars splits lines at \n only.
    has_spaces = _has_spaces_before_quotes(text, separator)
    if has_spaces or _has_bare_carriage_returns(text):
        text = _rewrite(text, separator, file, skips_spaces=has_spaces)
    names = _parse_header(text, separator)
    try:
        table = pl.read_csv(text.encode(), separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError:
        table = _read_repaired_csv(_rewrite(text, separator, file), separator, file)
    # Polars renames columns of the same name.
    names = names if len(names) == table.width else tuple(table.columns)
    _refuse_swallowed_lines(table, names, separator, file)
    notes = _describe_swallowed_lines(table, names, separator)
    return RawTable(file, names, tuple(table.get_columns()), notes)


def _read_bytes(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise PhotosError(
            f"this table cannot be read: {error.strerror}", where=file, advice="check its permissions"
        ) from None
    for signature, kind in FOREIGN_SIGNATURES.items():
        if data.startswith(signature):
            raise PhotosError(f"this is not a CSV file: it is {kind}", where=file, advice="save it as 'CSV UTF-8'")
    return data


def _decode(data: bytes, file: Path) -> str:
    """Decode UTF-8, and UTF-16 or UTF-32 with a byte order mark or an ASCII header.

    Raises:
        PhotosError: the text is in another encoding, which no byte of it names.
    """
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if encoding is None and 0 in data[:2]:
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    try:
        return data.decode(encoding or "utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        if encoding is not None:
            what = f"this table is not {encoding.upper()} text (byte {error.start})"
        else:
            what = f"this table is not UTF-8 text: {_describe_readings(data, error.start)}"
        raise PhotosError(what, where=file, advice="save it as 'CSV UTF-8'") from None


def _describe_readings(data: bytes, offset: int) -> str:
    """Show a line that is not UTF-8 in two usual encodings."""
    start = max(data.rfind(b"\n", 0, offset) + 1, offset - MAX_SHOWN_CHARACTERS // 2)
    line = re.split(rb"[\r\n]", data[start : start + MAX_SHOWN_CHARACTERS], maxsplit=1)[0]
    number = data.count(b"\n", 0, offset) + 1
    windows, mac = (line.decode(name, "replace") for name in ("cp1252", "mac_roman"))
    return f"line {number} is {windows!r} in Windows-1252, but {mac!r} in Mac Roman"


def _skip_preamble(text: str) -> tuple[str, str | None]:
    """Skip blank lines, comments and the hint of the separator above the header.

    Returns:
        The text from the header on, and the separator of the hint.
    """
    separator = None
    for match in LINE.finditer(text):
        line, start = match[1], match.start()
        if hint := SEPARATOR_HINT.fullmatch(line.strip(" ")):
            separator = hint[1]
        elif line.startswith("#"):
            # Some programs write the header as a comment.
            header = line.lstrip("# ")
            if _count_known_names(header, separator or _choose_separator(header)) > 1:
                return text[start + len(line) - len(header) :], separator
        elif line.strip(BLANK_CHARACTERS):
            return text[start:], separator
    return "", separator


def _choose_separator(text: str) -> str:
    """Choose the separator that gives the header most known names, else the most frequent one."""
    first_line = LINE.match(text)
    header = first_line[1] if first_line else ""
    return max(SEPARATORS, key=lambda separator: (_count_known_names(text, separator), header.count(separator)))


def _count_known_names(text: str, separator: str) -> int:
    return count_known_columns(_parse_header(text, separator))


def _parse_header(text: str, separator: str) -> tuple[str, ...]:
    lines = io.StringIO(text[:MAX_HEADER_CHARACTERS], newline="")
    try:
        return tuple(next(csv.reader(lines, delimiter=separator), ()))
    except csv.Error:
        return ()


def _has_bare_carriage_returns(text: str) -> bool:
    """Return whether the header ends in a carriage return alone, as on old Macs."""
    first_line = LINE.match(text)
    return first_line is not None and first_line[2] == "\r"


def _has_spaces_before_quotes(text: str, separator: str) -> bool:
    """Return whether any value is quoted after a space."""
    escaped = re.escape(separator)
    return re.search(rf'{escaped} +"[^"\r\n]*" *(?:{escaped}|[\r\n]|\Z)', text) is not None


def _rewrite(text: str, separator: str, file: Path, *, skips_spaces: bool = False) -> str:
    """Write the table again with \\n as line ends, without empty values beyond the header.

    Args:
        skips_spaces: skip spaces at the start of values.
    Raises:
        PhotosError: a line has too many values, or a quotation mark is not closed.
    """
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=skips_spaces)
    target = io.StringIO(newline="")
    writer = csv.writer(target, delimiter=separator, lineterminator="\n")
    width = 0
    try:
        for row in reader:
            width = width or len(row)
            if any(value.strip() for value in row[width:]):
                raise _csv_error(
                    f"line {reader.line_num} has {len(row)} values, but the first one has {width} names",
                    file,
                    "give every line as many values as the first one has names",
                )
            writer.writerow(row[:width])
    except csv.Error as error:
        what = f"line {reader.line_num}: {error}"
        raise _csv_error(what, file, "check the quotation marks of this line and of those above") from None
    return target.getvalue()


def _read_repaired_csv(text: str, separator: str, file: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(text.encode(), separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise _csv_error(get_first_line(error), file, "check its first lines") from None


def _csv_error(reason: str, file: Path, advice: str) -> PhotosError:
    return PhotosError(f"this CSV file cannot be read: {reason}", where=file, advice=advice)


def _refuse_swallowed_lines(table: pl.DataFrame, names: tuple[str, ...], separator: str, file: Path) -> None:
    """Refuse a value that contains further rows: a quotation mark is not closed."""
    for name, values in zip(names, table.get_columns(), strict=True):
        if find_standard_name(name) is None:
            continue
        spans_lines = values.str.contains("[\r\n]") & values.str.contains(separator, literal=True)
        if spans_lines.any():
            value = values.filter(spans_lines)[0]
            shown = value if len(value) <= MAX_SHOWN_CHARACTERS else f"{value[:MAX_SHOWN_CHARACTERS]}…"
            what = f"the {name.strip()} {shown!r} spans several lines"
            raise _csv_error(what, file, "close the quotation mark in the first of these lines")


def _describe_swallowed_lines(table: pl.DataFrame, names: tuple[str, ...], separator: str) -> tuple[str, ...]:
    """Report values of other columns that may contain further rows."""
    row = rf"[\r\n]([^\r\n]*{re.escape(separator)}){{{max(table.width - 1, 1)}}}"
    return tuple(
        f"a value of the column {name!r} spans lines that look like rows: check its quotation marks"
        for name, values in zip(names, table.get_columns(), strict=True)
        if find_standard_name(name) is None and values.str.contains(row).any()
    )
