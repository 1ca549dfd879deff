"""The client against servers that answer as a test says: what it sends, whom it asks, when it gives up, what it raises."""

import base64
import json
import random
import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, count, repeat
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from cluster import in_threads, nobody, wait_until
from raftd import client as module
from raftd.client import Client, Entry, Event, LockHeld, Unreachable
from raftd.errors import (
    BadRequest, CommitTimeout, HistoryGone, IdempotencyMismatch, NoLeader, NotFound, NotLeader, Overloaded, PreconditionFailed, RaftdError,
    TooLarge,
)

AWKWARD_KEYS = ["a/../b", "/x", "a//b", "..", ".", "./a", "a/.", "//", "%2F", "é", " ", "?", "#", "a?b=c&d", "a+b", "\n", "a;b=c", "\t",
                "~", "x" * 4096]
ETAG = {"ETag": '"7"'}


class Asked(NamedTuple):
    method: str
    target: str
    headers: dict
    body: bytes

    @property
    def path(self):
        return self.target.partition("?")[0]

    @property
    def query(self):
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query, keep_blank_values=True).items()}


class Fake:
    """A server that answers a request, an Asked, with what ``answer(asked)`` gives: (status, headers, body), or None to break off.

    ``asked``: all requests so far. A stream of events is a (200, headers, iterator of bytes).
    """

    def __init__(self, answer=lambda asked: (200, ETAG, b"")):
        self.asked, self.answer = [], answer
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True)
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, request, client_address):
        """Clients of these tests break off as they like."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = Asked(self.command, self.path, dict(self.headers), body)
        self.server.fake.asked.append(asked)
        answer = self.server.fake.answer(asked)
        if answer is None:
            self.close_connection = True
            return
        status, headers, body = answer
        self.send_response(status)
        for name, value in {"X-Raft-Node": "n1", "X-Raft-Index": "9", **headers}.items():
            if value is not None:
                self.send_header(name, value)
        if isinstance(body, bytes):
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("Connection", "close")
        self.end_headers()
        for part in body:
            self.wfile.write(part)

    do_GET = do_POST = do_DELETE = handle_any

    def log_message(self, *_):
        pass


@pytest.fixture
def fakes():
    """A maker of Fakes."""
    made = []

    def make(*arguments):
        made.append(Fake(*arguments))
        return made[-1]
    yield make
    for fake in made:
        fake.close()


@pytest.fixture
def fake(fakes):
    return fakes()


@pytest.fixture
def client(fake):
    with Client(fake.address, timeout=8.0) as client:
        yield client


@pytest.fixture
def first_asked(monkeypatch):
    """The endpoint that is named first is asked first."""
    monkeypatch.setattr(random, "randrange", lambda count: 0)


@pytest.fixture
def clock(monkeypatch):
    """The client's own: it stands still at ``now`` until a test moves it."""
    clock = SimpleNamespace(now=1000.0, sleep=time.sleep)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def attempts(monkeypatch):
    """``attempts(3)``: those that a call has, whatever its time; the rest after the last of them would be longer than that."""
    def only(number):
        rests = chain(repeat(0.0, number - 1), repeat(1e9))
        monkeypatch.setattr(random, "uniform", lambda low, high: next(rests))
    return only


@pytest.fixture
def patient_after_the_first(monkeypatch):
    """Who is asked after the first failure has all the time, also if it was not asked before; the first one has *seconds*."""
    def first_has(seconds):
        monkeypatch.setattr(module, "FIRST_SECONDS", seconds)
        monkeypatch.setattr(random, "uniform", lambda low, high: monkeypatch.setattr(module, "FIRST_SECONDS", 20.0) or 0.0)
    return first_has


def failure(code, retry, status=503, text="it says why", **headers):
    return status, {"X-Raft-Error": code, "X-Raft-Retry": retry, **{name.replace("_", "-"): value for name, value in headers.items()}}, \
        f"{text}\n".encode()


def not_leader(leader=None):
    return failure("not_leader", "safe", 400, X_Raft_Leader=leader and f"http://{leader}")


def as_json(members):
    return 200, {}, json.dumps(members).encode()


