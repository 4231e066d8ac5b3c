"""A dataset of your own: one table with a row for each face, beside the pictures.

`root` is a .csv, .jsonl (or .json, one object a line) or .parquet file, or a folder that holds exactly one manifest.*
of these kinds. Columns, in any order; others are ignored:

    path                                    of the picture, relative to the manifest's folder, and inside it
    pitch yaw roll  or  r00 r01 ... r22     degrees, or the rotation row by row, in our convention (`rotation.py`)
                    or  qw qx qy qz         the same rotation as a unit quaternion, by these names in any order
    x1 y1 x2 y2  or  x y w h                the face's box in pixels, by its corners or by its left top corner and size
                                            (`width`, `height` are read, too); not needed where `boxes` or `detector`
                                            draws them
    group      optional: the person; without it each picture is a group, so that its faces stay together
    split      optional: train, val or test for every row. It decides; then shares and named groups do not, but for
               val: where no row says val, it is drawn from the groups that say train (published splits have no val)
    id         optional: the sample's name; without it the path, and path#2 ... for further faces of a picture; a row
               that the table has twice is one face
    landmarks  optional: 68 times [x, y] or [x, y, 1 or 0 for seen or hidden], null: unknown; in CSV as JSON text

A split that cannot be read stops the dataset: a misspelt `test` must not end up in training. Any other bad row is
rejected by file and row, counted from 1 without the header; so is a path that leaves the folder (`files.within`), or
begins with the letter of a Windows drive. Backslashes in a path, and an ending in another case, find their file. There
is no count of the whole: the manifest is it.
"""

import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePath
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets import files
from hpe_core.datasets.base import Annotation, DatasetError, FaceRef, Pose, Reader, Rejected, pose_of
from hpe_core.datasets.boxes import tidy
from hpe_core.datasets.decoding.pictures import read_picture
from hpe_core.datasets.decoding.tables import FORMATS, Row, read_rows
from hpe_core.errors import nearest
from hpe_core.geometry.crop import Box, Image
from hpe_core.geometry.rotation import is_rotation, matrix_to_euler, upright
from hpe_core.spec.data import DatasetSpec, Links

EULER = ("pitch", "yaw", "roll")
MATRIX = tuple(f"r{row}{column}" for row in range(3) for column in range(3))
QUATERNION = ("qw", "qx", "qy", "qz")
POSES = (EULER, MATRIX, QUATERNION)
BOX = ("x1", "y1", "x2", "y2")
BOXES = (BOX, ("x", "y", "w", "h"), ("x", "y", "width", "height"))
DRIVE = re.compile(r"[A-Za-z]:[\\/]")
OPTIONAL = ("group", "split", "id", "landmarks")
KNOWN = frozenset(("path", *chain(*POSES), *chain(*BOXES), *OPTIONAL))
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Table:
    """A manifest in memory: which face lies in which row. Of equal references the first row counts."""

    pose: tuple[str, ...]  # the columns of poses: one of POSES
    box: tuple[str, ...]  # those of boxes: one of BOXES
    rows: list[Row]
    refs: list[FaceRef]
    row_of: dict[FaceRef, int]
    faces: Counter[str]  # of each picture, by `_one_name`


