"""The runtime around the core: threads, batches, deadlines, failures. Storage, transport and state machine are in memory."""

import hashlib
import pickle
import random
import threading
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from cluster import holds_for, the_fault_lasts, wait_until
from raftd import node as node_module
from raftd.config import Settings
from raftd.errors import (
    BadRequest, CommitTimeout, DamagedFiles, Discarded, LeadershipLost, NoLeader, NoQuorum, NotFound, NotLeader, Overloaded,
    PeerUnreachable, RaftdError, Refusal, StorageFailed, Stopping,
)
from raftd.node import Node, Outgoing
from raftd.raft.configuration import Configuration, Member
from raftd.raft.core import Base
from raftd.raft.messages import COMMAND, AppendEntries, Entry, HardState, InstallSnapshot, ReadIndex, RequestVote, TimeoutNow
from raftd.storage import Identity, Saved
from raftd.turns import LARGE_BYTES

FAST = Settings(heartbeat_seconds=0.05, election_timeout_seconds=0.3, rpc_timeout_seconds=0.25)  # an election comes soon
PATIENT = replace(FAST, election_timeout_seconds=20)  # none comes by itself, be the machine or a disk ever so slow
UNHURRIED = replace(PATIENT, rpc_timeout_seconds=8)  # nor is the answer to a call given up
TINY = replace(PATIENT, compact_entries=10, keep_entries=5, snapshot_chunk_bytes=100, max_append_bytes=50)
LEASED = replace(UNHURRIED, heartbeat_seconds=2)  # a lease lasts for two heartbeats and more


@pytest.fixture(autouse=True)
def retries_soon(monkeypatch):
    """A disk that has failed is tried again sooner than outside of tests."""
    monkeypatch.setattr(node_module, "RETRY_SECONDS", 0.1)


class MemoryStorage:
    """A disk that can be slow (``ready`` cleared), and fail (``failure``, and then reopen too)."""

    def __init__(self, name, members):
        self.identity = Identity(name, f"id-{name}", "cluster")
        self.hard_state, self.base = HardState(0, None), Base(0, 0, Configuration(members))
        self.entries, self.saves, self.reopened, self.closed = [], [], 0, False
        self.ready, self.reached = threading.Event(), threading.Event()
        self.failure, self.fails_after_writing = None, False
        self.ready.set()

    def load(self):
        return Saved(self.hard_state, self.base, list(self.entries))

    def save(self, unsaved):
        self.reached.set()
        self.ready.wait()
        if self.failure and not self.fails_after_writing:
            raise self.failure
        self.hard_state = unsaved.hard_state or self.hard_state
        self.entries = [entry for entry in self.entries if entry.index < unsaved.log_from] + list(unsaved.entries)
        if unsaved.base:
            self.base, self.entries = unsaved.base, [entry for entry in self.entries if entry.index > unsaved.base.index]
        if self.failure:
            raise self.failure
        self.saves.append(unsaved)

    def lost(self, index, term):
        self.lost_entry = index, term

    def reopen(self):
        if self.failure:
            raise self.failure
        self.reopened += 1

    def close(self):
        self.closed = True


class MemorySnapshot:
    def __init__(self, machine):
        self._data = pickle.dumps((machine.position, machine.commands))
        self.index, self.term, self.configuration = machine.position.index, machine.position.term, machine.position.configuration
        self.size, self.sha256 = len(self._data), hashlib.sha256(self._data).digest()

    def read(self, offset, length):
        return self._data[offset:offset + length]

    def close(self):
        pass


class MemoryIncoming:
    def __init__(self, size, sha256):
        self.size, self.sha256, self.data = size, sha256, b""

    @property
    def next_offset(self):
        return len(self.data)

    @property
    def complete(self):
        return len(self.data) == self.size

    def write(self, offset, data):
        if offset == len(self.data):
            self.data += data


class Machine:
    """A state machine that keeps its commands. ``read(None)`` gives them; it too can be slow, and fail."""

    def __init__(self):
        self.position = SimpleNamespace(index=0, term=0, configuration=b"[]", installed_index=0)
        self.commands, self.batches, self.closed, self.chunks = [], [], False, 0
        self.ready, self.reached = threading.Event(), threading.Event()
        self.failure = self._incoming = None
        self.foresees = self.is_awaited = False
        self.ready.set()

    steps = 0

    def how_many(self, commands):
        return next((number for number, command in enumerate(commands, 1) if command.startswith(b"large")), len(commands))

    def foresee(self, index, command):
        return command.upper() if self.foresees and not command.startswith(b"?") else None

    def apply(self, batch, index, term, configuration):
        self.reached.set()
        self.ready.wait()
        if self.failure:
            raise self.failure
        assert index > self.position.index, "applied twice"
        self.commands = self.commands + [command for _, command in batch]
        self.batches.append(batch)
        self.position = SimpleNamespace(index=index, term=term, configuration=configuration, installed_index=self.position.installed_index)
        return [command.upper() for _, command in batch]

    def read(self, query):
        return self.commands

    def checkpoint(self):
        if self.failure:
            raise self.failure
        return self.position.index

    def snapshot(self, go_on=lambda: None):
        return MemorySnapshot(self)

    def receive(self, index, term, size, sha256):
        if self._incoming is None or self._incoming.sha256 != sha256:
            self._incoming = MemoryIncoming(size, sha256)
        self.chunks += 1
        return self._incoming

    def install(self, incoming):
        assert hashlib.sha256(incoming.data).digest() == incoming.sha256
        self.position, self.commands = pickle.loads(incoming.data)
        self.position.installed_index = self.position.index

    def close(self):
        self.closed = True


class Wires:
    """Carries requests between nodes. ``lose(sender, receiver, request)`` says what is lost: "request", "reply" or nothing."""

    def __init__(self):
        self.nodes, self.lose, self.carried, self.asked = {}, lambda *_: None, defaultdict(int), []
        self.posts, self.posted = True, []  # whether requests can be posted, and the ends through which they were
        self.ready, self.reached = threading.Event(), threading.Event()
        self.ready.set()

    def cut(self, *names):
        """No request passes to or from the servers of *names*; no names: all pass again."""
        self.lose = lambda sender, receiver, request: "request" if sender in names or receiver in names else None

    def transport(self, name):
        return SimpleNamespace(connection=lambda lane: Wire(self, name), identify=self._identify, refuses=self._refuses)

    def _refuses(self, address):
        """Nobody listens where the address was that of a node which has been taken away."""
        self.asked.append(address)
        return all(node.address != address for node in self.nodes.values())

    def call(self, sender, member, request, configuration_index):
        self.reached.set()
        self.ready.wait()
        lost = self.lose(sender, member.name, request)
        if lost == "request" or member.name not in self.nodes:
            raise PeerUnreachable(f"{member.name}: lost")
        try:
            reply = self.nodes[member.name].handle(sender, configuration_index, request)
        except Refusal as refusal:
            raise PeerUnreachable(str(refusal)) from refusal
        self.carried[type(request)] += 1
        if lost == "reply":
            raise PeerUnreachable(f"{member.name}: the reply is lost")
        return reply

    def _identify(self, address):
        node = next((node for node in self.nodes.values() if node.address == address), None)
        if node is None:
            raise PeerUnreachable(f"nobody at {address}")
        return node.identity()


class Wire:
    """The calling end of a connection, for one request at a time. What is posted is carried by a thread of its own."""

    def __init__(self, wires, sender):
        self._wires, self._sender, self.aborted, self.closed = wires, sender, False, False
        self._busy = threading.Lock()

    def call(self, member, request, configuration_index):
        self._take()
        try:
            return self._wires.call(self._sender, member, request, configuration_index)
        finally:
            self._busy.release()

    def _take(self):
        assert self._busy.acquire(blocking=False), f"{threading.current_thread().name}: another request of {self._sender} is under way here"

    def post(self, member, request, configuration_index, done):
        if self._wires.posts:
            self._take()
            self._wires.posted.append(self)
            threading.Thread(target=self._carry, args=(member, request, configuration_index, done), name="posted", daemon=True).start()
        return self._wires.posts

    def _carry(self, member, request, configuration_index, done):
        try:
            reply = self._wires.call(self._sender, member, request, configuration_index)
        except PeerUnreachable:
            reply = None
        self._busy.release()
        done(reply)

    def interrupt(self):
        pass

    def abort(self):
        self.aborted = True

    def close(self):
        self.closed = True


class Group:
    """Nodes n1, n2, ... that are a cluster from the start."""

    def __init__(self, size, settings):
        self.wires, self.storages, self.machines, self.nodes, self.failures = Wires(), {}, {}, {}, []
        members = {f"n{number}": Member(f"n{number}", f"host:{number}", True, f"id-n{number}") for number in range(1, size + 1)}
        for name in members:
            self.add(name, members, settings)
        self._let_one_stand()

    def _let_one_stand(self):
        """Chance says who stands for the first election, and when: only the first of the two is left to it, since the other takes time."""
        first = random.choice(list(self.nodes.values()))
        for node in self.nodes.values():
            node._raft._perhaps_promised_until = 0.0  # they are new: none has promised anything before it started
        with first._lock:
            first._raft._timer = 0.0
            first._timer_wake.notify()

    def pace(self, settings, *nodes):
        """From now on *nodes*, or all, have the timeouts of *settings*: FAST where an election or a stall is to come, else PATIENT."""
        timeouts = {name: getattr(settings, name) for name in ("election_timeout_seconds", "rpc_timeout_seconds")}
        for node in nodes or self.nodes.values():
            with node._lock:
                node.settings = node._raft._settings = replace(node.settings, **timeouts)
                if not node._raft.is_leader:
                    node._raft._set_election_timer()
                node._timer_wake.notify()

    def next_leader(self, among=None):
        """Who leads after an election that comes soon, and then for good."""
        self.pace(FAST)
        self.leader(among)
        self.pace(PATIENT)
        return self.leader(among)

    def add(self, name, members=None, settings=PATIENT):
        if name not in self.storages:
            self.storages[name], self.machines[name] = MemoryStorage(name, members or {}), Machine()
        node = Node(name, f"host:{name[1:]}", self.storages[name], self.wires.transport(name), self.machines[name], settings,
                    self.failures.append)
        self.nodes[name] = self.wires.nodes[name] = node
        return node.start()

    def __getitem__(self, number):
        return self.nodes[f"n{number}"]

    def leader(self, among=None):
        def find():
            return next((node for node in among or self.nodes.values()
                         if node.not_ready() is None and node.status()["role"] == "leader"), None)
        return wait_until(find, "somebody leads")

    def followers(self, leader=None):
        leader = leader or self.leader()
        return [node for node in self.nodes.values() if node is not leader]

    def commands_everywhere(self):
        """What every state machine has, once they all have the same."""
        def same():
            indexes = {machine.position.index for machine in self.machines.values()} | {
                node.status()["last_log_index"] for node in self.nodes.values()}
            return len(indexes) == 1
        wait_until(same, "all have applied the same")
        first, *others = [machine.commands for machine in self.machines.values()]
        assert all(other == first for other in others)
        return first

    def stop(self):
        self.wires.ready.set()
        for storage, machine in zip(self.storages.values(), self.machines.values(), strict=True):
            storage.ready.set(), machine.ready.set()
        for node in self.nodes.values():
            node.stop()


@contextmanager
def group(size=3, settings=PATIENT):
    """A Group; afterwards all of its threads have ended, and none has failed."""
    before = set(threading.enumerate())
    nodes = Group(size, settings)
    try:
        yield nodes
    finally:
        nodes.stop()
    assert [thread.name for thread in threading.enumerate() if thread not in before and thread.name.startswith(
        ("election", "log-", "applier", "to-"))] == []
    assert nodes.failures == []


@contextmanager
def clients(count):
    with ThreadPoolExecutor(count) as pool:
        yield pool


# Writes and reads


