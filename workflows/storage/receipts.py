"""Pieces of a stage: a Parquet file and, beside it, the receipt that makes it count.

A receipt is JSON with `hash`, which covers all that decides the piece, and `sha256`, of the file's bytes ("" where the
piece has no file). It is written after the file, so a piece is either whole or not there, and a stage that was cut off
does only the pieces that have no fitting receipt. A piece that another run of the stage has made from the same things
is linked, not made again: folders of one stage share pieces, which are renamed into place and never written again.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpe_core.system.files import file_sha256, known_json, replacing

Receipt = dict[str, Any]


def receipt_file(piece: Path) -> Path:
    return piece.with_suffix(".json")


def fitting_receipt(piece: Path, job_hash: str) -> Receipt | None:
    """The receipt of a piece that is finished, fits the job and still has its bytes; else None."""
    receipt = _read(receipt_file(piece))
    with suppress(OSError, KeyError):
        if receipt.get("hash") == job_hash:
            sha256 = receipt["sha256"]
            if file_sha256(piece) == sha256 if sha256 else not piece.exists():
                return receipt
    return None


def recorded_sha256(piece: Path) -> str | None:
    """The hash on the receipt beside a file, if it has one: that of the bytes that were written."""
    return _read(receipt_file(piece)).get("sha256") if piece.suffix != ".json" else None


def is_claimed(piece: Path, job_hash: str) -> bool:
    """Whether a receipt says that the piece is finished; its bytes are not looked at."""
    return bool(_read(receipt_file(piece)).get("hash") == job_hash)


def adopt(wanted: Mapping[str, Path], receipts: Iterable[Path]) -> int:
    """Link finished pieces ({job hash: place}) that other folders' receipts name; returns how many."""
    missing = {job_hash: piece for job_hash, piece in wanted.items() if not receipt_file(piece).exists()}
    adopted = 0
    for path in sorted(receipts) if missing else ():
        piece = missing.pop(str(_read(path).get("hash")), None)
        if piece is None:
            continue
        source = path.with_suffix(piece.suffix)
        if source.exists():
            _link(source, piece)
        _link(path, receipt_file(piece))  # last: it makes the piece count
        adopted += 1
    return adopted


def _read(path: Path) -> Receipt:
    """A receipt; an empty one where none is there, or one half-written by a run that was killed."""
    return known_json(path) or {}


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the disk has no links."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
