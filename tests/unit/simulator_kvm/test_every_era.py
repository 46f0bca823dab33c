"""A test that is marked for every kernel runs on a host of each."""

from __future__ import annotations

from sevd.simulator import Simulator, kernel_era
from tests.support.simulated import EVERY_ERA


@EVERY_ERA
def test_the_host_has_the_kernel_that_was_asked_for(host: Simulator, era: str) -> None:
    assert host.host_facts().kernel == kernel_era.ERAS[era].release


def test_there_is_one_where_none_was_asked_for(host: Simulator) -> None:
    assert host.host_facts().kernel == kernel_era.ERAS[kernel_era.DEFAULT].release