def test_a_write_is_applied_on_all_in_order_and_answers_what_the_machine_said():
    with group() as nodes:
        leader = nodes.leader()
        applied = [leader.propose(b"a%d" % number, 5) for number in range(20)]
        assert [answer.result for answer in applied] == [b"A%d" % number for number in range(20)]
        assert [answer.index for answer in applied] == sorted({answer.index for answer in applied})
        assert nodes.commands_everywhere() == [b"a%d" % number for number in range(20)]


# Writes whose outcome the state machine can foresee


@contextmanager
def foreseeing(size=3, settings=PATIENT, pause=node_module.APPLY_PAUSE_SECONDS):
    """(a Group whose state machines foresee what they will say, its leader, the leader's machine): nothing but a write waits to be
    applied, *pause* seconds at most."""
    with group(size, settings) as nodes:
        leader = nodes.leader()
        wait_until(lambda: leader.status()["last_applied"] == leader.status()["last_log_index"], "all is applied")
        for machine in nodes.machines.values():
            machine.foresees = True
        with patch.object(node_module, "APPLY_PAUSE_SECONDS", pause):
            yield nodes, leader, nodes.machines[leader.name]


@pytest.mark.parametrize("level", ["linearizable", "leader", "stale"])
def test_a_foreseen_write_is_answered_before_it_is_applied_and_a_read_waits_until_it_is(level):
    with foreseeing() as (nodes, leader, machine):
        machine.ready.clear()
        assert leader.propose(b"a", 5).result == b"A" and machine.commands == []
        begun = Future()
        leader.submit_stale_read(begun) if level == "stale" else leader.submit_read(begun, leased=level == "leader")
        with pytest.raises(NoQuorum):
            leader.read(None, level, timeout=0.1)
        assert not begun.done()
        machine.ready.set()
        assert leader.read(None, level) == [b"a"] and begun.result(5)
        assert nodes.commands_everywhere() == [b"a"]


def test_who_looks_at_a_node_finds_applied_what_it_has_answered():
    """Unless the state machine is slow: then the status says how far it is."""
    with foreseeing(1, pause=1000.0) as (_, leader, machine):
        index = leader.propose(b"a", 5).index
        assert leader.headers()["X-Raft-Index"] == str(index)
        assert leader.status()["last_applied"] == index and machine.commands == [b"a"]
        machine.ready.clear()
        leader.propose(b"b", 5)
        assert leader.status()["last_applied"] == index
        machine.ready.set()


def test_a_stale_read_waits_for_what_was_answered_before_that_which_comes_before_it(monkeypatch):
    """A write that is not foreseen is answered later than a foreseen one behind it: who has seen both answers wants to see both writes."""
    monkeypatch.setattr(node_module, "MAX_APPLY_BYTES", 1)
    with foreseeing(1) as (_, leader, machine):
        apply = machine.apply

        def one_at_a_time(*batch):
            results = apply(*batch)
            machine.ready.clear()
            return results
        machine.apply = one_at_a_time
        machine.ready.clear()
        first, second = leader.submit(b"?a"), leader.submit(b"b")
        assert second.result(5).result == b"B" and not first.done()
        machine.ready.set()
        assert first.result(5).result == b"?A" and machine.commands == [b"?a"]
        with pytest.raises(NoQuorum):
            leader.read(None, "stale", timeout=0.1)
        machine.ready.set()
        assert leader.read(None, "stale") == [b"?a", b"b"]


def test_a_stale_read_does_not_wait_for_a_state_that_cannot_be_written():
    with foreseeing(1) as (nodes, leader, machine):
        machine.failure = StorageFailed("the disk is full", full=True)
        assert leader.propose(b"a", 5).result == b"A"
        wait_until(lambda: "the disk is full" in (leader.not_ready() or ""), "it has found out")
        begun = Future()
        leader.submit_stale_read(begun)
        assert begun.done() and leader.read(None, "stale", timeout=0.1) == []
        with pytest.raises(StorageFailed, match="the state cannot be written: the disk is full") as refused:
            leader.propose(b"b", 5)
        assert refused.value.status == 507, "nobody leads, and this is why"
        machine.failure = None
        nodes.pace(FAST)
        wait_until(lambda: leader.not_ready() is None, "it is back by itself")
        assert leader.read(None) == [b"a"]


@contextmanager
def answered_before_it_is_saved(settings=PATIENT):
    """(a Group, its leader, the disk of that, which hangs): "a" is applied; "b" was answered, since the peers have it. A leader may not
    apply what it has not written."""
    with foreseeing(settings=settings) as (nodes, leader, _):
        storage, written = nodes.storages[leader.name], leader.propose(b"a", 5).index
        wait_until(lambda: leader.status()["last_applied"] == written, "it is applied")
        storage.ready.clear()
        assert leader.propose(b"b", 5).result == b"B"
        yield nodes, leader, storage


def test_a_stale_read_does_not_wait_for_a_disk_that_hangs():
    with answered_before_it_is_saved(replace(PATIENT, election_timeout_seconds=2)) as (nodes, leader, storage):
        with pytest.raises(NoQuorum):
            leader.read(None, "stale", timeout=0.01)
        assert leader.status()["last_applied"] < leader.status()["commit_index"]
        assert not leader.look(lambda raft: leader._applied_waiters), "nobody waits"
        wait_until(lambda: "has not answered" in (leader.not_ready() or ""), "it hangs")
        assert leader.read(None, "stale", timeout=0.01) == [b"a"]
        storage.ready.set()
        nodes.pace(FAST)
        assert nodes.commands_everywhere() == [b"a", b"b"]


def test_a_stale_read_does_not_wait_for_what_a_log_that_failed_has_not():
    """Others have it, but they are out of reach now."""
    with answered_before_it_is_saved() as (nodes, leader, storage):
        nodes.wires.cut()
        storage.failure = StorageFailed("the disk has failed")
        storage.ready.set()
        wait_until(lambda: "the disk has failed" in (leader.not_ready() or ""), "it is silent")
        storage.failure = None
        wait_until(lambda: "the disk has failed" not in (leader.not_ready() or ""), "its log is open again")
        assert leader.read(None, "stale", timeout=0.01) == [b"a"]


def test_a_foreseen_write_is_answered_when_it_is_committed_and_not_before():
    """The leader itself need not have written it."""
    with foreseeing() as (nodes, leader, _):
        nodes.wires.lose = lambda sender, _, request: "request" if getattr(request, "entries", ()) else None
        last, write = leader.status()["last_log_index"], leader.submit(b"a")
        wait_until(lambda: nodes.storages[leader.name].entries[-1].index > last, "the leader has it on the disk")
        holds_for(0.1, lambda: not write.done(), "nobody else has it")
        nodes.storages[leader.name].ready.clear()
        nodes.wires.cut()
        write_too = leader.submit(b"b")
        assert write.result(5).result == b"A" and write_too.result(5).result == b"B"
        assert nodes.storages[leader.name].entries[-1].command != b"b"
        nodes.storages[leader.name].ready.set()
        assert nodes.commands_everywhere() == [b"a", b"b"]


def test_a_foreseen_write_is_not_answered_by_what_another_leader_commits_in_its_place():
    with clients(1) as pool, foreseeing() as (nodes, leader, _):
        last = leader.status()["last_log_index"]
        wait_until(lambda: all(node.status()["last_log_index"] == last for node in nodes.followers(leader)), "any of them could lead")
        nodes.wires.lose = lambda sender, _, request: "request" if sender == leader.name and getattr(request, "entries", ()) else None
        write = pool.submit(leader.propose, b"lost", 20)
        wait_until(lambda: leader.status()["last_log_index"] > last, "it is in the log")
        depose(nodes, leader, nodes.followers(leader)[0])
        with pytest.raises((Discarded, LeadershipLost)):
            write.result()
        assert b"lost" not in nodes.commands_everywhere()


def test_foreseen_writes_that_nobody_reads_are_applied_together(monkeypatch):
    """Until somebody reads them, or they are many."""
    monkeypatch.setattr(node_module, "MAX_UNAPPLIED", 20)
    with foreseeing(1, pause=1000.0) as (_, leader, machine):
        for number in range(19):
            leader.propose(b"%d" % number, 5)
        holds_for(0.1, lambda: machine.commands == [], "they wait for another")
        leader.propose(b"19", 5)
        wait_until(lambda: len(machine.commands) == 20, "they are many", 5)
        for _ in range(3):
            leader.propose(b"again", 5)
        assert len(leader.read(None)) == 23 and [len(batch) for batch in machine.batches[-2:]] == [20, 3]


def test_large_writes_do_not_wait_for_others(monkeypatch):
    monkeypatch.setattr(node_module, "MAX_UNAPPLIED_BYTES", 1000)
    with foreseeing(1, pause=1000.0) as (_, leader, machine):
        leader.propose(bytes(400), 5)
        holds_for(0.1, lambda: machine.commands == [], "it waits for another")
        leader.propose(bytes(600), 5)
        wait_until(lambda: len(machine.commands) == 2, "they are large", 5)


def test_a_write_that_is_not_foreseen_is_applied_at_once_with_all_before_it():
    with foreseeing(1, pause=1000.0) as (_, leader, machine):
        leader.propose(b"a", 5)
        machine.foresees = False
        assert leader.propose(b"b", 5).result == b"B" and machine.commands == [b"a", b"b"]


def test_foreseen_writes_are_applied_soon_although_nobody_waits():
    with foreseeing() as (nodes, leader, _):
        leader.propose(b"a", 5)
        assert nodes.commands_everywhere() == [b"a"]


def test_a_foreseen_write_that_comes_alone_is_applied_at_once():
    """The pause is one between batches."""
    with foreseeing(1, pause=4.0) as (_, leader, machine):
        the_fault_lasts.wait(4.0)
        leader.propose(b"a", 5)
        wait_until(lambda: machine.commands == [b"a"], "no others have come before", 3.5)


def test_foreseen_writes_are_applied_sooner_if_somebody_waits_for_changes():
    with foreseeing(1, pause=1000.0) as (_, leader, machine):
        machine.is_awaited = True
        for command in (b"a", b"b"):
            leader.propose(command, 5)
            wait_until(lambda last=command: machine.commands[-1:] == [last], "somebody does", 5)


def test_what_the_state_machine_does_not_want_together_it_gets_one_after_the_other():
    with foreseeing(1) as (_, leader, machine):
        machine.foresees = False
        leader.propose(b"first", 5)
        machine.reached.clear()
        machine.ready.clear()
        writes = [leader.submit(b"held")]
        assert machine.reached.wait(5)
        writes += [leader.submit(command) for command in (b"a", b"large 1", b"b", b"c", b"large 2", b"large 3", b"d")]
        wait_until(lambda: leader.look(lambda raft: raft.commit_index == raft.log.last_index), "they are committed")
        del machine.batches[:]
        machine.ready.set()
        assert [write.result(5).result for write in writes][-1] == b"D"
        assert [[command for _, command in batch] for batch in machine.batches] == [
            [b"held"], [b"a", b"large 1"], [b"b", b"c", b"large 2"], [b"large 3"], [b"d"]]


def test_who_writes_waits_for_a_state_machine_that_is_far_behind(monkeypatch):
    monkeypatch.setattr(node_module, "MAX_ANSWERED_AHEAD", 10)
    with foreseeing(1) as (nodes, leader, machine):
        machine.ready.clear()
        writes = [leader.submit(b"%d" % number) for number in range(10)]
        assert writes[9].result(5).result == b"9"
        late = leader.submit(b"late")
        wait_until(lambda: leader.status()["commit_index"] == leader.status()["last_log_index"], "it is committed")
        holds_for(0.1, lambda: not late.done(), "it waits")
        machine.ready.set()
        assert late.result(5).result == b"LATE"


@pytest.mark.parametrize("bound", ["a setting", "how long a read may have to wait"])
def test_who_writes_much_waits_for_a_state_machine_that_is_behind(monkeypatch, bound):
    if bound != "a setting":
        monkeypatch.setattr(node_module, "MAX_ANSWERED_AHEAD_BYTES", 1000)
    with foreseeing(1, replace(PATIENT, max_waiting_bytes=1000 if bound == "a setting" else 1700)) as (_, leader, machine):
        machine.ready.clear()
        assert leader.submit(bytes(900)).result(5) and leader.submit(bytes(100)).result(5)
        late = leader.submit(bytes(900))
        wait_until(lambda: leader.look(lambda raft: raft.commit_index == raft.log.last_index), "it is committed")
        holds_for(0.1, lambda: not late.done(), "it waits")
        with pytest.raises(Overloaded):
            leader.submit(bytes(900))
        machine.ready.set()
        assert late.result(5)