class Manifest(files.Archive):
    """The faces that a table lists. It is read once a process, and again when it changes."""

    name = "manifest"
    root_is = "the table or its folder"

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__(spec)
        if self.remote is not None and self.root.suffix.lower() in FORMATS:
            self.remote = self.remote.parent  # the folder of the pictures

    def refs(self) -> Iterator[FaceRef]:
        """One per row. Raises DatasetError for a table that is missing, unreadable or of other columns."""
        self.fetch_tables()
        yield from self._table(self._file()).refs

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        file = self._file()
        table = self._table(file)
        if ref not in table.row_of:
            raise Rejected("bad_annotation", f"{ref.sample_id} is no longer in {files.printable(str(file))}")
        index = table.row_of[ref]
        row, name = table.rows[index], f"{files.printable(str(file))}, row {index + 1}"
        if isinstance(row, str):
            raise Rejected("bad_annotation", f"{name} {row}")
        path = _picture(file.parent, ref.key, self.spec.links, name)
        pose = _pose(_numbers(row, table.pose, name), table.pose, name)
        if not np.isfinite(pose).all():
            raise Rejected("nan_pose", f"{name}: its pose is not finite")
        box: Box | Rejected
        if _boxed(row, table.box):
            x, y, *rest = _numbers(row, table.box, name)
            box = Box(x, y, *rest) if table.box == BOX else Box(x, y, x + rest[0], y + rest[1])
        elif table.faces[_one_name(ref.key, file.parent)] > 1:
            raise Rejected("no_box", f"{name} has no box, and there are other faces in its picture")
        else:
            box = Rejected("no_box", f"{name} has no box")
        return Annotation(box, pose, *_landmarks(row.get("landmarks"), name)), read_picture(path)

    @property
    def folder(self) -> Path:
        """Of the pictures; `root` may be the table in it."""
        if self.remote is not None:
            return self.remote.folder
        return self.root.parent if self.root.is_file() else self.root

    def files_of(self, ref: FaceRef) -> tuple[str, ...]:
        """The picture, by the name that a listing has: 'im//./a.jpg' is im/a.jpg. `states` knows the row."""
        return (str(Path(ref.key)),) if ref.key else ()

    def tables(self) -> tuple[str, ...]:
        named = self.root.suffix.lower() in FORMATS
        return (self.root.name,) if named else tuple(f"manifest{ending}" for ending in FORMATS)

    def states(self, refs: Sequence[FaceRef]) -> list[str]:
        """Rows may move: a face that was rejected earlier goes on being named by the row in which it was then."""
        self.fetch_tables()
        file = self._file()
        table = self._table(file)
        rows = [table.rows[table.row_of[ref]] if ref in table.row_of else "gone" for ref in refs]
        texts = (json.dumps(row, sort_keys=True, default=str) for row in rows)
        only = (table.faces[_one_name(ref.key, file.parent)] < 2 for ref in refs)
        alone = (_boxed(row, table.box) or one for row, one in zip(rows, only, strict=True))
        pictures = zip(texts, super().states(refs), alone, strict=True)
        return [f"{row} {picture}" + " among others" * (not own) for row, picture, own in pictures]

    def origin(self, spec: DatasetSpec) -> PurePath:
        """The table may be named by its folder, which has one `manifest` alone; other tables stand for themselves."""
        root = PurePath(spec.root)
        return root.parent if root.stem == "manifest" and root.suffix.lower() in FORMATS else root

    def shares_faces(self, other: DatasetSpec) -> bool:
        """A table in or below the folder of another one lists faces of its own."""
        return Reader.shares_faces(self, other)

    def _file(self) -> Path:
        """The table itself. Raises DatasetError where `root` is none and holds none, or several."""
        name = self.place
        if self.root.is_file():
            if self.root.suffix.lower() not in FORMATS:
                raise DatasetError(f"its root {name} is no manifest: it must end in {', '.join(FORMATS)}")
            return self.root
        if not self.root.is_dir():
            raise DatasetError(f"its root {name} is neither a file nor a folder")
        found = [p for p in self.root.iterdir() if p.stem == "manifest" and p.suffix.lower() in FORMATS]
        if len(found) != 1:
            what = " and ".join(sorted(path.name for path in found)) or "no manifest.csv, .jsonl or .parquet"
            raise DatasetError(f"its root {name} holds {what}, not one manifest")
        return found[0]

    def _table(self, file: Path) -> Table:
        status = file.stat()
        boxed = bool(self.spec.boxes or self.spec.detector)
        return _read(file, status.st_size, status.st_mtime_ns, boxed)


@lru_cache(maxsize=4)
def _read(file: Path, size: int, changed_ns: int, boxed: bool) -> Table:
    """The table; size and time name its state on disk, so that a process reads it once. `boxed`: it may lack boxes."""
    name = files.printable(str(file))
    columns, rows = read_rows(file, KNOWN)
    pose, box = _check_columns(columns, name, boxed)
    used = frozenset(("path", *pose, *box, *OPTIONAL))
    rows = [row if isinstance(row, str) else {key: row[key] for key in row if key in used} for row in rows]
    refs: list[FaceRef] = []
    listed = Counter(_text(row.get("path")) for row in rows if not isinstance(row, str))
    seen, faces, groups, known = Counter[str](), Counter[str](), dict[str, str](), dict[str, FaceRef]()
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str) or not (path := _text(row.get("path"))) or "\0" in path:
            if not isinstance(row, str):
                rows[number - 1] = "names no picture"
            refs.append(FaceRef(f"row {number}", f"row {number}", ""))
            continue
        split = _text(row.get("split"))
        if "split" in columns and split not in SPLITS:
            raise DatasetError(f"{name}, row {number} has the split '{split}'{nearest(split, list(SPLITS))}")
        said = json.dumps(row, sort_keys=True, default=str) if listed[path] > 1 else ""
        if said in known:  # the same face once more: the plan drops it as a repeated one
            refs.append(known[said])
            continue
        seen[path] += 1
        picture = _one_name(path, file.parent)
        faces[picture] += 1
        named = _text(row.get("id")) or (path if seen[path] == 1 else f"{path}#{seen[path]}")
        group = _text(row.get("group"))
        group = groups.setdefault(normalize("NFC", group) or picture, group or tidy(path))
        refs.append(FaceRef(files.printable(named), group, path, split))
        if said:
            known[said] = refs[-1]
    row_of: dict[FaceRef, int] = {}
    for index, ref in enumerate(refs):
        row_of.setdefault(ref, index)
    return Table(pose, box, rows, refs, row_of, faces)


def _one_name(path: str, folder: Path) -> str:
    """A picture's path in one spelling, by which rows that show one picture know each other."""
    stem, ending = os.path.splitext(os.path.normpath(os.path.join(folder, path.replace("\\", "/"))))
    return normalize("NFC", stem + ending.lower())


