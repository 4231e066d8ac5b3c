"""The one form of every command's --help and of its complaints about words.

A command is its module's docstring (what it does, with examples), words and options, keys, and exit codes. Nothing
heavy is imported here: --help answers at once.
"""

import argparse
import difflib
from collections.abc import Mapping
from typing import NoReturn

from hpe_core.errors import SpecError

EXIT_STOPPED = 130


class CommandParser(argparse.ArgumentParser):
    """`keys` are lines about key=value words, `codes` what each exit code means. Wrong words raise SpecError."""

    def __init__(self, doc: str, keys: str, codes: Mapping[int, str]) -> None:
        meanings = {**codes, EXIT_STOPPED: "stopped (Ctrl-C)"}
        said = "exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in meanings.items())
        super().__init__(
            description=doc.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="\n\n".join(filter(None, [keys, said])),
            allow_abbrev=False,  # an option that is added later would make a short form ambiguous
        )

    def error(self, message: str) -> NoReturn:
        """One sentence, which names the nearest option, or the key that was written like one."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and unknown.startswith("-"):
            flag = unknown.split()[0].partition("=")[0]
            close = difflib.get_close_matches(flag, list(self._option_string_actions), n=1, cutoff=0.75)
            meant = f"did you mean '{close[0]}'?" if close else f"a key is written {flag.lstrip('-')}=VALUE"
            raise SpecError(f"unknown option {flag}; {meant}")
        raise SpecError(f"{message}; {self.prog} --help says more")