def test_a_node_that_drains_applies_what_is_committed():
    """Who then looks into the file of the state finds all that was answered; unless it cannot be written."""
    with foreseeing(1, pause=1000.0) as (_, leader, machine):
        leader.propose(b"a", 5)
        assert machine.commands == []
        leader.drain(5)
        assert machine.commands == [b"a"]
    with foreseeing(1, pause=0.0) as (_, leader, machine):
        machine.failure = StorageFailed("the disk is full")
        leader.propose(b"a", 5)
        wait_until(lambda: "the disk is full" in (leader.not_ready() or ""), "it has found out")
        began = time.monotonic()
        leader.drain(20)
        assert time.monotonic() - began < 10
        machine.failure = None


def test_a_node_that_drains_waits_no_longer_than_its_writes():
    with clients(1) as pool, foreseeing(1, pause=1000.0) as (nodes, leader, _):
        nodes.storages[leader.name].ready.clear()
        write = leader.submit(b"a")
        began, draining = time.monotonic(), pool.submit(leader.drain, 5)
        holds_for(0.1, lambda: not draining.done(), "the write waits")
        nodes.storages[leader.name].ready.set()
        draining.result()
        assert write.done() and time.monotonic() - began < 4


def test_a_follower_shows_how_long_ago_it_heard_the_leader():
    with group() as nodes:
        leader = nodes.leader()
        for follower in nodes.followers(leader):
            wait_until(lambda follower=follower: follower.leader(), "it hears the leader")
            shown = {member["name"]: member["last_contact_seconds"] for member in follower.members()}
            assert 0 <= shown.pop(leader.name) < 10 and shown.pop(follower.name) == 0 and list(shown.values()) == [None]


def test_a_follower_refuses_writes_and_names_the_leader():
    with group() as nodes:
        leader = nodes.leader()
        for follower in nodes.followers(leader):
            wait_until(follower.leader, "it knows the leader")
            with pytest.raises(NotLeader) as refusal:
                follower.propose(b"a", 5)
            assert refusal.value.leader == f"http://{leader.address}"


def test_a_linearizable_read_anywhere_sees_every_answered_write():
    with group() as nodes:
        leader = nodes.leader()
        for number in range(30):
            leader.propose(b"%d" % number, 5)
            for node in nodes.nodes.values():
                assert len(node.read(None, timeout=5)) == number + 1


def test_a_read_that_nobody_waits_for_may_be_answered_once_what_it_must_see_is_applied():
    """``submit_read``: that the leader is confirmed is not enough."""
    with group() as nodes:
        leader = nodes.leader()
        machine = nodes.machines[leader.name]
        leader.propose(b"a", 5)
        machine.ready.clear()
        write = leader.submit(b"b")
        wait_until(lambda: leader.status()["commit_index"] > leader.status()["last_applied"], "it is committed")
        read = leader.submit_read()
        wait_until(lambda: not leader.look(lambda raft: raft.waiting_reads), "the leader is confirmed")
        assert not read.done()
        machine.ready.set()
        assert read.result(5) >= write.result(5).index


def wait_for_lease(leader):
    wait_until(lambda: leader.look(lambda raft: raft.leased_index()), "it has a lease")


def test_a_read_that_may_rest_on_a_lease_asks_nobody():
    """But to begin with; and only one that may."""
    with group(settings=LEASED) as nodes:
        leader = nodes.leader()
        rounds = partial(leader.look, lambda raft: raft.role.round)
        leader.propose(b"a", 5)
        assert leader.read(None, "leader") == [b"a"]
        wait_for_lease(leader)
        nodes.wires.cut(leader.name)
        before = rounds()
        leader.read(None, "leader")
        leader.submit_read(leased=True).result(0)
        assert rounds() == before
        with pytest.raises(NoQuorum):
            leader.read(None, timeout=0.01)
        assert rounds() > before


def test_a_read_waits_for_what_the_lease_needs_to_be_applied():
    with group(settings=LEASED) as nodes:
        leader = nodes.leader()
        machine = nodes.machines[leader.name]
        leader.propose(b"a", 5)
        leader.read(None, "leader")
        wait_for_lease(leader)
        machine.ready.clear()
        write = leader.submit(b"b")
        wait_until(lambda: leader.look(lambda raft: raft.commit_index > raft.last_applied), "it is committed")
        read = leader.submit_read(leased=True)
        assert not read.done()
        machine.ready.set()
        assert read.result(5) >= write.result(5).index and leader.read(None, "leader") == [b"a", b"b"]


@pytest.mark.parametrize("timeouts", [0.0, 0.45])
def test_a_lease_is_looked_at_when_the_time_has_been_told(timeouts):
    """A server that was paused does not know yet that its lease is over."""
    with group(settings=LEASED) as nodes:
        leader = nodes.leader()
        leader.read(None, "leader")
        wait_for_lease(leader)
        with leader._lock:
            now = time.monotonic() + timeouts * leader.settings.election_timeout_seconds
            with patch.object(node_module.time, "monotonic", lambda: now):
                read = leader._submit_read_locked(leased=True)
        assert read.done() == (timeouts == 0)


def test_who_leads_is_in_charge_once_it_has_applied_what_was_written_before():
    """Before that it does not know what time the leader before it has told."""
    with clients(1) as pool, group() as nodes:
        leader = nodes.leader()
        next_leader, _ = nodes.followers(leader)
        assert leader.term_in_charge(5)[0] == leader.wait_to_lead() == leader.status()["term"]
        with pytest.raises(NotLeader) as refused:
            next_leader.term_in_charge(0)
        assert refused.value.leader == f"http://{leader.address}"
        machine = nodes.machines[next_leader.name]
        wait_until(lambda: machine.position.index == leader.status()["last_applied"], "it has what there is")
        machine.ready.clear()
        leader.propose(b"a", 5)
        waits = pool.submit(next_leader.wait_to_lead)
        leader.transfer_leadership(next_leader.name)
        with pytest.raises(NoQuorum):
            next_leader.term_in_charge(0.2)
        assert not waits.done() and machine.commands == []
        machine.ready.set()
        term, left = next_leader.term_in_charge(5)
        assert term == waits.result(5) == next_leader.status()["term"] and 0 < left < 5
        assert machine.commands == [b"a"]


def test_who_has_just_started_is_asked_again_for_its_vote():
    """It says so at once: whoever waited for its answer might do so for long."""
    with group(2, replace(UNHURRIED, election_timeout_seconds=120)) as nodes:
        leader = nodes.leader()
        follower, = nodes.followers(leader)
        wait_until(lambda: follower.status()["leader"], "it knows the leader")
        with follower._lock:
            follower._raft._perhaps_promised_until = time.monotonic() + 1000
        leader.transfer_leadership(follower.name)
        request = RequestVote(9, leader.name, 99, 9)
        with follower._lock:
            follower._raft.step_down("a test")
        with pytest.raises(Refusal, match="has just started"):
            follower.handle(leader.name, 9, request)
        with follower._lock:
            follower._raft._perhaps_promised_until = 0.0
        wait_until(lambda: _vote(follower, leader.name, request), "it votes")


def _vote(node, candidate, request):
    try:
        return node.handle(candidate, 9, request).vote_granted
    except Refusal:
        return False


def test_on_a_follower_a_read_at_the_leader_s_level_is_a_linearizable_one():
    with group() as nodes:
        leader = nodes.leader()
        leader.propose(b"a", 5)
        assert [node.read(None, "leader") for node in nodes.nodes.values()] == 3 * [[b"a"]]


def test_min_index_waits_until_that_entry_is_applied_here():
    with group() as nodes:
        leader = nodes.leader()
        follower = nodes.followers(leader)[0]
        machine = nodes.machines[follower.name]
        machine.ready.clear()
        index = leader.propose(b"a", 5).index
        with pytest.raises(NoQuorum):
            follower.read(None, "stale", index, 0.1)
        with clients(1) as pool:
            read = pool.submit(follower.read, None, "stale", index, 10)
            machine.ready.set()
            assert read.result() == [b"a"]


def test_concurrent_proposals_share_a_save_and_a_transaction():
    """Group commit: one fsync, one request to a peer and one transaction for all that have piled up."""
    with clients(300) as pool, group() as nodes:
        leader = nodes.leader()
        storage, machine = nodes.storages[leader.name], nodes.machines[leader.name]
        for other in nodes.storages.values():
            other.ready.clear()
        before = leader.status()["last_log_index"]
        writes = [pool.submit(leader.propose, b"%d" % number, 20) for number in range(300)]
        wait_until(lambda: leader.status()["last_log_index"] == before + 300, "all are in the log")
        saves, batches = len(storage.saves), len(machine.batches)
        for other in nodes.storages.values():
            other.ready.set()
        assert len({write.result().index for write in writes}) == 300
        assert len(storage.saves) - saves <= 5
        assert len(machine.batches) - batches <= 10
        assert sorted(nodes.commands_everywhere()) == sorted(b"%d" % number for number in range(300))


def test_a_group_of_one_batches_too():
    with clients(200) as pool, group(1) as nodes:
        leader, storage, machine = nodes.leader(), nodes.storages["n1"], nodes.machines["n1"]
        storage.ready.clear()
        writes = [pool.submit(leader.propose, b"%d" % number, 20) for number in range(200)]
        wait_until(lambda: leader.status()["last_log_index"] >= 201, "all are in the log")
        saves, batches = len(storage.saves), len(machine.batches)
        storage.ready.set()
        assert len({write.result().index for write in writes}) == 200
        assert len(storage.saves) - saves <= 3
        assert len(machine.batches) - batches <= 5


def test_nothing_is_written_while_nothing_happens():
    with group() as nodes:
        nodes.leader().propose(b"a", 5)
        nodes.commands_everywhere()
        before = {name: len(storage.saves) for name, storage in nodes.storages.items()}
        holds_for(1, lambda: {name: len(storage.saves) for name, storage in nodes.storages.items()} == before, "no save")


# The lock


@pytest.mark.parametrize("what", ["storage", "machine", "wires"])
def test_nobody_waits_for_a_disk_or_a_peer_who_need_not(what):
    """The lock is never held across I/O: status, headers and stale reads answer while a save, a transaction or an RPC takes for ever."""
    with clients(2) as pool, group(1 if what != "wires" else 3) as nodes:
        leader = nodes.leader()
        leader.propose(b"before", 5)
        slow = {"storage": nodes.storages, "machine": nodes.machines}.get(what, {}).get(leader.name, nodes.wires)
        slow.ready.clear(), slow.reached.clear()
        write = pool.submit(leader.propose, b"a", 10)
        assert slow.reached.wait(10)

        def ask():
            for _ in range(20):
                assert leader.status()["name"] == leader.name
                assert leader.headers()["X-Raft-Node"] == leader.name
                assert leader.read(None, "stale") == [b"before"]
                leader.members(), leader.leader(), leader.not_ready()
        try:
            pool.submit(ask).result(5)
        finally:
            slow.ready.set()
        write.exception()


# What is sent by the thread that proposes, and not waited for


@contextmanager
def watched(settings=UNHURRIED):
    """(a Group whose threads that send all sleep, its leader, the list of who carries entries and rounds from now on: thread names)."""
    carriers = []
    with group(settings=settings) as nodes:
        leader = nodes.leader()
        leader.propose(b"first", 5)
        wait_until(lambda: _all_is_told(leader), "nobody has anything to send")

        def seen(sender, receiver, request):
            if sender == leader.name and (request.entries or leader.look(lambda raft: raft.waiting_reads)):
                carriers.append((threading.current_thread().name, receiver))
        nodes.wires.lose = seen
        yield nodes, leader, carriers


