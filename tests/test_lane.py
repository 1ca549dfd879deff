"""The express lane: what it answers is what Flask would, in order, once, and no thread waits for it. Over real sockets, to a stub node."""

import http.client
import json
import os
import re
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from waitress import wasyncore

from cluster import Client, Cluster, holds_for, wait_until
from raftd import errors, lane, listener
from raftd.config import Settings
from raftd.kv import Conditions, Delete, Fence, Found, Get, Outcome, Request, Set, Transaction, decode
from raftd.web import create_app
from test_web import Applied, StubNode

NOT_PLAIN = "Connection: te\r\n"  # changes nothing of the answer, but the lane leaves such a request to Flask
PLAIN = ""


class LaneNode(StubNode):
    """A StubNode that can be asked without waiting. Writes of which ``holds`` is true stay in ``held``: (command, future)."""

    settings = replace(Settings(), write_timeout_seconds=5.0)

    def __init__(self):
        super().__init__()
        self.holds, self.held, self.refusal, self.read_result, self.failure = lambda command: False, [], None, 1041, None

    is_installing = False

    def out_of_reach(self):
        return "; out of reach: n3"

    def _settle(self, future, value):
        if self.failure:
            future.set_exception(self.failure)
        else:
            future.set_result(value)

    def submit_all(self, proposals):
        refused = []
        for command, future in proposals:
            try:
                self._submit(command, future)
            except errors.RaftdError:
                refused.append((command, future))
        return refused

    def _submit(self, command, future):
        command = decode(command)
        self.calls.append(("submit", command))
        if self.refusal:
            raise self.refusal
        if self.holds(command):
            self.held.append((command, future))
        else:
            self._settle(future, Applied(1041, self.outcome))

    def submit_read(self, future, leased):
        self.calls.append(("submit_read", leased))
        if self.refusal:
            raise self.refusal
        self._settle(future, self.read_result)

    def submit_stale_read(self, future):
        future.set_result(1041)

    def look_up(self, query):
        return self.read(query, "stale")

    def release(self, command, future):
        future.set_result(Applied(1041, self.outcome))

    def how(self):
        """By which of its methods it was asked to write or to begin a read."""
        return {call[0] for call in self.calls}


class NoPeers:
    def serve(self, peer_socket, fields):
        peer_socket.close()

    def stop(self):
        pass


@pytest.fixture
def node():
    return LaneNode()


@contextmanager
def listening_for(node):
    """The port of a listener that answers for *node*."""
    serving, port = started(node)
    try:
        yield port
    finally:
        stop(serving)


def started(node):
    """(a listener that answers for *node*, its port); who calls it stops it."""
    listening = listener.bind("127.0.0.1", 0)
    return listener.Listener(listening, create_app(node, "1.2.3"), NoPeers(), node).start(), listening.getsockname()[1]


def stop(serving):
    stopper = threading.Thread(target=serving.stop, daemon=True)  # a reading thread that hangs must not hang the tests
    stopper.start()
    stopper.join(5)
    assert not stopper.is_alive(), "the listener does not stop"


@pytest.fixture
def port(node):
    with listening_for(node) as port:
        yield port


class Wire:
    """A connection on which bytes are sent, and answers read, one after the other."""

    def __init__(self, port, seconds=20):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self._file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self.socket.close()

    def send(self, *texts):
        self.socket.sendall(b"".join(text if isinstance(text, bytes) else text.encode() for text in texts))

    def line(self):
        return self._file.readline().decode("latin-1").rstrip("\r\n")

    def answer(self, method="GET"):
        """(status line, header lines, body) of the next answer; a status line of "" is the end of the connection."""
        status, lines = self.line(), []
        while status and (line := self.line()):
            lines.append(line)
        length = next((int(line.split()[1]) for line in lines if line.lower().startswith("content-length:")), 0)
        return status, lines, b"" if method == "HEAD" else self._file.read(length)


def request(method, path, body=None, more=""):
    length = f"Content-Length: {len(body)}\r\n" if body is not None else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}{more}\r\n".encode() + (body or b"")


def asked(port, method, path, body=None, more=""):
    with Wire(port) as wire:
        wire.send(request(method, path, body, more))
        return wire.answer(method)


def without_date(answer):
    """To the letter, but for the order of the header fields."""
    status, lines, body = answer
    return status, sorted(line for line in lines if not line.startswith("Date: ")), body


def status_of(answer):
    return int(answer[0].split()[1])


def header(answer, name):
    found = [line.partition(": ")[2] for line in answer[1] if line.lower().startswith(name.lower() + ":")]
    assert len(found) <= 1, f"{name} is there {len(found)} times"
    return found[0] if found else None


# The same answers as those of Flask


READS = {
    "text": Found(b"bar", 41, 1040),
    "empty": Found(b"", 41, 1040),
    "utf8": Found("žluť".encode(), 41, 1040),
    "binary": Found(bytes(range(256)), 41, 1040),
    "large": Found(b"x" * (1 << 20), 41, 1040),
    "missing": Found(None, 0, 1039),
}


@pytest.mark.parametrize("level", ["linearizable", "leader", "stale"])
@pytest.mark.parametrize("found", READS)
def test_a_read_is_answered_as_flask_answers_it(node, port, found, level):
    node.found, query = READS[found], "" if level == "linearizable" else f"?level={level}"
    mine, theirs = asked(port, "GET", f"/db/a/b{query}"), asked(port, "GET", f"/db/a/b{query}", more=NOT_PLAIN)
    assert without_date(mine) == without_date(theirs)
    assert header(mine, "Date") and header(mine, "X-Raft-Index") == str(node.found.applied_index)
    assert [call[1:3] for call in node.calls if call[0] == "read"] == [
        (Get("a/b"), "stale"), (Get("a/b"), level)]
    assert ("submit_read", level == "leader") in node.calls or level == "stale", "it did not go through the lane"
    if found == "missing":
        assert (status_of(mine), mine[2]) == (404, b"")


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("body", [b"", b"bar", bytes(range(256)), b"a=1&b=%20+2"])
def test_a_write_is_answered_as_flask_answers_it(node, port, method, body):
    curl = "Content-Type: application/x-www-form-urlencoded\r\nAccept: */*\r\nUser-Agent: curl/8\r\n"
    mine, theirs = (asked(port, method, "/db/a", body, curl + more) for more in (PLAIN, NOT_PLAIN))
    assert node.calls == [("submit", Set("a", body)), ("propose", Set("a", body), 5.0)]
    assert without_date(mine) == without_date(theirs)
    assert (status_of(mine), mine[2], header(mine, "ETag"), header(mine, "X-Raft-Index")) == (200, b"", '"1041"', "1041")


@pytest.mark.parametrize("kind", ["deleted", "missing"])
def test_a_delete_is_answered_as_flask_answers_it(node, port, kind):
    node.outcome = Outcome(kind, 1041)
    mine, theirs = (asked(port, "DELETE", "/db/a", more=more) for more in (PLAIN, NOT_PLAIN))
    assert node.calls == [("submit", Delete("a")), ("propose", Delete("a"), 5.0)]
    assert without_date(mine) == without_date(theirs)
    assert status_of(mine) == (200 if kind == "deleted" else 404)


