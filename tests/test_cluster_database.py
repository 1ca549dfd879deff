"""The database on real clusters, of three servers and of one: exactly once, lists, transactions, expiry, watches, fences; across kills."""

import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPConnection

import pytest

from cluster import UNHURRIED, Cluster, call, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(params=[3, 1], ids=["three", "one"])
def cluster(request, tmp_path):
    with Cluster(tmp_path, request.param, flags=UNHURRIED) as cluster:
        yield cluster


def put(server, key, value=b"", query="", **headers):
    return call(server.address, "POST", f"/db/{key}{query}", value, {name.replace("_", "-"): text for name, text in headers.items()})


def txn(server, **members):
    return call(server.address, "POST", "/txn", json.dumps({name.rstrip("_"): member for name, member in members.items()}).encode())


def together(target, arguments):
    """What ``target(argument)`` gives, for all at the same time."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(target, arguments))


class Watch:
    """A stream of events from *server*; ``hear(count)`` gives the first so many, whenever they come, as (id, kind, data)."""

    def __init__(self, server, query="", headers=None):
        self._connection = HTTPConnection(server.address, timeout=30)
        self._connection.request("GET", f"/watch{query}", headers=headers or {})
        self._answer = self._connection.getresponse()
        self.status, self.headers = self._answer.status, self._answer.headers
        self.events, self._fields = [], {}

    def hear(self, count):
        while len(self.events) < count:
            line = self._answer.readline()
            if not line:
                raise EOFError(f"it ended after {len(self.events)} events")
            line = line.decode().rstrip("\n")
            if line and not line.startswith(":"):
                name, _, text = line.partition(": ")
                self._fields[name] = text
            elif not line:
                fields, self._fields = self._fields, {}
                if "event" in fields:
                    self.events.append((fields["id"], fields["event"], json.loads(fields["data"])))
        return self.events[:count]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()


# Exactly once


def test_a_request_happens_once_whoever_leads_and_after_restarts(cluster):
    leader = cluster.leader()
    first = put(leader, "a", b"1", Idempotency_Key="k1")
    refused = put(leader, "a", b"2", "", Idempotency_Key="k2", If_None_Match="*")
    moved = txn_with_key(leader, "k3")
    assert (first.status, refused.status, moved.status) == (200, 412, 200)
    assert put(leader, "a", b"other").status == 200
    for _ in range(2):
        leader.kill()
        cluster.restart(leader)
        leader = cluster.leader()
        again = put(leader, "a", b"1", Idempotency_Key="k1")
        assert (again.status, again.headers["etag"], again.headers["idempotent-replay"]) == (200, first.headers["etag"], "true")
        again = put(leader, "a", b"2", "", Idempotency_Key="k2", If_None_Match="*")
        assert (again.status, again.headers["etag"], again.headers["idempotent-replay"]) == (412, refused.headers["etag"], "true")
        again = txn_with_key(leader, "k3")
        assert (again.status, again.body, again.headers["idempotent-replay"]) == (200, moved.body, "true")
        assert put(leader, "a", b"9", Idempotency_Key="k1").code == "idempotency_mismatch"
    assert cluster.servers[0].get("a").body == b"other"


def txn_with_key(server, key):
    body = {"if": [{"key": "a", "value": "1"}], "then": [{"set": "b", "value": "1"}, {"get": "a"}]}
    return server.call("POST", "/txn", json.dumps(body).encode(), {"Idempotency-Key": key})


def test_many_who_send_the_same_at_once_are_all_answered_and_it_happens_once(cluster):
    leader = cluster.leader()
    answers = together(lambda number: put(leader, f"k{number % 4}", b"1", Idempotency_Key=f"same {number % 4}"), range(40))
    assert [answer.status for answer in answers] == [200] * 40
    assert len({answer.headers["etag"] for answer in answers}) == 4
    assert sum("idempotent-replay" not in answer.headers for answer in answers) == 4
    assert [json.loads(leader.call("GET", f"/db/?prefix=k{number}").body)["items"][0]["version"] for number in range(4)] == [1] * 4


def test_a_request_is_known_to_a_server_that_came_by_a_copy_of_the_state(tmp_path):
    """What came of it is a part of snapshots: the log that held it is gone."""
    with Cluster(tmp_path, 1) as cluster:
        first = put(cluster[1], "a", b"1", Idempotency_Key="k1")
        batch = json.dumps({"then": [{"set": f"fill{number}", "value": "x" * 5000} for number in range(100)]}).encode()
        for _ in range(110):
            assert cluster[1].call("POST", "/txn", batch).status == 200
        wait_until(lambda: cluster[1].status()["first_log_index"] > 10, "the log to be compacted")
        second = cluster.new()
        second.start(join=cluster[1])
        cluster.wait_voters(2)
        assert second.call("POST", "/db/a", b"x").code == "not_leader"
        cluster.hand_over(second)
        again = put(cluster.leader(), "a", b"1", Idempotency_Key="k1")
        assert (again.headers["etag"], again.headers["idempotent-replay"]) == (first.headers["etag"], "true")


# Lists, prefixes, transactions


def test_lists_on_every_server(cluster):
    leader = cluster.leader()
    operations = [{"set": f"k/{number:03}", "value": str(number)} for number in range(100)]
    assert txn(leader, then=operations).status == 200
    assert put(leader, "k/bytes", b"\xff\x00", "?ttl=60s").status == 200
    for server in cluster.servers:
        found, after = [], ""
        while after is not None:
            page = json.loads(server.call("GET", f"/db/?prefix=k/&limit=30&after={after}").body)
            found += page["items"]
            after = page["next"]
        assert [item["key"] for item in found] == [f"k/{number:03}" for number in range(100)] + ["k/bytes"]
        assert found[7]["value"] == "7" and found[100]["value_base64"] == "/wA=" and 0 < found[100]["expires_in"] <= 60
        assert json.loads(server.call("GET", "/db/?prefix=k/00&keys_only&level=stale").body)["items"][0].keys() == {
            "key", "index", "created_index", "version", "expires_in"}
    assert json.loads(leader.call("DELETE", "/db/?prefix=k/0").body)["deleted"] == 100
    assert leader.call("DELETE", "/db/?prefix=").code == "bad_request"
    assert json.loads(leader.call("DELETE", "/db/?prefix=&all=true").body)["deleted"] == 1
    for server in cluster.servers:
        assert json.loads(server.call("GET", "/db/").body)["items"] == []


def test_transactions_of_many_at_once_are_all_or_nothing(cluster):
    """Money moves between two accounts, many at a time; the sum stays."""
    leader = cluster.leader()
    assert txn(leader, then=[{"set": "a", "value": "100"}, {"set": "b", "value": "100"}]).status == 200

    def move(number):
        while True:
            now = json.loads(txn(leader, then=[{"get": "a"}, {"get": "b"}]).body)["results"]
            amounts = [int(account["value"]) for account in now]
            assert sum(amounts) == 200
            answer = txn(leader, if_=[{"key": key, "index": account["index"]} for key, account in zip("ab", now, strict=True)],
                         then=[{"set": "a", "value": str(amounts[0] - 1)}, {"set": "b", "value": str(amounts[1] + 1)}])
            if json.loads(answer.body)["succeeded"]:
                return
    together(move, range(12))
    for server in cluster.servers:
        assert (server.get("a").body, server.get("b").body) == (b"88", b"112")


# Expiry


def test_keys_expire_everywhere_no_sooner_than_told_and_soon_after(cluster):
    leader, began = cluster.leader(), time.monotonic()
    assert put(leader, "short", b"1", "?ttl=700ms").status == 200
    found = leader.get("short")
    assert found.status == 404 or 0 < float(found.headers["x-raft-expires-in"]) <= 0.7

    def put_and_touched_in_time():
        assert put(leader, "touched", b"1", "?ttl=700ms").status == 200
        return put(leader, "touched", b"", "?touch&ttl=60s").status == 200
    wait_until(put_and_touched_in_time, "it is touched before it has expired")
    assert put(leader, "again", b"1", "?ttl=700ms").status == 200
    assert put(leader, "again", b"2").status == 200
    while leader.get("short").status == 200:
        assert time.monotonic() - began < 20, "it has not expired"
    assert time.monotonic() - began >= 0.7
    for server in cluster.servers:
        assert (server.get("short").status, server.get("touched").status, server.get("again").status) == (404, 200, 200)
        assert "x-raft-expires-in" in server.get("touched").headers and "x-raft-expires-in" not in server.get("again").headers


def test_a_new_leader_neither_gives_a_key_its_time_anew_nor_takes_any_of_it(cluster):
    leader, began = cluster.leader(), time.monotonic()
    assert put(leader, "a", b"1", "?ttl=60s").status == 200
    written = time.monotonic()
    time.sleep(3)  # some of its time is over, and nobody was told so yet
    leader.kill()
    if len(cluster.servers) > 1:
        cluster.leader()  # another, which has been there all the time
    cluster.restart(leader)
    asked = time.monotonic()
    wait_until(lambda: put(cluster.leader(), "b", b"", "?ttl=60s").status == 200, "it tells all what time it is for the new leader")
    left = float(wait_until(lambda: cluster.leader().get("a").headers.get("x-raft-expires-in"), "it can be read"))
    assert time.monotonic() - began + left >= 60, "some of its time was taken"
    if len(cluster.servers) > 1:
        assert asked - written + left < 62.5, "it was given three seconds that had passed"


def test_many_expiring_keys_are_removed_and_writes_go_on(cluster):
    leader = cluster.leader()
    for batch in range(20):
        assert txn(leader, then=[{"set": f"e/{batch}/{number}", "value": "x", "ttl": "2s"} for number in range(100)]).status == 200
    wait_until(lambda: json.loads(leader.call("GET", "/db/?prefix=e/&limit=1").body)["items"] == [], "2000 keys to expire")
    assert put(leader, "after", b"1").status == 200
    cluster.wait_converged()


# Watches


def test_a_watch_on_every_server_tells_all_changes_in_order(cluster):
    leader = cluster.leader()
    streams = [Watch(server, "?prefix=k") for server in cluster.servers]
    assert {stream.status for stream in streams} == {200}
    for number in range(50):
        assert put(leader, f"k{number % 7}", b"%d" % number).status == 200
    assert txn(leader, then=[{"delete": "k0"}, {"set": "k1", "value": "last", "ttl": "100ms"}, {"set": "other", "value": ""}]).status == 200
    heard = [stream.hear(53) for stream in streams]
    assert heard == [heard[0]] * len(streams)
    assert [data.get("value") for _, kind, data in heard[0][:50]] == [str(number) for number in range(50)]
    assert [(kind, data["key"]) for _, kind, data in heard[0][50:]] == [("delete", "k0"), ("put", "k1"), ("expire", "k1")]
    assert [float(id) for id, _, _ in heard[0]] == sorted({float(id) for id, _, _ in heard[0]})
    for stream in streams:
        stream.__exit__()


def test_who_watches_goes_on_elsewhere_when_its_server_is_killed(tmp_path):
    """None lost, none twice, through kills of whoever is watched, by Last-Event-ID."""
    with Cluster(tmp_path) as cluster:
        ended, written, heard = threading.Event(), [], []

        def write():
            number = 0
            while not ended.is_set():
                with suppress(ConnectionError, TimeoutError):
                    answer = put(cluster.leader(), f"k{number % 5}", b"%d" % number)
                    if answer.status == 200:
                        written.append(int(answer.headers["etag"].strip('"')))
                number += 1
        writing = threading.Thread(target=write)
        writing.start()
        try:
            last = "0"
            for _ in range(3):
                server = cluster.followers()[0]
                with Watch(server, "?since=0", {"Last-Event-ID": last}) as stream:
                    heard += stream.hear(40)
                    last = heard[-1][0]
                    server.kill()
                cluster.restart(server)
        finally:
            ended.set()
            writing.join()
        with Watch(cluster.leader(), "?since=0", {"Last-Event-ID": last}) as stream:
            while int(last) < max(written):  # there may be more than those that were answered
                heard.append(stream.hear(len(stream.events) + 1)[-1])
                last = heard[-1][0]
        ids = [int(id) for id, _, _ in heard]
        assert ids == sorted(set(ids)), "something was told twice, or out of order"
        assert set(written) <= set(ids), "something that was answered was not told"


def test_a_history_that_is_gone_is_410(tmp_path):
    with Cluster(tmp_path, 1) as cluster:
        server = cluster[1]
        batch = json.dumps({"then": [{"set": f"k{number}", "value": ""} for number in range(128)]}).encode()
        for _ in range(820):  # some 105,000 changes
            assert server.call("POST", "/txn", batch).status == 200
        wait_until(lambda: server.call("HEAD", "/watch?since=1").status == 410, "the history to be trimmed")
        answer = server.call("GET", "/watch?since=1")
        assert (answer.status, answer.code, answer.retry) == (410, "history_gone", "no")
        oldest = int(answer.headers["x-raft-oldest-index"])
        with Watch(server, f"?since={oldest}&keys_only") as stream:
            first = stream.hear(1)[0]
            assert first[2]["index"] == oldest + 1
        last = server.status()["last_applied"]
        assert (last - oldest + 1) * 128 >= 100_000, "of the entry before these a part is kept"


def test_a_thousand_who_watch_leave_writes_and_peers_alone(tmp_path):
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        leader = cluster.leader()
        term = leader.status()["term"]

        def seconds_of_a_write():
            taken = []
            for number in range(200):
                began = time.monotonic()
                assert put(leader, f"w{number % 10}", b"x").status == 200
                taken.append(time.monotonic() - began)
            return statistics.median(taken)
        alone = seconds_of_a_write()
        streams = [Watch(leader, "?prefix=w") for _ in range(1000)]
        try:
            beside = seconds_of_a_write()
            for stream in streams[::100]:
                assert [data["key"] for _, _, data in stream.hear(200)] == [f"w{number % 10}" for number in range(200)]
            assert leader.used().threads < 150, "who watches holds a thread"
            assert leader.status()["term"] == term
            assert beside < 5 * alone, (alone, beside)
        finally:
            for stream in streams:
                stream.__exit__()


def test_a_read_waits_for_its_key_on_every_server(cluster):
    leader = cluster.leader()
    index = int(put(leader, "a", b"1").headers["etag"].strip('"'))
    answers = []

    def wait(server):
        answers.append(call(server.address, "GET", f"/db/a?wait=30s&index={index}", timeout=40))
    waiting = [threading.Thread(target=wait, args=[server]) for server in cluster.servers]
    for thread in waiting:
        thread.start()
    time.sleep(0.3)
    assert answers == []
    assert put(leader, "a", b"2").status == 200
    for thread in waiting:
        thread.join()
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"2")] * len(cluster.servers)
    began = time.monotonic()
    answer = leader.call("GET", f"/db/a?wait=400ms&index={index + 100}")
    assert (answer.status, answer.body) == (200, b"2") and time.monotonic() - began >= 0.4
    assert leader.call("GET", "/db/none?wait=100ms").status == 404


def test_two_hundred_reads_that_wait_hold_no_thread(tmp_path):
    """The node has 64 threads for requests that are not plain."""
    with Cluster(tmp_path, 1) as cluster:
        server = cluster[1]
        connections = [HTTPConnection(server.address, timeout=40) for _ in range(200)]
        for connection in connections:
            connection.request("GET", "/db/a?wait=30s")
        began = time.monotonic()
        assert put(server, "b", b"1", If_None_Match="*").status == 200, "it goes through Flask"
        assert time.monotonic() - began < 5
        assert put(server, "a", b"1").status == 200
        for connection in connections:
            with closing(connection):
                assert connection.getresponse().read() == b"1"


# Fences


def test_a_fence_keeps_out_who_has_lost_the_lock(cluster):
    leader = cluster.leader()
    first = put(leader, "lock", b"A", "?ttl=60s", If_None_Match="*").headers["etag"].strip('"')
    assert put(leader, "data", b"A", X_Raft_Fence=f"lock={first}").status == 200
    assert put(leader, "lock", b"B", "?ttl=60s", If_None_Match="*").status == 412
    assert put(leader, "lock", b"", "?touch&ttl=100ms").status == 200
    wait_until(lambda: leader.get("lock").status == 404, "the lock to expire")
    second = put(leader, "lock", b"B", "?ttl=60s", If_None_Match="*").headers["etag"].strip('"')
    late = put(leader, "data", b"A, late", X_Raft_Fence=f"lock={first}")
    assert (late.status, late.code) == (412, "precondition_failed")
    assert put(leader, "data", b"B", X_Raft_Fence=f"lock={second}").status == 200
    assert put(leader, "lock", b"", "?touch&ttl=60s", X_Raft_Fence=f"lock={second}").status == 200
    assert put(leader, "data", b"B", X_Raft_Fence=f"lock={second}").status == 200
    assert leader.get("data").body == b"B"