def _all_is_told(leader):
    with leader._lock:
        raft = leader._raft
        told = {(progress.match_index, progress.sent_commit) for progress in raft.role.progress.values()}
        return told == {(raft.log.last_index, raft.commit_index)} and all(
            link.idle and not link.posted for link in leader._all_links_locked())


def submit(leader, *commands):
    """The futures of *commands*, proposed together."""
    proposals = [(command, Future()) for command in commands]
    assert leader.submit_all(proposals) == []
    return [future for _, future in proposals]


def test_what_many_propose_is_sent_by_the_thread_that_proposes_it():
    with watched() as (nodes, leader, carriers):
        for number in range(5):
            wait_until(lambda: _all_is_told(leader), "nobody has anything to send")
            for future in submit(leader, b"a%d" % number, b"b%d" % number):
                future.result(5)
        wait_until(lambda: _all_is_told(leader), "all have it")
        assert {name for name, _ in carriers} == {"posted"} and len(carriers) >= 10
        assert nodes.commands_everywhere() == [b"first"] + [b"%c%d" % (letter, number) for number in range(5) for letter in b"ab"]


def test_the_round_of_a_read_is_sent_by_the_thread_that_asks():
    with watched() as (nodes, leader, carriers):
        assert leader.submit_read().result(5) == leader.status()["commit_index"]
        assert "posted" in {name for name, _ in carriers}


@pytest.mark.parametrize("how", ["cannot", "no reply"])
def test_what_cannot_be_sent_without_waiting_is_sent_by_its_thread(how):
    """At once, whenever the next heartbeat is due."""
    with watched(settings=replace(UNHURRIED, heartbeat_seconds=8)) as (nodes, leader, carriers):
        if how == "cannot":
            nodes.wires.posts = False
        else:
            nodes.wires.lose = lambda *_: "request" if threading.current_thread().name == "posted" else None
        for number in range(5):
            assert submit(leader, b"%d" % number)[0].result(5).result == b"%d" % number
        wait_until(lambda: _all_is_told(leader), "nobody has anything to send")
        assert leader.submit_read().result(5)
        assert nodes.commands_everywhere() == [b"first", *(b"%d" % number for number in range(5))]
        assert how == "cannot" or nodes.wires.posted


@contextmanager
def stuck(nodes, *receivers):
    """Whoever carries what is posted to one of *receivers* hangs, until the end."""
    go_on = threading.Event()

    def lose(sender, receiver, request):
        if threading.current_thread().name == "posted" and receiver in receivers:
            go_on.wait(20)
    nodes.wires.lose = lose
    try:
        yield go_on
    finally:
        go_on.set()


def test_nothing_more_is_sent_to_a_peer_until_its_reply_is_there():
    with watched() as (nodes, leader, _):
        with stuck(nodes, "n1", "n2", "n3") as go_on:
            futures = submit(leader, b"a")
            under_way = len(nodes.wires.posted)
            futures += submit(leader, b"b") + submit(leader, b"c")
            assert len(nodes.wires.posted) == under_way
            go_on.set()
            assert [future.result(5).result for future in futures] == [b"A", b"B", b"C"]


def test_a_thread_that_hangs_with_a_reply_keeps_nobody_from_sending():
    """It is given up after as long as a call may take. What it brings then is not taken, and it closes its connection."""
    with watched(settings=PATIENT) as (nodes, leader, _):
        with stuck(nodes, "n1", "n2", "n3") as go_on:
            future, = submit(leader, b"a")
            hanging = list(nodes.wires.posted)
            assert future.result(10).result == b"A", "it is sent again, by the threads for it"
            wait_until(lambda: all(wire.aborted for wire in hanging), "they are given up")
            assert not any(wire is link.connection for wire in hanging for link in leader._all_links_locked())
            replies = []
            with patch.object(leader._raft, "handle_reply", lambda peer, request, reply: replies.append(threading.current_thread().name)):
                go_on.set()
                wait_until(lambda: all(wire.closed for wire in hanging), "they are closed", 10)
            assert "posted" not in replies
        assert nodes.leader().propose(b"b", 5).result == b"B"


def test_a_thread_that_hangs_with_the_rounds_of_reads_deposes_nobody():
    """The peers are heard before an election timeout is over: neither are they taken for lost, nor does the leader step down."""
    with watched(settings=PATIENT) as (nodes, leader, _):
        term = leader.status()["term"]
        with stuck(nodes, "n1", "n2", "n3"):
            for _ in range(5):
                assert leader.submit_read().result(10)
                assert all(peer["last_contact_seconds"] < PATIENT.election_timeout_seconds for peer in leader.members())
        assert leader.status()["term"] == term and leader.status()["role"] == "leader" and not leader._lost_peers


def test_who_waits_for_what_another_thread_has_sent_sleeps():
    """However late the heartbeat is meanwhile that it would have to send."""
    with watched(settings=replace(PATIENT, election_timeout_seconds=60, rpc_timeout_seconds=20)) as (nodes, leader, _):
        with stuck(nodes, "n1", "n2", "n3"), patch.object(leader, "_tick_locked", wraps=leader._tick_locked) as looks:
            leader.submit_read()
            small = [link for link in leader._all_links_locked() if not link.data]
            assert all(link.posted for link in small), "the round is under way"
            the_fault_lasts.wait(6 * PATIENT.heartbeat_seconds)
            assert all(link.posted for link in small) and looks.call_count < 100
            with leader._lock:
                for link in small:
                    leader._wake_locked(link)
            wait_until(lambda: all(link.idle for link in small), "they are woken for nothing, and sleep again", 5)


def test_a_peer_leaves_while_a_reply_of_it_is_waited_for():
    with watched() as (nodes, leader, _):
        gone = nodes.followers(leader)[0].name
        with stuck(nodes, gone) as go_on:
            submit(leader, b"a")[0].result(5)
            hanging = next(link.connection for link in leader._all_links_locked() if link.peer == gone and link.posted)
            leader.remove(gone)
            wait_until(lambda: hanging.aborted, "its thread ends", 10)
            go_on.set()
            wait_until(lambda: hanging.closed, "whoever waits for the reply closes it", 10)
        assert leader.propose(b"b", 5).result == b"B"


# Bounds and deadlines


def test_too_many_waiting_writes_are_refused_at_once():
    settings = replace(PATIENT, max_waiting_writes=10)
    with clients(10) as pool, group(1, settings) as nodes:
        leader, storage = nodes.leader(), nodes.storages["n1"]
        storage.ready.clear()
        writes = [pool.submit(leader.propose, b"%d" % number, 20) for number in range(10)]
        wait_until(lambda: leader.status()["last_log_index"] >= 11, "ten wait")
        began = time.monotonic()
        with pytest.raises(Overloaded):
            leader.propose(b"one too many", 20)
        assert time.monotonic() - began < 10
        storage.ready.set()
        assert len({write.result().index for write in writes}) == 10
        assert leader.propose(b"again", 5).result == b"AGAIN"
        assert b"one too many" not in nodes.commands_everywhere()


def test_large_commands_give_way_to_small_ones():
    """``Turns`` says how."""
    with group(1) as nodes:
        leader = nodes.leader()
        with patch.object(leader, "_turns", wraps=leader._turns) as turns:
            assert leader.propose(b"a", 5).result == b"A" and (turns.turn.call_count, turns.small.call_count) == (0, 1)
            assert leader.propose(bytes(LARGE_BYTES), 5) and (turns.turn.call_count, turns.small.call_count) == (0, 2)
            large = bytes(LARGE_BYTES + 1)
            assert leader.propose(large, 5).result == large and (turns.turn.call_count, turns.small.call_count) == (1, 2)


def test_of_many_that_are_proposed_at_once_those_are_refused_for_which_there_is_no_room():
    """The others are proposed in their order, whoever comes before them."""
    with group(1, replace(PATIENT, max_waiting_bytes=1000)) as nodes:
        leader = nodes.leader()
        proposals = [(command, Future()) for command in (b"a", bytes(2000), b"b", b"c")]
        assert leader.submit_all(proposals) == [proposals[1]]
        assert [future.result(5).result for _, future in proposals[:1] + proposals[2:]] == [b"A", b"B", b"C"]
        assert nodes.commands_everywhere() == [b"a", b"b", b"c"]


def test_many_that_are_proposed_to_a_follower_are_refused_all():
    with group() as nodes:
        follower, = nodes.followers(nodes.leader())[:1]
        proposals = [(b"a", Future()), (b"b", Future())]
        assert follower.submit_all(proposals) == proposals
        follower.halt()
        assert follower.submit_all(proposals) == proposals and not any(future.done() for _, future in proposals)


def test_too_many_waiting_bytes_are_refused():
    settings = replace(PATIENT, max_waiting_bytes=1000)
    with clients(1) as pool, group(1, settings) as nodes:
        leader, storage = nodes.leader(), nodes.storages["n1"]
        storage.ready.clear()
        write = pool.submit(leader.propose, bytes(900), 20)
        wait_until(lambda: leader.status()["last_log_index"] >= 2, "it waits")
        with pytest.raises(Overloaded):
            leader.propose(bytes(200), 20)
        storage.ready.set()
        write.result()
        leader.propose(bytes(900), 5)


def test_a_write_that_is_not_committed_in_time_says_perhaps():
    with group() as nodes:
        leader = nodes.leader()
        nodes.wires.lose = lambda sender, receiver, request: "request" if getattr(request, "entries", ()) else None
        began = time.monotonic()
        with pytest.raises(CommitTimeout) as failure:
            leader.propose(b"late", 0.3)
        assert 0.3 <= time.monotonic() - began < 5
        assert failure.value.retry == "maybe"
        nodes.wires.cut()
        assert nodes.commands_everywhere() == [b"late"]


def test_reads_without_a_leader_end_in_time():
    with group() as nodes:
        nodes.leader()
        nodes.wires.cut("n1", "n2", "n3")
        nodes.pace(FAST)
        wait_until(lambda: all(node.leader() is None for node in nodes.nodes.values()), "nobody leads")
        began = time.monotonic()
        with clients(3) as pool:
            for node, read in [(node, pool.submit(node.read, None, timeout=30)) for node in nodes.nodes.values()]:
                with pytest.raises((NoLeader, NoQuorum)) as refusal:
                    read.result()
                assert refusal.value.retry == "safe"
                assert time.monotonic() - began < 15
                assert node.read(None, "stale") == []
                assert node.not_ready()
        nodes.wires.cut()


# Leaders that are deposed


def test_a_leader_that_is_cut_off_fails_what_waits():
    """CheckQuorum: within two election timeouts it leads no longer, and says so to writes and reads, naming who is out of reach."""
    with clients(2) as pool, group() as nodes:
        leader = nodes.leader()
        nodes.wires.cut(leader.name)
        began, last = time.monotonic(), leader.status()["last_log_index"]
        write, read = pool.submit(leader.propose, b"lost", 20), pool.submit(leader.read, None, timeout=8)
        wait_until(lambda: leader.look(lambda raft: raft.log.last_index > last and raft.waiting_reads), "both wait")
        nodes.pace(FAST)
        with pytest.raises(LeadershipLost):
            write.result()
        with pytest.raises((NoQuorum, NoLeader)) as refusal:
            read.result()
        assert all(follower.name in str(refusal.value) for follower in nodes.followers(leader))
        assert time.monotonic() - began < 15
        successor = nodes.next_leader(nodes.followers(leader))
        successor.propose(b"kept", 5)
        nodes.wires.cut()
        assert nodes.commands_everywhere() == [b"kept"]


def depose(nodes, leader, successor):
    """Make *successor* stand for election, as if *leader* had asked it to."""
    successor.handle(leader.name, 0, TimeoutNow(leader.status()["term"], leader.name))
    wait_until(lambda: successor.status()["role"] == "leader", "it leads")


