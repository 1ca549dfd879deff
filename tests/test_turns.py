"""Turns of large commands: they give way to small ones, and to nobody else. The clock is the test's own."""

import threading

import pytest

from cluster import wait_until
from raftd.errors import CommitTimeout, Overloaded
from raftd.turns import GIVE_WAY_SECONDS, MOST_REST_SECONDS, RESTS, Turns


class Time:
    def __init__(self):
        self.now, self.slept = 100.0, []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def turns(time):
    return Turns(time.sleep, lambda: time.now)


def write(turns, time, seconds, timeout=5.0):
    """A large command that takes *seconds*; returns how much time it was left."""
    with turns.turn(timeout) as left:
        time.now += seconds
    return left


def test_large_commands_among_themselves_do_not_wait(turns, time):
    for _ in range(3):
        assert write(turns, time, 0.02) == 5.0
    with turns.turn(5), turns.turn(5):
        assert time.slept == []


def test_beside_small_ones_a_large_one_rests_as_long_as_others_took(turns, time):
    turns.small()
    assert write(turns, time, 0.02) == 5.0 and time.slept == [], "the first need not"
    turns.small()
    assert write(turns, time, 0.01) == pytest.approx(5.0 - RESTS * 0.02)
    turns.small()
    write(turns, time, 0.01)
    assert time.slept == pytest.approx([RESTS * 0.02, RESTS * 0.01])


def test_what_has_passed_since_counts_as_rest(turns, time):
    turns.small()
    write(turns, time, 0.02)
    time.now += RESTS * 0.02 - 0.01
    turns.small()
    write(turns, time, 0.02)
    assert time.slept == pytest.approx([0.01])


def test_a_slow_disk_makes_no_pause_without_end(turns, time):
    turns.small()
    write(turns, time, 3.0)
    turns.small()
    write(turns, time, 0.02)
    assert time.slept == pytest.approx([MOST_REST_SECONDS])


def test_nobody_rests_for_small_ones_of_long_ago(turns, time):
    turns.small()
    write(turns, time, 1.0)
    time.now += GIVE_WAY_SECONDS - 1e-6 - MOST_REST_SECONDS
    write(turns, time, 0.02)
    assert time.slept == []


def test_they_come_one_at_a_time_and_wait_no_longer_than_they_may():
    turns, first, second, go_on = Turns(lambda seconds: None), threading.Event(), threading.Event(), threading.Event()

    def take(taken):
        turns.small()
        with turns.turn(20):
            taken.set()
            go_on.wait(20)
    threads = [threading.Thread(target=take, args=(taken,)) for taken in (first, second)]
    threads[0].start()
    wait_until(first.is_set, "the first has its turn")
    threads[1].start()
    turns.small()
    with pytest.raises(Overloaded, match="large values"), turns.turn(0.05):
        pytest.fail("it is not its turn")
    assert not second.is_set()
    go_on.set()
    wait_until(second.is_set, "the second has its turn")
    for thread in threads:
        thread.join(5)


def test_one_that_fails_ends_its_turn(turns, time):
    turns.small()
    with pytest.raises(CommitTimeout), turns.turn(5):
        raise CommitTimeout()
    assert write(turns, time, 0.02) == 5.0 and time.slept == []