@pytest.mark.parametrize("more", ["", "Transfer-Encoding: chunked\r\n"], ids=["taken as it came", "read by waitress"])
@pytest.mark.parametrize("field", ["Idempotency-Key: k", "idempotency-key: {1}=2", f"IDEMPOTENCY-KEY: {'x' * 255}"])
@pytest.mark.parametrize("outcome", [
    Outcome("written", 41), Outcome("written", 40, replayed=True), Outcome("deleted", 40, replayed=True), Outcome("missing", 41),
    Outcome("missing", 40, replayed=True), Outcome("refused", 40, replayed=True), Outcome("reused", 41)], ids=str)
def test_a_write_with_an_idempotency_key_is_answered_as_flask_answers_it(node, port, outcome, field, more):
    node.outcome = outcome
    key, answers = field.partition(": ")[2], []
    for method, command in (("POST", Set("a", b"bar")), ("DELETE", Delete("a"))):
        for fields in (f"{field}\r\nHost: h\r\n", f"Host: h\r\n{field}\r\nAccept: */*\r\n", f"Host: h\r\n{field}\r\n{NOT_PLAIN}"):
            length, body = ("", b"3\r\nbar\r\n0\r\n\r\n") if more else ("Content-Length: 3\r\n", b"bar")
            with Wire(port) as wire:
                wire.send(f"{method} /db/a HTTP/1.1\r\n{length}{more}{fields}\r\n".encode("latin-1") + body)
                answers.append(without_date(wire.answer()))
        assert answers[-3] == answers[-2] == answers[-1]
        assert header(answers[-1], "Idempotent-Replay") == ("true" if outcome.replayed else None)
        expected = Request(command, 0, key)
        assert [call[:2] for call in node.calls[-3:]] == [("submit", expected), ("submit", expected), ("propose", expected)]


ON_CONDITIONS = {
    'If-Match: "41"': (Conditions((41,)), None), 'If-Match:"41" ': (Conditions((41,)), None), "if-match: *": (Conditions("*"), None),
    "If-None-Match: *": (Conditions(None, "*"), None),
    'IF-NONE-MATCH: W/"40","41"': (Conditions(None, (40, 41)), None), "X-Raft-Fence: lock/%C3%A4=7": (Conditions(), Fence("lock/ä", 7)),
    'X-Raft-Fence: a=7\r\nIf-Match: "41"\r\nIf-None-Match: "40"\r\nIdempotency-Key: k': (Conditions((41,), (40,)), Fence("a", 7)),
}


@pytest.mark.parametrize("more", ["", "Transfer-Encoding: chunked\r\n"], ids=["taken as it came", "read by waitress"])
@pytest.mark.parametrize("fields", ON_CONDITIONS, ids=lambda fields: fields[:30])
@pytest.mark.parametrize("outcome", [Outcome("written", 1041), Outcome("deleted", 1041), Outcome("refused", 41), Outcome("refused", 0),
                                     Outcome("fenced", 9), Outcome("fenced", 0), Outcome("refused", 41, replayed=True)], ids=str)
def test_a_write_on_a_condition_is_answered_as_flask_answers_it(node, port, outcome, fields, more):
    node.outcome, (conditions, fence) = outcome, ON_CONDITIONS[fields]
    length, body = ("", b"3\r\nbar\r\n0\r\n\r\n") if more else ("Content-Length: 3\r\n", b"bar")
    for method, command in (("PUT", Set("a", b"bar", conditions)), ("DELETE", Delete("a", conditions))):
        answers = []
        for how in (PLAIN, NOT_PLAIN):
            with Wire(port) as wire:
                wire.send(f"{method} /db/a HTTP/1.1\r\nHost: h\r\n{length}{fields}\r\n{more}{how}\r\n".encode() + body)
                answers.append(without_date(wire.answer()))
        assert answers[0] == answers[1]
        assert status_of(answers[0]) == (412 if outcome.kind in ("refused", "fenced") else 200)
        expected = Request(command, 0, "k" if "Idempotency-Key" in fields else "", fence) if fence else command
        assert [call[:2] for call in node.calls[-2:]] == [("submit", expected), ("propose", expected)]


@pytest.mark.parametrize("more", ["", "Idempotency-Key: k\r\n", 'If-Match: "41"\r\n', "X-Raft-Fence: a=7\r\n"])
@pytest.mark.parametrize(("text", "ttl"), [("1ms", 1), ("30s", 30_000), ("24h", 86_400_000)])
def test_a_write_that_lasts_for_a_time_is_answered_as_flask_answers_it(node, port, text, ttl, more):
    """With the time of a leader who has heard what those before it have said."""
    terms, node.state_machine.clock.lead = [], lambda term: terms.append(term) or 1000 + term
    mine, theirs = (asked(port, "PUT", f"/db/a?ttl={text}", b"bar", more + how) for how in (PLAIN, NOT_PLAIN))
    assert without_date(mine) == without_date(theirs) and status_of(mine) == 200
    (how, command), (_, same, _) = node.calls
    assert (how, terms) == ("submit", [7, 7]) and command == same
    assert (command.time, command.command.ttl, command.command.value) == (1007, ttl, b"bar")


@pytest.mark.parametrize("failure", [errors.NoQuorum("not applied yet"), errors.NotLeader(), errors.StorageFailed("an I/O error"),
                                     errors.Stopping()], ids=str)
@pytest.mark.parametrize(("target", "body"), [("/db/a?ttl=5s", b"x"), ("/txn", b'{"then": [{"get": "a"}]}')])
def test_who_needs_a_time_that_is_not_known_yet_goes_to_flask_which_waits(node, port, target, body, failure):
    node.outcome = Outcome("transacted", 40, (True, (Found(b"1", 7, 40, 7, 1),))) if target == "/txn" else node.outcome

    def term_in_charge(timeout):
        if timeout < 1:
            raise failure
        return 7, timeout
    node.term_in_charge = term_in_charge
    assert status_of(asked(port, "POST", target, body)) == 200
    [(how, command, _)] = node.calls
    assert how == "propose" and command.time == 1007


@pytest.mark.parametrize(("method", "query"), [
    ("GET", "ttl=5s"), ("DELETE", "ttl=5s"), ("PUT", "ttl=5"), ("PUT", "ttl=0s"), ("PUT", "ttl=1.5s"), ("PUT", "ttl=99999999h"),
    ("PUT", "ttl=5s&touch"), ("PUT", "ttl=5s&ttl=6s"), ("PUT", "ttl="), ("PUT", "level=stale&ttl=5s")])
def test_a_time_to_live_that_is_not_plain_goes_to_flask(node, port, method, query):
    mine, theirs = (asked(port, method, f"/db/a?{query}", b"x", how) for how in (PLAIN, NOT_PLAIN))
    assert without_date(mine) == without_date(theirs) and "submit" not in node.how()
    assert status_of(mine) == (200 if query == "ttl=1.5s" else 400)


def test_what_comes_with_a_write_means_nothing_to_a_read(node, port):
    more = 'If-None-Match: "41"\r\nIf-Match: "7"\r\nIdempotency-Key: k\r\nX-Raft-Fence: a=7\r\n'
    mine, theirs = (asked(port, "GET", "/db/a", more=more + how) for how in (PLAIN, NOT_PLAIN))
    assert without_date(mine) == without_date(theirs) and status_of(mine) == 200
    assert node.how() == {"submit_read", "read"}