def test_an_entry_that_is_overwritten_is_certainly_not_applied():
    with clients(1) as pool, group() as nodes:
        leader = nodes.leader()
        last = leader.status()["last_log_index"]
        wait_until(lambda: all(node.status()["last_log_index"] == last for node in nodes.followers(leader)), "any of them could lead")
        nodes.wires.lose = lambda sender, _, request: "request" if sender == leader.name and getattr(request, "entries", ()) else None
        write = pool.submit(leader.propose, b"lost", 20)
        wait_until(lambda: leader.status()["last_log_index"] > last, "it is in the log")
        successor = nodes.followers(leader)[0]
        depose(nodes, leader, successor)
        with pytest.raises(Discarded) as failure:
            write.result()
        assert failure.value.retry == "safe"
        nodes.wires.cut()
        successor.propose(b"kept", 5)
        assert nodes.commands_everywhere() == [b"kept"]


def test_an_entry_that_the_next_leader_commits_is_answered_as_applied():
    with clients(1) as pool, group() as nodes:
        leader = nodes.leader()
        nodes.wires.lose = lambda sender, _, request: "reply" if sender == leader.name and getattr(request, "entries", ()) else None
        write = pool.submit(leader.propose, b"kept", 20)
        successor = nodes.followers(leader)[0]
        wait_until(lambda: nodes.storages[successor.name].entries[-1].command == b"kept", "the other has it")
        depose(nodes, leader, successor)
        assert write.result().result == b"KEPT"
        nodes.wires.cut()
        assert nodes.commands_everywhere() == [b"kept"]


def test_leadership_is_handed_over():
    with group() as nodes:
        for target in ("n2", "n3", "n1"):
            leader = nodes.leader()
            if leader.name != target:
                assert leader.transfer_leadership(target, 5)["name"] == target
        assert nodes.leader() is nodes[1]
        with pytest.raises(NotFound):
            nodes[1].transfer_leadership("nobody", 5)
        with pytest.raises(NotLeader):
            nodes[2].transfer_leadership("n3", 5)


def test_leadership_is_kept_when_the_successor_does_not_answer():
    with group(settings=replace(PATIENT, election_timeout_seconds=2)) as nodes:
        leader = nodes.leader()
        deaf, other = nodes.followers(leader)
        nodes.wires.cut(deaf.name)
        with pytest.raises(NoQuorum):
            leader.transfer_leadership(deaf.name, 5)
        assert leader.propose(b"still", 5).result == b"STILL"
        nodes.wires.cut()


def test_a_late_or_repeated_request_cuts_nothing_off():
    """The original cut acknowledged entries off a follower's log when an older AppendEntries arrived after a newer one."""
    with group() as nodes:
        leader, seen = nodes.leader(), []
        nodes.wires.lose = lambda _, receiver, request: seen.append((receiver, request))
        for number in range(10):
            leader.propose(b"%d" % number, 5)
        nodes.commands_everywhere()
        before = {name: list(storage.entries) for name, storage in nodes.storages.items()}
        for receiver, request in reversed([entry for entry in seen if isinstance(entry[1], AppendEntries)]):
            nodes.nodes[receiver].handle(leader.name, 0, request)
        assert {name: nodes.nodes[name].status()["last_log_index"] for name in before} == {
            name: entries[-1].index for name, entries in before.items()}
        leader.propose(b"again", 5)
        assert nodes.commands_everywhere() == [b"%d" % number for number in range(10)] + [b"again"]
        assert all(nodes.storages[name].entries[:len(entries)] == entries for name, entries in before.items())


# Disks that fail


def test_a_failed_save_fails_the_write_and_the_node_comes_back_by_itself():
    with group(1) as nodes:
        node, storage = nodes.leader(), nodes.storages["n1"]
        node.propose(b"before", 5)
        storage.failure = StorageFailed("the disk is full", full=True)
        with pytest.raises(StorageFailed) as failure:
            node.propose(b"lost", 5)
        assert (failure.value.status, failure.value.retry) == (507, "maybe")
        with pytest.raises(RaftdError):
            node.propose(b"refused", 5)
        with pytest.raises(StorageFailed):
            node.read(None)
        assert node.read(None, "stale") == [b"before"]
        assert "full" in node.not_ready()
        storage.failure = None
        wait_until(lambda: node.not_ready() is None, "it is back")
        assert storage.reopened > 0, "the file was not opened again after a failed save"
        node.propose(b"after", 5)
        assert nodes.machines["n1"].commands == [b"before", b"after"]


@pytest.mark.parametrize("what", ["storages", "machines"])
def test_a_copy_for_others_does_not_keep_the_disk_full(what):
    """It is the size of the state. Who cannot write leads no more, and needs it for nobody."""
    with group(1) as nodes:
        node = nodes.leader()
        node.propose(b"before", 5)
        disk, copy = getattr(nodes, what)["n1"], MemorySnapshot(nodes.machines["n1"])
        copy.close = lambda: setattr(disk, "failure", None)  # there is room now
        node._outgoing = Outgoing(copy, {"n2"})
        disk.failure = StorageFailed("the disk is full", full=True)
        with pytest.raises(StorageFailed):
            node.propose(b"lost", 5)
        nodes.pace(FAST)
        wait_until(lambda: node.not_ready() is None, "it is back by itself")
        nodes.pace(PATIENT)
        node.propose(b"after", 5)


def who_saves(storage):
    """The names of the threads in which *storage* has saved from now on."""
    names, save = [], storage.save

    def save_and_tell(unsaved):
        names.append(threading.current_thread().name)
        save(unsaved)
    storage.save = save_and_tell
    return names


def test_who_has_received_entries_writes_them():
    """No hand-over to the log-writer and back, for which the leader would wait."""
    with group(settings=replace(PATIENT, rpc_timeout_seconds=16)) as nodes:
        leader = nodes.leader()
        leader.propose(b"before", 5)
        names = {node.name: who_saves(nodes.storages[node.name]) for node in nodes.nodes.values()}
        for _ in range(10):
            leader.propose(b"a", 5)
            nodes.commands_everywhere()
        assert set(names.pop(leader.name)) == {"log-writer"}
        assert {name for follower in names.values() for name in follower} == {f"to-{follower}-data" for follower in names}


def test_on_a_slow_disk_the_log_writer_writes():
    """There the leader is answered before the disk has done all."""
    with group() as nodes:
        leader = nodes.leader()
        leader.propose(b"before", 5)
        nodes.commands_everywhere()
        slow = nodes.followers(leader)[0]
        disk = nodes.storages[slow.name]
        names = who_saves(disk)
        slow._save_seconds = 0.0  # however late the machine was
        disk.ready.clear()
        leader.propose(b"a", 5)
        wait_until(lambda: len(names) == 1, "the write has begun")
        the_fault_lasts.wait(PATIENT.rpc_timeout_seconds / 4)
        disk.ready.set()
        nodes.commands_everywhere()
        leader.propose(b"b", 5)
        nodes.commands_everywhere()
        assert names[0] == f"to-{slow.name}-data" and names[1] == "log-writer"

        def is_quick_again():
            leader.propose(b"c", 5)
            nodes.commands_everywhere()
            return names[-1] == f"to-{slow.name}-data"
        wait_until(is_quick_again, "it is quick again")


def test_the_log_is_written_by_one_at_a_time():
    """A term that begins while entries are being written by who has received them, and is written as soon as they are."""
    with group(settings=UNHURRIED) as nodes:
        leader = nodes.leader()
        leader.propose(b"before", 5)
        nodes.commands_everywhere()
        follower, other = nodes.followers(leader)
        disk, writing = nodes.storages[follower.name], []
        save = disk.save

        def save_alone(unsaved):
            writing.append(unsaved)
            assert len(writing) == 1, "two write at the same time"
            save(unsaved)
            writing.pop()
        disk.save = save_alone
        disk.ready.clear()
        leader.propose(b"a", 5)
        wait_until(lambda: writing, "the write has begun")
        nodes.wires.cut(follower.name)
        term = follower.status()["term"]
        with clients(1) as pool:
            asked = pool.submit(follower.handle, other.name, 0, RequestVote(term + 1, other.name, 99, 99, leadership_transfer=True))
            wait_until(lambda: follower.status()["term"] == term + 1, "the new term has begun")
            follower._writer_wake.acquire(), follower._writer_wake.notify_all(), follower._writer_wake.release()
            holds_for(0.05, lambda: len(writing) == 1, "nobody else writes")
            disk.ready.set()
            assert asked.result(5).vote_granted
        assert disk.hard_state == (term + 1, other.name)
        nodes.pace(FAST)  # the leader follows that term
        nodes.wires.cut()
        nodes.commands_everywhere()


def test_a_follower_whose_log_fails_comes_back_by_itself():
    with group() as nodes:
        leader = nodes.leader()
        leader.propose(b"before", 5)
        nodes.commands_everywhere()
        follower = nodes.followers(leader)[0]
        disk = nodes.storages[follower.name]
        disk.failure = StorageFailed("the disk is full", full=True)
        leader.propose(b"a", 5)
        wait_until(lambda: "full" in (follower.not_ready() or ""), "it says what is wrong")
        leader.propose(b"b", 5)
        disk.failure = None
        wait_until(lambda: follower.not_ready() is None, "it is back")
        assert disk.reopened > 0, "the file was not opened again after a failed save"
        assert nodes.commands_everywhere() == [b"before", b"a", b"b"]


def test_an_unforeseen_failure_of_who_writes_what_he_has_received_is_reported():
    nodes = Group(3, PATIENT)
    try:
        leader = nodes.leader()
        leader.propose(b"before", 5)
        nodes.commands_everywhere()
        nodes.storages[nodes.followers(leader)[0].name].failure = ValueError("a bug")
        leader.propose(b"a", 5)
        wait_until(lambda: nodes.failures, "it is reported")
        assert str(nodes.failures[0]) == "a bug"
    finally:
        nodes.stop()


def test_a_log_that_fails_whenever_it_is_open_again_is_tried_less_and_less_often():
    """A disk that is nearly full: it can be opened, and the next save fails. The log is not flooded."""
    with group(1) as nodes:
        node, disk, opened = nodes.leader(), nodes.storages["n1"], []
        disk.reopen, save = lambda: opened.append(time.monotonic()), disk.save
        disk.save = lambda unsaved: raise_(StorageFailed("the disk is full"))
        with pytest.raises(StorageFailed):
            node.propose(b"a", 5)
        wait_until(lambda: len(opened) == 4, "it is tried again and again")
        pauses = [after - before for before, after in zip(opened, opened[1:], strict=False)]
        assert all(pause > 0.19 * 2**number for number, pause in enumerate(pauses)), pauses
        disk.save = save
        wait_until(lambda: node.not_ready() is None, "there is room")
        assert node.propose(b"b", 5)


def raise_(error):
    raise error


def test_a_save_that_failed_may_have_happened():
    """Then the entry is in the file that is read again, is committed, and was answered with "maybe"."""
    with group(1) as nodes:
        node, storage = nodes.leader(), nodes.storages["n1"]
        storage.failure, storage.fails_after_writing = StorageFailed("an I/O error"), True
        with pytest.raises(StorageFailed):
            node.propose(b"perhaps", 5)
        storage.failure = None
        wait_until(lambda: node.not_ready() is None, "it is back")
        assert node.read(None) == [b"perhaps"]


def test_a_leader_whose_log_fails_is_silent_and_another_leads():
    with group() as nodes:
        leader = nodes.leader()
        leader.propose(b"before", 5)
        nodes.storages[leader.name].failure = StorageFailed("an I/O error")
        with pytest.raises(StorageFailed):
            leader.propose(b"lost", 5)
        term, asker = leader.status()["term"], nodes.followers(leader)[0].name
        for request in (RequestVote(term + 1, asker, 99, 99, True), RequestVote(term + 1, asker, 99, 99), ReadIndex(term, asker)):
            with pytest.raises(Refusal, match="an I/O error"):  # and for no other reason: not even what needs no disk is answered
                leader.handle(asker, 0, request)
        successor = nodes.next_leader(nodes.followers(leader))
        successor.propose(b"kept", 5)
        nodes.storages[leader.name].failure = None
        commands = nodes.commands_everywhere()  # the peers may have had what its own disk refused: "maybe"
        assert commands in ([b"before", b"kept"], [b"before", b"lost", b"kept"])


