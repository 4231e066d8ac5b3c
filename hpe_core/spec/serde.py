"""Frozen dataclasses whose annotations say what a value may be, and plain mappings <-> such dataclasses.

A wrong value becomes one sentence that names the full key; a wrong key names the nearest right one. This module knows
no spec by name. Why pydantic does not do this: docs/libraries.md.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from hpe_core.errors import SpecError, check, nearest, one_of

T = TypeVar("T")
Limit = tuple[str, Callable[[Any], bool]]  # what is said of a value that does not keep to it


def _limit(said: str, holds: Callable[[Any, float], bool]) -> Callable[[float], Limit]:
    return lambda bound: (f"must be {said} {bound:g}, got {{}}", lambda value: holds(value, bound))


at_least, at_most = _limit("at least", operator.ge), _limit("at most", operator.le)
above, below = _limit("greater than", operator.gt), _limit("less than", operator.lt)
Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
Positive = Annotated[float, above(0)]
NotNegative = Annotated[float, at_least(0)]
Share = Annotated[float, at_least(0), at_most(1)]
Text = Annotated[str, ("has no value", bool)]
hints_of: Callable[[Any], Mapping[str, Any]] = functools.cache(functools.partial(get_type_hints, include_extras=True))


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def checked(kind: type[T]) -> type[T]:
    """Makes the class a frozen dataclass. To make one of values beyond their annotations' limits raises SpecError."""
    also: Callable[[Any], None] = getattr(kind, "__post_init__", lambda self: None)

    def __post_init__(self: Any) -> None:
        for name, limits in _limited(cast(Any, kind)):
            _check_limits(limits, getattr(self, name), name)
        also(self)

    kind.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True)(kind)


def to_dict(spec: Any) -> Any:
    """A spec as plain dicts and lists, in field order (what `build` takes back)."""
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return {f.name: to_dict(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
    if isinstance(spec, Mapping):
        return {key: to_dict(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [to_dict(value) for value in spec]
    return spec


def build(kind: type[T], values: Any, key: str = "") -> T:
    """A mapping of plain values -> the dataclass. Raises SpecError that names the full key."""
    check(isinstance(values, Mapping), f"{key or 'the configuration'} must be a mapping of keys, got {values!r}")
    hints, prefix, made = hints_of(kind), f"{key}." if key else "", {}
    for name in values:
        if name not in hints:
            raise SpecError(f"unknown key {prefix}{name}{nearest(str(name), [*hints])}")
    for field in dataclasses.fields(cast(Any, kind)):
        if field.name in values:
            made[field.name] = _read(hints[field.name], values[field.name], prefix + field.name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SpecError(f"key {prefix}{field.name} is missing")
    try:
        return kind(**made)
    except SpecError as error:
        said = str(error)
        raise SpecError(said if not key or said.startswith(key) else f"{key}: {said}") from None


def hint_at(kind: Any, path: Sequence[str]) -> Any:
    """The type of the value at a path of keys, without limits and None; None where there is no such key."""
    for name in path:
        if dataclasses.is_dataclass(kind):
            kind = hints_of(kind).get(name)
        else:
            kind = get_args(kind)[1] if get_origin(kind) is dict else None
        while get_origin(kind) is Annotated or (NoneType in get_args(kind) and len(get_args(kind)) == 2):
            kind = get_args(kind)[0]
    return kind


def _read_any(kinds: Sequence[Any], value: Any, key: str) -> Any:
    """A value as the first of several types that takes it. Raises SpecError that says what each of them asks for."""
    said = []
    for kind in kinds:
        try:
            return _read(kind, value, key)
        except SpecError as error:
            said.append(str(error))
    raise SpecError("; or ".join([said[0], *(text.removeprefix(f"{key} ") for text in said[1:])]))


@functools.cache
def _limited(kind: type) -> tuple[tuple[str, Sequence[Limit]], ...]:
    """The fields of a dataclass that have limits, and those."""
    return tuple((name, get_args(hint)[1:]) for name, hint in hints_of(kind).items() if get_origin(hint) is Annotated)


def _check_limits(limits: Sequence[Limit], value: Any, key: str) -> None:
    for said, holds in limits:
        if not holds(value):
            raise SpecError(f"{key} {said.format(value)}")


def _read(hint: Any, value: Any, key: str) -> Any:
    """A plain value as the annotation wants it. Raises SpecError that names the key."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or (value is None and NoneType in args):
        return value
    if value is None and origin is dict:
        return {}  # `search.space=null` drops every entry
    check(value is not None, f"{key} has no value")
    if origin is Annotated:
        value = _read(args[0], value, key)
        _check_limits(args[1:], value, key)
        return value
    if origin in (Union, UnionType):
        return _read_any([kind for kind in args if kind is not NoneType], value, key)
    if origin is Literal:
        if value not in args:
            raise SpecError(f"{key} is {one_of(value, args)}")
        return value
    if origin is tuple:
        several = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
        kinds = [args[0]] * len(several) if args[-1] is Ellipsis else args
        check(len(several) == len(kinds), f"{key} has {len(several)} values; {len(kinds)} are needed")
        return tuple(
            _read(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, several, strict=True))
        )
    if origin is dict:
        check(isinstance(value, Mapping), f"{key} must be a mapping of names, got {value!r}")
        return {str(name): _read(args[1], item, f"{key}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(cast(type[Any], hint), value, key)
    if isinstance(hint, type) and issubclass(hint, Enum):
        if value not in [*hint]:
            raise SpecError(f"{key} is {one_of(value, [*hint])}")
        return hint(value)
    is_bool, is_number = isinstance(value, bool), isinstance(value, int | float) and not isinstance(value, bool)
    if hint is bool:
        check(is_bool, f"{key} is {value!r}; allowed: true, false")
        return value
    if hint is str:
        said = f"{key} is {value!r}; text is needed (in quotes, where YAML reads something else)"
        check(is_number or isinstance(value, str), said)
        return str(value)
    assert hint in (int, float), f"{key} has a type that build does not know: {hint}"
    whole = hint is int
    check(is_number and not (whole and value % 1), f"{key} is {value!r}; a {'whole ' * whole}number is needed")
    check(math.isfinite(value), f"{key} is {value!r}; a finite number is needed")
    return hint(value)
