"""What went wrong, said to the user: one sentence that names the file, the key or the row."""

import difflib
import sys
from collections.abc import Iterable
from urllib.parse import urlsplit


class UserError(Exception):
    """Something that the user can mend: the message is one sentence that names the file, the key or the row."""


class SpecError(UserError, ValueError):
    """A configuration that cannot be used; the message is one sentence that names the key."""


def check(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def say(text: str) -> None:
    """A line on standard error, at once."""
    print(text, file=sys.stderr, flush=True)


def shown(address: str) -> str:
    """A web address without user, password and what follows `?`: these may be secrets."""
    scheme, _, rest = address.partition("://")
    parts = urlsplit(f"{scheme}://{rest.rpartition('@')[2]}")  # a password may hold any sign, up to the last @
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def nearest(word: str, known: list[str]) -> str:
    """A closing half-sentence: the nearest known word, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def only_near(word: str, known: list[str]) -> str:
    """The same, but '' where none is near."""
    close = nearest(word, known)
    return close if close.startswith("; did") else ""


def one_of(value: object, allowed: Iterable[object]) -> str:
    """The half-sentence for a value that is none of the allowed ones: "'x'; allowed: ...", and the nearest of them."""
    words = [str(word) for word in allowed]
    return f"{value!r}; allowed: {', '.join(words)}{only_near(str(value), words)}"