def test_a_stalled_save_ends_leadership():
    """A disk that answers nothing is a failure too: no heartbeat may go on in its name."""
    with clients(1) as pool, group() as nodes:
        leader = nodes.leader()
        nodes.storages[leader.name].ready.clear()
        nodes.pace(FAST)
        write = pool.submit(leader.propose, b"a", 20)
        successor = nodes.next_leader(nodes.followers(leader))
        wait_until(lambda: leader.status()["role"] != "leader", "it knows")
        successor.propose(b"b", 5)
        nodes.storages[leader.name].ready.set()
        try:
            write.result()
        except RaftdError as error:
            assert error.retry in ("maybe", "safe")
        assert b"b" in nodes.commands_everywhere()


def lines_about(caplog, start):
    """What the log says that begins with *start*: (level, text)."""
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.getMessage().startswith(start)]


def wait_for_the_line(caplog):
    """The line about the disk that hangs, while it does."""
    wait_until(lambda: lines_about(caplog, "the disk does not answer"), "the disk hangs")
    lines = lines_about(caplog, "the disk does not answer")
    assert len(lines) == 1, "the log does not tell it just once"
    return lines[0][1]


@pytest.mark.parametrize("who", ["leader", "follower", "alone"])
def test_a_disk_that_hangs_is_told_while_it_does(caplog, who):
    """One line in the log when it has not answered for an election timeout, one when it answers again; until then not ready."""
    caplog.set_level("INFO")
    with group(1 if who == "alone" else 3) as nodes:
        leader = nodes.leader()
        node = nodes.followers(leader)[0] if who == "follower" else leader
        storage, timeout = nodes.storages[node.name], FAST.election_timeout_seconds
        storage.ready.clear()
        nodes.pace(FAST, node)  # and no other: that would tell how long its own disk took, on a machine that stalls
        write = leader.submit(b"a")
        told_after = float(wait_for_the_line(caplog).partition("seconds=")[2])
        assert told_after >= timeout
        holds_for(2 * timeout, lambda: (node.not_ready() or "").startswith("the disk has not answered for ")
                  and len(lines_about(caplog, "the disk does not answer")) == 1, "it is told once, and stays so")
        assert float(node.not_ready().split()[-2]) >= told_after + 1.5 * timeout
        assert not lines_about(caplog, "the disk answers again")
        storage.ready.set()
        wait_until(lambda: lines_about(caplog, "the disk answers again"), "that is told, too")
        assert [level for level, _ in lines_about(caplog, "the disk")] == ["WARNING", "INFO"]
        assert not lines_about(caplog, "slow disk")
        if who == "follower":
            assert write.result(5).result == b"A"
        nodes.next_leader().propose(b"b", 5)
        wait_until(lambda: node.not_ready() is None, "it is back by itself")
        assert nodes.commands_everywhere()[-1] == b"b"


def test_each_stall_of_a_disk_is_told(caplog):
    caplog.set_level("INFO")
    with group(1, FAST) as nodes:
        storage = nodes.storages["n1"]
        for _ in range(2):
            leader = nodes.leader()
            caplog.clear()
            storage.ready.clear()
            leader.submit(b"a")
            wait_for_the_line(caplog)
            storage.ready.set()
            wait_until(lambda: lines_about(caplog, "the disk answers again"), "and its end")


def test_a_disk_that_hangs_and_then_fails_is_silent_and_no_longer_hangs(caplog):
    caplog.set_level("INFO")
    with group(1, FAST) as nodes:
        storage, leader = nodes.storages["n1"], nodes.leader()
        storage.ready.clear()
        leader.submit(b"a")
        wait_for_the_line(caplog)
        storage.failure = StorageFailed("the disk is gone")
        storage.ready.set()
        wait_until(lambda: leader.not_ready() == "the disk is gone", "it has failed")
        assert lines_about(caplog, "the log cannot be written")
        holds_for(2 * FAST.election_timeout_seconds, lambda: leader.not_ready() == "the disk is gone"
                  and len(lines_about(caplog, "the disk does not answer")) == 1, "nothing hangs any more")
        storage.failure = None
        wait_until(lambda: leader.not_ready() is None, "it is back by itself")


def test_nobody_wakes_for_a_disk_that_hangs_but_once(monkeypatch):
    """That a write hangs is no reason to look at it again and again."""
    with group() as nodes:
        leader = nodes.leader()
        node = nodes.followers(leader)[0]
        storage, looks = nodes.storages[node.name], []
        storage.ready.clear()
        nodes.pace(FAST, node)
        leader.submit(b"a")
        wait_until(lambda: (node.not_ready() or "").startswith("the disk has not answered"), "it hangs")
        look = node._look_at_disks_locked
        monkeypatch.setattr(node, "_look_at_disks_locked", lambda now: (looks.append(now), look(now)))
        the_fault_lasts.wait(0.5)
        assert len(looks) < 10


def test_a_state_that_cannot_be_written_is_tried_again_and_not_applied_twice():
    with group() as nodes:
        leader = nodes.leader()
        machine = nodes.machines[leader.name]
        machine.failure = StorageFailed("no room", full=True)
        with pytest.raises(StorageFailed):
            leader.propose(b"a", 5)
        successor = nodes.next_leader(nodes.followers(leader))
        successor.propose(b"b", 5)
        assert leader.not_ready()
        machine.failure = None
        assert nodes.commands_everywhere() == [b"a", b"b"]


def test_a_node_is_ready_once_it_has_what_was_committed_when_it_came_back():
    """Few entries or many, lost on the way or not yet applied: a linearizable read would wait, so it is not ready."""
    with group() as nodes:
        leader = nodes.leader()
        name = nodes.followers(leader)[0].name
        nodes[int(name[1:])].stop()
        leader.propose(b"a", 5)
        machine, lost = nodes.machines[name], True
        machine.ready.clear()
        nodes.wires.lose = lambda _, receiver, request: (
            "request" if lost and receiver == name and getattr(request, "entries", ()) else None)
        node = nodes.add(name)
        wait_until(lambda: node.leader(), "it hears the leader")
        holds_for(0.3, node.not_ready, "it lacks an entry")
        lost = False
        wait_until(lambda: "catching up" in (node.not_ready() or "") and machine.reached.is_set(), "it has the entry, and applies it")
        machine.ready.set()
        wait_until(lambda: node.not_ready() is None, "it is ready")
        assert node.read(None, "stale") == [b"a"]


def test_a_vote_does_not_leave_before_it_is_durable():
    with group() as nodes:
        leader = nodes.leader()
        voter, candidate = nodes.followers(leader)
        storage = nodes.storages[voter.name]
        term = leader.status()["term"]
        last = storage.entries[-1]
        storage.ready.clear()
        with pytest.raises(Refusal):
            voter.handle(candidate.name, 0, RequestVote(term + 1, candidate.name, last.index + 100, last.term, False, True))
        assert storage.hard_state.term == term
        storage.ready.set()
        wait_until(lambda: storage.hard_state.term > term, "it is durable now")


def test_an_unforeseen_failure_of_a_thread_is_reported():
    nodes = Group(1, PATIENT)
    try:
        nodes.leader()
        nodes.machines["n1"].failure = ValueError("this command is unknown")
        with pytest.raises(RaftdError):
            nodes[1].propose(b"a", 5)
        wait_until(lambda: nodes.failures, "it is reported")
        assert str(nodes.failures[0]) == "this command is unknown"
    finally:
        nodes.stop()


def test_no_thread_for_the_link_of_a_new_member_ends_the_node(monkeypatch):
    """A member to which nobody sends would look like one that is slow, for ever. Who ends with one line is started again."""
    nodes, start = Group(1, PATIENT), threading.Thread.start

    def refuse_some(thread):
        if thread.name.startswith("to-n2-"):
            raise RuntimeError("can't start new thread")
        start(thread)
    try:
        leader = nodes.leader()
        nodes.add("n2")
        monkeypatch.setattr(threading.Thread, "start", refuse_some)
        with pytest.raises(RaftdError) as failure:
            leader.join("n2", "host:2", timeout=3)
        assert isinstance(failure.value, StorageFailed) and "can't start new thread" in str(failure.value)
        wait_until(lambda: nodes.failures, "it is reported")
        assert str(nodes.failures[0]) == "can't start new thread"
        with pytest.raises(StorageFailed):
            leader.propose(b"a", 5)
        assert "this node has failed" in leader.not_ready()
    finally:
        nodes.stop()


# Restarts


def test_a_node_goes_on_where_its_files_are():
    with group() as nodes:
        nodes.leader().propose(b"a", 5)
        nodes.commands_everywhere()
        term = nodes.leader().status()["term"]
        for node in list(nodes.nodes.values()):
            node.stop()
        for name in list(nodes.nodes):
            nodes.add(name)
        nodes._let_one_stand()
        assert nodes.leader().status()["term"] > term
        assert nodes.leader().read(None) == [b"a"]
        nodes.leader().propose(b"b", 5)
        assert nodes.commands_everywhere() == [b"a", b"b"]


def test_a_state_that_is_older_than_its_log_is_brought_up_by_the_log():
    """A power cut may take back what was applied and not synced: each entry after it is applied again, and none is skipped."""
    with group(1) as nodes:
        nodes.leader()
        older = copy(nodes.machines["n1"])
        for number in range(3):
            nodes[1].propose(b"%d" % number, 5)
        nodes[1].stop()
        nodes.machines["n1"] = older
        nodes.add("n1")
        assert nodes.leader().read(None) == [b"0", b"1", b"2"]


def test_a_state_ahead_of_its_log_is_refused():
    """Then one of the two files has lost something that the other relies on."""
    with group(1) as nodes:
        nodes.leader().propose(b"a", 5)
        nodes[1].stop()
        nodes.storages["n1"].entries = nodes.storages["n1"].entries[:1]
        with pytest.raises(DamagedFiles):
            nodes.add("n1")


def test_a_state_that_was_reached_with_other_members_is_refused():
    """It is that of another cluster, although its index and term are in this log too."""
    with group(1) as nodes:
        nodes.leader().propose(b"a", 5)
        nodes[1].stop()
        nodes.machines["n1"].position.configuration = Configuration({"n9": Member("n9", "host:9")}).encode()
        with pytest.raises(DamagedFiles):
            nodes.add("n1")


# Snapshots


def test_the_log_does_not_begin_at_a_state_that_is_not_on_the_disk():
    """A snapshot was installed, but for its last sync; then the log fails, too, and comes back before the state does."""
    members, failures = {name: Member(name, f"host:{name[1:]}", True, f"id-{name}") for name in ("n1", "n2", "n3")}, []
    disk, machine = MemoryStorage("n1", members), Machine()
    disk.entries = [Entry(index, 3, COMMAND, b"x") for index in range(1, 6)]
    disk.hard_state, install = HardState(3, None), machine.install

    def install_but_for_the_last_sync(incoming):
        install(incoming)
        machine.failure = StorageFailed("a sync has failed")
        raise machine.failure
    machine.install = install_but_for_the_last_sync
    position = SimpleNamespace(index=50, term=3, configuration=Configuration(members).encode(), installed_index=0)
    data = pickle.dumps((position, [b"new"]))
    snapshot = InstallSnapshot(3, "n2", 50, 3, len(data), hashlib.sha256(data).digest(), 0, data)
    node = Node("n1", "host:1", disk, Wires().transport("n1"), machine, PATIENT, failures.append).start()
    try:
        node.handle("n2", 0, snapshot)
        wait_until(lambda: "a sync has failed" in (node.not_ready() or ""), "the state has failed")
        disk.failure = StorageFailed("an I/O error")
        with pytest.raises(Refusal):
            node.handle("n2", 0, AppendEntries(3, "n2", 5, 3, (Entry(6, 3, COMMAND, b"y"),), 0, 0))
        wait_until(lambda: "an I/O error" in (node.not_ready() or ""), "the log has failed")
        disk.failure, reopened = None, disk.reopened
        wait_until(lambda: disk.reopened > reopened + 2 or disk.base.index, "it would come back")
        assert disk.base.index == 0 and "an I/O error" in node.not_ready()
        machine.failure = None
        wait_until(lambda: disk.base.index == 50, "both files are well")
        assert node.handle("n2", 0, replace(snapshot, data=b"")).installed
        assert failures == []
    finally:
        node.stop()


