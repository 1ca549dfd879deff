"""Turns of large commands: they give way to small ones, and to nobody else. The clock is the test's own."""

import threading
from contextlib import contextmanager
from time import monotonic

import pytest

from cluster import wait_until
from raftd.errors import CommitTimeout
from raftd.turns import GIVE_WAY_SECONDS, MOST_REST_SECONDS, MOST_WAITING, RESTS, Turns


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


@contextmanager
def taken(turns):
    """Somebody has a turn, and keeps it."""
    first, go_on = threading.Event(), threading.Event()

    def take():
        turns.small()
        with turns.turn(20):
            first.set()
            go_on.wait(20)
    thread = threading.Thread(target=take)
    thread.start()
    wait_until(first.is_set, "the first has its turn")
    try:
        yield
    finally:
        go_on.set()
        thread.join(5)


def test_they_come_one_at_a_time_but_nobody_waits_for_more_than_half_of_his_time():
    """And who has waited in vain ends nobody else's turn."""
    turns = Turns(lambda seconds: None)
    with taken(turns):
        for _ in range(2):
            turns.small()
            began = monotonic()
            with turns.turn(0.4) as left:
                assert monotonic() - began >= 0.2 and left <= 0.2


def test_of_many_only_a_few_wait():
    """Each that waits takes a thread which others may need."""
    turns, waiting = Turns(lambda seconds: None, lambda: 0.0), []  # no time passes: small commands have just been written

    def wait():
        with turns.turn(40):
            waiting.remove(threading.current_thread())
    with taken(turns):
        for _ in range(MOST_WAITING):
            waiting.append(threading.Thread(target=wait))
        threads = list(waiting)
        turns.small()
        for thread in threads:
            thread.start()
        wait_until(lambda: not turns._places._value, "there is no place left")
        with turns.turn(40) as left:
            assert left == 40 and len(waiting) == MOST_WAITING
    for thread in threads:
        thread.join(5)
    assert waiting == []


def test_one_that_fails_ends_its_turn(turns, time):
    turns.small()
    with pytest.raises(CommitTimeout), turns.turn(5):
        raise CommitTimeout()
    write(turns, time, 0.02, timeout=0.1)
    turns.small()
    write(turns, time, 0.02, timeout=0.1)
    assert time.slept == pytest.approx([RESTS * 0.02])