def test_a_head_with_an_idempotency_key_first_or_last_is_taken_and_is_as_long_as_it_says(node, port):
    for fields in ("Idempotency-Key: k\r\nHost: h\r\nContent-Length: 3", "Host: h\r\nContent-Length: 3\r\nIdempotency-Key: k",
                   "Content-Length: 3\r\nIdempotency-Key: k\r\nHost: h"):
        with Wire(port) as wire:
            wire.send(2 * f"POST /db/a HTTP/1.1\r\n{fields}\r\n\r\nbar")
            assert [status_of(wire.answer()), status_of(wire.answer())] == [200, 200]
    assert node.calls == 6 * [("submit", Request(Set("a", b"bar"), 0, "k"))]


def test_what_a_write_says_is_another_each_time_and_only_the_rest_of_the_head_is_remembered(node, port, monkeypatch):
    looked_at, length_in = [], lane.Lane._length_in
    monkeypatch.setattr(lane.Lane, "_length_in", lambda one, channel, lines: looked_at.append(lines) or length_in(one, channel, lines))
    with Wire(port) as wire:
        for number in range(1, 21):
            for more in (f"Idempotency-Key: {number}\r\n", f'If-Match: "{number}"\r\n', f"X-Raft-Fence: a={number}\r\n", ""):
                wire.send(request("POST", "/db/a", b"x", more))
                assert status_of(wire.answer()) == 200
    plain = Set("a", b"x")
    assert [command for _, command in node.calls] == [command for number in range(1, 21) for command in (
        Request(plain, 0, str(number)), Set("a", b"x", Conditions((number,))), Request(plain, 0, "", Fence("a", number)), plain)]
    assert len(looked_at) == 1


TRANSACTIONS = [
    ({"then": [{"set": "a", "value": "1"}, {"set": "Köln", "value_base64": "AP8="}]}, (True, (True, True))),
    ({"if": [{"key": "a", "exists": False}], "then": [{"set": "a", "value": ""}], "else": [{"delete": "a"}, {"delete": "b"}]},
     (False, (True, False))),
    ({"if": [{"key": "a", "value": "1"}, {"key": "a", "index": 7}], "then": [{"delete": '"'}]}, (True, (False,))),
    ({"if": [{"key": "a", "index": 7}], "then": [{"delete": "a"}]}, (False, ())),
    ({"then": [{"set": f"key {number}", "value": "x" * 100} for number in range(128)]}, (True, (True,) * 128)),
    ({"then": [{"get": "a"}, {"get": "b"}, {"delete": "b"}]}, (True, (Found(b"\xff", 7, 40, 6, 2, 1.5), Found(None, 0, 40), False))),
    (b'{"if": [{"key": "a", "exists": true}], "else": [{"g\\u0065t": "b"}]}', (False, (Found("ž".encode(), 7, 40, 7, 1),))),
    ({"then": [{"set": "a", "value": "1", "ttl": "5s"}, {"set": "b", "value": "1"}]}, (True, (True, True))),
    (b'{"then": [{"set": "a", "value": "1"}], "else": [{"set": "a", "value": "1", "\\u0074tl": "5s"}]}', (True, (True,))),
]


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("field", ["", "Idempotency-Key: k\r\n"], ids=["without a key", "with one"])
@pytest.mark.parametrize(("members", "detail"), TRANSACTIONS, ids=lambda value: str(value)[:40])
def test_a_transaction_is_answered_as_flask_answers_it(node, port, members, detail, field, replayed):
    node.outcome, body = Outcome("transacted", 40, detail, replayed), members if type(members) is bytes else json.dumps(members).encode()
    has_time = any(name in json.dumps(json.loads(body)) for name in ('"get"', '"ttl"'))
    curl = f"Content-Type: application/x-www-form-urlencoded\r\nAccept: */*\r\n{field}"
    mine, theirs = (asked(port, "POST", "/txn", body, curl + more) for more in (PLAIN, NOT_PLAIN))
    (how, command), (_, same, _) = node.calls
    assert how == "submit" and command == same and (type(command) is Request) == bool(field or has_time)
    assert type(command) is not Request or (command.time > 0) == has_time
    assert without_date(mine) == without_date(theirs)
    assert (status_of(mine), header(mine, "Content-Type"), header(mine, "X-Raft-Index")) == (200, "application/json", "1041")
    assert header(mine, "Idempotent-Replay") == ("true" if replayed else None)
    answer = json.loads(mine[2])
    assert (answer["succeeded"], answer["index"], len(answer["results"])) == (detail[0], 40, len(detail[1]))


@pytest.mark.parametrize("body", [
    b"", b"{}", b'{"then": [{"set": "a", "value": "1", "ttl": "0s"}]}',
 b"no JSON", b"[]", b'{"then": [{"set": ""}]}', b'{"then": [{"set": "a", "value": "1"}], "more": []}', b'{"then": 1}',
    b'{"then": [' + b'{"delete": "a"},' * 128 + b'{"delete": "a"}]}', b"[" * 60_000, b'{"if": [{"key": "a", "exists": true}]}',
], ids=lambda body: body[:70])
def test_a_transaction_that_is_not_plain_goes_to_flask(node, port, body):
    node.outcome = Outcome("transacted", 40, (True, (True,) if b"set" in body else (Found(b"1", 7, 40, 7, 1),)))
    mine, theirs = (asked(port, "POST", "/txn", body, more) for more in (PLAIN, NOT_PLAIN))
    assert "submit" not in node.how()
    assert without_date(mine) == without_date(theirs)


@pytest.mark.parametrize("field", ['If-Match: "41"', "If-None-Match: *"])
def test_a_transaction_with_a_condition_of_a_key_is_refused(node, port, field):
    mine, theirs = (asked(port, "POST", "/txn", b'{"then": [{"delete": "a"}]}', f"{field}\r\n{more}") for more in (PLAIN, NOT_PLAIN))
    assert without_date(mine) == without_date(theirs) and (status_of(mine), node.calls) == (400, [])


@pytest.mark.parametrize(("method", "target"), [
    ("GET", "/txn"), ("PUT", "/txn"), ("DELETE", "/txn"), ("POST", "/txn/"), ("POST", "/txnx"), ("POST", "/txn?timeout=1s"),
    ("POST", "/txn?level=stale")])
def test_another_method_or_path_is_no_transaction(node, port, method, target):
    node.outcome = Outcome("transacted", 40, (True, (True,)))
    mine, theirs = (asked(port, method, target, b'{"then": [{"delete": "a"}]}', more) for more in (PLAIN, NOT_PLAIN))
    assert "submit" not in node.how() and without_date(mine) == without_date(theirs)


def test_a_transaction_that_the_node_refuses_goes_to_flask_with_its_body(node, port):
    node.refusal = node.error = errors.NotLeader(leader="http://localhost:4002")
    mine, theirs = (asked(port, "POST", "/txn", b'{"then": [{"delete": "a"}]}', more) for more in (PLAIN, NOT_PLAIN))
    command = Transaction((), (Delete("a"),))
    assert node.calls == [("submit", command), ("propose", command, 5.0), ("propose", command, 5.0)]
    assert without_date(mine) == without_date(theirs) and mine[2] == b"raft.Server: Not current leader\n"


