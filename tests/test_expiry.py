"""The thread that lets keys expire: when it proposes, what, and that it sleeps when there is nothing to do."""

import threading
import time
from types import SimpleNamespace

import pytest

from raftd import expiry
from raftd.errors import NoQuorum, NotLeader
from raftd.expiry import Expiry
from raftd.kv import Expire, Request, decode
from raftd.kv.clock import Clock

DEADLINE_SECONDS = 20


class State:
    """A state machine with one deadline; what is proposed is applied at once."""

    def __init__(self, next_deadline=None):
        self.clock, self.time, self.next_deadline, self._applied = Clock(), 0, next_deadline, lambda: None

    def subscribe(self, applied):
        self._applied = applied

    def expires_at(self, deadline):
        self.next_deadline = deadline
        self._applied()


class Node:
    """Leads from ``leads.set()`` on, until ``stops``."""

    def __init__(self, state):
        self.state_machine, self.leads, self.stops = state, threading.Event(), False
        self.proposed, self.asked, self.failures = [], 0, []

    def wait_to_lead(self):
        self.asked += 1
        self.leads.wait()
        return None if self.stops else 7

    def propose(self, command, timeout):
        request = decode(command)
        assert request == Request(Expire(), request.time)
        if self.failures:
            raise self.failures.pop()
        self.proposed.append(request.time)
        state = self.state_machine
        state.time = request.time
        state.clock.hear(request.time)
        if state.next_deadline is not None and state.next_deadline <= request.time:
            state.expires_at(None)


@pytest.fixture
def started():
    begun = []

    def start(state, leads=True):
        node = Node(state)
        if leads:
            node.leads.set()
        begun.append((node, Expiry(node).start()))
        return node
    yield start
    for node, thread in begun:
        node.stops = True
        node.leads.set()
        thread.stop()


def eventually(truth):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not truth():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.005)


def test_when_it_is_time_the_leader_proposes_it(started):
    node = started(State(200))
    eventually(lambda: node.state_machine.next_deadline is None)
    assert node.proposed[0] >= 200


def test_a_follower_proposes_nothing_until_it_leads(started):
    node = started(State(1), leads=False)
    eventually(lambda: node.asked)
    assert node.proposed == []
    node.leads.set()
    eventually(lambda: node.proposed)


def test_an_earlier_deadline_is_not_slept_through(started):
    node = started(State(3_600_000))
    node.state_machine.expires_at(100)
    eventually(lambda: node.state_machine.next_deadline is None)
    assert node.proposed[-1] < 60_000


def test_without_a_deadline_nothing_is_proposed_and_nothing_looked_at(started):
    node = started(State())
    eventually(lambda: node.asked)
    time.sleep(0.3)  # nothing may happen in it
    assert (node.proposed, node.asked) == ([], 1)
    node.state_machine.expires_at(0)
    eventually(lambda: node.proposed)


@pytest.mark.parametrize("error", [NotLeader(), NoQuorum("n2, n3")])
def test_what_could_not_be_proposed_is_tried_again(started, monkeypatch, error):
    monkeypatch.setattr(expiry, "RETRY_SECONDS", 0.01)
    state = State()
    node = started(state)
    node.failures = [error, error]
    state.expires_at(0)
    eventually(lambda: node.proposed)


@pytest.mark.parametrize(("left", "seconds"), [(1.0, 1.0), (10.0, 1.0), (50.0, 5.0), (100.0, 10.0), (10**6, 10.0)])
def test_the_state_is_told_the_time_now_and_then(left, seconds):
    """The less is left of a key's time, the more exactly it is known, should all servers be restarted."""
    told = Expiry(SimpleNamespace(state_machine=SimpleNamespace(time=5000, subscribe=lambda applied: None)))._tell_at
    assert told(5000 + int(1000 * left)) == 5000 + int(1000 * seconds)


def test_it_is_told_by_an_entry_that_removes_nothing(started, monkeypatch):
    monkeypatch.setattr(expiry, "LEAST_TOLD_SECONDS", 0.05)
    monkeypatch.setattr(expiry, "MOST_TOLD_SECONDS", 0.05)
    node = started(State(3_600_000))
    eventually(lambda: len(node.proposed) >= 3)
    assert node.state_machine.next_deadline == 3_600_000
    assert node.proposed == sorted(node.proposed) and node.proposed[0] >= 50
