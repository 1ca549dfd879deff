"""The client on real clusters, of three servers and of one: all that it can do, and what it promises while servers are killed."""

import doctest
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest

from cluster import UNHURRIED, Cluster, wait_until
from raftd import client as module
from raftd.client import Client, LockHeld, Unreachable
from raftd.errors import BadRequest, HistoryGone, IdempotencyMismatch, NotFound, PreconditionFailed
from test_client import AWKWARD_KEYS

pytestmark = pytest.mark.cluster

THREADS, OPERATIONS = 8, 10_000
KEYS = 5  # that are set by all


@pytest.fixture(params=[3, 1], ids=["three", "one"])
def cluster(request, tmp_path):
    with Cluster(tmp_path, request.param, flags=UNHURRIED) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with connected(cluster) as client:
        yield client


def connected(cluster, **more):
    return Client([server.address for server in cluster.servers], **more)


def in_parallel(target, arguments):
    """What ``target(argument)`` gives, for all at the same time; raises what one of them raises."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(target, arguments))


# Everything, while all is well


def test_the_example_does_what_it_says(cluster):
    addresses = ",".join(server.address for server in cluster.servers)
    text = module.__doc__.replace("localhost:4001,localhost:4002,localhost:4003", addresses)
    example = doctest.DocTestParser().get_doctest(text, {}, "raftd.client", None, 0)
    assert addresses in example.examples[1].source
    assert doctest.DocTestRunner(verbose=False).run(example) == (0, 2)


def test_single_keys(client):
    assert client.get("a") is None and client.get("a", b"none") == b"none" and client.entry("a") is None and "a" not in client
    first = client.set("a", "é")
    assert client["a"] == "é".encode() and "a" in client and client.entry("a")[:3] == ("a", "é".encode(), first)
    second = client.cas("a", b"\xff\x00", first)
    assert second > first
    with pytest.raises(PreconditionFailed) as caught:
        client.cas("a", b"3", first)
    assert caught.value.etag == f'"{second}"'
    with pytest.raises(PreconditionFailed):
        client.cas("a", b"3", 0)
    with pytest.raises(PreconditionFailed):
        client.set("a", b"3", if_absent=True)
    with pytest.raises(PreconditionFailed):
        client.delete("a", if_index=first)
    for level in ("linearizable", "leader", "stale"):
        assert client.get("a", level=level, min_index=second) == b"\xff\x00"
    client["b"] = b"1"
    del client["b"]
    with pytest.raises(KeyError):
        del client["b"]
    with pytest.raises(KeyError):
        client["b"]
    assert client.delete("a", if_index=second) is True and client.delete("a") is False
    assert client.cas("a", b"", 0) > second and client["a"] == b""


@pytest.mark.parametrize("key", AWKWARD_KEYS)
def test_keys_are_what_they_are(awkward, key):
    awkward.set(key, key)
    assert awkward[key] == awkward.wait(key).value == key.encode()
    assert [entry.value for entry in awkward.list(key) if entry.key == key] == [key.encode()]
    with awkward.lock((key + "?lock")[-4096:]) as lock:
        awkward.set(key, b"fenced", fence=lock)
    assert awkward.delete(key) is True and key not in awkward


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("awkward"), 1) as cluster, connected(cluster) as client:
        yield client


def test_requests_of_the_same_id_are_done_once(client):
    first = client.set("a", b"1", request_id="r")
    client.set("a", b"2")
    assert client.set("a", b"1", request_id="r") == first and client["a"] == b"2"
    with pytest.raises(IdempotencyMismatch):
        client.set("a", b"3", request_id="r")
    assert client.delete("a", request_id="d") is True
    client.set("a", b"4")
    assert client.delete("a", request_id="d") is True and client["a"] == b"4"
    assert client.cas("b", b"", 0, request_id="c") == client.cas("b", b"", 0, request_id="c")
    assert client.touch("b", 60, request_id="t") == client.touch("b", 60, request_id="t")
    assert client.delete_prefix("b", request_id="p") == client.delete_prefix("b", request_id="p") == 1
    done = client.txn([{"set": "x", "value": b"1"}], request_id="x")
    assert client.txn([{"set": "x", "value": b"1"}], request_id="x") == done and next(client.list("x")).version == 1


def test_times_to_live(client):
    index = client.set("a", b"1", ttl="60s")
    assert 50 < client.entry("a").expires_in <= 60
    assert client.touch("a", 600) == index and 500 < next(client.list("a")).expires_in <= 600
    client.set("a", b"1", ttl=0.3)
    wait_until(lambda: "a" not in client, "it to expire")
    with pytest.raises(NotFound):
        client.touch("a", 1)
    with pytest.raises(BadRequest):
        client.set("a", b"1", ttl=0)


def test_lists_and_prefixes(client):
    keys = [f"k/{number:04}" for number in range(1203)]
    for first in range(0, len(keys), 100):
        client.txn([{"set": key, "value": key} for key in keys[first:first + 100]])
    client.set("other", b"\xff")
    found = list(client.list("k/"))
    assert [entry.key for entry in found] == keys and all(entry.value == entry.key.encode() for entry in found)
    assert {(entry.version, entry.created_index == entry.index, entry.expires_in) for entry in found} == {(1, True, None)}
    assert [entry.key for entry in client.list("k/", after="k/0500", limit=3)] == ["k/0501", "k/0502", "k/0503"]
    assert [(entry.key, entry.value) for entry in client.list("o", keys_only=True)] == [("other", None)]
    assert client.delete_prefix("k/1") == 203
    with pytest.raises(BadRequest):
        client.delete_prefix("")
    assert client.delete_prefix("", all=True) == 1001 and list(client.list()) == []


def test_transactions(client):
    index = client.set("a", b"\xff")
    done = client.txn([{"set": "b", "value": b"\x00\xfe", "ttl": 60}, {"get": "b"}, {"delete": "a"}, {"delete": "none"}, {"get": "none"}],
                      if_=[{"key": "a", "value": b"\xff"}, {"key": "a", "index": index}, {"key": "b", "exists": False}])
    assert done.succeeded and done.results[1]["value"] == b"\x00\xfe" and 50 < done.results[1]["expires_in"] <= 60
    assert [result.get("deleted") for result in done.results[2:4]] == [True, False] and done.results[4] == {"get": "none", "exists": False}
    done = client.txn([{"delete": "b"}], if_=[{"key": "a", "exists": True}], else_=[{"set": "a", "value": "é"}])
    assert (done.succeeded, done.results) == (False, [{"set": "a", "index": done.index}])
    assert client["a"] == "é".encode() and "b" in client


def test_waiting_for_a_key(client):
    began = time.monotonic()
    assert client.wait("a", seconds=0.3) is None and time.monotonic() - began >= 0.3
    index = client.set("a", b"1")
    assert client.wait("a").value == b"1"
    assert client.wait("a", index, 0.2).index == index
    changes = [lambda: client.set("a", b"2"), lambda: client.delete("a"), lambda: client.set("a", b"3")]
    seen = []
    for change, after in zip(changes, ["a", "a", None], strict=True):
        index = client.entry("a").index if after else 0
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.wait, "a", index)
            with pytest.raises(TimeoutError):
                waiting.result(0.1)
            change()
            entry = waiting.result(20)
            seen.append(entry and entry.value)
    assert seen == [b"2", None, b"3"]


def test_watches(client):
    with client.watch("k") as watch, client.watch("k", keys_only=True) as keys:
        client.set("other", b"")
        first = client.set("k1", b"\xff")
        client.txn([{"set": "k1", "value": "é", "ttl": 0.1}, {"set": "k2", "value": ""}, {"delete": "k2"}])
        heard = [next(watch) for _ in range(5)]
        assert [(event.kind, event.key, event.value) for event in heard] == [
            ("put", "k1", b"\xff"), ("put", "k1", "é".encode()), ("put", "k2", b""), ("delete", "k2", None), ("expire", "k1", None)]
        assert (heard[0].index, heard[0].previous_index, heard[1].previous_index) == (first, 0, first)
        assert [next(keys).value for _ in range(5)] == [None] * 5
    with client.watch("k", since=heard[1].id) as watch:
        assert [next(watch) for _ in range(3)] == heard[2:]
    with pytest.raises(BadRequest):
        client.watch(since="x")
    assert not issubclass(HistoryGone, BadRequest)


def test_a_watch_is_closed_while_it_waits(client):
    watch, heard = client.watch(), []
    thread = threading.Thread(target=lambda: heard.extend(watch))
    thread.start()
    client.set("a", b"")
    wait_until(lambda: heard, "an event")
    watch.close()
    thread.join(20)
    assert not thread.is_alive() and len(heard) == 1


def test_locks(client):
    with client.lock("door", ttl=6, value="me") as lock:
        assert client["door"] == b"me" and lock.is_held
        client.set("a", b"1", fence=lock)
        with pytest.raises(LockHeld):
            client.lock("door", wait=0.3).acquire()
        with ThreadPoolExecutor(1) as pool:
            waiting, left = pool.submit(client.lock("door", ttl=6).acquire), [6.0]

            def it_has_more_time_left_than_before():
                left.append(client.entry("door").expires_in)
                return left[-1] > left[-2] + 1
            wait_until(it_has_more_time_left_than_before, "it is renewed")
            assert lock.is_held and not waiting.done()
            lock.release()
            other = waiting.result(20)
    assert other.token > lock.token and other.is_held and not lock.is_held
    with pytest.raises(PreconditionFailed):
        client.set("a", b"2", fence=lock)
    with pytest.raises(PreconditionFailed):
        client.txn([{"set": "a", "value": b"2"}], fence=lock)
    client.delete("a", fence=other)
    client.delete("door")
    assert other.lost.wait(10) and not other.is_held
    other.release()


def test_a_lock_whose_holder_is_cut_off_is_free_soon(cluster, client):
    lock = client.lock("door", ttl=0.5).acquire()
    lock._hold.released.set()  # nobody renews it from now on
    began = time.monotonic()
    with client.lock("door", ttl=5, wait=20) as other:
        assert time.monotonic() - began < 10 and other.token > lock.token


def test_the_cluster(cluster, client):
    size = len(cluster.servers)
    leader = cluster.leader()
    assert client.leader() == {"name": leader.name, "address": leader.address}
    assert {member["name"] for member in client.members()} == {server.name for server in cluster.servers}
    assert [client.status(server.address)["name"] for server in cluster.servers] == [server.name for server in cluster.servers]
    assert client.status()["leader"]["name"] == leader.name
    wait_until(lambda: [client.health(server.address) for server in cluster.servers] == [(True, "ok")] * size, "all are well")
    if size > 1:
        follower = cluster.followers()[0]
        assert client.transfer(follower.name)["name"] == follower.name
        assert client.transfer()["name"] != follower.name
    newcomer = cluster.new()
    newcomer.start(join=cluster[1])
    client.join(newcomer.name, newcomer.address)
    assert len(client.members()) == size + 1
    client.remove(newcomer.name)
    assert len(client.members()) == size
    with pytest.raises(NotFound):
        client.remove(newcomer.name)
    newcomer.end()
    assert client.health(newcomer.address) == (False, f"{newcomer.address}: Connection refused")
    with pytest.raises(Unreachable):
        client.status(newcomer.address)


# While servers are killed


@contextmanager
def killing(cluster):
    """``kill -9`` of each server in turn, each started again at once, the next as soon as it serves. Gives the list of those killed.

    Were the next one killed as soon as the one before listens, some 0.3 s later, there would hardly ever be a majority to elect a leader.
    """
    ended, killed = threading.Event(), []

    def kill():
        while not ended.is_set():
            server = cluster.servers[len(killed) % len(cluster.servers)]
            server.kill()
            server.start()
            wait_until(partial(getattr, server, "ready"), f"{server} serves again")
            killed.append(server)
    with ThreadPoolExecutor(1) as pool:
        nemesis = pool.submit(kill)
        try:
            yield killed
        finally:
            ended.set()
        nemesis.result()


class Load:
    """What one thread does with a client, and how often each of it has succeeded. ``operations``: all calls."""

    def __init__(self, client, number):
        self._client, self._number = client, number
        self.operations, self.sets, self.counted, self.deleted, self.moved = 0, 0, 0, 0, 0

    def run(self, count):
        while self.operations < count:
            for step in (self.set, self.set, self.count_by_cas, self.set, self.delete, self.set, self.move, self.read):
                step()

    def _call(self, name, *arguments, **more):
        self.operations += 1
        return getattr(self._client, name)(*arguments, **more)

    def set(self):
        self._call("set", f"set/{self.sets % KEYS}", b"%d" % self.operations)
        self.sets += 1

    def read(self):
        assert self._call("get", f"set/{self.sets % KEYS}", b"0").isdigit()

    def count_by_cas(self):
        key, done = f"counter/{self._number // 2}", False
        while not done:
            entry = self._call("entry", key)
            try:
                self._call("cas", key, b"%d" % (int(entry.value) + 1), entry.index)
                done = True
            except PreconditionFailed:
                continue
        self.counted += 1

    def delete(self):
        """A key of its own, made and deleted: it was not there, and then it was."""
        key = f"own/{self._number}"
        self._call("set", key, b"", if_absent=True)
        assert self._call("delete", key) is True
        self.deleted += 1

    def move(self):
        """One from an account to another: the sum stays."""
        done = False
        while not done:
            amounts = [int(result["value"]) for result in self._call("txn", [{"get": "account/a"}, {"get": "account/b"}]).results]
            assert sum(amounts) == 0
            then = [{"set": "account/a", "value": str(amounts[0] - 1)}, {"set": "account/b", "value": str(amounts[1] + 1)}]
            done = self._call("txn", then, if_=[{"key": "account/a", "value": str(amounts[0])}]).succeeded
        self.moved += 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_or_done_twice_while_servers_are_killed(tmp_path):
    with Cluster(tmp_path) as cluster, connected(cluster, timeout=30.0) as client:
        counters = [f"counter/{number}" for number in range(THREADS // 2)]
        client.txn([{"set": key, "value": "0"} for key in (*counters, "account/a", "account/b")])
        loads = [Load(client, number) for number in range(THREADS)]
        with killing(cluster) as killed:
            in_parallel(lambda load: load.run(OPERATIONS / THREADS), loads)
        assert len(killed) >= 3 and sum(load.operations for load in loads) >= OPERATIONS
        sets, counted, moved = (sum(getattr(load, name) for load in loads) for name in ("sets", "counted", "moved"))
        assert sum(entry.version for entry in client.list("set/")) == sets > 0
        assert [sum(int(client[key]) for key in counters), sum(entry.version - 1 for entry in client.list("counter/"))] == [counted] * 2
        assert [int(client["account/a"]), int(client["account/b"])] == [-moved, moved]
        assert list(client.list("own/")) == []


def test_a_watch_tells_every_change_once_while_servers_are_killed(tmp_path):
    with Cluster(tmp_path) as cluster, connected(cluster, timeout=30.0) as client:
        heard, written = [], []
        with client.watch("w/") as watch:
            listener = threading.Thread(target=lambda: heard.extend(watch))
            listener.start()
            with killing(cluster) as killed:
                deadline = time.monotonic() + 60
                while len(killed) < 9 or len(written) < 300:
                    written.append(client.set(f"w/{len(written) % 3}", str(len(written))))
                    assert time.monotonic() < deadline, (len(killed), len(written))
            wait_until(lambda: len(heard) >= len(written), "all to be told")
            client.set("w/last", b"")
            wait_until(lambda: heard[-1].key == "w/last", "the last one to be told")
        listener.join(20)
        assert [event.index for event in heard[:-1]] == written
        assert [int(event.value) for event in heard[:-1]] == list(range(len(written)))


def test_a_lock_is_held_by_one_at_a_time_while_servers_are_killed(tmp_path):
    """Who holds it reads a counter and writes the next number: two at a time would write the same one."""
    with Cluster(tmp_path) as cluster, connected(cluster, timeout=30.0) as client:
        client["counter"] = b"0"
        inside, tokens = [], []

        def count(_):
            counted = rounds = 0
            while rounds < 12 or len(killed) < 3:
                rounds += 1
                with client.lock("door", ttl=3.0) as lock:
                    inside.append(lock.token)
                    number = int(client["counter"])
                    try:
                        client.set("counter", b"%d" % (number + 1), fence=lock)
                    except PreconditionFailed:
                        assert lock.lost.wait(10), "it was refused, and not lost"
                    else:
                        counted += 1
                        tokens.append(lock.token)
            return counted
        with killing(cluster) as killed:
            counted = in_parallel(count, range(5))
        assert int(client["counter"]) == sum(counted) > 0
        assert tokens == sorted(set(tokens)) and len(inside) >= 60
