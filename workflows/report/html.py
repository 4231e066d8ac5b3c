"""The frame of the report: one HTML page without a single outside resource, readable on a telephone and on
paper."""

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from hpe_core.geometry.crop import Image


def whole_page(title: str, opening: str, sections: Sequence[str]) -> str:
    """A complete page: the opening, links to the sections that have a heading, and the sections."""
    links, named = [], []
    for number, section in enumerate(sections, start=1):
        if heading := re.match("<section><h2>(.*?)</h2>", section):
            links.append(f'<a href="#s{number}">{heading[1]}</a>')
            section = f'<section id="s{number}">{section.removeprefix("<section>")}'
        named.append(section)
    contents = f"<nav>{' '.join(links)}</nav>\n"
    body = f"{opening}{contents}{''.join(named)}"
    head = HEAD.replace("TITLE", esc(title)).replace("n + FIRST", f"n + {FIRST + 1}")
    return f"{head}<main>\n{body}</main>\n</body></html>\n"


class Book:
    """Saves each figure as a PNG and gives it back as an HTML figure with the picture inside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def chart(self, name: str, figure: Any, caption: str) -> str:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return self._figure(name, buffer.getvalue(), caption, "chart")

    def faces(self, name: str, sheet: Image, caption: str) -> str:
        done, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
        assert done, "cv2 refused to encode a uint8 RGB sheet"
        return self._figure(name, data.tobytes(), caption, "faces")

    def _figure(self, name: str, png: bytes, caption: str, kind: str) -> str:
        (self.folder / f"{file_name(name)}.png").write_bytes(png)
        data = base64.b64encode(png).decode()
        alt = esc(re.sub("<[^>]*>", "", caption))
        return (
            f'<figure class="{kind}"><img src="data:image/png;base64,{data}" alt="{alt}">'
            f"<figcaption>{caption}</figcaption></figure>\n"
        )


def table(head: Sequence[str], lines: Sequence[str], *, first: bool = False) -> str:
    """Rows (`<tr>` with a cell for each name) under their names.

    On a telephone a wide one becomes a card a row, or, where the `first` columns say enough, is cut off behind them:
    numbers that are to be compared stay below each other.
    """
    texts = ["class=text" in cell for cell in _cells(lines[0])] if lines else [False] * len(head)
    marks = [" class=text" if text else "" for text in texts]
    names = "".join(f"<th scope=col{mark}>{esc(name)}</th>" for name, mark in zip(head, marks, strict=True))
    top = f"<thead><tr>{names}</tr></thead>" if any(head) else ""
    kind = "" if len(head) <= WIDE else ' class="first"' if first else ' class="wide"'
    rows = [line.replace("<th>", "<th scope=row>", 1) for line in lines]
    body = "".join(_named(row, head) for row in rows) if "wide" in kind else "".join(rows)
    return f'<div class="scroll"><table{kind}>{top}<tbody>{body}</tbody></table></div>'


def _named(line: str, head: Sequence[str]) -> str:
    """The row with the name of its column on every cell, for the card that shows no head."""
    opening = line[: line.index(">") + 1]
    return opening + "".join(
        f'{cell[:3]} data-name="{esc(name)}"{cell[3:]}' for name, cell in zip(head, _cells(line), strict=True)
    )


def _cells(line: str) -> list[str]:
    """The cells of a `<tr>`; the last one keeps the row's end."""
    return re.split(r"(?=<t[dh][ >])", line)[1:]


def esc(text: object) -> str:
    return html.escape(str(text))


def file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


FIRST = 5  # columns of a table that is cut off behind them, with numbers of five letters
WIDE = 3  # columns beyond which a table does not fit a telephone
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light; --ink: #1b1f24; --dim: #5a636e; --line: #d9dde2 }
:root { --ours: #eaf2fa; --blue: #0b5fa5 }
* { box-sizing: border-box }
body { margin: 0; background: #fff; color: var(--ink) }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 16px 20px 48px }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4em 0 .3em }
h2 { font-size: 1.2rem; margin: 0 0 .5em }
section { margin-top: 2.2rem; border-top: 1px solid var(--line); padding-top: 1.1rem }
.lead { max-width: 46em }
.note, figcaption, small { color: var(--dim); font-size: .86rem }
.note { margin: .4em 0 1em }
.headline p { margin: .7em 0 0 }
.scores { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 10px; max-width: 760px }
.scores div { border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px }
.scores div { display: flex; flex-direction: column }
.scores b { font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums }
.scores span { font-size: .86rem; color: var(--dim); line-height: 1.35 }
.scores .best { background: var(--ours); border-color: var(--blue) }
.grid { display: grid; gap: 8px 32px; align-items: start }
.grid { grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)) }
.grid > * { min-width: 0 }
figure { margin: .8rem 0; break-inside: avoid }
figure img { display: block; width: 100%; height: auto; max-width: 768px }
.gallery { display: grid; gap: 0 24px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)) }
h3 { font-size: 1rem; margin: 1.2em 0 .2em }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 50% }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
thead th { color: var(--dim); font-weight: 600; border-bottom-color: #8d96a0; vertical-align: bottom }
tr > :first-child, .text { text-align: left }
tbody th { font-weight: 600 }
tbody th small { display: block; font-weight: 400; white-space: normal; min-width: 9em }
tr.ours > * { background: var(--ours) }
td.text { white-space: normal; overflow-wrap: anywhere }
pre { font-size: .8rem; line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere }
pre { background: #f6f7f8; padding: 12px }
code { font-size: .92em }
summary { cursor: pointer; margin-top: 1em; padding: 4px 0 }
nav { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 1.4rem }
nav a { color: var(--blue); padding: 5px 0; text-underline-offset: 3px }
.phone, tbody th small.phone { display: none }
@media (max-width: 600px) {
  main { padding: 8px 14px 32px }
  .scores { grid-template-columns: 1fr }
  .scores div { display: grid; grid-template-columns: 7em 1fr; align-items: center }
  .scores b { grid-row: span 2 }
  th, td { padding: 5px 7px }
  table { width: 100% }
  thead th { white-space: normal }
  .first tr > :nth-child(n + FIRST) { display: none }
  .first tbody th small { min-width: 0; overflow-wrap: anywhere }
  .first tbody th { white-space: normal }
  div.phone, span.phone, tbody th small.phone { display: block }
  .wide thead { display: none }
  .wide tr { display: grid; grid-template-columns: repeat(4, 1fr); border-bottom: 1px solid var(--line) }
  .wide tr > * { border: 0; text-align: left; padding: 3px 6px }
  .wide tr.ours { background: var(--ours) }
  .wide tr > :first-child, .wide td.text { grid-column: 1 / -1 }
  .wide td { overflow-wrap: anywhere; white-space: normal }
  .wide td::before { content: attr(data-name); display: block; font-size: .75rem; color: var(--dim) }
}
@media print {
  html, body { font-size: 11px }
  main { max-width: none; padding: 0 }
  section { break-inside: auto }
  h2 { break-after: avoid }
  .scroll { overflow: visible }
  table { font-size: 9px }
  th, td { padding: 3px 5px }
  .grid { grid-template-columns: 1fr 1fr }
  .gallery { grid-template-columns: repeat(3, 1fr) }
  tr { break-inside: avoid }
  nav, summary { display: none }
  details::details-content { content-visibility: visible; height: auto }
}
</style></head><body>
"""
