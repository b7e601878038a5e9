"""The arguments of a job between a call and JSON: by name, checked when they are enqueued.

What is stored is an object with the arguments that were given; defaults are those of the function
that runs. A value that the function's annotations would refuse is refused before it is sent.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias, get_type_hints

import msgspec

from strandline.errors import InvalidDefinition, InvalidInput
from strandline.jobs.inject import Injected

Bound: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments, as the function is called with."""

UNSET = msgspec.UNSET
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_GIVEN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Arguments:
    """The arguments that a job's function takes.

    Attributes:
        names: Of the arguments, in order; what is injected is not among them.
    """

    def __init__(
        self, function: Callable[..., Any], kind: str, names: Mapping[str, Any] | None = None
    ) -> None:
        self.kind = kind
        self._function = function
        self._locals = dict(names or {})
        self._positional: list[str] = []
        self._only_positional: list[str] = []
        self._defaults: dict[str, Any] = {}
        self._decode: Callable[[str | bytes], Any] | None = None
        self._struct: type[msgspec.Struct] = msgspec.Struct
        self._read_parameters()
        self._required = frozenset(set(self.names) - set(self._defaults))
        by_place = len(self._positional) == len(self.names)
        self._exactly = len(self.names) if by_place else -1
        self._is_tuple = not self._defaults and by_place

    def bind(self) -> None:
        """Resolve the annotations.

        Raises:
            InvalidDefinition: One cannot be resolved, or names a type that JSON cannot be read as.
        """
        if self._decode is not None:
            return
        function = inspect.unwrap(self._function)
        try:
            hints = get_type_hints(function, localns=self._locals, include_extras=True)
            fields: list[tuple[str, Any, Any] | tuple[str, Any]] = []
            for name in self.names:
                hint = hints.get(name, Any)
                given = (name, hint)
                fields.append(
                    (name, hint | msgspec.UnsetType, UNSET) if name in self._defaults else given
                )
            self._struct = msgspec.defstruct(f"{self.kind} arguments", fields, kw_only=True)
            self._decode = msgspec.json.Decoder(self._struct, dec_hook=_read).decode
        except (NameError, TypeError, AttributeError, SyntaxError) as error:
            raise InvalidDefinition(
                f"job {self.kind!r}: its annotations cannot be read from JSON: {error}"
            ) from error

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The JSON for a call with these.

        Raises:
            InvalidInput: The function does not take them, or they have no JSON form that it takes.
        """
        if not kwargs and len(args) == self._exactly:  # most calls
            given = dict(zip(self.names, args))  # noqa: B905 - as many
        else:
            given = self._bound(args, kwargs)
        try:
            data = _encode(given)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidInput(
                f"arguments of job {self.kind!r} have no JSON form: {error}"
            ) from error
        if b"\\u0000" in data and _NUL.search(data):
            raise InvalidInput(
                f"arguments of job {self.kind!r} hold a NUL character, which PostgreSQL cannot store"
            )
        if b"null" in data and _has_odd_float(given):
            raise InvalidInput(
                f"arguments of job {self.kind!r} hold NaN or infinity, which JSON cannot tell from null"
            )
        try:
            (self._decode or self._decoder())(data)
        except msgspec.ValidationError as error:
            raise InvalidInput(
                f"job {self.kind!r} does not take these arguments: {error}"
            ) from error
        except InvalidDefinition:
            raise
        except Exception as error:  # pydantic and the user's own types raise anything
            raise InvalidInput(
                f"job {self.kind!r} does not take these arguments: {error}"
            ) from error
        return data

    def decode(self, data: str | bytes) -> Bound:
        """What the function is to be called with.

        Raises:
            msgspec.ValidationError: They do not fit its annotations.
        """
        return self._call((self._decode or self._decoder())(data))

    def convert(self, given: Mapping[str, Any]) -> Bound:
        """``decode`` for arguments that are JSON values already."""
        return self.decode(_encode(given))  # JSON has keys of its own: texts, whatever they mean

    def filled(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call *function*, which names some of these arguments, with those; defaults where not given.

        One that names others is called as the job is.
        """
        wanted = inspect.signature(function).parameters.values()
        if not all(one.name in self.names and one.kind not in _ANY_NUMBER for one in wanted):
            return function(*args, **kwargs)
        known = self._defaults | self._bound(args, kwargs)
        own = [one for one in wanted if one.name in known]
        return function(
            *[known[one.name] for one in own if one.kind in _GIVEN],
            **{one.name: known[one.name] for one in own if one.kind not in _GIVEN},
        )

    def whole(self, data: bytes, wanted: Collection[str] | None = None) -> dict[str, Any]:
        """The arguments with the defaults of those not given, as JSON values.

        Args:
            data: What ``encode`` answered.
            wanted: Only these; None: all, but for defaults without a JSON form.
        """
        read = (self._decode or self._decoder())(data)
        found = {}
        for name in self.names if wanted is None else [one for one in self.names if one in wanted]:
            value = getattr(read, name)
            is_given = value is not UNSET
            value = value if is_given else self._defaults[name]
            try:
                found[name] = msgspec.to_builtins(value, enc_hook=_written, order="sorted")
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                if is_given or wanted is not None:
                    raise InvalidInput(
                        f"argument {name!r} of job {self.kind!r} has no JSON form, so it cannot be"
                        f" unique by it: {error}"
                    ) from error
        return found

    def _read_parameters(self) -> None:
        self.names: list[str] = []
        in_order = True
        for name, one in inspect.signature(self._function).parameters.items():
            if one.kind in _ANY_NUMBER:
                raise InvalidDefinition(
                    f"job {self.kind!r} takes {one}: name every argument, they are stored by name"
                )
            if isinstance(one.default, Injected):
                in_order = False  # what follows has to be given by name
                continue
            self.names.append(name)
            if one.kind in _GIVEN and in_order:
                self._positional.append(name)
            if one.kind is inspect.Parameter.POSITIONAL_ONLY:
                if not in_order:
                    raise InvalidDefinition(
                        f"job {self.kind!r}: {name} is positional-only, behind what is injected"
                    )
                self._only_positional.append(name)
            if one.default is not one.empty:
                self._defaults[name] = one.default

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._positional):
            raise self._refused(f"takes {len(self._positional)} by position, got {len(args)}")
        given = dict(zip(self._positional, args, strict=False))
        for name in kwargs:
            if name in given:
                raise self._refused(f"got {name!r} twice")
            if name not in self.names or name in self._only_positional:
                raise self._refused(f"has no argument {name!r} to be given by name")
        given.update(kwargs)
        if not self._required <= given.keys():
            missing = [name for name in self.names if name in self._required - given.keys()]
            raise self._refused(f"misses {', '.join(missing)}")
        return given

    def _refused(self, why: str) -> InvalidInput:
        return InvalidInput(
            f"job {self.kind!r} {why} (it takes: {', '.join(self.names) or 'nothing'})"
        )

    def _decoder(self) -> Callable[[str | bytes], Any]:
        self.bind()
        assert self._decode is not None
        return self._decode

    def _call(self, read: Any) -> Bound:
        if self._is_tuple:
            return msgspec.structs.astuple(read), {}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name in self.names:
            value = getattr(read, name)
            if name in self._only_positional:
                args.append(self._defaults[name] if value is UNSET else value)
            elif value is not UNSET:
                kwargs[name] = value
        return tuple(args), kwargs


def _written(value: Any) -> Any:
    """What msgspec does not know: pydantic models."""
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"objects of {type(value).__name__} have no JSON form")
    return dump(mode="json")


def _read(kind: Any, value: Any) -> Any:
    validate = getattr(kind, "model_validate", None)
    if validate is None:
        if isinstance(value, kind):
            return value
        raise TypeError(f"{kind!r} cannot be read from JSON")
    return validate(value)


_encode = msgspec.json.Encoder(enc_hook=_written).encode


def _has_odd_float(value: Any) -> bool:
    """Whether a float in *value* was written as null."""
    waiting = [msgspec.to_builtins(value, enc_hook=_written)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, float) and not math.isfinite(one):
            return True
        if isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list | tuple | set | frozenset):
            waiting.extend(one)
    return False