FAILURES = [
    errors.LeadershipLost(), errors.LeadershipLost("two\nlines"), errors.Discarded(), errors.StorageFailed("no room", full=True),
    errors.StorageFailed("an I/O error"), errors.Stopping(), errors.CommitTimeout("not committed within 5 s"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_a_write_that_fails_is_answered_as_flask_answers_it(node, port, failure):
    for target, body in (("/db/a", b"x"), ("/txn", b'{"then": [{"delete": "a"}]}')):
        node.failure, node.error = failure, None
        mine = asked(port, "POST", target, body)
        node.error = failure
        theirs = asked(port, "POST", target, body, NOT_PLAIN)
        assert node.how() == {"submit", "propose"}
        assert without_date(mine) == without_date(theirs)
        assert header(mine, "X-Raft-Retry") == failure.retry


@pytest.mark.parametrize("failure", [errors.StorageFailed("the row is damaged"), errors.Stopping()], ids=str)
@pytest.mark.parametrize("query", ["", "?level=stale"])
def test_a_read_that_fails_is_answered_as_flask_answers_it(node, port, failure, query):
    node.error = failure
    mine, theirs = (asked(port, "GET", f"/db/a{query}", more=more) for more in (PLAIN, NOT_PLAIN))
    assert without_date(mine) == without_date(theirs)


@pytest.mark.parametrize("failure", [errors.StorageFailed("an I/O error"), errors.Stopping(), errors.LeadershipLost()], ids=str)
def test_a_read_whose_beginning_fails_is_answered_as_flask_answers_it(node, port, failure):
    node.failure = failure
    mine = asked(port, "GET", "/db/a")
    node.error = failure
    assert without_date(mine) == without_date(asked(port, "GET", "/db/a", more=NOT_PLAIN))


REFUSED = {
    "transfer encoding": (b"PUT /db/x HTTP/1.1\r\nTransfer-Encoding: gzip\r\n", "bad_request", 400),
    "header": (b"GET /db/x HTTP/1.1\r\nno colon\r\n", "bad_request", 400),
    "body": (b"PUT /db/x HTTP/1.1\r\nContent-Length: 30000000\r\n", "too_large", 413),
    "head": (b"GET /db/x HTTP/1.1\r\nX: " + bytes(300_000).replace(b"\0", b"x") + b"\r\n", "too_large", 431),
}


@pytest.mark.parametrize("accept", ["", "Accept: application/JSON\r\n"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_never_reaches_flask_is_refused_like_the_rest(node, port, what, accept):
    """The same table of errors, the same headers, and JSON for who wants it."""
    head, code, status = REFUSED[what]
    with Wire(port) as wire:
        wire.send(head, accept, "\r\n")
        answer = wire.answer()
    assert (header(answer, "X-Raft-Error"), header(answer, "X-Raft-Retry"), header(answer, "X-Raft-Node")) == (code, "no", "n1")
    if accept and what in ("transfer encoding", "body"):
        problem = json.loads(answer[2])
        assert header(answer, "Content-Type") == "application/problem+json" and problem["code"] == code
    elif not accept:
        assert header(answer, "Content-Type") == "text/plain; charset=utf-8" and answer[2].count(b"\n") == 1
    assert node.calls == []


def test_a_refusal_says_once_what_becomes_of_the_connection(node, port):
    """HTTP/1.0 and "keep-alive": waitress would say both."""
    node.error = errors.Stopping()
    for line, more in ((b"GET /db/a HTTP/1.0", b""), (b"GET /db/a HTTP/1.0", b"no colon\r\n")):
        with Wire(port) as wire:
            wire.send(line, b"\r\nConnection: keep-alive\r\n", more, b"\r\n")
            assert header(wire.answer(), "Connection") == "close"


def test_what_is_refused_while_stopping_ends_its_connection(node, port):
    node.failure = node.error = errors.Stopping()
    for more in (PLAIN, NOT_PLAIN):
        with Wire(port) as wire:
            wire.send(request("GET", "/db/a", more=more), request("GET", "/db/b", more=more))
            assert header(wire.answer(), "Connection") == "close"
            assert wire.answer()[0] == ""


def test_each_request_is_one_line_of_the_log_of_the_server(node, port, caplog):
    with caplog.at_level("DEBUG", "raftd.lane"):
        for count, asking in enumerate([("POST", "/db/a", b"x", PLAIN), ("POST", "/db/a", b"x", NOT_PLAIN), ("GET", "/nowhere")], 1):
            asked(port, *asking)
            wait_until(lambda count=count: len(caplog.messages) == count, "it is there")  # it is written after the answer
    assert all(re.fullmatch(r"request from=127.0.0.1 method=POST path='/db/a' status=200 seconds=\d+\.\d+", line)
               for line in caplog.messages[:2]), caplog.messages
    assert "path='/nowhere' status=404" in caplog.messages[2]


def test_a_value_over_the_limit_is_refused_in_the_lane_too(node):
    """``-max-value`` may be smaller than what the lane takes."""
    node.settings = replace(node.settings, max_value_bytes=1000)
    with listening_for(node) as port:
        answers = [asked(port, "POST", "/db/a", b"x" * 1001, more) for more in (PLAIN, NOT_PLAIN)]
        assert [status_of(answer) for answer in answers] == [413, 413]
        assert node.calls == []
        assert status_of(asked(port, "POST", "/db/a", b"x" * 1000)) == 200


KEYS = ["a", "a/b", "a//b", "a/", "a/../b", "..", ".", "~x", "-", "_", "x" * 4096]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key[:10])
def test_a_key_is_the_same_in_the_lane_as_in_flask(node, port, key):
    for more in (PLAIN, NOT_PLAIN):
        assert status_of(asked(port, "POST", f"/db/{key}", b"x", more)) == 200
    assert [call[:2] for call in node.calls] == [("submit", Set(key, b"x")), ("propose", Set(key, b"x"))]


@pytest.mark.parametrize("target", ["/db/", "/db//a", "/db/a%20b", "/db/a%", "/db/a#b", "/db/a?", "/db/a?level=linearizable",
                                    "/db/a?timeout=5s", "/db/a?level=stale&x", "/db/" + "x" * 4097, "/db/a+b", "/db/ž"], ids=quote)
def test_what_is_not_plain_goes_to_flask(node, port, target):
    answer = asked(port, "GET", target)
    assert "submit_read" not in node.how()
    assert without_date(answer) == without_date(asked(port, "GET", target, more=NOT_PLAIN))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_write_has_no_level(node, port, method):
    """It is refused, not taken for a write of a lower kind."""
    answer = asked(port, method, "/db/a?level=stale", b"x")
    assert (status_of(answer), header(answer, "X-Raft-Error"), node.calls) == (400, "bad_request", [])


UNUSUAL = ['If-Match: "41", "42"', "If-Match: 41", 'If-Match: "41"\r\nif-match: "42"', "If-None-Match: *, *",
           "Accept: application/json", "Accept: application/JSON", "Accept: text/plain;q=0.5, application/problem+json",
           "Idempotency-Key: a, b", "Idempotency-Key:", "Idempotency-Key: \xfc", f"Idempotency-Key: {'x' * 256}",
           "Idempotency-Key: k\r\nidempotency-key: l", "Idempotency-Key: k\r\nIf-Match: 7", "X-Raft-Fence: a=7, b=8", "X-Raft-Fence: a"]


@pytest.mark.parametrize("field", UNUSUAL)
def test_a_request_with_an_unusual_header_goes_to_flask(node, port, field):
    node.outcome, node.failure = Outcome("refused", 41), errors.LeadershipLost()
    for method in ("POST", "PUT", "DELETE"):
        mine, theirs = (asked(port, method, "/db/a", b"x", f"{field}\r\n{more}") for more in (PLAIN, NOT_PLAIN))
        assert without_date(mine) == without_date(theirs)
        assert "submit" not in node.how()
        if field.startswith("If-Match: \""):
            assert (status_of(mine), header(mine, "ETag")) == (412, '"41"')


def test_other_methods_go_to_flask(node, port):
    for method, status in (("HEAD", 200), ("OPTIONS", 200), ("PATCH", 405), ("BREW", 405)):
        answer = asked(port, method, "/db/a", b"" if method != "HEAD" else None)
        assert (status_of(answer), answer[2] == b"" or status == 405) == (status, True)
        assert node.how() <= {"read"}


def test_head_answers_the_headers_of_get(node, port):
    get, head = asked(port, "GET", "/db/a"), asked(port, "HEAD", "/db/a")
    assert without_date(head)[:2] == without_date(get)[:2]
    assert head[2] == b""


# HTTP


def test_a_request_of_http_1_0_is_answered_by_flask_and_the_connection_closed(node, port):
    with Wire(port) as wire:
        wire.send("POST /db/a HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")
        assert wire.answer()[0] == "HTTP/1.0 200 OK"
        assert wire.answer()[0] == ""
    assert node.how() == {"propose"}


@pytest.mark.parametrize("more", [PLAIN, NOT_PLAIN])
def test_a_chunked_body_arrives_whole(node, port, more):
    with Wire(port) as wire:
        for _ in range(2):
            wire.send(f"POST /db/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n{more}\r\n", "3\r\nbar\r\n", "4\r\n\r\n\r\n\r\n")
            wire.send("0\r\n\r\n")
            assert status_of(wire.answer()) == 200
    assert [call[1] for call in node.calls] == 2 * [Set("a", b"bar\r\n\r\n")]


def test_a_connection_is_kept_for_lane_and_flask_in_turn(node, port):
    with Wire(port) as wire:
        for number in range(40):
            wire.send(request("POST", f"/db/k{number}", b"%d" % number, (PLAIN, NOT_PLAIN)[number % 2]))
            assert status_of(wire.answer()) == 200
    assert [call[1] for call in node.calls] == [Set(f"k{number}", b"%d" % number) for number in range(40)]
    assert [call[0] for call in node.calls] == 20 * ["submit", "propose"]


def test_a_body_that_arrives_in_pieces_is_whole(node, port):
    with Wire(port) as wire:
        for piece in (request("POST", "/db/a", b"x" * 60_000)[start:start + 7000] for start in range(0, 70_000, 7000)):
            wire.send(piece)
        assert status_of(wire.answer()) == 200
    assert node.calls == [("submit", Set("a", b"x" * 60_000))]


CONNECTIONS = [PLAIN, "Connection: keep-alive\r\n", "Connection: Keep-Alive\r\nAccept-Encoding: gzip, deflate\r\n"]


@pytest.mark.parametrize("more", CONNECTIONS, ids=["curl", "requests", "others"])
def test_a_request_that_comes_in_two_pieces_is_one(node, port, more):
    """Cut at any byte. Python's clients send head and body apart, and say that the connection is to be kept."""
    whole = request("POST", "/db/a", b"value\r\n\r\n", more)
    with Wire(port) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for cut in range(1, len(whole)):
            wire.send(whole[:cut])
            if cut % 8 == 0:
                asked(port, "GET", "/livez")  # it has been read by then
            wire.send(whole[cut:])
            assert status_of(wire.answer()) == 200
    assert node.calls == (len(whole) - 1) * [("submit", Set("a", b"value\r\n\r\n"))]


def test_what_comes_in_one_piece_is_answered_one_by_one(node, port):
    with Wire(port) as wire:
        wire.send(request("POST", "/db/a", b"x"), request("POST", "/db/b", b"yy"), request("GET", "/db/c?level=stale"))
        assert status_of(wire.answer()) == 200 and node.calls[0] == ("submit", Set("a", b"x"))
        assert [status_of(wire.answer()), status_of(wire.answer())] == [200, 200]
    assert node.calls == [("submit", Set("a", b"x")), ("submit", Set("b", b"yy")), ("read", Get("c"), "stale", 0, 5.0)]


def test_heads_that_are_nearly_the_same_are_told_apart(node, port):
    node.outcome = Outcome("written", 1041)
    for _ in range(2):
        assert status_of(asked(port, "POST", "/db/a", b"x")) == 200
        assert status_of(asked(port, "POST", "/db/a", b"xyz")) == 200
        assert status_of(asked(port, "POST", "/db/a", b"x", 'If-Match: "1"\r\n')) == 200
        assert status_of(asked(port, "POST", "/db/a", b"x", NOT_PLAIN)) == 200
    assert node.calls == 2 * [("submit", Set("a", b"x")), ("submit", Set("a", b"xyz")), ("submit", Set("a", b"x", Conditions((1,)))),
                              ("propose", Set("a", b"x"), 5.0)]


def test_more_heads_than_are_remembered(node, port, monkeypatch):
    monkeypatch.setattr(lane, "MOST_HEADS", 3)
    for number in range(20):
        assert status_of(asked(port, "POST", "/db/a", b"x", f"X-Number: {number}\r\n")) == 200
        assert status_of(asked(port, "POST", "/db/a", b"x", f"X-Long: {number}{'x' * 3000}\r\n")) == 200
    assert node.calls == 40 * [("submit", Set("a", b"x"))]


def test_who_speaks_before_the_answer_is_heard_after_it(node, port):
    node.holds = lambda command: True
    with Wire(port) as wire:
        wire.send(request("POST", "/db/a", b"x"))
        wait_until(lambda: node.held, "the write waits")
        wire.send(request("GET", "/db/b?level=stale"))
        for _ in range(3):
            asked(port, "GET", "/livez")  # the reading thread has seen that there is more, and lets it wait
        assert len(node.calls) == 1
        node.release(*node.held[0])
        assert [status_of(wire.answer()), status_of(wire.answer())] == [200, 200]


def test_pipelined_requests_are_answered_in_order(node, port):
    """Though the first of them ends last: lane, Flask, lane, ..., each answer names its request."""
    node.read = lambda query, *_, **__: Found(query.key.encode(), 41, 1040)
    node.holds = lambda command: True
    wanted = []
    with Wire(port) as wire:
        pieces = [request("POST", "/db/first", b"x")]
        for number in range(60):
            level = "?level=stale" if number % 3 == 0 else ""
            pieces.append(request("GET", f"/db/k{number}{level}", more=(PLAIN, NOT_PLAIN)[number % 2]))
            wanted.append(b"k%d" % number)
        wire.send(*pieces)
        wait_until(lambda: node.held, "the first write waits")
        holds_for(0.2, lambda: len(node.calls) == 1, "none overtakes the first")
        node.release(*node.held[0])
        assert wire.answer()[2] == b""
        assert [wire.answer()[2] for _ in wanted] == wanted


def test_expect_100_continue_is_answered_before_the_body(node, port):
    with Wire(port) as wire:
        head = "POST /db/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        wire.send(head)
        assert wire.line() == "HTTP/1.1 100 Continue" and wire.line() == ""
        wire.send("bar")
        assert status_of(wire.answer()) == 200
        wire.send(head, "bar")  # it did not wait
        assert wire.line() == "HTTP/1.1 100 Continue" and wire.line() == ""
        assert status_of(wire.answer()) == 200
    assert [call[1] for call in node.calls] == 2 * [Set("a", b"bar")]


@pytest.mark.parametrize("first", [NOT_PLAIN, PLAIN], ids=["after-flask", "after-the-lane"])
def test_expect_100_continue_is_answered_when_the_request_before_is_done(node, port, first):
    """As ``HTTPChannel.service`` does it: a client that waits for the word would wait in vain, and its body would never be taken."""
    with Wire(port) as wire:
        wire.send(request("GET", "/db/a", more=first),
                  "POST /db/b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert status_of(wire.answer()) == 200
        assert wire.line() == "HTTP/1.1 100 Continue" and wire.line() == ""
        wire.send("bar")
        assert status_of(wire.answer()) == 200
    assert node.calls[-1][1] == Set("b", b"bar")


def test_the_word_to_go_on_is_said_once(port, monkeypatch, caplog):
    """The thread of the request before says it, and the thread that reads sees that there is something to be sent."""
    said, again = [], threading.Event()

    def send(channel, data, do_close=True):
        if data.startswith(b"HTTP/1.1 100 "):
            said.append(threading.current_thread().name)
            if len(said) == 1:
                channel._changed(wake=True)  # as it is said when an answer could not be sent at once
                again.wait(0.5)
            again.set()
        return wasyncore.dispatcher.send(channel, data, do_close)
    monkeypatch.setattr(listener.Channel, "send", send, raising=False)
    with Wire(port) as wire:
        wire.send(request("GET", "/db/a", more=NOT_PLAIN),
                  "POST /db/b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert status_of(wire.answer()) == 200
        assert wire.line() == "HTTP/1.1 100 Continue" and wire.line() == ""
        wire.send("bar")
        assert status_of(wire.answer()) == 200
    assert len(said) == 1 and not caplog.records


def test_a_malformed_request_behind_a_plain_one_is_refused(node, port):
    with Wire(port) as wire:
        wire.send(request("GET", "/db/a"), "GET /db/a HTTP/1.1\r\nContent-Length: x\r\n\r\n")
        assert [status_of(wire.answer()), status_of(wire.answer())] == [200, 400]


# Waiting


def test_clients_that_have_gone_are_forgotten(node, port, caplog):
    node.holds = lambda command: True
    wires = [Wire(port) for _ in range(20)]
    for wire in wires:
        wire.send(request("POST", "/db/a", b"x"))
    wait_until(lambda: len(node.held) == 20, "all wait")
    for number, wire in enumerate(wires):
        if number % 2:
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # with a reset
        wire.__exit__()
    for held in node.held:
        node.release(*held)
    node.holds = lambda command: False
    assert status_of(asked(port, "POST", "/db/b", b"x")) == 200
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL") or record.exc_info]


@pytest.mark.parametrize("refusal", [errors.NotLeader(leader="http://localhost:4002"), errors.Overloaded("too many"), errors.Stopping(),
                                     errors.NoLeader("it is being handed over")], ids=str)
@pytest.mark.parametrize(("method", "body"), [("POST", b"body" * 2000), ("PUT", b""), ("DELETE", None)])
def test_a_write_that_the_node_refuses_goes_to_flask_with_its_body(node, port, refusal, method, body):
    node.refusal = node.error = refusal
    mine, theirs = (asked(port, method, "/db/a", body, more) for more in (PLAIN, NOT_PLAIN))
    command = Delete("a") if method == "DELETE" else Set("a", body)
    assert node.calls == [("submit", command), ("propose", command, 5.0), ("propose", command, 5.0)]
    assert without_date(mine) == without_date(theirs)
    assert (status_of(mine), header(mine, "X-Raft-Error")) == (refusal.status, refusal.code)
    if isinstance(refusal, errors.NotLeader):
        assert mine[2] == b"raft.Server: Not current leader\n"


@pytest.mark.parametrize("why", ["no leader", "it leads no longer"])
def test_a_read_without_a_leader_goes_to_flask_which_waits_for_one(node, port, why):
    node.refusal, node.read_result = (errors.NoLeader(), None) if why == "no leader" else (None, 0)
    with Wire(port) as wire:
        wire.send(2 * request("GET", "/db/a"))
        assert [wire.answer()[2], wire.answer()[2]] == [b"bar", b"bar"]
    assert node.calls == 2 * [("submit_read", False), ("read", Get("a"), "linearizable", 0, 5.0)]


def test_a_stale_read_asks_for_no_leader(node, port):
    node.refusal = errors.NoLeader()
    assert asked(port, "GET", "/db/a?level=stale")[2] == b"bar"
    assert node.calls == [("read", Get("a"), "stale", 0, 5.0)]


def test_a_write_is_answered_once_in_time_though_it_is_committed_later(node, port):
    node.settings, node.holds = replace(node.settings, write_timeout_seconds=0.4), lambda command: command.key == "slow"
    with Wire(port) as wire:
        began = time.monotonic()
        wire.send(request("POST", "/db/slow", b"x"))
        answer = wire.answer()
        assert 0.4 <= time.monotonic() - began
        assert (status_of(answer), header(answer, "X-Raft-Error"), header(answer, "X-Raft-Retry")) == (504, "commit_timeout", "maybe")
        node.release(*node.held[0])
        for number in range(5):
            wire.send(request("POST", f"/db/{number}", b"x"))
            assert status_of(wire.answer()) == 200
        wire.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            wire.socket.recv(1)


def test_who_is_done_and_waits_only_for_his_turn_is_not_told_that_it_was_too_late(node):
    answered, node.holds = [], lambda command: True
    one = lane.Lane(node, lambda: None, None, None)
    one._answer = lambda channel, pending: answered.append(pending.result())
    one._answer_error = lambda channel, error: answered.append(error)
    channels = [Asked(number) for number in range(2)]
    for channel in channels:
        channel.asks(one, "POST")
        one._pending[-1].deadline = 0.0
    one.finish()
    one._pending[1].set_result("done")
    one.expire()
    one.finish()
    assert [type(answer) for answer in answered] == [errors.CommitTimeout, str]


def test_only_so_many_transactions_that_read_are_under_way_in_the_lane(node):
    """What they answer may be large, and all of it is in memory together."""
    node.settings, node.holds = replace(node.settings, client_threads=3), lambda command: True
    with listening_for(node) as port:
        wires = [Wire(port) for _ in range(5)]
        for count, wire in enumerate(wires, 1):
            wire.send(request("POST", "/txn", b'{"if": [{"key": "a", "exists": true}], "else": [{"get": "a"}]}'))
            wait_until(lambda count=count: len(node.calls) == count, "it is under way")
        assert [call[0] for call in node.calls] == 3 * ["submit"] + 2 * ["propose"]
        for number in range(5):  # others are not counted
            with Wire(port) as wire:
                wire.send(request("POST", "/txn", b'{"then": [{"set": "a", "value": "", "ttl": "5s"}]}'))
                wait_until(lambda number=number: len(node.calls) == 6 + number, "it is under way")
        node.outcome = Outcome("transacted", 40, (True, ()))
        for held in node.held[:3]:
            node.release(*held)
        assert [status_of(wire.answer()) for wire in wires[:3]] == [200] * 3
        wires[0].send(request("POST", "/txn", b'{"then": [{"get": "a"}]}'))
        wait_until(lambda: len(node.calls) == 11, "it is under way")
        assert [call[0] for call in node.calls[5:]] == 6 * ["submit"]
        for wire in wires:
            wire.__exit__()


def test_a_read_that_nobody_confirms_ends_in_time(node, port):
    node.settings, node._settle = replace(node.settings, write_timeout_seconds=0.4), lambda future, value: None
    answer = asked(port, "GET", "/db/a")
    assert (status_of(answer), header(answer, "X-Raft-Error"), header(answer, "X-Raft-Retry")) == (503, "no_quorum", "safe")


def test_two_hundred_writes_that_wait_hold_no_thread_and_keep_nobody_out(node, port):
    node.holds = lambda command: True
    before = threading.active_count()
    wires = [Wire(port) for _ in range(200)]
    for number, wire in enumerate(wires):
        wire.send(request("POST", f"/db/k{number}", b"x"))
    wait_until(lambda: len(node.held) == 200, "all wait")
    assert threading.active_count() <= before
    began = time.monotonic()
    for path in ("/livez", "/status", "/db/a", "/db/a?level=stale", "/db/a?timeout=5s"):
        assert status_of(asked(port, "GET", path)) == 200
    assert time.monotonic() - began < 5
    for held in reversed(node.held):
        node.release(*held)
    assert {status_of(wire.answer()) for wire in wires} == {200}
    for wire in wires:
        wire.__exit__()


def test_writes_that_are_done_in_many_threads_are_each_answered_once(node, port):
    node.holds = lambda command: True
    wires = [Wire(port) for _ in range(64)]
    for round_number in range(5):
        node.held.clear()
        for wire in wires:
            wire.send(request("POST", f"/db/k{round_number}", b"x"))
        wait_until(lambda: len(node.held) == len(wires), "all wait")
        threads = [threading.Thread(target=partial(node.release, *held)) for held in list(node.held)]
        for thread in threads:
            thread.start()
        assert {status_of(wire.answer()) for wire in wires} == {200}
        for thread in threads:
            thread.join()
    for wire in wires:
        wire.__exit__()


# What one client must not do to the others


def test_who_asks_has_a_turn_however_much_there_is_to_answer(node, monkeypatch):
    """The thread that answers is the one that reads, also the health checks. What is left is answered after that."""
    answered, woken, now = [], [], [0.0]

    def answer(channel, pending):
        answered.append(channel)
        now[0] += lane.MOST_SECONDS_AT_ONCE / 4
    monkeypatch.setattr(lane, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one = lane.Lane(node, lambda: woken.append(len(answered)), None, None)
    one._answer = answer
    for number in range(10):
        one.hand_over(lane.Pending(one, number, None, 0.0))
    for _ in range(3):
        one.finish()
    assert (answered, woken) == (list(range(10)), [0, 4, 8]), "four at a time, and it is woken again for the rest, and only then"


class Asked:
    """A channel with a plain request, for a lane that only begins with it."""

    addr = ("127.0.0.1", 1)

    def __init__(self, number):
        self.number, self.requests, self.began = number, [], 0.0

    def asks(self, one, method):
        method, _, query = method.partition(" ")
        data = f"{method} /db/k{self.number}{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()
        one._lengths[b"Host: localhost\r\nContent-Length: 0"] = 0
        assert one.take_bytes(self, data)


def test_of_many_that_are_read_in_one_turn_only_the_refused_go_to_flask(node):
    """All are proposed together, and reads begin as one."""
    calls, otherwise = [], []
    node.submit_all = lambda proposals: calls.append(len(proposals)) or proposals[1:2]

    def refuse(future, leased):
        calls.append("leased reads" if leased else "reads")
        future.set_exception(errors.NoQuorum("none"))
    node.submit_read = refuse
    one = lane.Lane(node, lambda: None, None, lambda channel: otherwise.append(channel.number))
    one._answer = lambda channel, pending: calls.append((channel.number, type(pending.error)))
    for number, method in enumerate(["POST", "GET", "PUT", "GET", "DELETE", "GET ?level=leader", "GET ?level=leader"]):
        Asked(number).asks(one, method)
    assert calls == []
    one.finish()
    assert (calls, otherwise) == ([3, "reads", "leased reads", *((number, errors.NoQuorum) for number in (1, 3, 5, 6))], [2])


def test_reads_that_are_refused_go_to_flask(node):
    otherwise, node.refusal = [], errors.NoLeader()
    one = lane.Lane(node, lambda: None, None, lambda channel: otherwise.append(channel.number))
    for number in range(3):
        Asked(number).asks(one, "GET")
    one.finish()
    assert otherwise == [0, 1, 2] and node.calls == [("submit_read", False)]


def test_who_has_something_for_a_thread_that_sleeps_wakes_it_once(node):
    woken, node.holds = [], lambda command: True
    one = lane.Lane(node, lambda: woken.append(True), None, None)
    for _ in range(2):
        Asked(1).asks(one, "POST")
    assert woken == [True]
    one.finish()
    one.awake()
    Asked(2).asks(one, "POST")
    assert woken == [True], "it is awake, and looks before it sleeps"


def test_a_client_that_does_not_read_its_answers_holds_nobody_up(node, port):
    """waitress makes who writes wait while much is unsent; the thread that reads requests is the one that sends, and must not."""
    node.found = Found(b"x" * (1 << 20), 41, 1040)
    with Wire(port) as deaf:
        deaf.send(*(200 * [request("GET", "/db/a")]))
        wait_until(lambda: node.calls, "it is being answered")
        for _ in range(5):
            assert status_of(asked(port, "GET", "/livez")) == 200
            node_answer = asked(port, "GET", "/db/a?level=stale")
            assert status_of(node_answer) == 200


def test_all_answers_arrive_at_a_client_that_reads_late(node, port):
    node.found = Found(b"x" * 100_000, 41, 1040)
    with Wire(port) as wire:
        wire.send(*(100 * [request("GET", "/db/a")]))
        wait_until(lambda: len(node.calls) > 10, "it is being answered")
        assert {len(wire.answer()[2]) for _ in range(100)} == {100_000}


def test_a_fault_of_ours_in_one_answer_does_not_end_the_lane(node, port):
    """Flask would say 500, and log it; here the one connection may close, but everybody else is served."""
    def fail(*_, **__):
        raise RuntimeError("a fault")
    node.read, good = fail, node.read
    with Wire(port) as wire:
        wire.send(request("GET", "/db/a"))
        wait_until(lambda: ("submit_read", False) in node.calls, "it is taken")
        holds_for(0.2, lambda: True, "it fails")
    node.read = good
    assert status_of(asked(port, "GET", "/db/a")) == 200
    assert status_of(asked(port, "POST", "/db/a", b"x")) == 200


def test_who_waits_when_the_server_stops_is_told_so(monkeypatch):
    """``Server.stop``: the node fails what waits, and then the listener is stopped. All are told, however long that takes."""
    monkeypatch.setattr(listener, "MOST_SECONDS_AT_ONCE", 0.0)
    for _ in range(10):
        node = LaneNode()
        node.holds = lambda command: True
        serving, port = started(node)
        wires = [Wire(port) for _ in range(10)]
        for wire in wires:
            wire.send(request("POST", "/db/a", b"x"))
        wait_until(lambda node=node: len(node.held) == 10, "all wait")
        for _, future in node.held:
            future.set_exception(errors.LeadershipLost())
        serving.stop()
        assert [wire.answer()[0] for wire in wires] == 10 * ["HTTP/1.1 503 Service Unavailable"]
        for wire in wires:
            wire.__exit__()


def test_who_is_done_just_before_the_server_stops_is_told_so():
    """The reading thread has answered all that was done, and goes on to see whether it is to stop."""
    node = LaneNode()
    node.holds = lambda command: True
    serving, port = started(node)
    finish, seen = serving._dispatcher.lane.finish, threading.Event()

    def finish_before_it_is_done(*more):
        finish(*more)
        if node.held and not seen.is_set():
            node.held[0][1].set_exception(errors.LeadershipLost())
            serving._stopping = True
            seen.set()
    serving._dispatcher.lane.finish = finish_before_it_is_done
    with Wire(port) as wire:
        wire.send(request("POST", "/db/a", b"x"))
        assert seen.wait(10)
        serving.stop()
        assert status_of(wire.answer()) == 503


def test_a_stop_may_find_that_it_was_seen_before_it_was_said(node):
    """Somebody else has woken the reading thread at that moment: it was "Bad file descriptor", and half a stop."""
    serving, _ = started(node)
    trigger = serving._server.trigger
    pull = trigger.pull_trigger

    def somebody_else_was_first(*thunk):
        pull(*thunk)
        wait_until(lambda: not serving._thread.is_alive(), "it has stopped already")
        pull()
    trigger.pull_trigger = somebody_else_was_first
    serving.stop()


def test_who_wakes_a_closed_listener_writes_into_no_other_file(tmp_path):
    """Whatever is answered late, its number may be that of the log by then."""
    wake = listener.Wake({})
    number = wake.trigger
    wake.close()
    with open(tmp_path / "precious", "w") as file:
        os.dup2(file.fileno(), number)
        wake.pull_trigger()
        os.close(number)
    assert (tmp_path / "precious").read_bytes() == b""


def test_who_wakes_a_listener_that_does_not_look_does_not_wait():
    wake = listener.Wake({})
    for _ in range(100_000):
        wake.pull_trigger()
    wake.close()


# A real server


@pytest.mark.cluster
def test_a_real_server_answers_the_same_with_and_without_the_lane(tmp_path):
    steps = [("GET", None), ("POST", b"one"), ("GET", None), ("PUT", bytes(range(256))), ("GET", None), ("DELETE", None), ("GET", None),
             ("DELETE", None), ("POST", b""), ("PUT", b"x", "If-None-Match: *"), ("PUT", b"two", 'If-Match: "{etag}"'),
             ("PUT", b"x", 'If-Match: "1"'), ("DELETE", None, 'If-Match: "1"'), ("PUT", b"three", "X-Raft-Fence: mine={created}"),
             ("PUT", b"x", "X-Raft-Fence: mine=1"), ("PUT", b"x", "X-Raft-Fence: none=1"), ("GET", None),
             ("DELETE", None, 'If-Match: "{etag}"'), ("PUT", b"x", 'If-Match: "{etag}"'), ("PUT", b"x", "If-None-Match: *")]
    with Cluster(tmp_path, 1, flags=["-election-timeout", "20s"]) as cluster:  # in one term, also on a disk that takes its time
        for number in range(10):
            assert cluster[1].put(f"before{number}", b"x").status == 200  # all indexes have two digits
        mine, theirs = (list(_single_keys(cluster[1].port, steps, *how)) for how in ((PLAIN, ""), (NOT_PLAIN, "?timeout=5s")))
        assert mine == theirs
        assert [status_of(answer) for answer in mine] == [
            404, 200, 200, 200, 200, 200, 404, 404, 200, 412, 200, 412, 412, 200, 412, 412, 200, 200, 412, 200]
        assert mine[16][2] == b"three"
        mine, theirs = (list(_transactions(cluster[1].port, how)) for how in (PLAIN, NOT_PLAIN))
        assert mine == theirs and [status_of(answer) for answer in mine] == [200, 200, 200, 200, 422, 200, 200, 200]
        assert [header(answer, "Idempotent-Replay") for answer in mine] == [None, None, None, "true", None, None, None, None]
        for query in ("ttl=1h", "ttl=1h&timeout=5s"):
            assert status_of(asked(cluster[1].port, "PUT", f"/db/lasts?{query}", b"x")) == 200
            assert 3590 < float(header(asked(cluster[1].port, "GET", "/db/lasts"), "X-Raft-Expires-In")) <= 3600
        client = http.client.HTTPConnection("127.0.0.1", cluster[1].port, timeout=5)
        for number in range(100):
            client.request("POST", f"/db/k{number}", b"x")
            answer = client.getresponse()
            index = int(answer.headers["X-Raft-Index"] if answer.read() == b"" else 0)
            client.request("GET", f"/db/k{number}")
            answer = client.getresponse()
            assert (answer.read(), answer.headers["ETag"], int(answer.headers["X-Raft-Index"]) >= index) == (b"x", f'"{index}"', True)
        client.close()


def _single_keys(port, steps, more, query):
    """The answers to *steps*, in which {etag} is that of the last write and {created} that of the first since there was no such key."""
    etag = created = "0"
    for method, body, *fields in steps:
        said = "".join(f"{field.format(etag=etag, created=created)}\r\n" for field in fields)
        answer = asked(port, method, f"/db/mine{query}", body, said + more)
        if method != "GET" and status_of(answer) == 200:
            etag = (header(answer, "ETag") or '"0"').strip('"')
            created = etag if method == "DELETE" or created == "0" else created
        status, lines, value = answer
        lines = [re.sub(r"^(X-Raft-Index|ETag): \S+", r"\1", line, flags=re.IGNORECASE) for line in lines]
        yield without_date((status, lines, re.sub(rb"written at \d+|created at \d+", b"", value)))
    assert status_of(asked(port, "DELETE", "/db/mine")) == 200


def _transactions(port, how):
    """The answers to some transactions that do the same each time."""
    key = f"Idempotency-Key: {'lane' if how == PLAIN else 'flask'}\r\n"
    for more, members in (
        ("", {"then": [{"set": "t", "value": "1"}, {"set": "u", "value": "2"}]}),
        ("", {"if": [{"key": "t", "value": "2"}], "else": [{"delete": "u"}, {"delete": "none"}]}),
        (key, {"then": [{"delete": "t"}]}), (key, {"then": [{"delete": "t"}]}), (key, {"then": [{"delete": "u"}]}),
        ("", {"if": [{"key": "t", "exists": True}], "then": [{"delete": "t"}]}),
        ("", {"then": [{"set": "t", "value": "1", "ttl": "1h"}, {"set": "u", "value": "\0"}]}),
        ("", {"if": [{"key": "t", "value": "1"}], "then": [{"get": "u"}, {"get": "none"}, {"delete": "t"}], "else": [{"get": "t"}]}),
    ):
        status, lines, body = asked(port, "POST", "/txn", json.dumps(members).encode(), more + how)
        lines = [re.sub(r"^(X-Raft-Index): \S+", r"\1", line) for line in lines]
        yield without_date((status, lines, re.sub(rb'"(index|created_index)": \d+', rb'"\1"', body)))


@pytest.mark.cluster
def test_answers_that_are_sent_hold_no_memory(tmp_path):
    """A connection that is kept open keeps the bytes of no answer that it has sent."""
    with Cluster(tmp_path, size=1) as cluster:
        server = cluster[1]
        assert server.put("large", b"x" * 100_000).status == 200
        clients = [Client(server.address) for _ in range(8)]
        try:
            for client in clients:
                assert client.call("GET", "/db/large").status == 200
            before = resident_bytes(server)
            for client in clients:
                for _ in range(100):
                    assert client.call("GET", "/db/large").status == 200
            assert resident_bytes(server) - before < 32 << 20, "far less than the 80 MB that were sent"
        finally:
            for client in clients:
                client.close()


def resident_bytes(server):
    fields = Path(f"/proc/{server.process.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
