"""A reason means one class: a client makes the error of the daemon's word for it, whatever else its process has loaded."""

from __future__ import annotations

import importlib
import pkgutil

import sev
import sevd
from sev.errors import SevError, from_reason


def classes(cls: type[SevError]) -> list[type[SevError]]:
    """A class of errors and all below it."""
    return [cls, *(found for below in cls.__subclasses__() for found in classes(below))]


def test_no_two_classes_have_the_same_reason() -> None:
    for package in (sev, sevd):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__") and ".v1." not in module.name:
                importlib.import_module(module.name)
    own = [cls for cls in classes(SevError)[1:] if "reason" in vars(cls)]
    assert len(own) > 20
    assert [cls for cls in own if from_reason(cls.reason) is not cls] == []
