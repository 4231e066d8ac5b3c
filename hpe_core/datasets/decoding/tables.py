"""CSV, JSON lines and Parquet as named columns and rows; a broken row stays in its place as a sentence about it.

A file that cannot be divided into rows is a DatasetError. CSV holds text, the others hold what they hold. A CSV's
values are parted by commas, semicolons, tabs or bars: whichever finds most of the wanted columns in its first line.
Lines without a value are none, nor is Excel's `sep=;` in front; a wanted column may be written in capitals.
"""

import csv
import json
from itertools import chain
from pathlib import Path
from typing import Any

from hpe_core.datasets.base import DatasetError
from hpe_core.datasets.files import check_plain, printable

FORMATS = (".csv", ".jsonl", ".json", ".parquet")
Row = dict[str, Any] | str


def read_rows(path: Path, wanted: frozenset[str]) -> tuple[list[str], list[Row]]:
    """All columns' names, and the rows with the `wanted` columns alone. Raises DatasetError with one sentence."""
    name = printable(str(path))
    check_plain(path, "its table")
    try:
        read = {".csv": _csv, ".parquet": _parquet}.get(path.suffix.lower(), _json_lines)
        columns, rows = read(path, wanted)
    except UnicodeDecodeError:
        raise DatasetError(f"{name} is not text in UTF-8") from None
    except OSError as error:
        raise DatasetError(f"{name} cannot be read: {' '.join(str(error.strerror or error).split())}") from None
    if not columns:
        what = "holds no JSON object: one a line is read" if rows else "is empty"
        raise DatasetError(f"{name} {what}")
    if wanted.isdisjoint(columns) and any(map(_is_number, columns)):
        first = ",".join(columns)[:60]
        example = "for example path,pitch,yaw,roll,x1,y1,x2,y2"
        said = f"its first line, {printable(first)}, is a row; put a line before it that names the columns, {example}"
        raise DatasetError(f"{name} has no header: {said}")
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise DatasetError(f"{name} has two columns '{twice[0]}'")
    return columns, rows


def _is_number(text: str) -> bool:
    try:
        return bool(text) and float(text) is not None
    except ValueError:
        return False


def _csv(path: Path, wanted: frozenset[str]) -> tuple[list[str], list[Row]]:
    rows: list[Row] = []
    with open(path, encoding="utf-8-sig", newline="") as stream:
        header, above = "", 0
        for header in stream:
            if header.strip() and not header.lower().startswith("sep="):
                break
            above += 1
        else:
            header = ""
        lines = chain([header], stream)
        reader = csv.reader(lines, strict=True, delimiter=_delimiter(header, wanted), skipinitialspace=True)
        try:
            columns = [_column(name.strip(), wanted) for name in next(reader, [])]
            for values in reader:
                if not any(map(str.strip, values)):
                    continue
                if len(values) == len(columns):
                    rows.append({key: value for key, value in zip(columns, values, strict=True) if key in wanted})
                else:
                    rows.append(f"has {len(values)} values for {len(columns)} columns")
        except csv.Error as error:
            raise DatasetError(f"{printable(str(path))} is no CSV, line {above + reader.line_num}: {error}") from None
    return columns, rows


def _column(name: str, wanted: frozenset[str]) -> str:
    return name.lower() if name.lower() in wanted else name


def _delimiter(header: str, wanted: frozenset[str]) -> str:
    """By the wanted columns, `path` before all, since other columns' names may hold commas; else the most frequent."""

    def found(delimiter: str) -> tuple[bool, int, int]:
        names = wanted.intersection(name.strip().strip('"').lower() for name in header.split(delimiter))
        return "path" in names, len(names), header.count(delimiter)

    return max(",;\t|", key=found)


def _json_lines(path: Path, wanted: frozenset[str]) -> tuple[list[str], list[Row]]:
    rows: list[Row] = []
    columns: dict[str, None] = {}
    with open(path, encoding="utf-8-sig") as stream:
        for line in stream:
            if not line.strip():
                continue
            if not rows and line.lstrip().startswith("["):
                raise DatasetError(f"{printable(str(path))} is a JSON list; one object a line is read")
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                columns |= dict.fromkeys(value)
                rows.append({key: item for key, item in value.items() if key in wanted})
            else:
                rows.append("is not a JSON object")
    return list(columns), rows


def _parquet(path: Path, wanted: frozenset[str]) -> tuple[list[str], list[Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            columns = list(file.schema_arrow.names)
            rows: list[Row] = file.read([column for column in columns if column in wanted]).to_pylist()
    except pa.ArrowException as error:
        said = " ".join(str(error).split())[:160]
        raise DatasetError(f"{printable(str(path))} is not a readable Parquet file: {said}") from None
    return columns, rows
