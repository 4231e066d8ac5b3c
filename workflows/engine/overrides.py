"""key=value words, typed by the spec: of a key that holds text, what stands after `=` is taken as it is written."""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import reduce
from typing import Any, Literal, get_args, get_origin

from hpe_core.errors import SpecError, check
from hpe_core.spec.serde import hint_at

MISSING = "???"  # in OmegaConf a value that somebody still has to give; a merge passes over it


def typed_overrides(kind: type, words: Sequence[str], files: Any = None) -> dict[str, Any]:
    """The words, laid over merged configuration files if there are any, as plain values that `build` takes for `kind`.

    Raises SpecError for a word without `=`, for a list or mapping that is no YAML, and for a `${...}` without a value.
    """
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
            laid = OmegaConf.merge(laid, reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), value))
        except (OmegaConfBaseException, YAMLError, ValueError) as error:
            raise SpecError(f"{word} cannot be read: {' '.join(str(error).split())}") from None
    merged = OmegaConf.merge({} if files is None else files, laid)
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
    if hint == tuple[str, ...]:
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