def one_after_the_other(*answers):
    """The last one again and again."""
    left = list(answers)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def silent():
    """An address that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


# What is sent


@pytest.mark.parametrize("key", AWKWARD_KEYS)
def test_a_key_arrives_as_it_is(fake, client, key):
    client.set(key, b"")
    client.get(key)
    client.delete(key)
    assert [unquote(asked.path, errors="strict") for asked in fake.asked] == [f"/db/{key}"] * 3
    assert all("//host" not in asked.target and asked.target.startswith("/db/") for asked in fake.asked)


def test_an_empty_key_is_refused_and_not_taken_for_all_keys(fake, client):
    for call in (client.get, client.delete, lambda key: client.set(key, b"")):
        with pytest.raises(BadRequest):
            call("")
    assert fake.asked == []


def test_a_plain_read_has_no_parameters(fake, client):
    fake.answer = lambda asked: (200, {**ETAG, "X-Raft-Expires-In": "1.500"}, b"\xff")
    assert client.get("a") == b"\xff"
    assert client.entry("a") == Entry("a", b"\xff", 7, expires_in=1.5)
    assert client["a"] == b"\xff" and "a" in client
    assert {asked.target for asked in fake.asked} == {"/db/a"}


def test_reads_say_level_min_index_and_a_short_timeout(fake, client, clock):
    client.get("a", level="stale", min_index=12)
    Client(fake.address, level="leader", timeout=2.0).get("a")
    first, second = fake.asked
    assert first.query == {"level": "stale", "min_index": "12"}
    assert second.query == {"level": "leader", "timeout": "2000ms"}


def test_a_key_that_is_not_there(fake, client):
    fake.answer = lambda asked: failure("not_found", "no", 404)
    assert client.get("a") is None and client.get("a", "b") == "b" and client.entry("a") is None and "a" not in client
    assert client.delete("a") is False
    with pytest.raises(KeyError):
        client["a"]
    with pytest.raises(KeyError):
        del client["a"]
    with pytest.raises(NotFound):
        client.touch("a", 1)


@pytest.mark.parametrize("write, method, query, headers, body", [
    (lambda client: client.set("a", "é"), "POST", {}, {}, "é".encode()),
    (lambda client: client.set("a", b"1", ttl=1.5), "POST", {"ttl": "1500ms"}, {}, b"1"),
    (lambda client: client.set("a", b"1", ttl="30s", if_absent=True), "POST", {"ttl": "30s"}, {"If-None-Match": "*"}, b"1"),
    (lambda client: client.set("a", b"1", if_index=3), "POST", {}, {"If-Match": '"3"'}, b"1"),
    (lambda client: client.cas("a", b"1", 3), "POST", {}, {"If-Match": '"3"'}, b"1"),
    (lambda client: client.cas("a", b"1", 0), "POST", {}, {"If-None-Match": "*"}, b"1"),
    (lambda client: client.touch("a", 30), "POST", {"touch": "true", "ttl": "30000ms"}, {}, b""),
    (lambda client: client.delete("a", if_index=3, fence="l=4"), "DELETE", {}, {"If-Match": '"3"', "X-Raft-Fence": "l=4"}, b""),
    (lambda client: client.set("a", b"1", fence="l=4", request_id="r"), "POST", {},
     {"X-Raft-Fence": "l=4", "Idempotency-Key": "r"}, b"1"),
])
def test_what_a_write_says(fake, client, clock, write, method, query, headers, body):
    assert write(client) in (7, True)
    (asked,) = fake.asked
    assert (asked.method, asked.body, asked.query) == (method, body, {**query, "timeout": "8000ms"})
    assert {name: asked.headers.get(name) for name in headers} == headers
    for name in {"If-Match", "If-None-Match", "X-Raft-Fence"} - headers.keys():
        assert name not in asked.headers
    assert asked.headers["Idempotency-Key"]


def test_a_client_is_no_iterable(fake, client):
    with pytest.raises(TypeError):
        list(client)
    assert fake.asked == []


def test_a_number_is_no_value(fake, client):
    for write in (lambda: client.set("a", 5), lambda: client.txn([{"set": "a", "value": 5}])):
        with pytest.raises(TypeError, match="a value is bytes or str, not int"):
            write()
    client.set("a", bytearray(b"1"))
    assert [asked.body for asked in fake.asked] == [b"1"]


def test_delete_prefix(fake, client):
    fake.answer = lambda asked: as_json({"deleted": 3, "index": 7})
    assert client.delete_prefix("a/&b") == 3 and client.delete_prefix("", all=True) == 3
    assert [(asked.method, asked.path, asked.query["prefix"], asked.query.get("all")) for asked in fake.asked] == [
        ("DELETE", "/db/", "a/&b", None), ("DELETE", "/db/", "", "true")]


def test_a_server_is_told_to_take_60_seconds_at_most(fake):
    Client(fake.address, timeout=1000).set("a", b"")
    assert fake.asked[0].query["timeout"] == "60000ms"


def test_a_transaction_carries_bytes_both_ways(fake, client):
    fake.answer = lambda asked: as_json({"succeeded": True, "index": 7, "results": [
        {"set": "a", "index": 7}, {"get": "b", "exists": True, "value": "é", "index": 3},
        {"get": "c", "exists": True, "value_base64": "/w=="},
        {"get": "d", "exists": False}]})
    done = client.txn([{"set": "a", "value": b"\xff", "ttl": 2}, {"get": "b"}, {"get": "c"}, {"get": "d"}],
                      if_=[{"key": "a", "value": "x"}, {"key": "a", "value": b"y"}, {"key": "a", "index": 0}], else_=[{"delete": "a"}])
    assert json.loads(fake.asked[0].body) == {
        "if": [{"key": "a", "value": "x"}, {"key": "a", "value_base64": "eQ=="}, {"key": "a", "index": 0}],
        "then": [{"set": "a", "value_base64": "/w==", "ttl": "2000ms"}, {"get": "b"}, {"get": "c"}, {"get": "d"}],
        "else": [{"delete": "a"}]}
    assert done == (True, 7, [{"set": "a", "index": 7}, {"get": "b", "exists": True, "value": "é".encode(), "index": 3},
                              {"get": "c", "exists": True, "value": b"\xff"}, {"get": "d", "exists": False}])


def listed(*keys, after=None):
    items = [{"key": key, "value_base64": base64.b64encode(key.encode()).decode(), "index": 3, "created_index": 2, "version": 5,
              "expires_in": None} for key in keys]
    return as_json({"items": items, "next": after, "index": 40})


def test_a_list_is_read_page_by_page_and_no_page_is_older(fake, client):
    fake.answer = one_after_the_other(listed("k1", "k2", after="k2"), listed("k3"))
    entries = client.list("k", keys_only=True)
    assert fake.asked == []
    assert next(entries) == Entry("k1", b"k1", 3, 2, 5, None) and next(entries).key == "k2"
    assert len(fake.asked) == 1
    assert [entry.key for entry in entries] == ["k3"]
    assert [asked.query for asked in fake.asked] == [
        {"prefix": "k", "keys_only": "true", "limit": "1000"},
        {"prefix": "k", "after": "k2", "keys_only": "true", "limit": "1000", "min_index": "40"}]


def test_a_list_ends_at_its_limit(fake, client):
    fake.answer = one_after_the_other(listed("k1", "k2", after="k2"), listed("k3", after="k3"))
    assert [entry.key for entry in client.list(limit=3)] == ["k1", "k2", "k3"]
    assert [asked.query["limit"] for asked in fake.asked] == ["3", "1"]
    assert list(client.list(limit=0)) == [] and len(fake.asked) == 2


def test_proxies_of_the_environment_are_not_asked(fake, client, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{nobody()}")
    assert client.set("a", b"") == 7


def test_each_thread_has_a_connection_of_its_own_and_close_ends_all(fake, client):
    client.get("a")
    looked = threading.Event()
    fake.answer = lambda asked: (looked.wait(20), (200, ETAG, b""))[1]
    threads = in_threads(client.get, ["a", "a"])
    wait_until(lambda: len(client._shared.sessions) == 3, "each thread to have one")
    looked.set()
    for thread in threads:
        thread.join(20)
    wait_until(lambda: len(client._shared.sessions) == 1, "the sessions of threads that have ended to be gone")
    closed = []
    for session in client._shared.sessions:
        session.close = lambda: closed.append(True)
    client.close()
    assert closed == [True]


def test_a_call_may_have_a_time_of_its_own(fakes, clock, monkeypatch):
    """And finds the connection, and who leads, as the client knows it; what it learns the client knows."""
    leader = fakes(lambda asked: (200, {**ETAG, "X-Raft-Leader": f"http://{leader.address}"}, b""))
    other = fakes(lambda asked: not_leader(leader.address))
    monkeypatch.setattr(module, "FIRST_SECONDS", 100.0)
    with Client(other.address, timeout=300.0) as client:
        for _ in range(3):
            client.within(20).set("a", b"")
        client.set("a", b"")
        times = [int(asked.query["timeout"].removesuffix("ms")) for asked in leader.asked]
        assert len(times) == 4 and max(times[:3]) <= 20_000 and times[3] == 60_000
        assert len(other.asked) == 1 and len(client._shared.sessions) == 1

        def no_leader(asked):
            clock.now += 15
            return failure("no_leader", "safe")
        other.answer = leader.answer = no_leader
        with pytest.raises(NoLeader):
            client.within(20).get("a")
        assert len(leader.asked) + len(other.asked) == 4 + 1 + 2


@pytest.mark.parametrize("call", [
    lambda client: client.set("a", b"", request_id="a\nb"), lambda client: client.set("a", b"", request_id=""),
    lambda client: client.set("a", b"", request_id="é"), lambda client: client.delete("a", fence="ключ=1"),
    lambda client: client.set("a", b"", request_id=" a"), lambda client: client.set("a", b"", ttl=float("inf")),
    lambda client: client.touch("a", float("nan")), lambda client: client.txn([{"set": "a", "value": "x", "ttl": float("inf")}])])
def test_what_no_server_could_be_told_is_a_bad_request(client, fake, call):
    with pytest.raises(BadRequest):
        call(client)
    assert fake.asked == []


def test_a_level_that_does_not_exist_and_a_timeout_that_no_socket_knows(fake):
    with pytest.raises(ValueError, match="'newest'"):
        Client(level="newest")
    assert Client(fake.address, timeout=1e9).get("a") == b"" and Client([fake.address, nobody()], timeout=1e9).set("a", b"") == 7


@pytest.mark.parametrize("endpoints", ["", ",", "a", "a:b", "a:1,b", "http://", "a:1/x", "a:99999", "u@a:1", []])
def test_malformed_endpoints_are_refused(endpoints):
    with pytest.raises(ValueError):
        Client(endpoints)


@pytest.mark.parametrize("endpoints", ["{},", "http://{}/", " {} , {}", ["{}"], ("http://{}", "{}")])
def test_forms_of_endpoints(fake, endpoints):
    named = endpoints.replace("{}", fake.address) if isinstance(endpoints, str) else [text.format(fake.address) for text in endpoints]
    assert Client(named).set("a", b"") == 7


# Errors


@pytest.mark.parametrize("kind", [error for error in RaftdError.__subclasses__() if error not in (Unreachable, LockHeld)])
def test_each_error_of_a_server_is_raised_as_itself(fake, client, kind):
    fake.answer = lambda asked: failure(kind.code, "no", kind.status, ETag='"12"', X_Raft_Oldest_Index="34", X_Raft_Leader="http://a:1")
    for call in (lambda: client.set("a", b""), lambda: client.get("a")):
        if kind is NotFound and client.get("a") is None:
            call = client.status
        with pytest.raises(kind) as caught:
            call()
        assert type(caught.value) is kind and str(caught.value) == "it says why"
        assert (caught.value.retry, caught.value.status, caught.value.leader) == ("no", kind.status, "http://a:1")
    assert kind is not PreconditionFailed or caught.value.etag == '"12"'
    assert kind is not HistoryGone or caught.value.oldest == 34


def test_a_condition_that_failed_tells_the_current_version(fake, client):
    fake.answer = lambda asked: failure("precondition_failed", "no", 412, ETag='"12"')
    with pytest.raises(PreconditionFailed) as caught:
        client.cas("a", b"", 3)
    assert caught.value.etag == '"12"'
    fake.answer = lambda asked: failure("precondition_failed", "no", 412)
    with pytest.raises(PreconditionFailed) as caught:
        client.cas("a", b"", 3)
    assert caught.value.etag is None and len(fake.asked) == 2


def test_what_is_no_raftd_is_not_believed(fakes, attempts):
    attempts(1)
    strange = fakes(lambda asked: (200, {"X-Raft-Node": None}, b"<html>"))
    with pytest.raises(RaftdError, match="does not seem to be raftd"):
        Client(strange.address).get("a")
    newer = fakes(lambda asked: failure("from_the_future", "no", 418))
    with pytest.raises(RaftdError, match="it says why") as caught:
        Client(newer.address).get("a")
    assert (caught.value.status, caught.value.retry) == (418, "no")


@pytest.mark.parametrize("error", [BadRequest, TooLarge, IdempotencyMismatch])
def test_what_would_fail_again_is_not_sent_again(fake, client, error):
    fake.answer = lambda asked: failure(error.code, "no", error.status)
    with pytest.raises(error):
        client.set("a", b"")
    assert len(fake.asked) == 1


# Attempts


@pytest.mark.parametrize("bad", [failure("no_quorum", "safe"), failure("commit_timeout", "maybe", 504), None])
def test_a_write_is_sent_again_as_the_same_request(fake, client, bad):
    fake.answer = one_after_the_other(bad, bad, (200, ETAG, b""))
    assert client.set("a", b"x", ttl=3, if_index=2) == 7
    assert len(fake.asked) == 3
    assert len({(asked.method, asked.path, asked.body, asked.headers["Idempotency-Key"], asked.headers["If-Match"])
                for asked in fake.asked}) == 1
    client.set("a", b"x")
    assert fake.asked[3].headers["Idempotency-Key"] != fake.asked[0].headers["Idempotency-Key"]


def test_a_write_goes_to_the_leader_at_once_also_to_one_that_is_no_endpoint(fakes, monkeypatch):
    leader = fakes()
    leader.answer = lambda asked: (200, {**ETAG, "X-Raft-Leader": f"http://{leader.address}"}, b"")
    follower = fakes(lambda asked: not_leader(leader.address))
    monkeypatch.setattr(random, "uniform", lambda low, high: pytest.fail("it rests"))
    with Client(follower.address) as client:
        for _ in range(3):
            assert client.set("a", b"") == 7
    assert (len(follower.asked), len(leader.asked)) == (1, 3)
    assert len({asked.headers["Idempotency-Key"] for asked in [follower.asked[0], leader.asked[0]]}) == 1


def test_a_read_teaches_who_leads(fakes):
    leader = fakes()
    follower = fakes(lambda asked: (200, {**ETAG, "X-Raft-Leader": f"http://{leader.address}"}, b""))
    with Client(follower.address) as client:
        client.get("a")
        client.set("a", b"")
    assert ([asked.method for asked in follower.asked], [asked.method for asked in leader.asked]) == (["GET"], ["POST"])


def test_reads_begin_anywhere_and_go_on_elsewhere(fakes):
    here, there = fakes(), fakes()
    with Client([here.address, there.address]) as client:
        for _ in range(40):
            client.get("a")
        assert len(here.asked) >= 5 and len(there.asked) >= 5
        here.answer = lambda asked: failure("no_leader", "safe")
        for _ in range(10):
            assert client.get("a") == b""
    with Client([nobody(), there.address]) as client:
        for _ in range(10):
            assert client.get("a") == b""


def test_when_a_leader_dies_others_are_asked_until_one_leads(fakes):
    dead, calls = nobody(), count()
    other = fakes(lambda asked: not_leader(dead) if next(calls) < 2 else (200, ETAG, b""))
    third = fakes(lambda asked: not_leader(dead))
    with Client([dead, other.address, third.address]) as client:
        client._shared.leader = dead
        assert client.set("a", b"") == 7


def test_who_has_fallen_silent_is_not_dialled_again_on_hearsay(fakes, first_asked):
    other = fakes(one_after_the_other(*[not_leader("127.0.0.1:9")] * 6, (200, ETAG, b"")))
    attempts = module._Attempts(["127.0.0.1:9", other.address], time.monotonic() + 5)
    asked = []
    for _ in range(6):
        server = attempts.next_server("127.0.0.1:9")
        asked.append(server)
        attempts.failed(server, Unreachable() if server == "127.0.0.1:9" else NotLeader(leader="http://127.0.0.1:9"))
    assert asked == ["127.0.0.1:9", other.address] * 3


def test_a_leader_that_is_no_endpoint_has_its_turn_too(fakes):
    attempts = module._Attempts(["follower:1"], time.monotonic() + 5)
    assert attempts.next_server(None) == "follower:1"
    attempts.failed("follower:1", NotLeader(leader="http://leader:1"))
    asked = []
    for _ in range(4):
        asked.append(attempts.next_server("leader:1"))
        attempts.failed(asked[-1], Unreachable() if asked[-1] == "leader:1" else NotLeader(leader="http://leader:1"))
    assert asked == ["leader:1", "follower:1"] * 2


def test_two_that_name_each_other_are_not_asked_without_rest(fakes, attempts):
    one, two = fakes(), fakes()

    def naming(other):
        return lambda asked: not_leader(other.address) if len(one.asked) + len(two.asked) < 40 else failure("bad_request", "no", 400)
    one.answer, two.answer = naming(two), naming(one)
    attempts(4)
    with pytest.raises(NotLeader):
        Client([one.address, two.address], timeout=60).set("a", b"")


def test_when_nobody_leads_it_says_so(fake, attempts):
    attempts(2)
    fake.answer = lambda asked: failure("not_leader", "safe")
    with pytest.raises(NoLeader) as caught:
        Client(fake.address).set("a", b"")
    assert str(caught.value) == "no server that answers knows a leader" and caught.value.retry == "safe"


def test_rests_double_up_to_half_a_second(monkeypatch):
    rests = []
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    attempts = module._Attempts(["a:1"], time.monotonic() + 100, rests.append)
    for _ in range(9):
        attempts.failed(attempts.next_server(None), NoLeader())
    assert rests == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5]


def test_a_call_ends_at_its_deadline_with_what_was_last_said(fake, clock):
    def answer(asked):
        clock.now += 5
        return failure("overloaded", "safe" if len(fake.asked) < 6 else "no", text=f"too much for {len(fake.asked)}")
    fake.answer = answer
    with pytest.raises(Overloaded, match="too much for 4") as caught:
        Client(fake.address, timeout=20).set("a", b"")
    assert caught.value.retry == "safe"


@pytest.mark.parametrize("first", [0, 1])
def test_what_a_server_said_tells_more_than_that_another_is_gone(fake, attempts, monkeypatch, first):
    fake.answer = lambda asked: failure("overloaded", "safe")
    monkeypatch.setattr(random, "randrange", lambda count: first)
    attempts(4)
    with pytest.raises(Overloaded):
        Client([fake.address, nobody()]).set("a", b"")


def test_it_is_not_certain_that_nothing_was_done_if_one_attempt_may_have(fake, attempts):
    fake.answer = one_after_the_other(None, failure("no_leader", "safe"))
    attempts(3)
    with pytest.raises(NoLeader) as caught:
        Client(fake.address).set("a", b"")
    assert caught.value.retry == "maybe"


def test_unreachable_says_whether_anything_was_sent(fake, attempts):
    address = nobody()
    attempts(1)
    with pytest.raises(Unreachable, match=f"{address}: Connection refused") as caught:
        Client(address).set("a", b"")
    assert (caught.value.retry, caught.value.code) == ("safe", "unreachable")
    fake.answer = lambda asked: None
    with pytest.raises(Unreachable) as caught:
        Client(fake.address).set("a", b"")
    assert caught.value.retry == "maybe"


def test_what_was_handled_before_does_not_matter(fake, attempts):
    """An error that is raised while another is handled has that as its context."""
    fake.answer = lambda asked: None
    attempts(1)
    try:
        Client(nobody()).get("a")
    except Unreachable:
        with pytest.raises(Unreachable) as caught:
            Client(fake.address).set("a", b"")
    assert caught.value.retry == "maybe" and "refused" not in str(caught.value)


def test_a_server_that_says_nothing_is_left_for_another(fakes, first_asked, patient_after_the_first):
    patient_after_the_first(0.2)
    there = fakes()
    with silent() as address:
        with Client([address, there.address], timeout=60) as client:
            assert client.get("a") == b"" and client.set("a", b"") == 7
        with pytest.raises(Unreachable, match="timed out") as caught:
            Client(address, timeout=0.2).get("a")
        assert caught.value.retry == "maybe"


def test_a_server_that_was_not_asked_before_has_not_half_of_the_time(fakes, first_asked, patient_after_the_first):
    """It may have been stopped, or be cut off."""
    patient_after_the_first(0.2)
    there = fakes()
    with silent() as address, Client([address, there.address], timeout=60) as client, client.within(60) as other:
        began = time.monotonic()
        assert client.get("a") == b"" and other.set("a", b"") == 7
        assert time.monotonic() - began < 20
    assert [asked.query.get("timeout") for asked in there.asked] == [None, "20000ms"]


def test_who_was_silent_is_asked_after_the_others(fakes, first_asked, patient_after_the_first, monkeypatch):
    """Not by every call again, until it answers, or some time has passed."""
    patient_after_the_first(0.1)
    monkeypatch.setattr(module, "SILENT_SECONDS", 60.0)
    hangs = threading.Event()
    here, there = fakes(lambda asked: (len(here.asked) > 1 or hangs.wait(20), (200, ETAG, b""))[1]), fakes()
    with Client([here.address, there.address], timeout=60) as client:
        for _ in range(10):
            client.get("a")
            client.within(30).set("a", b"")
        assert (len(here.asked), len(there.asked)) == (1, 20)
        hangs.set()
        there.answer = lambda asked: failure("no_leader", "safe")
        client.get("a")
        assert len(here.asked) == 2
        there.answer = lambda asked: (200, ETAG, b"")
        client.get("a")
        assert len(here.asked) == 3, "it has answered"


def test_later_attempts_have_more_time(fakes):
    attempts = module._Attempts(["a:1", "b:1"], time.monotonic() + 60, pause=lambda seconds: None)
    given = []
    for _ in range(4):
        server = attempts.next_server(None)
        given.append(attempts.seconds(server))
        attempts.failed(server, Unreachable())
    assert [seconds for seconds, _ in given[:2]] == [module.FIRST_SECONDS] * 2 and min(given[2][0], given[3][0], *given[0][1:]) > 25
    assert given[2][0] <= 30, "half of it is for the other"
    assert module._Attempts(["a:1"], time.monotonic() + 60).seconds("a:1")[0] > 50, "there is nobody else"


# The cluster


def test_the_cluster(fake, client):
    fake.answer = lambda asked: as_json({"members": [{"name": "n1"}], "asked": asked.target})
    assert client.members() == [{"name": "n1"}]
    assert client.status()["asked"] == client.status(fake.address)["asked"] == "/status" and client.leader()["asked"] == "/leader"
    assert client.health(f"http://{fake.address}")[0] is True
    client.transfer()
    client.transfer("n2")
    client.join("n3", "h:1", voter=False)
    client.remove("n3")
    changes = [(asked.method, asked.path, json.loads(asked.body or b"null")) for asked in fake.asked[5:]]
    assert changes == [("POST", "/leader", None), ("POST", "/leader", {"name": "n2"}),
                       ("POST", "/join", {"name": "n3", "connectionString": "http://h:1", "voter": False}), ("DELETE", "/members/n3", None)]
    assert all(int(asked.query["timeout"].removesuffix("ms")) > 4000 for asked in fake.asked[5:])


def test_health_and_the_status_of_one_are_asked_once(fake, client):
    fake.answer = lambda asked: failure("no_quorum", "safe", text="n2 is out of reach")
    assert client.health(fake.address) == (False, "n2 is out of reach")
    assert len(fake.asked) == 1
    address = nobody()
    assert client.health(address) == (False, f"{address}: Connection refused")
    with pytest.raises(Unreachable):
        client.status(address)


def test_a_member_that_this_call_has_removed_was_there(fake, client):
    fake.answer = one_after_the_other(None, failure("not_found", "no", 404))
    client.remove("n3")
    with pytest.raises(NotFound):
        client.remove("n3")


def test_a_slow_join_says_so(fake, attempts):
    attempts(1)
    fake.answer = lambda asked: failure("commit_timeout", "maybe", 504, text="still catching up")
    with pytest.raises(CommitTimeout, match="still catching up"):
        Client(fake.address).join("n3", "h:1")


# Waiting for a key


def test_a_wait_says_what_it_knows_and_how_long(fake, client, clock):
    client.wait("a", 7, 12.5)
    assert (fake.asked[0].query["index"], fake.asked[0].query["wait"]) == ("7", "12500ms")


def test_a_wait_for_a_key_that_is_deleted_ends(fake, client):
    fake.answer = lambda asked: failure("not_found", "no", 404)
    assert client.wait("a", 7, 30) is None and len(fake.asked) == 1


def test_a_wait_for_a_new_key_does_not_end_because_it_was_deleted_before(fake, client):
    fake.answer = one_after_the_other(failure("not_found", "no", 404, X_Raft_Index="50"), (200, ETAG, b"x"))
    assert client.wait("a").value == b"x"
    assert [asked.query["index"] for asked in fake.asked] == ["0", "50"]


def test_a_wait_that_breaks_goes_on_for_the_rest_of_its_time(fake, client):
    def answer(asked):
        if len(fake.asked) == 1:
            threading.Event().wait(0.3)
            return None
        return 200, ETAG, b"x"
    fake.answer = answer
    assert client.wait("a", 3, 10).value == b"x"
    assert int(fake.asked[1].query["wait"].removesuffix("ms")) <= 9700


# Watches


def beginning(id):
    return f": the changes after {id}\nid: {id}\n\n".encode()


def put(index, key="k", value="v"):
    data = {"key": key, "index": index, "previous_index": index - 1, "value": value}
    return f"id: {index}\nevent: put\ndata: {json.dumps(data)}\n\n".encode()


def told(parts):
    return 200, {"Content-Type": "text/event-stream"}, parts


def until(event, *parts):
    """Those, and then nothing more until *event* is set."""
    yield from parts
    event.wait(20)


@pytest.fixture
def ended():
    event = threading.Event()
    yield event
    event.set()


def test_a_watch_tells_events(fake, client, ended):
    parts = [beginning(4), b": index 4\n\n", put(5, value="x\n")[:20], put(5, value="x\n")[20:],
             b'id: 6.999999\nevent: put\ndata: {"key": "b", "index": 6, "previous_index": 0, "value_base64": "/w=="}\n\n',
             b'id: 6\nevent: delete\ndata: {"key": "k", "index": 6, "previous_index": 5}\n\n']
    fake.answer = lambda asked: told(parts) if len(fake.asked) == 1 else told(until(ended, beginning(6)))
    with client.watch("k&", keys_only=True) as watch:
        assert [next(watch) for _ in range(3)] == [
            Event("5", "put", "k", 5, 4, b"x\n"), Event("6.999999", "put", "b", 6, 0, b"\xff"), Event("6", "delete", "k", 6, 5, None)]
    assert (fake.asked[0].path, fake.asked[0].query["prefix"], fake.asked[0].query["keys_only"]) == ("/watch", "k&", "true")
    assert "Last-Event-ID" not in fake.asked[0].headers


def test_a_watch_that_breaks_goes_on_elsewhere_after_what_it_has_told(fakes, first_asked, ended):
    parts = [beginning(4), put(5), put(6), put(7)[:-1]]  # the last one is not whole
    here = fakes(lambda asked: told(parts))
    there = fakes(lambda asked: told(until(ended, beginning(6), put(7), put(8))))
    with Client([here.address, there.address]) as client, client.watch(since=4) as watch:
        assert [next(watch).index for _ in range(4)] == [5, 6, 7, 8]
    assert (here.asked[0].headers["Last-Event-ID"], there.asked[0].headers["Last-Event-ID"]) == ("4", "6")


@pytest.mark.parametrize("more, position", [([], "41"), ([b": index 50\n\n"], "41"), ([b": nothing new\nid: 60\n\n"], "60")])
def test_a_watch_without_an_event_goes_on_from_where_it_was(fakes, first_asked, ended, more, position):
    here = fakes(lambda asked: told([beginning(41), *more]))
    there = fakes(lambda asked: told(until(ended, beginning(int(position)), put(62))))
    with Client([here.address, there.address]) as client, client.watch() as watch:
        assert next(watch).index == 62
    assert there.asked[0].headers["Last-Event-ID"] == position


@pytest.mark.parametrize("event", ["dropped", "gone"])
def test_who_is_dropped_goes_on_elsewhere_from_where_that_server_was(fakes, first_asked, ended, event):
    farewell = f'event: {event}\ndata: {{"reason": "too slow", "id": "9"}}\n\n'.encode()
    here = fakes(lambda asked: told([beginning(4), put(5), farewell]))
    there = fakes(lambda asked: told(until(ended, beginning(9), put(10))))
    with Client([here.address, there.address]) as client, client.watch() as watch:
        assert [next(watch).index for _ in range(2)] == [5, 10]
    assert there.asked[0].headers["Last-Event-ID"] == "9"


def test_a_history_that_is_gone_is_raised_when_it_begins_and_later(fake, client):
    gone = failure("history_gone", "no", 410, X_Raft_Oldest_Index="88")
    fake.answer = lambda asked: gone
    with pytest.raises(HistoryGone) as caught:
        client.watch(since=3)
    assert caught.value.oldest == 88
    farewell = b'event: gone\ndata: {"reason": "kept no longer", "id": "5"}\n\n'
    fake.answer = one_after_the_other(told([beginning(4), put(5), farewell]), gone)
    watch = client.watch(since=4)
    assert next(watch).index == 5
    with pytest.raises(HistoryGone) as caught:
        next(watch)
    assert caught.value.oldest == 88


def test_a_stream_without_a_byte_is_left_for_another(fakes, first_asked, ended, monkeypatch):
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.2)
    here = fakes(lambda asked: told(until(ended, beginning(4))))
    there = fakes(lambda asked: told(until(ended, beginning(4), put(5))))
    began = time.monotonic()
    with Client([here.address, there.address], timeout=100) as client, client.watch() as watch:
        assert next(watch).index == 5 and time.monotonic() - began < 15


def test_a_watch_can_be_closed_by_another_thread(fake, client, ended):
    fake.answer = lambda asked: told(until(ended, beginning(4), put(5)))
    watch = client.watch()
    heard = []
    thread = threading.Thread(target=lambda: heard.extend(watch))
    thread.start()
    wait_until(lambda: heard, "an event")
    watch.close()
    thread.join(10)
    assert not thread.is_alive() and [event.index for event in heard] == [5]
    assert list(watch) == [] and len(fake.asked) == 1


def test_a_watch_can_be_closed_while_it_looks_for_a_server(fakes, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 30.0)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    fake = fakes(lambda asked: told([beginning(4)]) if len(fake.asked) == 1 else failure("no_leader", "safe"))
    watch = Client(fake.address, timeout=60).watch()
    thread = threading.Thread(target=lambda: list(watch))
    thread.start()
    wait_until(lambda: watch._stream is None, "it to look for a server")
    watch.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_watch_looks_for_a_server_for_so_long_and_may_be_asked_again(fakes, ended, clock, monkeypatch):
    def answer(asked):
        clock.now += 2
        return told([beginning(4), *([put(5)] if len(fake.asked) > 40 else [])])
    rests = []
    monkeypatch.setattr(random, "uniform", lambda low, high: rests.append(high) or 0.0)
    fake = fakes(answer)
    watch = Client(fake.address, timeout=10).watch()
    with pytest.raises(Unreachable, match="the stream has ended"):
        next(watch)
    assert rests == [0.01, 0.02, 0.04, 0.08, 0.16], "it rests between attempts, also if each begins well"
    fake.answer = lambda asked: told(until(ended, beginning(4), put(5)))
    assert next(watch).index == 5
    watch.close()


def test_a_watch_that_was_quiet_for_longer_than_a_call_may_take_goes_on_elsewhere(fakes, first_asked, ended, clock):
    """Its server is killed before it has told anything."""
    killed = threading.Event()
    here = fakes(lambda asked: told(until(killed, beginning(4))))
    there = fakes(lambda asked: told(until(ended, beginning(4), put(5))))
    with Client([here.address, there.address], timeout=10) as client, client.watch() as watch:
        clock.now += 100
        killed.set()
        assert next(watch).index == 5 and len(here.asked) >= 1


def test_each_event_gives_a_watch_new_time_to_look_for_a_server(fakes, clock):
    def answer(asked):
        clock.now += 4
        return told([beginning(len(fake.asked)), put(len(fake.asked) + 1)])
    fake = fakes(answer)
    with Client(fake.address, timeout=10).watch() as watch:
        assert [next(watch).index for _ in range(30)] == list(range(2, 32))


def test_a_watch_that_nobody_can_serve_is_not_made():
    with pytest.raises(Unreachable):
        Client(nobody(), timeout=0.2).watch()


# Locks


class Locksmith:
    """What answers for one key as a server does: conditions, fences, times to live; ``deaf`` to renewals."""

    def __init__(self):
        self.index, self.made, self.until = 10, None, 0.0
        self.deaf, self.refuses, self.known = False, False, {}
        self.changed = threading.Condition()

    def __call__(self, asked):
        with self.changed:
            if asked.method == "GET":
                return self.wait(int(asked.query["index"]), int(asked.query["wait"].removesuffix("ms")) / 1000)
            key = asked.headers["Idempotency-Key"]
            if asked.path == "/db/data":
                holds = asked.headers["X-Raft-Fence"] == f"door={self.made}"
                return (200, ETAG, b"") if holds else failure("precondition_failed", "no", 412)
            if key not in self.known:
                self.known[key] = self.write(asked)
                self.changed.notify_all()
            return self.known[key]

    def write(self, asked):
        if self.made and time.monotonic() >= self.until:
            self.made = None
        fence = asked.headers.get("X-Raft-Fence")
        if fence and (not self.made or fence != f"door={self.made}"):
            return failure("precondition_failed", "no", 412)
        if asked.method == "DELETE":
            self.made = None
            return 200, {}, b""
        seconds = int(asked.query["ttl"].removesuffix("ms")) / 1000
        if "touch" not in asked.query:
            if self.made:
                return failure("precondition_failed", "no", 412, ETag=f'"{self.made}"')
            self.index += 1
            self.made = self.index
        elif self.refuses:
            return failure("precondition_failed", "no", 412)
        elif self.deaf:
            return failure("no_quorum", "safe")
        self.until = time.monotonic() + seconds
        return 200, {"ETag": f'"{self.made}"'}, b""

    def wait(self, index, seconds):
        self.changed.wait_for(lambda: self.made != index, min(seconds, max(0, self.until - time.monotonic())))
        if self.made and time.monotonic() < self.until:
            return 200, {"ETag": f'"{self.made}"'}, b""
        return failure("not_found", "no", 404)


@pytest.fixture
def smith(fake):
    fake.answer = Locksmith()
    return fake.answer


@pytest.fixture
def renewals(monkeypatch):
    """A lock is renewed every 0.02 s, however long it lasts; the rests that it would have."""
    class Hold(module._Hold):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            wait = self.released.wait
            self.released.wait = lambda seconds: (rests.append(seconds), wait(min(seconds, 0.02)))[1]
    rests = []
    monkeypatch.setattr(module, "_Hold", Hold)
    return rests


def test_a_lock_is_a_key_with_a_token(fake, client, smith):
    lock = client.lock("door", value="me")
    assert (lock.token, lock.is_held) == (None, False)
    with pytest.raises(RuntimeError):
        client.set("a", b"", fence=lock)
    with lock:
        assert (lock.token, lock.fence, lock.is_held, lock.lost.is_set()) == (11, "door=11", True, False)
        client.set("data", b"", fence=lock)
        with pytest.raises(RuntimeError):
            lock.acquire()
    assert not lock.is_held and not lock.lost.is_set() and smith.made is None
    lock.release()
    with pytest.raises(PreconditionFailed):
        client.set("data", b"", fence=lock)
    made, write, delete, _ = fake.asked
    assert (made.path, made.query["ttl"], made.body, made.headers["If-None-Match"]) == ("/db/door", "15000ms", b"me", "*")
    assert (delete.method, delete.headers["X-Raft-Fence"], write.headers["X-Raft-Fence"]) == ("DELETE", "door=11", "door=11")
    with lock:
        assert lock.token == 12


def test_a_lock_is_not_too_short(fake, client, smith):
    with pytest.raises(BadRequest, match="0.1 s at the least"):
        client.lock("door", ttl=0.09)
    assert not client.lock("door", ttl=0.1).is_held and fake.asked == []


def test_the_name_in_a_fence_is_percent_encoded(client, smith):
    with client.lock("a b/é=%") as lock:
        assert lock.fence == "a%20b%2F%C3%A9%3D%25=11"


def test_a_lock_that_another_holds_is_waited_for_by_one_long_poll(fake, client, smith):
    with client.lock("door"):
        with pytest.raises(LockHeld):
            client.lock("door", wait=0).acquire()
        began = time.monotonic()
        with pytest.raises(LockHeld):
            client.lock("door", wait=0.3).acquire()
        assert 0.3 <= time.monotonic() - began < 10
        got = []
        thread = threading.Thread(target=lambda: got.append(client.lock("door").acquire()))
        before = len(fake.asked)
        thread.start()
        wait_until(lambda: any(asked.method == "GET" for asked in fake.asked[before:]), "it to wait")
        assert not got
    thread.join(10)
    assert got[0].is_held and got[0].token == 12
    got[0].release()
    assert sum(asked.method == "GET" for asked in fake.asked[before:]) == 1


def test_a_lock_is_renewed_with_its_fence_while_it_is_held(fake, client, smith, renewals):
    with client.lock("door", ttl=60) as lock:
        wait_until(lambda: sum("touch" in asked.query for asked in fake.asked) >= 5, "it to be renewed")
        assert lock.is_held and lock.token == 11 and max(renewals) <= 60 / 3
    assert all(asked.headers["X-Raft-Fence"] == "door=11" for asked in fake.asked if "touch" in asked.query)
    renewed = sum("touch" in asked.query for asked in fake.asked)
    wait_until(lambda: not any(thread.name == "lock-door" for thread in threading.enumerate()), "the thread to end")
    assert sum("touch" in asked.query for asked in fake.asked) <= renewed + 1


def test_a_lock_whose_renewal_is_refused_is_lost_and_released_without_an_error(fake, client, smith, renewals):
    smith.refuses = True
    with client.lock("door", ttl=60) as lock:
        assert lock.lost.wait(10)
        assert not lock.is_held
    assert not any(asked.method == "DELETE" for asked in fake.asked), "it may be another's by now"
    assert sum("touch" in asked.query for asked in fake.asked) == 1, "it was lost at once"


def test_a_lock_that_cannot_be_renewed_is_lost_when_its_time_is_over(client, smith):
    began = time.monotonic()
    with client.lock("door", ttl=0.6) as lock:
        smith.deaf = True
        wait_until(lambda: not lock.is_held, "it to be lost")
        assert 0.6 <= time.monotonic() - began
        assert lock.lost.wait(10)
        smith.deaf = False
    with client.lock("door", ttl=60, wait=10) as lock:
        assert lock.is_held and not lock.lost.is_set() and lock.token >= 12


def test_a_renewal_that_is_answered_too_late_does_not_bring_a_lock_back(fakes):
    smith, over = Locksmith(), threading.Event()

    def answer(asked):
        answered = smith(asked)
        if "touch" in asked.query:
            over.wait(20)
        return answered
    fake = fakes(answer)
    with Client(fake.address).lock("door", ttl=0.6) as lock:
        held = [True]
        while not lock.lost.wait(0.005) and held[-2:] != [False, True]:
            held.append(lock.is_held)
            if not held[-1]:
                over.set()
        assert not lock.is_held and held == sorted(held, reverse=True), "it was not, and was again"
    assert sum("touch" in asked.query for asked in fake.asked) <= 1


def test_who_is_deposed_while_it_holds_finds_out_when_it_releases(client, smith):
    lock = client.lock("door").acquire()
    smith.made = 77
    lock.release()
    assert smith.made == 77 and not lock.lost.is_set()


def test_a_lock_whose_answer_is_lost_is_not_mistaken_for_anothers(fakes):
    smith = Locksmith()
    fake = fakes(lambda asked: smith(asked) and None if len(fake.asked) == 1 else smith(asked))
    with Client(fake.address).lock("door", wait=0) as lock:
        assert lock.token == 11
    assert fake.asked[0].headers["Idempotency-Key"] == fake.asked[1].headers["Idempotency-Key"]


def test_a_lock_whose_answer_comes_too_late_is_given_back_and_made_again(fakes, clock):
    smith, rests = Locksmith(), []
    clock.sleep = rests.append

    def answer(asked):
        clock.now += 60 if len(fake.asked) == 1 else 0
        return smith(asked)
    fake = fakes(answer)
    with Client(fake.address).lock("door", ttl=60, wait=100) as lock:
        assert lock.is_held and lock.token == 12 and rests == [60]
    assert (fake.asked[1].method, fake.asked[1].headers["X-Raft-Fence"]) == ("DELETE", "door=11")


def test_a_lock_that_cannot_be_released_says_so(client, fake, smith, attempts):
    lock = client.lock("door").acquire()
    attempts(1)
    fake.answer = lambda asked: failure("no_leader", "safe")
    with pytest.raises(NoLeader):
        lock.release()
    assert not lock.is_held
    with suppress(RuntimeError):
        lock.release()


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("came", ["before it was asked for", "when it was acquired", "while another holds it"])
def test_who_is_ended_by_a_signal_while_he_acquires_a_lock_does_not_leave_it_held(fake, client, smith, monkeypatch, signal, came):
    asks, waits = client.set, client.wait

    def interrupted(*args, **more):
        monkeypatch.undo()
        if came == "when it was acquired":
            asks(*args, **more)
        raise signal()
    lock = client.lock("door")
    if came == "while another holds it":
        other = client.lock("door").acquire()
        monkeypatch.setattr(client, "wait", interrupted)
    else:
        monkeypatch.setattr(client, "set", interrupted)
    with pytest.raises(signal):
        lock.acquire()
    assert not lock.is_held and (client.set, client.wait) == (asks, waits)
    assert smith.made == (other.token if came == "while another holds it" else None)
