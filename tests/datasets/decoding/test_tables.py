"""Tables as tools and people write them: read, or refused in one sentence."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.archives import write_manifest
from tests.datasets.reading import ROW, corners, only, refusal, source

TABLES = {  # what people's tools make of one table
    "blank lines in front": lambda text: f"\n  \n{text}",
    "blank rows": lambda text: text.replace("\n", "\n" + "," * 7 + "\n   \n", 1),
    "Excel's separator": lambda text: "sep=;\n" + text.replace(",", ";"),
    "bars": lambda text: text.replace(",", "|"),
    "spaces after commas": lambda text: text.replace(",", ", ").replace("pictures/a.png", '"pictures/a.png"'),
    "quotes after spaces": lambda text: "\n".join(
        ", ".join(f'"{value}"' for value in line.split(",")) for line in text.splitlines()
    ),
    "columns without a name": lambda text: "".join(f"{line},,\n" for line in text.splitlines()),
    "capitals": lambda text: text.replace(text.splitlines()[0], text.splitlines()[0].upper()),
    "titles; semicolons": lambda text: text.replace("path", "Path").replace("pitch", "Pitch").replace(",", ";"),
}


@pytest.mark.parametrize("made", TABLES)
def test_a_table_is_read_however_a_tool_wrote_it(tmp_path, made):
    path = write_manifest(tmp_path, [ROW, {**ROW, "path": "b.png", "yaw": 7.0}])
    path.write_text(TABLES[made](path.read_text()))
    opened = source("manifest", tmp_path)
    loaded_ = [opened.load(ref)[0] for ref in opened.refs()]
    assert [one.pose for one in loaded_] == [(10.0, -20.5, 3.0), (10.0, 7.0, 3.0)]
    assert {corners(one.known_box()) for one in loaded_} == {(5, 6.5, 50, 60)}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_spreadsheets_csv_is_read(tmp_path, separator):
    """Byte order mark, other separators, Windows' line ends, and a line break inside a quoted value."""
    rows = [list(ROW), list(map(str, ROW.values())), ["x.png", *["1"] * 7]]
    lines = [separator.join(row) for row in rows]
    lines[1] = lines[1].replace("pictures/a.png", '"pictures/a\n.png"')
    write_manifest(tmp_path, [ROW])
    (tmp_path / "manifest.csv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    opened = source("manifest", tmp_path)
    first, second = opened.refs()
    assert first.sample_id == "pictures/a\\n.png" and first.key == "pictures/a\n.png" and second.key == "x.png"
    (tmp_path / "pictures" / "a.png").rename(tmp_path / first.key)
    annotation, _ = opened.load(first)
    assert annotation.pose == (10.0, -20.5, 3.0) and corners(annotation.known_box()) == (5, 6.5, 50, 60)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("note", ["note, a, b, c, d, e, f, g, h", "note; a; b; c; d; e; f; g; h", "id, split, group"])
def test_a_csv_is_parted_where_its_own_columns_are_found(tmp_path, separator, note):
    """Not by what its header has most of: a column that is nobody's business may be named with commas."""
    rows = [[*ROW, f'"{note}"' if separator in note else note], [*map(str, ROW.values()), "-"]]
    write_manifest(tmp_path, [ROW])
    (tmp_path / "manifest.csv").write_text("\n".join(separator.join(row) for row in rows))
    opened = source("manifest", tmp_path)
    assert corners(opened.load(only(opened))[0].known_box()) == (5, 6.5, 50, 60)


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        ({"yaw": "yawn"}, "no column 'yaw'; did you mean 'yawn'?"),
        ({"path": "file"}, "no column 'path'; known: file"),
        ({"x2": "r22"}, "poses of several kinds"),
        ({"group": "groups"}, "a column 'groups', which is unknown; did you mean 'group'?"),
        ({"split": "splits"}, "did you mean 'split'?"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_wrong_columns_are_one_sentence(tmp_path, kind, rename, said):
    row = {**ROW, "group": "anna", "split": "train", "weather": "fine"}
    write_manifest(tmp_path, [row], kind)
    opened = source("manifest", tmp_path)
    only(opened)
    (tmp_path / f"manifest.{kind}").unlink()
    write_manifest(tmp_path, [{rename.get(key, key): value for key, value in row.items()}], kind, pictures=False)
    sentence = refusal(lambda: list(opened.refs()))
    assert said in sentence and f"manifest.{kind}" in sentence


def test_manifests_that_cannot_be_read_are_one_sentence(tmp_path):
    opened = source("manifest", tmp_path / "m")
    assert "neither a file nor a folder" in refusal(lambda: list(opened.refs()))
    path = write_manifest(tmp_path / "m", [ROW])
    good = path.read_bytes()
    contents = {
        b"": "manifest.csv is empty",
        b"\n \n": "manifest.csv is empty",
        b"\n\n" + good + b'"never closed': "is no CSV, line 5",
        b"\xff\xfe\x00a": "not text in UTF-8",
        good + b'"never closed': "is no CSV, line",
        good.replace(b"pitch", b"yaw"): "two columns 'yaw'",
        good.split(b"\n", 1)[1]: "has no header: its first line, pictures/a.png,10.0,-20.5",
        b"a.png,10,10,10,5,5,50,50": "put a line before it that names the columns",
    }
    for content, said in contents.items():
        path.write_bytes(content)
        assert said in refusal(lambda: list(opened.refs()))
    path.write_bytes(b"\xef\xbb\xbf" + good)
    assert only(opened).key == "pictures/a.png"
    write_manifest(tmp_path / "m", [ROW], "parquet")
    assert "manifest.csv and manifest.parquet, not one" in refusal(opened.fingerprint)
    path.unlink()
    (tmp_path / "m" / "manifest.parquet").write_bytes(b"PAR1 no PAR1")
    assert "not a readable Parquet file" in refusal(lambda: list(opened.refs()))
    (tmp_path / "m" / "manifest.parquet").rename(tmp_path / "m" / "manifest.txt")
    assert "no manifest.csv" in refusal(lambda: list(opened.refs()))
    assert "must end in .csv" in refusal(lambda: list(source("manifest", tmp_path / "m" / "manifest.txt").refs()))
    (tmp_path / "m" / "manifest.json").write_text(json.dumps([ROW]))
    assert "is a JSON list" in refusal(lambda: list(opened.refs()))
    (tmp_path / "m" / "manifest.json").write_text(json.dumps(ROW, indent=1))
    assert "holds no JSON object: one a line is read" in refusal(lambda: list(opened.refs()))


def test_a_damaged_or_ambiguous_parquet_table_is_one_sentence(tmp_path):
    table = pa.Table.from_pylist([ROW] * 40)
    file = tmp_path / "manifest.parquet"
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, file, write_page_checksum=True, **plain)
    data = bytearray(file.read_bytes())
    data[data.index(np.float64(ROW["yaw"]).tobytes()) + 6] ^= 1  # a yaw that looks like any other
    file.write_bytes(data)
    assert "cannot be read" in refusal(lambda: list(source("manifest", tmp_path).refs()))
    pq.write_table(pa.Table.from_arrays([*table.columns, table["yaw"]], names=[*table.column_names, "pitch"]), file)
    assert "has two columns 'pitch'" in refusal(lambda: list(source("manifest", tmp_path).refs()))