def test_what_follows_a_batch_has_a_time_of_its_own():
    """A compaction that comes after a slow batch is not taken for a part of it."""
    with group(1, TINY) as nodes:
        node, machine, moments = nodes.leader(), nodes.machines["n1"], []
        apply, checkpoint, ended = machine.apply, machine.checkpoint, []

        def apply_and_look(*batch):
            results = apply(*batch)
            ended.append(time.monotonic())
            return results

        def look_and_checkpoint():
            moments.append((ended[-1], node._applying_since))
            return checkpoint()
        machine.apply, machine.checkpoint = apply_and_look, look_and_checkpoint
        for _ in range(15):
            node.propose(b"x", 20)
        wait_until(lambda: moments, "it is compacted")
        assert all(since >= batch_ended for batch_ended, since in moments)


def test_a_follower_far_behind_gets_a_snapshot_in_chunks():
    with group(settings=TINY) as nodes:
        leader = nodes.leader()
        behind = nodes.followers(leader)[0]
        nodes.wires.cut(behind.name)
        for number in range(60):
            leader.propose(b"command %d" % number, 5)
        wait_until(lambda: leader.status()["snapshot_index"] > behind.status()["last_log_index"], "the log is compacted")
        term = leader.status()["term"]
        nodes.wires.cut()
        assert nodes.commands_everywhere() == [b"command %d" % number for number in range(60)]
        assert nodes.wires.carried[InstallSnapshot] > 3
        assert nodes.machines[behind.name].position.installed_index > 0
        assert leader.status()["term"] == term
        storage, position = nodes.storages[behind.name], nodes.machines[behind.name].position
        wait_until(lambda: storage.base.index >= position.installed_index, "the log follows the state")


def test_a_snapshot_whose_chunks_are_lost_and_repeated_arrives():
    with group(settings=TINY) as nodes:
        leader = nodes.leader()
        behind = nodes.followers(leader)[0]
        nodes.wires.cut(behind.name)
        for number in range(60):
            leader.propose(b"command %d" % number, 5)
        chunk = iter(range(10**9))

        def lose(sender, receiver, request):
            return (None, "request", None, "reply")[next(chunk) % 4] if isinstance(request, InstallSnapshot) else None
        nodes.wires.lose = lose
        with clients(1) as pool:
            more = pool.submit(lambda: [leader.propose(b"more %d" % number, 5) for number in range(30)])
            more.result()
        assert len(nodes.commands_everywhere()) == 90
        assert nodes.machines[behind.name].position.installed_index > 0


def test_a_node_restarted_between_state_and_log_of_a_snapshot_goes_on():
    """A crash after the state was installed, and before the log knew."""
    with group(settings=TINY) as nodes:
        leader = nodes.leader()
        behind = nodes.followers(leader)[0]
        behind.stop()
        del nodes.wires.nodes[behind.name], nodes.nodes[behind.name]
        for number in range(40):
            leader.propose(b"%d" % number, 5)
        snapshot = MemorySnapshot(nodes.machines[leader.name])
        incoming = MemoryIncoming(snapshot.size, snapshot.sha256)
        incoming.write(0, snapshot.read(0, snapshot.size))
        nodes.machines[behind.name].install(incoming)
        nodes.add(behind.name, settings=TINY)
        assert len(nodes.commands_everywhere()) == 40


# What must not pile up, hang or be said too early


def test_a_follower_whose_state_cannot_be_written_does_not_pile_up_entries(monkeypatch):
    """Heartbeats are heard; entries wait at the leader, and what is too far behind gets a snapshot when the disk is back."""
    monkeypatch.setattr(node_module, "MAX_BEHIND", 30)
    with group(settings=TINY) as nodes:
        leader = nodes.leader()
        behind = nodes.followers(leader)[0]
        nodes.machines[behind.name].failure = StorageFailed("no room", full=True)
        for number in range(200):
            leader.propose(b"%d" % number, 5)
        assert behind.status()["last_log_index"] - behind.status()["last_applied"] < 60
        assert behind.leader()["name"] == leader.name
        nodes.machines[behind.name].failure = None
        assert len(nodes.commands_everywhere()) == 200


def test_large_entries_do_not_pile_up_either():
    settings = replace(TINY, max_waiting_bytes=10_000)
    with group(settings=settings) as nodes:
        leader = nodes.leader()
        behind = nodes.followers(leader)[0]
        nodes.machines[behind.name].failure = StorageFailed("no room", full=True)
        for _ in range(40):
            leader.propose(bytes(1000), 5)
        status = behind.status()
        assert status["last_log_index"] - status["last_applied"] < 15
        nodes.machines[behind.name].failure = None
        assert len(nodes.commands_everywhere()) == 40


def test_entries_that_wait_for_a_commit_do_not_keep_out_those_that_bring_it():
    """One of three is dead, and between the others entries are lost for a while, in more than one term. Then that ends."""
    settings = replace(PATIENT, max_waiting_bytes=20_000, max_append_bytes=2_000)
    with group(settings=settings) as nodes:
        leader = nodes.leader()
        leader.propose(b"first", 5)
        dead, isolated = nodes.followers(leader)[0].name, False
        nodes.wires.lose = lambda sender, receiver, request: (
            "request" if dead in (sender, receiver) or isolated or getattr(request, "entries", ()) else None)
        for _ in range(3):
            with pytest.raises(Overloaded):
                while True:
                    leader.submit(bytes(1000))
            isolated = True
            nodes.pace(FAST)
            wait_until(lambda: leader.status()["role"] != "leader", "it steps down")
            isolated = False
            wait_until(lambda: leader.status()["role"] == "leader", "it leads again: nobody else has its log")
            nodes.pace(PATIENT)
        nodes.wires.cut(dead)
        assert leader.propose(b"after", 20).result == b"AFTER"
        nodes.wires.cut()


def test_a_follower_that_hears_its_leader_again_does_not_call_it_lost():
    with group() as nodes:
        leader = nodes.leader()
        follower = nodes.followers(leader)[0]
        nodes.wires.cut(follower.name)
        nodes.pace(FAST, follower)
        wait_until(lambda: "out of reach" in (follower.not_ready() or ""), "it has noticed")
        nodes.pace(PATIENT, follower)
        nodes.wires.cut()
        wait_until(lambda: follower.leader() and follower.status()["last_applied"] == leader.status()["last_applied"], "it is back")
        assert "cannot be reached" not in (follower.not_ready() or "")


def test_a_log_is_compacted_however_often_the_node_is_restarted():
    settings = replace(PATIENT, compact_entries=50, keep_entries=10)
    with group(1, settings) as nodes:
        for _ in range(6):
            for number in range(40):
                nodes.leader().propose(b"%d" % number, 5)
            nodes[1].stop()
            nodes.add("n1", settings=settings)
        assert len(nodes.storages["n1"].entries) < 110


def test_the_log_keeps_what_the_state_machine_does_not_have_on_its_disk():
    with group(1, TINY) as nodes:
        leader, machine = nodes.leader(), nodes.machines["n1"]
        machine.checkpoint = lambda: 3
        for number in range(40):
            leader.propose(b"%d" % number, 5)
        assert leader.status()["first_log_index"] <= 4


def test_the_state_machine_is_told_the_members_at_its_index_and_no_newer_ones(monkeypatch):
    """They are in the log at another index: at the next start the state would not seem to belong to it."""
    monkeypatch.setattr(node_module, "MAX_APPLY_BYTES", 1)
    with group(1) as nodes:
        leader, machine, told = nodes.leader(), nodes.machines["n1"], {}
        apply = machine.apply

        def apply_and_note(batch, index, term, configuration):
            told[index] = configuration
            return apply(batch, index, term, configuration)
        machine.apply = apply_and_note
        before = leader.look(lambda raft: raft.configuration)
        machine.ready.clear()
        writes = [leader.submit(command) for command in (b"a", b"b")]
        later = before.with_member(Member("n2", "host:2", False, "id-n2"))
        with pytest.raises(CommitTimeout):
            leader.change_configuration(lambda _: later, time.monotonic() + 0.1)
        machine.ready.set()
        indexes = [write.result(5).index for write in writes]
        leader.read(None)
        assert [told[index] for index in (*indexes, indexes[-1] + 1)] == [before.encode(), before.encode(), later.encode()]


def test_reads_that_nobody_waits_for_are_not_kept():
    """A follower that hears its leader and cannot ask it; each read is begun and given up."""
    with group(settings=replace(PATIENT, max_waiting_writes=20, rpc_timeout_seconds=1)) as nodes:
        leader = nodes.leader()
        follower = nodes.followers(leader)[0]
        follower.read(None)
        nodes.wires.lose = lambda sender, *_: "request" if sender == follower.name else None
        begun = []
        with pytest.raises(Overloaded):
            for _ in range(100):
                begun.append(follower.submit_read())
        assert len(begun) == 20
        assert [future.result(5) for future in begun] == [0] * 20
        wait_until(lambda: follower.not_ready() == f"{leader.name} leads, and cannot be reached", "it says why it is not ready")
        nodes.wires.cut()
        wait_until(lambda: follower.not_ready() is None, "it is ready")
        follower.read(None)


@pytest.mark.parametrize("who", ["follower", "alone"])
def test_a_state_machine_that_hangs_is_told_while_it_does(monkeypatch, caplog, who):
    caplog.set_level("INFO")
    monkeypatch.setattr(node_module, "STATE_STALL_SECONDS", 1.5)
    with group(1 if who == "alone" else 3) as nodes:
        leader = nodes.leader()
        node = nodes.followers(leader)[0] if who == "follower" else leader
        machine = nodes.machines[node.name]
        machine.ready.clear()
        nodes.pace(FAST, node)
        leader.submit(b"a")
        wait_until(lambda: lines_about(caplog, "the state cannot be written"), "the log tells it")
        before = node.not_ready()
        assert before.startswith("the state cannot be written: it has not answered for "), before
        holds_for(0.5, lambda: len(lines_about(caplog, "the state c")) == 1, "it is told once")
        assert float(node.not_ready().split()[-2]) >= float(before.split()[-2]) + 0.4
        machine.ready.set()
        wait_until(lambda: len(lines_about(caplog, "the state c")) == 2, "that is told, too")
        nodes.pace(FAST)
        wait_until(lambda: node.not_ready() is None, "it is back by itself")
        assert [level for level, _ in lines_about(caplog, "the state c")] == ["ERROR", "INFO"]
        assert nodes.commands_everywhere() == [b"a"]


def test_a_state_machine_that_hangs_ends_leadership(monkeypatch):
    """It raises nothing and returns nothing: a leader that cannot apply answers nobody, so another must lead."""
    monkeypatch.setattr(node_module, "STATE_STALL_SECONDS", 0.5)
    with clients(1) as pool, group() as nodes:
        leader = nodes.leader()
        machine = nodes.machines[leader.name]
        machine.ready.clear()
        write = pool.submit(leader.propose, b"a", 20)
        with pytest.raises(RaftdError) as failure:
            write.result()
        successor = nodes.next_leader(nodes.followers(leader))
        assert failure.value.retry == "maybe"
        assert "has not answered" in leader.not_ready()
        successor.propose(b"b", 5)
        machine.ready.set()
        wait_until(lambda: leader.not_ready() is None, "it is back")
        assert nodes.commands_everywhere() == [b"a", b"b"]


def test_a_commit_is_told_to_the_followers_well_before_the_next_heartbeat():
    with group(settings=replace(UNHURRIED, heartbeat_seconds=8)) as nodes:
        leader = nodes.leader()
        for number in range(5):
            index = leader.propose(b"%d" % number, 5).index
            for follower in nodes.followers(leader):
                follower.read(None, "stale", index, 4)