def _boxed(row: Row, columns: tuple[str, ...]) -> bool:
    """Whether a row says anything of its box."""
    return not isinstance(row, str) and any(row.get(column) not in (None, "") for column in columns)


def _check_columns(columns: list[str], name: str, boxed: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of poses and those of boxes. Raises DatasetError for a column that is missing or nearly right."""
    poses = [kind for kind in POSES if not set(kind).isdisjoint(columns)]
    if len(poses) > 1:
        said = "a pose is either pitch, yaw, roll or r00 ... r22 or qw, qx, qy, qz"
        raise DatasetError(f"{name} has poses of several kinds; {said}")
    others = [column for column in columns if column not in KNOWN]
    box = next((kind for kind in BOXES if set(kind) <= set(columns)), BOX)
    wanted = ("path", *(poses[0] if poses else EULER), *(() if boxed and set(box).isdisjoint(columns) else box))
    for column in wanted:
        if column not in columns:
            more = "" if poses or column != EULER[0] else "; a pose may also be r00 ... r22 or qw, qx, qy, qz"
            more = "; a box may also be x, y, w, h" if column in BOX else more
            raise DatasetError(f"{name} has no column '{column}'{nearest(column, others or columns)}{more}")
    for column in others:
        close = difflib.get_close_matches(column, [key for key in OPTIONAL if key not in columns], n=1, cutoff=0.85)
        if close:
            raise DatasetError(f"{name} has a column '{column}', which is unknown; did you mean '{close[0]}'?")
    return poses[0] if poses else EULER, box


def _picture(folder: Path, path: str, links: Links, name: str) -> Path:
    """`files.within`, whose sentence then begins with the row that names the picture."""
    foreign = "the letter of a Windows drive" if DRIVE.match(path) else "the scheme of an address"
    if (DRIVE.match(path) or "://" in path) and not os.path.exists(folder / path):
        said = f"begins with {foreign}; write paths as they are seen from the table's folder"
        raise Rejected("unreadable_file", f"{name}: {files.printable(path)} {said}")
    try:
        return files.within(folder, path, links)
    except Rejected as rejected:
        raise Rejected(rejected.reason, f"{name}: {rejected.detail}") from None


def _text(value: Any) -> str:
    """A cell as text that UTF-8 can hold; nothing is the empty text."""
    return "" if value is None else str(value).strip().encode("utf-8", "backslashreplace").decode()


def _numbers(row: dict[str, Any], columns: tuple[str, ...], name: str) -> list[float]:
    """The cells as floats. Raises Rejected that names the column."""
    found = []
    for column in columns:
        value = row.get(column)
        try:
            if value is None or isinstance(value, bool) or (isinstance(value, str) and "_" in value):
                raise ValueError  # Python itself takes 1_5 for 15
            found.append(float(value))
        except (TypeError, ValueError, OverflowError):
            said = f"{_text(value)[:40] or 'empty'}, no number" + "; decimals have a point" * ("," in _text(value))
            raise Rejected("bad_annotation", f"{name}: {column} is {said}") from None
    return found


def _pose(values: list[float], columns: tuple[str, ...], name: str) -> Pose:
    if columns == EULER:
        return pose_of(values)
    if columns == MATRIX:
        matrix = np.array(values).reshape(3, 3)
        if not np.isfinite(matrix).all():
            raise Rejected("nan_pose", f"{name}: its matrix is not finite")
        if not is_rotation(matrix):
            raise Rejected("bad_annotation", f"{name}: r00 ... r22 are no rotation")
    else:
        from scipy.spatial.transform import Rotation  # takes time that other tables need not pay

        length = float(np.linalg.norm(values))
        if not np.isfinite(length):
            raise Rejected("nan_pose", f"{name}: its quaternion is not finite")
        if abs(length - 1) > 0.01:  # of the digits that files keep; a farther one has other columns than it says
            raise Rejected("bad_annotation", f"{name}: qw, qx, qy, qz have the length {length:.3g}, not 1")
        matrix = Rotation.from_quat(values, scalar_first=True).as_matrix()
    return pose_of(upright(matrix_to_euler(matrix)))


def _landmarks(value: Any, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | tuple[None, None]:
    """(68, 2) places and (68,) whether each is seen, NaN where the table does not know. Raises Rejected."""
    if value is None or value == "":
        return None, None
    try:
        points = np.array(json.loads(value) if isinstance(value, str) else value, dtype=np.float32)
    except (TypeError, ValueError, RecursionError, OverflowError):
        points = np.empty(0, np.float32)
    if points.shape not in ((68, 2), (68, 3)) or np.isinf(points).any():
        raise Rejected("bad_annotation", f"{name}: its landmarks are not 68 pairs [x, y], or 68 times [x, y, seen]")
    places, seen = points[:, :2], points[:, 2] if points.shape[1] == 3 else np.full(68, np.nan, np.float32)
    if not np.isin(seen[np.isfinite(seen)], (0, 1)).all():
        raise Rejected("bad_annotation", f"{name}: whether a landmark is seen is 1 or 0")
    return places, seen
