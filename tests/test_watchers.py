"""Those who wait for changes: what they are told, in which order, who is too slow, and that one thread does it all."""

import errno
import json
import socket
import threading
import time
from contextlib import closing
from functools import partial

import pytest

from copies import transfer
from raftd import watchers as module
from raftd.errors import StorageFailed
from raftd.kv import Changes, Delete, DeletePrefix, HasChanged, KeyValueStore, Set, Transaction, change_id, encode
from raftd.kv.execution import Limits
from raftd.watchers import Watchers
from raftd.web.watch import Stream

DEADLINE_SECONDS = 20
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.fixture
def limits():
    return Limits()


@pytest.fixture
def store(tmp_path, limits):
    with closing(KeyValueStore(tmp_path, limits=limits)) as store:
        yield store


@pytest.fixture
def watchers(store):
    watchers = Watchers(store, most=100).start()
    yield watchers
    watchers.stop()


def apply(store, *commands):
    first = store.position.index + 1
    store.apply([(index, encode(command)) for index, command in enumerate(commands, first)], first + len(commands) - 1, 1, b"")


class Client:
    """Who watches. ``events``: (id, kind, data) of all that was heard; data None for an id without an event."""

    def __init__(self, watchers, since=None, prefix="", keys_only=False, store=None):
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(DEADLINE_SECONDS)
        position = change_id(store.position.index) if since is None else since
        watchers.take(theirs, HEAD, Stream(None, position, prefix, keys_only, None))
        self.heard, self.ended = b"", False

    def hear_until(self, truth):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not truth():
            assert time.monotonic() < deadline, f"it has not come; heard {self.heard[-500:]}"
            data = self._socket.recv(65536)
            if not data:
                self.ended = True
                assert truth(), f"it ended after {self.heard[-500:]}"
                return
            self.heard += data

    def hear(self, count):
        """The next so many events, all that was heard before included."""
        self.hear_until(lambda: len(self.events) >= count)
        return self.events

    @property
    def events(self):
        whole = self.heard.removeprefix(HEAD).rpartition(b"\n\n")[0].decode()
        found = []
        for block in whole.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "event" in fields:
                found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
        return found

    def close(self):
        self._socket.close()

    def say_no_more(self):
        """As a client of TCP that has gone looks."""
        self._socket.shutdown(socket.SHUT_WR)


def short(events):
    return [(id, kind, data["key"], data.get("value")) for id, kind, data in events]


def eventually(truth):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not truth():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.005)


# What is told


def test_each_change_is_told_once_in_order(store, watchers):
    client = Client(watchers, store=store)
    apply(store, Set("a", b"1"))
    apply(store, Set("b", b"\xff"), Delete("a"))
    apply(store, Delete("none"))
    apply(store, Transaction((), (Set("a", b"2"), Set("b", b"3"))))
    assert client.hear(5) == [
        ("1", "put", {"key": "a", "index": 1, "previous_index": 0, "value": "1"}),
        ("2", "put", {"key": "b", "index": 2, "previous_index": 0, "value_base64": "/w=="}),
        ("3", "delete", {"key": "a", "index": 3, "previous_index": 1}),
        ("4.999999", "put", {"key": "a", "index": 5, "previous_index": 0, "value": "2"}),
        ("5", "put", {"key": "b", "index": 5, "previous_index": 2, "value": "3"})]
    assert client.heard.startswith(HEAD + b": the changes after 0\nid: 0\n\n")


def test_a_prefix_and_keys_only(store, watchers):
    clients = [Client(watchers, store=store, prefix=prefix, keys_only=keys_only) for prefix, keys_only in (
        ("a", False), ("a", True), ("b", False), ("", True))]
    apply(store, Set("a", b"1"), Set("ab", b"2"), Set("b", b"3"), Delete("a"))
    apply(store, Set("a", b"last"), Set("b", b"last"))
    assert short(clients[0].hear(4)) == [
        ("1", "put", "a", "1"), ("2", "put", "ab", "2"), ("4", "delete", "a", None), ("5", "put", "a", "last")]
    assert short(clients[1].hear(4)) == [
        ("1", "put", "a", None), ("2", "put", "ab", None), ("4", "delete", "a", None), ("5", "put", "a", None)]
    assert short(clients[2].hear(2)) == [("3", "put", "b", "3"), ("6", "put", "b", "last")]
    assert [event[0] for event in clients[3].hear(6)] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("since, first", [(0, "1"), (2_000_000, "2.999999"), (2_999_998, "2.999999"), (2_999_999, "3"), (3_000_000, "4")])