def test_a_snapshot_is_installed_once_it_is_surely_on_disk():
    """The new state is in its place, but the last sync has failed: a crash may still bring the old one back."""
    with group(settings=TINY) as nodes:
        leader = nodes.leader()
        behind = nodes.followers(leader)[0]
        machine, storage = nodes.machines[behind.name], nodes.storages[behind.name]
        nodes.wires.cut(behind.name)
        for number in range(60):
            leader.propose(b"%d" % number, 5)
        wait_until(lambda: leader.status()["snapshot_index"] > behind.status()["last_log_index"], "the log is compacted")
        install, base = machine.install, storage.base

        def install_and_fail(incoming):
            install(incoming)
            machine.failure = StorageFailed("the directory cannot be synced")
            raise machine.failure
        machine.install = install_and_fail
        nodes.wires.cut()
        wait_until(lambda: machine.position.installed_index, "the state is there")
        holds_for(0.5, lambda: storage.base == base and behind.status()["last_applied"] < machine.position.index, "the log relies on it")
        leader_view = {member["name"]: member["match_index"] for member in leader.members()}
        assert leader_view[behind.name] < machine.position.index
        machine.failure = None
        assert len(nodes.commands_everywhere()) == 60
        wait_until(lambda: storage.base.index >= machine.position.installed_index, "the log follows the state")


def test_a_snapshot_that_cannot_be_installed_is_sent_again_with_growing_pauses(monkeypatch):
    monkeypatch.setattr(node_module, "RETRY_SECONDS", 0.2)
    with group(settings=TINY) as nodes:
        leader = nodes.leader()
        behind = nodes.followers(leader)[0]
        machine, installs = nodes.machines[behind.name], []
        nodes.wires.cut(behind.name)
        for number in range(60):
            leader.propose(b"%d" % number, 5)
        wait_until(lambda: leader.status()["snapshot_index"] > behind.status()["last_log_index"], "the log is compacted")
        install = machine.install

        def refuse(incoming):
            installs.append(time.monotonic())
            machine._incoming = None
            raise RaftdError("not what was announced")
        machine.install = refuse
        nodes.wires.cut()
        wait_until(lambda: len(installs) == 3, "it is sent three times")
        first, second, third = installs
        assert third - second > 0.36 and second - first > 0.16
        machine.install = install
        assert len(nodes.commands_everywhere()) == 60


# Members


def test_a_server_joins_as_learner_and_then_votes_and_leaves():
    with group(1) as nodes:
        leader = nodes.leader()
        leader.propose(b"a", 5)
        nodes.add("n2")
        leader.join("n2", "host:2", timeout=10)
        leader.join("n2", "host:2", timeout=10)
        assert [member["voter"] for member in leader.members()] == [True, True]
        assert nodes.commands_everywhere() == [b"a"]
        leader.remove("n2", timeout=10)
        with pytest.raises(NotFound):
            leader.remove("n2", timeout=10)
        nodes.nodes.pop("n2").stop(), nodes.machines.pop("n2"), nodes.storages.pop("n2")
        leader.propose(b"b", 5)


def test_a_join_that_cannot_be_is_refused_and_changes_nothing():
    with group(2) as nodes:
        leader = nodes.leader()
        other = nodes.followers(leader)[0]
        before = leader.status()["last_log_index"], leader.members()
        for name, address in (("n3", "host:99"), ("n3", other.address), (leader.name, other.address)):
            with pytest.raises(BadRequest):
                leader.join(name, address, timeout=5)
        with pytest.raises(NotLeader):
            other.join("n3", "host:99", timeout=5)
        assert leader.status()["last_log_index"] == before[0]


def test_changes_of_members_at_the_same_time_take_turns():
    with clients(4) as pool, group(1) as nodes:
        leader = nodes.leader()
        for number in range(2, 6):
            nodes.add(f"n{number}")
        joins = [pool.submit(leader.join, f"n{number}", f"host:{number}", True, 20) for number in range(2, 6)]
        for join in joins:
            join.result()
        assert sorted(member["name"] for member in leader.members() if member["voter"]) == ["n1", "n2", "n3", "n4", "n5"]
        leader.propose(b"a", 5)
        assert nodes.commands_everywhere() == [b"a"]


def test_strangers_and_impossible_terms_are_refused():
    with group() as nodes:
        leader = nodes.leader()
        leader.remove(nodes.followers(leader)[0].name, timeout=10)
        term = leader.status()["term"]
        for request in (AppendEntries(term + 1, "x", 0, 0), RequestVote(term + 1, "x", 99, 99, False, True), TimeoutNow(term, "x")):
            with pytest.raises(Refusal):
                leader.handle("x", 0, request)
        member = next(name for name in (m["name"] for m in leader.members()) if name != leader.name)
        with pytest.raises(Refusal):
            leader.handle(member, 100, AppendEntries(1 << 60, member, 0, 0))
        assert leader.status()["term"] == term and leader.status()["role"] == "leader"


def test_what_no_honest_peer_says_is_refused_and_changes_nothing():
    """Raft is not for liars. But what plainly cannot be was obeyed in part, and then a fault of ours in the log."""
    with group() as nodes:
        leader = nodes.leader()
        leader.propose(b"a", 5)
        nodes.commands_everywhere()
        follower, other = nodes.followers(leader)
        status = leader.status()
        term, last = status["term"], status["last_log_index"]
        last_term = leader.look(lambda raft: raft.log.last_term)
        lies = [
            (leader, follower.name, AppendEntries(term, follower.name, last, last_term), "leads term"),
            (leader, follower.name, InstallSnapshot(term, follower.name, last + 9, term, 1, b"x", 0, b"x"), "leads term"),
            (follower, other.name, AppendEntries(term, other.name, last, last_term), "leads term"),
            (follower, other.name, AppendEntries(term + 1, other.name, last, last_term + 1), "is committed here"),
            (follower, other.name, AppendEntries(term + 1, other.name, last - 1, last_term, (Entry(last, term + 1, COMMAND, b"b"),), last),
             "is committed here"),
            (follower, other.name, RequestVote(term + 1, leader.name, last, last_term, False, True), "speaks for another"),
            (follower, other.name, TimeoutNow(term, leader.name), "speaks for another"),
            (follower, follower.name, TimeoutNow(term, follower.name), "speaks for another"),
        ]
        for receiver, sender, lie, why in lies:
            with pytest.raises(Refusal, match=why):
                receiver.handle(sender, 0, lie)
        assert {(node.status()["term"], node.status()["last_log_index"]) for node in nodes.nodes.values()} == {(term, last)}
        assert leader.status()["role"] == "leader" and leader.propose(b"c", 5)


# The end


def test_stop_answers_what_waits_and_joins_every_thread():
    with clients(3) as pool, group(1) as nodes:
        node, storage = nodes.leader(), nodes.storages["n1"]
        storage.ready.clear()
        write = pool.submit(node.propose, b"a", 10)
        wait_until(lambda: node.status()["last_log_index"] >= 2, "it waits")
        read = pool.submit(node.read, None, "stale", 99, 10)
        stop = pool.submit(node.stop)
        with pytest.raises(LeadershipLost) as failure:
            write.result()
        assert failure.value.retry == "maybe"
        with pytest.raises(Stopping):
            read.result()
        storage.ready.set()
        stop.result()
        node.stop()
        assert storage.closed and nodes.machines["n1"].closed
        for call in (lambda: node.propose(b"b", 5), lambda: node.read(None)):
            with pytest.raises(Stopping):
                call()
        with pytest.raises(Refusal):
            node.handle("n2", 0, TimeoutNow(1, "n2"))


# A leader that dies


SLOW_ELECTIONS = replace(UNHURRIED, heartbeat_seconds=60, election_timeout_seconds=120)  # nothing here waits for either


def leader_of(node):
    return (node.leader() or {}).get("name")


def kill(nodes, leader):
    """Nothing passes to or from *leader* any more, and nobody listens there."""
    nodes.wires.cut(leader.name)
    del nodes.wires.nodes[leader.name]


def test_followers_of_a_dead_leader_elect_another_long_before_an_election_timeout():
    """One of them notices later than the other, and refuses the first pre-votes: they are asked for again soon."""
    with group(settings=SLOW_ELECTIONS) as nodes:
        leader = nodes.leader()
        first, second = nodes.followers(leader)
        wait_until(lambda: leader_of(first) == leader_of(second) == leader.name, "they know the leader")
        kill(nodes, leader)
        first.connection_lost(leader.name)
        before = nodes.wires.carried[RequestVote]
        wait_until(lambda: nodes.wires.carried[RequestVote] > before + 2, "the other refuses, again and again", 10)
        assert leader_of(second) == leader.name
        second.connection_lost(leader.name)
        new = nodes.leader(among=[first, second])
        assert new.propose(b"a", 5).index and new.status()["term"] > 1
        assert nodes.wires.asked == [leader.address] * 2


def test_a_leader_that_still_listens_is_not_dead():
    """It has closed a connection by itself, say after a call that took too long."""
    with group(settings=SLOW_ELECTIONS) as nodes:
        leader = nodes.leader()
        term = leader.status()["term"]
        for follower in nodes.followers(leader):
            wait_until(follower.leader, "it knows the leader")
            follower.connection_lost(leader.name)
            assert leader_of(follower) == leader.name and follower.status()["term"] == term
        assert nodes.wires.asked == [leader.address] * 2


def test_others_than_the_leader_are_not_even_asked_for():
    """A follower, oneself, and who is no member at all."""
    with group(settings=SLOW_ELECTIONS) as nodes:
        leader = nodes.leader()
        follower, other = nodes.followers(leader)
        wait_until(follower.leader, "it knows the leader")
        kill(nodes, other)
        for node in (leader, follower):
            for name in (node.name, other.name, "n9"):
                node.connection_lost(name)
        assert nodes.wires.asked == [] and leader.status()["role"] == "leader" and leader_of(follower) == leader.name


def test_a_leader_that_was_followed_by_another_while_it_was_asked_for():
    """What is found is of the term in which the connection ended."""
    with group(settings=SLOW_ELECTIONS) as nodes:
        leader = nodes.leader()
        follower, other = nodes.followers(leader)
        wait_until(lambda: leader_of(follower) == leader_of(other) == leader.name, "they know the leader")

        def refuses_after_two_elections(address):
            for node, successor in ((leader, other), (other, leader)):
                node.transfer_leadership(successor.name)
                wait_until(lambda name=successor.name: leader_of(follower) == name, "the follower hears its successor")
            return True
        follower._transport.refuses = refuses_after_two_elections
        follower.connection_lost(leader.name)
        assert leader_of(follower) == leader.name


def test_drain_refuses_new_writes_and_waits_for_old_ones():
    with clients(2) as pool, group(1) as nodes:
        node, storage = nodes.leader(), nodes.storages["n1"]
        storage.ready.clear()
        write = pool.submit(node.propose, b"a", 10)
        wait_until(lambda: node.status()["last_log_index"] >= 2, "it waits")
        drained = pool.submit(node.drain, 30)

        def refused():
            try:
                node.propose(b"b", 0.01)
            except Stopping:
                return True
            except CommitTimeout:
                return False
        wait_until(refused, "it takes no more")
        storage.ready.set()
        assert write.result().result == b"A"
        drained.result()


def test_stop_in_the_middle_of_everything():
    """Loaded nodes are stopped one after the other; every write gets an answer, and every thread ends."""
    with clients(16) as pool, group() as nodes:
        nodes.leader()
        stopping = threading.Event()

        def write(number):
            count, answers = 0, []
            while not stopping.is_set():
                for node in list(nodes.nodes.values()):
                    try:
                        node.propose(b"%d-%d" % (number, count), 2)
                        answers.append(b"%d-%d" % (number, count))
                    except RaftdError:
                        stopping.wait(0.01)
                count += 1
            return answers
        writers = [pool.submit(write, number) for number in range(16)]
        the_fault_lasts.wait(0.5)
        for node in nodes.nodes.values():
            node.stop()
        stopping.set()
        accepted = {answer for writer in writers for answer in writer.result()}
        most = max(nodes.machines.values(), key=lambda machine: machine.position.index)
        assert accepted and accepted <= set(most.commands)
