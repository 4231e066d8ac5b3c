"""How pages are made: templates (Jinja2) say it, values come from Python, figures become PNGs.

A template whose name ends in `.html.j2` escapes every value. A value that a template names and nobody gave is an error.
"""

import base64
import hashlib
import io
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpe_core.geometry.crop import Image, encoded
from workflows.report.markdown import escaped

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")


@cache
def environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["escaped"] = escaped
    return made


def render(template: str, **values: Any) -> str:
    """A template with its values."""
    return environment().get_template(template).render(values)


def fingerprint(*more: Path) -> str:
    """Hash of all templates, and of more files: a page that would say something else is made anew."""
    whole = hashlib.sha256()
    for file in [*sorted(TEMPLATES.iterdir()), *more]:
        whole.update(file.name.encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()[:12]


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class Entry:
    """One entry of an HTML table."""

    text: str
    below: str = ""  # in small letters
    phone: str = ""  # the same, on a narrow screen only
    best: bool = False  # bold
    code: bool = False


@dataclass(frozen=True)
class Line:
    """One row of an HTML table; `ours` is marked by its colour."""

    entries: tuple[Entry, ...]
    ours: bool = False


def line(*entries: str | Entry, ours: bool = False) -> Line:
    return Line(tuple(Entry(entry) if isinstance(entry, str) else entry for entry in entries), ours)


def decimals(value: float | None, places: int = 2) -> str:
    return "–" if value is None else f"{value:.{places}f}"


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Picture:
    """A PNG for a page that needs no other file. `kind` is its style: chart or faces."""

    kind: str
    base64: str


class Book:
    """Saves every picture of a report as a PNG in its folder, and gives it back for the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taken = set[Path]()

    def chart(self, name: str, figure: Any) -> Picture:
        """A matplotlib figure."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return self._saved(name, buffer.getvalue(), "chart")

    def faces(self, name: str, sheet: Image) -> Picture:
        """(H, W, 3) uint8 RGB."""
        return self._saved(name, encoded(sheet), "faces")

    def _saved(self, name: str, png: bytes, kind: str) -> Picture:
        file = self.folder / f"{file_name(name)}.png"
        while file in self._taken:  # "a b" and "a-b" are two test sets
            file = file.with_name(f"{file.stem}-.png")
        self._taken.add(file)
        file.write_bytes(png)
        return Picture(kind, base64.b64encode(png).decode())


def file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)