def test_who_goes_on_is_told_what_comes_after(store, watchers, since, first):
    apply(store, Set("a", b"1"), Set("a", b"2"), Transaction((), (Set("b", b"3"), Set("c", b"3"))), Set("a", b"4"))
    client = Client(watchers, since)
    apply(store, Set("a", b"5"))
    eventually(lambda: client.hear(1) and client.hear(1)[-1][0] == "5" or not client.hear(len(client.events) + 1))
    ids = [event[0] for event in client.events]
    everything = ["1", "2", "2.999999", "3", "4", "5"]
    assert ids == everything[everything.index(first):]


def test_who_is_ahead_waits_until_it_comes(store, watchers, monkeypatch):
    """On a server that is behind."""
    monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", 1000)
    client = Client(watchers, since=3_000_000)
    for number in range(1, 6):
        apply(store, Set("a", b"%d" % number))
    assert [event[0] for event in client.hear(2)] == ["4", "5"]


@pytest.mark.parametrize("limits", [Limits(changes=50, removed_at_once=1)], ids=["few"])
def test_who_is_ahead_when_a_copy_comes_is_told_what_it_has(store, watchers, limits, tmp_path, monkeypatch):
    """The history of the copy begins after what this server had."""
    monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", 1000)
    client = Client(watchers, since=150_000_000)
    eventually(lambda: watchers._ahead)
    (tmp_path / "leader").mkdir()
    with closing(KeyValueStore(tmp_path / "leader", limits=limits)) as leader:
        for number in range(160):
            apply(leader, Set("a", b"%d" % number))
        transfer(leader, store)
    assert [event[0] for event in client.hear(10)] == [str(index) for index in range(151, 161)]


def test_many_changes_are_told_in_pieces_while_more_come(store, watchers):
    apply(store, *(Set(f"k{number}", b"%d" % number) for number in range(5000)))
    early, late = Client(watchers, since=0), Client(watchers, store=store)
    for number in range(5000, 6000, 10):
        apply(store, *(Set(f"k{more}", b"%d" % more) for more in range(number, number + 10)))
    assert [event[0] for event in early.hear(6000)] == [str(index) for index in range(1, 6001)]
    assert [event[0] for event in late.hear(1000)] == [str(index) for index in range(5001, 6001)]


def test_large_values(store, watchers):
    client = Client(watchers, since=0)
    apply(store, *(Set(f"k{number}", bytes([65 + number]) * (1 << 20)) for number in range(8)))
    assert [(data["key"], data["value"] == chr(65 + number) * (1 << 20)) for number, (_, _, data) in enumerate(client.hear(8))] == [
        (f"k{number}", True) for number in range(8)]


@pytest.mark.parametrize("limits", [Limits(changes=50, removed_at_once=1)], ids=["few"])
def test_who_goes_on_where_the_history_is_gone_is_told_so(store, watchers):
    apply(store, *(Set("a", b"%d" % number) for number in range(200)))
    client = Client(watchers, since=5_000_000)
    client.hear_until(lambda: client.ended)
    [(id, kind, data)] = client.events
    assert (id, kind, data["id"]) == (None, "gone", "5") and "kept no longer" in data["reason"]


def test_who_hears_nothing_for_long_is_told_that_it_is_still_there(store, watchers, monkeypatch):
    monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", 0.5)
    client = Client(watchers, store=store, prefix="other")
    apply(store, Set("a", b"1"))
    client.hear_until(lambda: b"\n\n: nothing new\nid: 1\n\n" in client.heard)
    assert client.events == [], "it can go on from there, whatever becomes of the history"


# Who does not listen


