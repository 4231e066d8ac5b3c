"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(align: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`align` has a letter a column: l for words, r for numbers, which stand on the right."""
    assert len(align) == len(head), "a letter a column"
    rule = "".join({"l": "---|", "r": "--:|"}[letter] for letter in align)
    return "\n".join([_line(head), f"|{rule}", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def escaped(text: str) -> str:
    """Somebody's name in a cell or a sentence: it ends no cell and no line, and opens no tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
