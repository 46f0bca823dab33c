"""Small value classes that cost next to nothing to define.

`@record` does for a class what `@dataclass(frozen=True, slots=True)` does: a constructor from its annotations,
equality, a hash, a representation, slots, and no assignment afterwards. `@mutable_record` leaves assignment possible
and the hash out. The standard library writes and compiles source code for each class, about a millisecond each; a
daemon defines dozens of them before it serves, and pays whether it uses them or not. Here the methods are shared
functions that look at the class's fields.

Fields are the annotated names in the order of their definition, those of a base record first; a default is the value
assigned, or `field(default_factory=…)` for one that is made anew for every instance. `__post_init__` is called if there
is one. The functions of `dataclasses` (`replace`, `fields`, `asdict`) take records too.
"""

from __future__ import annotations

from operator import attrgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_):
        """Tells type checkers alone something."""
        return lambda decorator: decorator


_REQUIRED: Any = object()


class _Factory:
    """Stands for a default that is made anew."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make


class _DataclassFields:
    """What the functions of `dataclasses` look for; made when one of them first looks."""

    __slots__ = ()

    def __get__(self, instance: object, owner: Any) -> object:
        from dataclasses import make_dataclass

        stand_in: Any = make_dataclass(owner.__name__, owner.__record_fields__)
        owner.__dataclass_fields__ = stand_in.__dataclass_fields__
        return owner.__dataclass_fields__


def field(*, default_factory: Callable[[], T]) -> T:
    """A default that is made anew for every instance, such as `field(default_factory=list)`."""
    made: Any = _Factory(default_factory)
    value: T = made
    return value


@dataclass_transform(eq_default=True, frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """An immutable value class."""
    return _make(cls, frozen=True)


@dataclass_transform(eq_default=True, frozen_default=False, field_specifiers=(field,))
def mutable_record(cls: type[T]) -> type[T]:
    """A value class whose attributes may be assigned."""
    return _make(cls, frozen=False)


def replace(value: T, **changes: object) -> T:
    """A copy of a record with other values for some fields. Raises TypeError for a name that is no field."""
    old: Any = value
    values = {name: getattr(value, name) for name in old.__record_fields__}
    made: T = type(value)(**(values | changes))
    return made


def fields_of(cls: type) -> tuple[str, ...]:
    """The names of a record's fields."""
    record_class: Any = cls
    names: tuple[str, ...] = tuple(record_class.__record_fields__)
    return names


def _make(cls: type[T], *, frozen: bool) -> type[T]:
    """The class again, with slots and the shared methods."""
    own = [name for name, kind in cls.__annotations__.items() if "ClassVar" not in str(kind)]
    space = {key: value for key, value in cls.__dict__.items() if key not in ("__dict__", "__weakref__")}
    defaults = {name: space.pop(name, _REQUIRED) for name in own}
    base: Any = cls.__bases__[0]
    inherited: dict[str, Any] = getattr(base, "__record_fields__", {})
    space["__slots__"] = tuple(name for name in own if name not in inherited)
    space["__record_fields__"] = inherited | defaults
    space["__dataclass_fields__"] = _DataclassFields()
    space.setdefault("__match_args__", tuple(space["__record_fields__"]))
    for name, method in _FROZEN.items() if frozen else _MUTABLE.items():
        space.setdefault(name, method)
    if not frozen:
        space["__hash__"] = None
    metaclass: Any = type(cls)
    made: Any = metaclass(cls.__name__, cls.__bases__, space)
    made.__record_setters__ = tuple(
        (name, getattr(made, name).__set__, default) for name, default in made.__record_fields__.items()
    )
    made.__record_values__ = attrgetter(*made.__record_fields__) if made.__record_fields__ else staticmethod(_nothing)
    made.__record_post__ = getattr(made, "__post_init__", None)
    out: type[T] = made
    return out


def _init(self: Any, *args: object, **kwargs: object) -> None:
    setters = self.__record_setters__
    given = len(args)
    if given > len(setters):
        raise TypeError(f"{type(self).__name__} takes {len(setters)} values and was given {given}")
    for (_, assign, _), value in zip(setters, args):  # noqa: B905 - what is not given follows below
        assign(self, value)
    for name, assign, default in setters[given:]:
        if name in kwargs:
            assign(self, kwargs.pop(name))
        elif default is _REQUIRED:
            raise TypeError(f"{type(self).__name__}: no value for {name}")
        else:
            assign(self, default.make() if type(default) is _Factory else default)
    if kwargs:
        raise TypeError(f"{type(self).__name__}: no field, or twice: {', '.join(kwargs)}")
    if self.__record_post__ is not None:
        self.__post_init__()


def _nothing(_: object) -> tuple[()]:
    """What a record without fields compares and hashes by."""
    return ()


def _eq(self: Any, other: Any) -> object:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self.__record_values__(self) == other.__record_values__(other)


def _hash(self: Any) -> int:
    return hash(self.__record_values__(self))


def _repr(self: Any) -> str:
    inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__record_fields__)
    return f"{type(self).__qualname__}({inside})"


def _refuse(self: object, name: str, *_: object) -> NoReturn:
    raise AttributeError(f"{type(self).__name__} cannot be changed: {name}")


def _reduce(self: Any) -> tuple[type, tuple[object, ...]]:
    """How copies and pickles are made: from the values."""
    return type(self), tuple(getattr(self, name) for name in self.__record_fields__)


_MUTABLE: dict[str, object] = {"__init__": _init, "__eq__": _eq, "__repr__": _repr, "__reduce__": _reduce}
_FROZEN = _MUTABLE | {"__hash__": _hash, "__setattr__": _refuse, "__delattr__": _refuse}