def test_who_takes_nothing_is_dropped_with_an_event_that_says_so(store, watchers, monkeypatch):
    slow, quick = Client(watchers, store=store), Client(watchers, store=store)
    for number in range(24):
        apply(store, Set("a", b"x" * (256 << 10)))
        quick.hear(number + 1)
    monkeypatch.setattr(module, "STALL_SECONDS", 0.3)
    eventually(lambda: [watcher for watcher in list(watchers._watching.values()) if watcher.last_words])
    slow.hear_until(lambda: slow.ended)
    *told, (id, kind, data) = slow.events
    assert (id, kind) == (None, "dropped") and "too slow" in data["reason"]
    assert [event[0] for event in told] == [str(index) for index in range(1, len(told) + 1)], "what it was told is whole"
    assert 0 < len(told) < 24 and data["id"] == str(len(told)), "it can go on from there"
    apply(store, Set("a", b"last"))
    assert quick.hear(25)[-1][2]["value"] == "last"


def test_who_takes_nothing_at_all_is_forgotten(store, watchers, monkeypatch):
    monkeypatch.setattr(module, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(module, "FAREWELL_SECONDS", 0.3)
    client = Client(watchers, store=store)
    for _ in range(24):
        apply(store, Set("a", b"x" * (256 << 10)))
    eventually(lambda: not watchers._watching)
    client.close()


def test_what_is_pending_for_all_is_bounded(store, watchers, monkeypatch):
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 1 << 20)
    monkeypatch.setattr(module, "STALL_SECONDS", 1000)
    clients = [Client(watchers, store=store, prefix=prefix) for prefix in ("a", "ab", "abc", "abcd")]  # each is told something else
    for number in range(24):
        apply(store, *(Set("abcd"[:more] + str(number), b"x" * (256 << 10)) for more in range(1, 5)))
    eventually(lambda: 2 <= sum(watcher.last_words is not None for watcher in list(watchers._watching.values())))
    time.sleep(1.5)  # it looks again, and has nothing to do
    assert sum(watcher.last_words is None for watcher in list(watchers._watching.values())) >= 1, "who is dropped counts no more"
    for client in clients:
        client.close()


def test_what_many_are_told_alike_counts_once(store, watchers, monkeypatch):
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 4 << 20)
    monkeypatch.setattr(module, "STALL_SECONDS", 1000)
    clients = [Client(watchers, store=store) for _ in range(30)]
    eventually(lambda: len(watchers._up_to_date.all()) == 30)
    apply(store, Set("a", b"x" * (1 << 20)))
    eventually(lambda: sum(bool(watcher.pending) for watcher in list(watchers._watching.values())) == 30)
    time.sleep(1.5)  # it has looked at all
    assert all(watcher.last_words is None for watcher in list(watchers._watching.values()))
    for client in clients:
        client.close()


def test_what_was_told_is_not_kept(store, watchers):
    client = Client(watchers, store=store)
    apply(store, Set("a", b"x" * 100_000))
    client.hear(1)
    eventually(lambda: [len(watcher.pending.obj) for watcher in list(watchers._watching.values())] == [0])
    client.close()


def test_who_has_gone_is_forgotten(store, watchers):
    clients = [Client(watchers, store=store) for _ in range(10)]
    eventually(lambda: len(watchers._watching) == 10)
    for number, client in enumerate(clients):
        client.close() if number % 2 else client.say_no_more()
    eventually(lambda: not watchers._watching)
    apply(store, Set("a", b"1"))


def test_no_more_are_taken_than_allowed(store):
    watchers = Watchers(store, most=2)
    assert not watchers.are_full
    Client(watchers, store=store), Client(watchers, store=store)
    assert watchers.are_full
    watchers.start().stop()


def test_all_streams_end_when_it_stops(store):
    watchers = Watchers(store, most=10).start()
    clients = [Client(watchers, store=store) for _ in range(3)]
    for client in clients:
        client.hear_until(lambda client=client: b"id: 0" in client.heard)
    watchers.stop()
    for client in clients:
        client.hear_until(lambda client=client: client.ended)
    apply(store, Set("a", b"1"))


# The one thread


def test_nobody_is_looked_at_while_nothing_happens(store, watchers, monkeypatch):
    client, reads, read = Client(watchers, store=store), [], store.read
    monkeypatch.setattr(store, "read", lambda query: reads.append(query) or read(query))
    apply(store, Set("a", b"1"))
    client.hear(1)
    eventually(lambda: watchers._told == 1_000_000)
    before = len(reads)
    time.sleep(0.3)  # nothing may happen in it
    assert len(reads) == before


