"""The one form of every command's --help, of its complaints about words, and of its key=value words.

A command is its module's docstring (what it does, with examples), words and options, keys, and exit codes. Nothing
heavy is imported here: --help answers at once. Keys are typed by the spec: of a key that holds text, what stands after
`=` is taken as it is written.
"""

import argparse
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any, Literal, NoReturn, get_args, get_origin

from hpe_core.errors import SpecError, check, say
from hpe_core.spec.serde import hint_at

EXIT_STOPPED = 130
KEY = re.compile(r"[\w.]+=")
MISSING = "???"  # in OmegaConf a value that somebody still has to give; a merge passes over it


class CommandParser(argparse.ArgumentParser):
    """`keys` are lines about key=value words, `codes` what exit codes mean. Wrong words raise SpecError."""

    def __init__(self, doc: str, keys: str, codes: Mapping[int, str]) -> None:
        meanings = {**codes, EXIT_STOPPED: "stopped (Ctrl-C)"}
        said = "exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in meanings.items())
        super().__init__(
            description=doc.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="\n\n".join(filter(None, [keys, said])),
            allow_abbrev=False,  # an option that is added later would make a short form ambiguous
        )
        if self.prog.partition(" ")[0] == "hpe":
            self.description = re.sub(r"python workflows/\w+\.py", self.prog, doc.strip())

    def parsed(self, argv: Sequence[str]) -> argparse.Namespace:
        """Options and words in any order. Says which key counts where one is given twice."""
        args = self.parse_intermixed_args(argv)
        words: list[str] = getattr(args, "words", [])
        last = {word.partition("=")[0]: word for word in words if KEY.match(word) and not os.path.exists(word)}
        for key, word in last.items():
            if len({other for other in words if other.startswith(f"{key}=")}) > 1:
                say(f"{key} is given more than once; the last one counts: {word}")
        return args

    def error(self, message: str) -> NoReturn:
        """One sentence, which names the nearest option, or the key that was written like one."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and unknown.startswith("-"):
            flag = unknown.split()[0].partition("=")[0]
            close = difflib.get_close_matches(flag, list(self._option_string_actions), n=1, cutoff=0.75)
            meant = f"did you mean '{close[0]}'?" if close else f"a key is written {flag.lstrip('-')}=VALUE"
            raise SpecError(f"unknown option {flag}; {meant}")
        raise SpecError(f"{message}; {self.prog} --help says more")


def parted(words: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The key=value words of these names by their names, and all others."""
    mine = [word for word in words if "=" in word and word.partition("=")[0] in names]
    own = {key: value for key, _, value in (word.partition("=") for word in mine)}
    return own, [word for word in words if word not in mine]


def typed_overrides(kind: type, words: Sequence[str], files: Any = None) -> dict[str, Any]:
    """The words, laid over merged files, which change by it, as plain values that `build` takes. Raises SpecError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
    from yaml import YAMLError

    laid, untold = OmegaConf.create({}), []
    for word in words:
        key, equals, text = word.partition("=")
        check(bool(key and equals), f"'{word}' is no override; write key=value, for example student.optim.lr=0.001")
        try:
            value = _value(hint_at(kind, key.split(".")), text)
            untold += [key] * (value == MISSING)
            tree = reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), value)
            laid = OmegaConf.unsafe_merge(laid, tree)
        except (OmegaConfBaseException, YAMLError, ValueError) as error:
            raise SpecError(f"'{word}' cannot be read: {' '.join(str(error).split())}") from None
    merged = laid if files is None else OmegaConf.unsafe_merge(files, laid)
    for key in untold:  # a merge passes over them
        OmegaConf.update(merged, key, MISSING)
    try:
        tree = OmegaConf.to_container(merged, resolve=True)
    except InterpolationResolutionError as error:
        raise SpecError(_unresolved(error.full_key, str(error))) from None
    except (OmegaConfBaseException, ValueError) as error:
        raise SpecError(f"the configuration cannot be merged: {' '.join(str(error).split())}") from None
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def literal(tree: Any) -> Any:
    """Plain values of which OmegaConf takes every text for what it is, `${` included."""
    if isinstance(tree, dict):
        return {key: literal(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [literal(value) for value in tree]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if isinstance(tree, str) else tree


def _value(hint: Any, text: str) -> Any:
    """The text as a value of that type; where the type is not known, or holds several values, it is YAML."""
    import yaml
    from omegaconf import OmegaConf

    if hint is str or (get_origin(hint) is Literal and all(isinstance(word, str) for word in get_args(hint))):
        return literal(text)
    if hint == tuple[str, ...] and text not in ("", "null"):
        return literal(yaml.load(text, yaml.BaseLoader) if text.lstrip().startswith("[") else [text])
    for parse in (int, float) if hint in (int, float) else ():
        with suppress(ValueError):
            return parse(text)
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"it={text}"]))["it"]


def _unresolved(key: str, said: str) -> str:
    """The sentence about a `${...}` that leads nowhere."""
    unset = re.search(r"Environment variable '(\w+)' not found", said)
    if unset:
        return f"{key} needs the environment variable {unset[1]}, which is not set: export {unset[1]}=/folder"
    return f"{key} cannot be resolved: {said.splitlines()[0]}"
