"""The time by which keys expire: it goes on from what the log says, by monotonic clocks, and no new leader changes it."""

import pytest

from raftd.kv.clock import Clock


class Times:
    """A monotonic clock that is set by hand, in seconds."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_time_goes_on_from_what_was_heard():
    times = Times()
    clock = Clock(times)
    times.now += 1.5
    assert clock.now() == 1500
    clock.hear(700_000)
    assert clock.now() == 700_000
    times.now += 0.25
    assert clock.now() == 700_250


def test_a_follower_goes_by_what_it_hears_also_when_its_own_clock_is_ahead():
    """Else what clocks differ by would add up, until it leads."""
    times = Times()
    clock = Clock(times)
    for second in range(1, 1001):
        times.now += 1.1
        clock.hear(1000 * second)
    assert clock.lead(2) == clock.now() == 1_000_000


def test_a_leader_does_not_go_by_what_it_said_itself():
    """It hears that late, when it is applied: to go on from there would make it slower with every entry."""
    times = Times()
    clock = Clock(times)
    clock.hear(5000)
    for _ in range(1000):
        said = clock.lead(3)
        times.now += 0.1
        clock.hear(said)
    assert clock.lead(3) == pytest.approx(5000 + 100_000, abs=1)


def test_in_another_term_a_leader_goes_on_from_what_it_has_heard():
    times = Times()
    clock = Clock(times)
    assert clock.lead(1) == 0
    times.now += 100
    clock.hear(30_000)  # the leader of term 2 has a slower clock
    times.now += 1
    assert clock.lead(3) == 31_000
    times.now += 1
    assert clock.lead(3) == 32_000


def test_a_leader_hears_what_the_one_before_has_said_and_goes_on_from_there():
    """Its state may have been behind when it began to lead."""
    times = Times()
    clock = Clock(times)
    assert clock.lead(2) == 0
    clock.hear(60_000)
    times.now += 1
    assert clock.lead(2) == 61_000