def test_who_is_slow_makes_no_work(store, watchers, monkeypatch):
    """Somebody who could be told more, but takes nothing, is no reason to look again and again."""
    slow = Client(watchers, store=store)
    for _ in range(24):
        apply(store, Set("a", b"x" * (256 << 10)))
    eventually(lambda: watchers._told == 24_000_000)
    steps, step = [], watchers._step
    monkeypatch.setattr(watchers, "_step", lambda: steps.append(1) or step())
    time.sleep(0.5)
    assert len(steps) < 20
    slow.close()


def test_what_has_changed_is_read_once_for_all_who_are_up_to_date(store, watchers, monkeypatch):
    monkeypatch.setattr(module, "AT_WORK_SECONDS", 1000)
    clients = [Client(watchers, store=store, prefix=prefix) for prefix in ("", "a", "b") for _ in range(20)]
    eventually(lambda: len(watchers._up_to_date.all()) == 60)
    reads, read = [], store.read
    monkeypatch.setattr(store, "read", lambda query: reads.append(query) or read(query))
    apply(store, Set("a", b"1"), Set("b", b"1"))
    for client in clients:
        client.hear(1)
    assert len(reads) <= 2


def test_who_watches_other_keys_makes_no_work(store, watchers, monkeypatch):
    """Nor does who watches a longer key; and who watches this key in more than one way is told in each of them once."""
    clients = [Client(watchers, store=store, prefix=prefix) for prefix in ("", "a", "ab", "ab", "abc", "b", *(f"x{n}" for n in range(30)))]
    eventually(lambda: len(watchers._up_to_date.all()) == len(clients))
    made, events, said, say = [], module.events, [], watchers._say
    monkeypatch.setattr(module, "events", lambda changes, prefix, keys_only: made.append(prefix) or events(changes, prefix, keys_only))
    monkeypatch.setattr(watchers, "_say", lambda watcher, data: said.append(watcher) or say(watcher, data))
    apply(store, Set("ab", b"1"))
    eventually(lambda: watchers._told == 1_000_000)
    apply(store, *[Set(f"a{number}", b"1") for number in range(4000)])
    apply(store, Set("b", b"2"), Set("x7", b"3"))
    for number, count in enumerate((4003, 4001, 1, 1, 0, 1)):
        assert len(clients[number].hear(count)) == count
    clients[6 + 7].hear(1)
    eventually(lambda: watchers._told == change_id(store.position.index))
    assert set(made) == {"", "a", "ab", "b", "x7"} and {watcher.stream.prefix for watcher in said} == set(made)
    assert clients[4].events == [] and [len(clients[number].events) for number in range(4)] == [4003, 4001, 1, 1]
    for client in clients:
        client.close()
    eventually(lambda: not watchers._watching)
    assert not watchers._up_to_date._watching and not watchers._up_to_date._lengths


def test_who_was_up_to_date_is_told_the_rest_and_nothing_twice(store, watchers):
    """What does not concern him moves his place, too, and what he has not taken yet is no reason to begin again."""
    quiet = Client(watchers, store=store, prefix="quiet")
    eventually(watchers._up_to_date.all)
    [watcher] = watchers._up_to_date.all()
    apply(store, Set("a", b"1"))
    eventually(lambda: watchers._told == 1_000_000)
    large = [Set(f"quiet{number}", bytes([65 + number]) * (1 << 20)) for number in range(4)]
    apply(store, *large)
    eventually(lambda: watcher.pending and watcher.position > 1_000_000)
    apply(store, Set("quiet", b"last"))
    assert [event[0] for event in quiet.hear(5)] == ["2", "3", "4", "5", "6"]


def test_what_happens_while_it_rests_is_told_afterwards(store, watchers, monkeypatch):
    monkeypatch.setattr(module, "REST", 1e9)
    monkeypatch.setattr(module, "MOST_REST_SECONDS", 3.0)
    first, waiting = Waiting(watchers, "a", 0), Waiting(watchers, "b", 0)
    eventually(lambda: len(watchers._waiting) == 2)
    apply(store, Set("a", b"1"))
    assert first.is_done()
    eventually(lambda: watchers._is_resting)
    steps, step = [], watchers._step
    monkeypatch.setattr(watchers, "_step", lambda: steps.append(1) or step())
    for number in range(20):
        apply(store, Set("a", b"%d" % number))
    apply(store, Set("b", b"1"))
    assert waiting.is_done()
    assert len(steps) < 10, "it was woken from its rest by each of them"


