"""Records behave as the standard library's data classes do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from sev.records import field, fields_of, mutable_record, record, replace


@record
class Point:
    """A point."""

    x: int
    y: int = 2
    tags: tuple[str, ...] = ()
    LIMIT: ClassVar[int] = 9

    @property
    def sum(self) -> int:
        return self.x + self.y


@record
class Named(Point):
    name: str = ""


@mutable_record
class Box:
    content: list[int] = field(default_factory=list)
    size: int = 0

    def __post_init__(self) -> None:
        self.size = len(self.content)


@dataclass(frozen=True, slots=True)
class Model:
    x: int
    y: int = 2
    tags: tuple[str, ...] = ()


def test_it_is_made_shown_compared_and_hashed_like_a_data_class() -> None:
    ours = Point(1, tags=("a",))
    theirs: Any = Model(1, tags=("a",))
    assert repr(ours) == repr(theirs).replace("Model", "Point")
    assert hash(ours) == hash(theirs)
    assert ours == Point(1, 2, ("a",))
    assert ours != Point(1, 3, ("a",))
    assert ours != theirs
    assert Point.__doc__ == "A point."
    assert (ours.sum, Point.LIMIT) == (3, 9)
    assert fields_of(Point) == Point.__match_args__ == ("x", "y", "tags")


def test_it_has_slots_and_cannot_be_changed() -> None:
    point: Any = Point(1)
    assert not hasattr(point, "__dict__")
    for name in ("x", "z"):
        with pytest.raises(AttributeError):
            setattr(point, name, 5)
    with pytest.raises(AttributeError):
        del point.x
    assert point == Point(1)


@pytest.mark.parametrize(
    ("values", "names", "says"),
    [
        ((), {}, "no value for x"),
        ((1, 2, (), 4), {}, "takes 3 values and was given 4"),
        ((1,), {"x": 2}, "x"),
        ((1,), {"z": 2}, "z"),
    ],
    ids=["too few", "too many", "twice", "unknown"],
)
def test_what_it_cannot_be_made_of(values: tuple[Any, ...], names: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        Point(*values, **names)


def test_fields_of_a_base_come_first() -> None:
    named = Named(1, 2, (), "n")
    assert fields_of(Named) == ("x", "y", "tags", "name")
    assert (named.name, named.sum) == ("n", 3)
    assert named != Point(1, 2)


def test_a_mutable_one_has_defaults_of_its_own_and_no_hash() -> None:
    first, second = Box(), Box([1])
    first.content.append(7)
    assert Box().content == []
    assert (second.size, second) == (1, Box([1]))
    second.size = 5
    assert second.size == 5
    with pytest.raises(TypeError, match="unhashable"):
        hash(second)


def test_copies() -> None:
    point = Point(1, tags=("a",))
    assert replace(point, x=4) == Point(4, 2, ("a",))
    assert point.x == 1
    with pytest.raises(TypeError, match="nothing"):
        replace(point, nothing=1)
    for again in (copy.copy(point), copy.deepcopy(point), pickle.loads(pickle.dumps(point))):
        assert again == point


def test_the_functions_of_data_classes_take_it() -> None:
    point: Any = Named(1, tags=("a",), name="n")
    assert [one.name for one in dataclasses.fields(point)] == ["x", "y", "tags", "name"]
    assert dataclasses.replace(point, x=4) == Named(4, 2, ("a",), "n")
    assert dataclasses.asdict(point) == {"x": 1, "y": 2, "tags": ("a",), "name": "n"}
    assert [one.name for one in dataclasses.fields(Point(1))] == ["x", "y", "tags"]


def test_it_matches_patterns() -> None:
    match Point(1, 5):
        case Point(1, y):
            assert y == 5
        case _:
            pytest.fail("no match")