def test_it_rests_four_times_as_long_as_it_works(store, watchers, monkeypatch):
    told, tell = [], watchers._tell

    def slow():
        began = time.monotonic()
        time.sleep(0.05)
        tell()
        told.append((began, time.monotonic()))
    monkeypatch.setattr(watchers, "_tell", slow)
    client = Client(watchers, store=store)
    for number in range(40):
        apply(store, Set("a", b"%d" % number))
        time.sleep(0.02)
    client.hear(40)
    rests = [(begins - ended, ended - began) for (began, ended), (begins, _) in zip(told, told[1:], strict=False)]
    assert rests and all(rest > 0.99 * min(4 * worked, module.MOST_REST_SECONDS) for rest, worked in rests), rests


def test_it_does_not_rest_while_who_has_kept_up_might_lose_the_history(store, watchers, monkeypatch):
    """But who asks for what is long past has to wait for it."""
    monkeypatch.setattr(module, "CHANGES_AT_ONCE", 10)
    monkeypatch.setattr(module, "LATE_CHANGES", 50)
    monkeypatch.setattr(module, "REST", 1e9)
    client = Client(watchers, store=store)
    apply(store, Set("a", b"0"))
    client.hear(1)
    began = time.monotonic()
    apply(store, *[Set("a", b"%d" % number) for number in range(3000)])
    client.hear(3001)
    assert time.monotonic() - began < 300 * module.MOST_REST_SECONDS / 3
    began, late = time.monotonic(), Client(watchers, since=0)
    late.hear(1)
    while time.monotonic() - began < 4 * module.MOST_REST_SECONDS:
        late.hear(len(late.events) + 1)
    assert len(late.events) <= 10 * ((time.monotonic() - began) / module.MOST_REST_SECONDS + 5), "ten, and a rest"
    client.close()
    late.close()


def test_many_who_watch_different_keys_are_not_all_told_in_one_go(store, watchers, monkeypatch):
    """Nor would be in memory together what they are told, however large it is."""
    clients = [Client(watchers, store=store, prefix="a" * length) for length in range(1, 51)]
    eventually(lambda: len(watchers._watching) == 50)
    told, events = [], module.events

    def slow(*what):
        time.sleep(0.01)
        told[-1] += 1
        return events(*what)
    tell = watchers._tell
    monkeypatch.setattr(module, "events", slow)
    monkeypatch.setattr(watchers, "_tell", lambda: told.append(0) or tell())
    apply(store, Set("a" * 50, b"1"))
    for client in clients:
        assert short(client.hear(1)) == [("1", "put", "a" * 50, "1")]
    assert len(told) >= 3 and max(told) < 20, told


def test_the_state_knows_whether_somebody_waits_for_changes(store, watchers):
    store.subscribe(lambda: None)
    assert not store.is_awaited
    for somebody in (lambda: Client(watchers, store=store), lambda: Waiting(watchers, "a", 0).client):
        watcher = somebody()
        eventually(lambda: store.is_awaited)
        watcher.close()
        eventually(lambda: not store.is_awaited)
    waits = threading.Thread(target=store.wait_for_change, args=("a", 0, DEADLINE_SECONDS))
    waits.start()
    eventually(lambda: store.is_awaited)
    apply(store, Set("a", b"1"))
    waits.join()
    assert not store.is_awaited


# Reads that wait


class Waiting:
    def __init__(self, watchers, key, index, seconds=60):
        self.done = threading.Event()
        self.client, self._server = socket.socketpair()
        watchers.park(key, index, seconds, self._server, self.done.set)

    def is_done(self):
        return self.done.wait(DEADLINE_SECONDS)


def test_a_read_waits_for_its_key(store, watchers):
    apply(store, Set("a", b"1"), Set("gone", b"1"), Delete("gone"))
    at_once = [Waiting(watchers, *wanted) for wanted in (("a", 0), ("gone", 2), ("gone", 1))]
    waiting = [Waiting(watchers, *wanted) for wanted in (("a", 1), ("a", 3), ("gone", 3), ("gone", 0), ("none", 0), ("none", 3))]
    assert all(each.is_done() for each in at_once)
    apply(store, Set("b", b"1"))
    time.sleep(0.1)
    assert not any(each.done.is_set() for each in waiting)
    apply(store, Set("a", b"2"), Set("gone", b"2"), Set("none", b"1"))
    assert all(each.is_done() for each in waiting)
    assert not watchers._parked


def test_a_read_waits_no_longer_than_it_wants_to(store, watchers):
    began = time.monotonic()
    waiting = [Waiting(watchers, "a", 0, seconds) for seconds in (0.4, 0.2, 60)]
    assert waiting[1].is_done() and waiting[0].is_done()
    assert 0.4 <= time.monotonic() - began and not waiting[2].done.is_set()


def test_who_knows_more_than_this_server_waits_for_what_comes_after(store, watchers):
    """A write is answered before it is applied, and by the leader before it comes to others."""
    waiting = Waiting(watchers, "a", 2)
    apply(store, Set("a", b"1"))
    apply(store, Set("a", b"2"))
    eventually(lambda: watchers._told == 2_000_000)
    assert not waiting.done.is_set()
    apply(store, Set("a", b"3"))
    assert waiting.is_done()


def test_a_delete_ends_the_wait(store, watchers):
    apply(store, Set("a", b"1"))
    waiting = Waiting(watchers, "a", 1)
    apply(store, Delete("a"))
    assert waiting.is_done()


def test_who_waits_is_answered_when_it_stops(store):
    watchers = Watchers(store, most=10).start()
    waiting = Waiting(watchers, "a", 0)
    watchers.stop()
    assert waiting.is_done()


def test_who_has_gone_does_not_wait(store, watchers):
    waiting = Waiting(watchers, "a", 0)
    eventually(lambda: watchers._waiting)
    waiting.client.close()
    assert waiting.is_done() and not watchers._waiting


def test_who_has_been_answered_is_forgotten(store, watchers):
    """Not when the time is over for which he would have waited."""
    apply(store, Set("a", b"1"))
    for _ in range(300):
        assert Waiting(watchers, "a", 0).is_done()
    eventually(lambda: len(watchers._deadlines) <= 101)


def test_a_number_that_is_no_index_ends_nothing(store, watchers):
    stream, waiting = Client(watchers, store=store), Waiting(watchers, "a", 10**17)
    apply(store, Set("a", b"1"))
    assert stream.hear(1) and not waiting.done.is_set()


@pytest.mark.parametrize("query", [HasChanged, Changes])
def test_a_state_that_cannot_be_read_for_a_while_ends_nothing(store, watchers, monkeypatch, query):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    apply(store, Set("a", b"0"))
    read, failing = store.read, threading.Event()
    failing.set()

    def fails(wanted):
        if isinstance(wanted, query) and failing.is_set():
            raise StorageFailed("no descriptor is free")
        return read(wanted)
    monkeypatch.setattr(store, "read", fails)
    streams, waiting = [Client(watchers, store=store), Client(watchers, since=0)], Waiting(watchers, "b", 1)
    apply(store, Set("a", b"1"))
    assert query is Changes or waiting.is_done(), "who waits is answered: its read will say what is wrong"
    time.sleep(0.3)
    failing.clear()
    apply(store, Set("a", b"2"))
    assert [len(stream.hear(count)) for count, stream in zip((2, 3), streams, strict=True)] == [2, 3]


def test_a_fault_of_ours_sends_all_away_and_is_over_then(store, watchers, monkeypatch, caplog):
    stream, waiting = Client(watchers, store=store), Waiting(watchers, "b", 0)
    eventually(lambda: watchers._watching and watchers._waiting)
    with monkeypatch.context() as patch:
        patch.setattr(watchers, "_tell", lambda: 1 / 0)
        apply(store, Set("a", b"1"))
        stream.hear_until(lambda: stream.ended)
        assert waiting.is_done() and "all who watch are sent away" in caplog.text
    stream = Client(watchers, store=store)
    apply(store, Set("a", b"2"))
    assert stream.hear(1)


class Epoll:
    """That of Watchers, but for what is given."""

    def __init__(self, epoll, **others):
        self._epoll = epoll
        self.__dict__.update(others)

    def __getattr__(self, name):
        return getattr(self._epoll, name)


def test_after_a_fault_it_still_hears_who_comes(store, watchers, monkeypatch, caplog):
    """A fault in the middle of what has happened, a wake-up among it."""
    waiting, failed, release, poll = Waiting(watchers, "a", 0), threading.Event(), watchers._release, watchers._epoll.poll
    eventually(lambda: watchers._waiting)

    def fails_once(parked):
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        release(parked)
    with monkeypatch.context() as patch:
        patch.setattr(watchers, "_epoll", Epoll(watchers._epoll, poll=lambda *args: watchers._wake_up() or poll(*args)))
        patch.setattr(watchers, "_release", fails_once)
        watchers._wake_up()
        waiting.client.close()
        assert failed.wait(DEADLINE_SECONDS) and waiting.is_done()
    assert "all who watch are sent away" in caplog.text
    stream = Client(watchers, store=store)
    apply(store, Set("a", b"1"))
    assert stream.hear(1)


def test_who_cannot_be_waited_for_is_sent_away_alone(store, watchers, monkeypatch, caplog):
    """The system allows so many to be waited for and no more."""
    def is_full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    stream = Client(watchers, store=store)
    eventually(lambda: watchers._watching)
    with monkeypatch.context() as patch:
        patch.setattr(watchers, "_epoll", Epoll(watchers._epoll, register=is_full))
        other = Client(watchers, store=store)
        other.hear_until(lambda: other.ended)
    assert other.heard == b"" and "somebody cannot watch" in caplog.text
    apply(store, Set("a", b"1"))
    assert stream.hear(1)


def test_who_comes_when_it_has_stopped_is_let_go(store):
    watchers = Watchers(store, most=10).start()
    watchers.stop()
    client = Client(watchers, store=store)
    client.hear_until(lambda: client.ended)
    assert Waiting(watchers, "a", 0).is_done()


@pytest.mark.parametrize("limits", [Limits(changes=50, removed_at_once=1)], ids=["few"])
def test_when_the_history_jumps_nobody_is_told_that_nothing_has_happened(store, watchers):
    """One entry may remove more keys than changes are kept."""
    apply(store, *(Set(f"k{number}", b"1") for number in range(300)))
    streams, waiting = [Client(watchers, store=store), Client(watchers, store=store, prefix="other")], Waiting(watchers, "k7", 8)
    eventually(lambda: len(watchers._watching) == 2 and watchers._waiting)
    apply(store, DeletePrefix("k"))
    for stream in streams:
        stream.hear_until(lambda stream=stream: stream.ended)
        assert stream.events[-1][1] == "gone"
    assert waiting.is_done()


def has_heard_the_last(stream):
    return b'"now"' in stream.heard and stream.heard.endswith(b"\n\n")


def test_those_behind_are_told_in_turn_and_others_meanwhile(store, watchers, monkeypatch):
    monkeypatch.setattr(module, "AT_WORK_SECONDS", 0.0)  # one of them at a time
    apply(store, *(Set(f"k{number}", b"x" * 100) for number in range(5000)))
    turns, catch_up = [], watchers._catch_up

    def noted(watcher, known):
        turns.append(watcher.stream.position)
        catch_up(watcher, known)
    tell = watchers._tell
    monkeypatch.setattr(watchers, "_catch_up", noted)
    monkeypatch.setattr(watchers, "_tell", lambda: len(watchers._watching) == 6 and tell())
    ahead, behind = Client(watchers, store=store, prefix="now"), [Client(watchers, since=number) for number in range(5)]
    for stream in behind:
        threading.Thread(target=stream.hear_until, args=[partial(has_heard_the_last, stream)], daemon=True).start()
    eventually(lambda: len(watchers._watching) == 6)
    apply(store, Set("now", b"1"))
    assert ahead.hear(1)
    eventually(lambda: all(map(has_heard_the_last, behind)))
    assert all(len(stream.events) == 5001 for stream in behind)
    assert max(turns.index(position) for position in set(turns)) < 12 < 20 < len(turns), "somebody had to wait for all others"


@pytest.mark.parametrize("limits", [Limits(changes=5, removed_at_once=1)], ids=["few"])
def test_who_asks_for_what_is_not_known_any_more_is_answered(store, watchers):
    """A key that is not there may have gone after that entry, or before."""
    apply(store, *(Set("b", b"%d" % number) for number in range(50)))
    assert Waiting(watchers, "a", 3).is_done()
