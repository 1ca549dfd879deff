"""The HTTP surface against a node that only notes what it is asked: paths, parameters, headers, bodies, errors."""

import ast
import json
import logging
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from flask import Flask

from raftd import errors, web
from raftd.config import MAX_KEY_BYTES, Settings
from raftd.kv import Changes, Conditions, Delete, Found, Get, HasChanged, History, List, Listed, Outcome, Set, decode

LIMIT = 1000
RAFT_HEADERS = {"X-Raft-Index": "1042", "X-Raft-Term": "7", "X-Raft-Node": "n1", "X-Raft-Leader": "http://localhost:4002"}


class Applied(NamedTuple):
    index: int
    result: Outcome


class StubState:
    """What there is of a state machine besides what the node reads from it."""

    def __init__(self, node):
        self.clock, self.position = SimpleNamespace(lead=lambda term: 1000 + term), SimpleNamespace(index=1040)
        self.read, self.subscribe = node.look_up, lambda applied, waits: None


class StubNode:
    """Notes every call in ``calls``; answers with ``found``, ``outcome``, or by raising ``error``."""

    name, address = "n1", "localhost:4001"
    settings = Settings(max_value_bytes=LIMIT)

    def term_in_charge(self, timeout):
        return 7, timeout / 2

    def __init__(self):
        self.state_machine = StubState(self)
        self.calls = []
        self.error = None
        self.found = Found(b"bar", 41, 1040)
        self.listed, self.history, self.has_changed = Listed([], None, 1040), History([], 1040), True
        self.outcome = Outcome("written", 1041)
        self.leader_now = {"name": "n2", "address": "localhost:4002"}
        self.reason = None
        self.raft_headers = dict(RAFT_HEADERS)

    def _called(self, *call):
        self.calls.append(call)
        if self.error:
            raise self.error

    def propose(self, command, timeout):
        self._called("propose", decode(command), timeout)
        return Applied(1041, self.outcome)

    def read(self, query, level="linearizable", min_index=0, timeout=5.0):
        self._called("read", query, level, min_index, timeout)
        return self._answer_to(query)

    def look_up(self, query):
        return self._answer_to(query)

    def _answer_to(self, query):
        if isinstance(query, Changes) and isinstance(self.history, Exception):
            raise self.history
        return {List: self.listed, Changes: self.history, HasChanged: self.has_changed}.get(type(query), self.found)

    def join(self, name, address, voter, timeout):
        self._called("join", name, address, voter, timeout)

    def remove(self, name, timeout, id):
        self._called("remove", name, timeout, id)

    def transfer_leadership(self, name, timeout):
        self._called("transfer_leadership", name, timeout)
        return {"name": "n3", "address": "localhost:4003"}

    def leader(self):
        return self.leader_now

    def headers(self):
        return dict(self.raft_headers)

    def status(self):
        return {"name": "n1", "role": "follower", "term": 7}

    def identity(self):
        return {"name": "n1", "cluster": "c1"}

    def members(self):
        return [{"name": "n1", "address": "localhost:4001", "voter": True}]

    def not_ready(self):
        return self.reason


@pytest.fixture
def node():
    return StubNode()


@pytest.fixture
def app(node):
    return web.create_app(node, "1.2.3")


@pytest.fixture
def client(app):
    return app.test_client()


class Answer(NamedTuple):
    status: int
    headers: dict
    body: bytes


def raw(app, method, path, body=b"", **environ):
    """Ask *app* as a server does: *path* is PATH_INFO, percent-decoded, one character per byte."""
    started = []
    environ = {
        "REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": "", "SERVER_NAME": "localhost",
        "SERVER_PORT": "4001", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.version": (1, 0), "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(body), "wsgi.input_terminated": True, "wsgi.errors": None, "wsgi.multithread": True,
        "wsgi.multiprocess": False, "wsgi.run_once": False, "CONTENT_LENGTH": str(len(body)), **environ,
    }  # fmt: skip
    answered = app(environ, lambda status, headers, exc_info=None: started.append((status, headers)))
    [(status, headers)] = started
    return Answer(int(status.split()[0]), dict(headers), b"".join(answered))


def assert_error(answer, code, status, retry):
    assert (answer.headers["X-Raft-Error"], answer.status_code, answer.headers["X-Raft-Retry"]) == (code, status, retry)
    assert answer.content_type == "text/plain; charset=utf-8"
    assert answer.text.endswith("\n") and answer.text.count("\n") == 1 and answer.text.strip()
    assert answer.headers["X-Raft-Node"] == "n1"


def assert_refused(answer, node, says=""):
    assert_error(answer, "bad_request", 400, "no")
    assert says in answer.text
    assert node.calls == []


# Values.


def test_get_answers_the_value_with_its_headers(client, node):
    answer = client.get("/db/foo")
    assert (answer.status_code, answer.data) == (200, b"bar")
    assert node.calls == [("read", Get("foo"), "linearizable", 0, 5.0)]
    expected = {
        **RAFT_HEADERS,
        "X-Raft-Index": "1040",  # of the read, not of the node
        "ETag": '"41"',
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": "3",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
        "Cache-Control": "no-cache",
    }
    assert dict(answer.headers) == expected
    assert len(answer.headers) == len(expected), "a header is there twice"


def test_head_answers_the_headers_of_get_without_the_value(client):
    get, head = client.get("/db/foo"), client.head("/db/foo")
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers == get.headers


@pytest.mark.parametrize(
    ("value", "content_type"),
    [
        (b"", "text/plain; charset=utf-8"),
        ("žluť".encode(), "text/plain; charset=utf-8"),
        (b"<script>alert(1)</script>", "text/plain; charset=utf-8"),
        (b"\xff\xfe", "application/octet-stream"),
        (bytes(range(256)), "application/octet-stream"),
    ],
)
def test_a_value_comes_back_as_the_bytes_it_is(client, node, value, content_type):
    node.found = Found(value, 41, 1040)
    answer = client.get("/db/foo")
    assert (answer.status_code, answer.data, answer.content_type) == (200, value, content_type)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("accept", [None, "application/json"])
def test_a_missing_key_is_404_with_an_empty_body(client, node, method, accept):
    node.found = Found(None, 0, 1039)
    answer = client.open("/db/foo", method=method, headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer.data) == (404, b"")
    assert (answer.headers["X-Raft-Error"], answer.headers["X-Raft-Retry"]) == ("not_found", "no")
    assert answer.headers["X-Raft-Index"] == "1039"
    assert "ETag" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_write_is_proposed_and_answers_its_index(client, node, method):
    answer = client.open("/db/foo", method=method, data=b"bar")
    assert node.calls == [("propose", Set("foo", b"bar"), 5.0)]
    assert (answer.status_code, answer.data) == (200, b"")
    assert (answer.headers["ETag"], answer.headers["X-Raft-Index"]) == ('"1041"', "1041")
    assert "X-Raft-Error" not in answer.headers


CURL_D = "application/x-www-form-urlencoded"


CONTENT_TYPES = [None, CURL_D, "multipart/form-data; boundary=x", "application/json", "text/x; charset=utf-16"]


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("value", [b"", b"bar", b"a=1&b=%20+2", b"--x\r\n\r\n", bytes(range(256)), b"x" * LIMIT])
def test_a_value_is_stored_exactly_as_sent(app, node, value, content_type):
    environ = {"CONTENT_TYPE": content_type} if content_type else {}
    assert raw(app, "POST", "/db/foo", value, **environ).status == 200
    assert node.calls == [("propose", Set("foo", value), 5.0)]


@pytest.mark.parametrize("length", ["declared", "unknown"])
def test_a_value_over_the_limit_is_refused(app, node, length):
    body = b"x" * (LIMIT + 1)
    answer = raw(app, "POST", "/db/foo", body, CONTENT_LENGTH=str(len(body)) if length == "declared" else "")
    assert (answer.status, answer.headers["X-Raft-Error"], answer.headers["X-Raft-Retry"]) == (413, "too_large", "no")
    assert str(LIMIT).encode() in answer.body
    assert node.calls == []


@pytest.mark.parametrize(("kind", "status", "error"), [("deleted", 200, None), ("missing", 404, "not_found")])
def test_delete(client, node, kind, status, error):
    node.outcome = Outcome(kind, 1041)
    answer = client.delete("/db/foo")
    assert node.calls == [("propose", Delete("foo"), 5.0)]
    assert (answer.status_code, answer.headers.get("X-Raft-Error"), answer.headers["X-Raft-Index"]) == (status, error, "1041")
    assert "ETag" not in answer.headers


# Keys: PATH_INFO after /db/, byte by byte.

KEYS = [
    "foo", "config/web/port", "a//b", "/a", "//a", "a/", "a//", "/", "../x", "a/../b", ".", "..", "./", "a b", " ", "a+b",
    "%00", "%2F", "100%", "a?b", "a#b", "a&b=c", "a\tb", "\n", "a\r\nX-Evil: 1", "\0", "\x7f",
    "ž", "日本語",
    "😀", "\ufffd", "\u202e", "\xe9", "e\u0301", "livez", "db/foo", "<raftd>", "x" * MAX_KEY_BYTES, "é" * (MAX_KEY_BYTES // 2),
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key[:20]))
def test_a_key_is_taken_exactly(app, node, method, key):
    answer = raw(app, method, "/db/" + key.encode().decode("latin-1"))
    assert answer.status == 200
    assert [call[1].key for call in node.calls] == [key]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("key", [b"", b"\xff", b"a/\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xbe"])
def test_a_key_that_is_empty_or_not_utf8_is_refused(app, node, method, key):
    answer = raw(app, method, "/db/" + key.decode("latin-1"))
    if key or method not in ("GET", "HEAD"):  # that is a list
        assert (answer.status, answer.headers["X-Raft-Error"]) == (400, "bad_request")
        assert node.calls == []


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("key", ["x" * (MAX_KEY_BYTES + 1), "é" * (MAX_KEY_BYTES // 2) + "x"])
def test_a_key_over_the_limit_is_refused(app, node, method, key):
    answer = raw(app, method, "/db/" + key.encode().decode("latin-1"))
    assert (answer.status, answer.headers["X-Raft-Error"], answer.headers["X-Raft-Retry"]) == (413, "too_large", "no")
    assert str(MAX_KEY_BYTES).encode() in answer.body
    assert node.calls == []


@pytest.mark.parametrize("length", [1, LIMIT])
def test_a_body_that_broke_off_is_not_a_value(app, node, length):
    answer = raw(app, "POST", "/db/foo", b"x" * (length - 1), CONTENT_LENGTH=str(length))
    assert (answer.status, answer.headers["X-Raft-Error"]) == (400, "bad_request")
    assert node.calls == []


TARGETS = [("/db/a", "/db/a#b"), ("/db/ab", "/db/a\tb"), ("/db/100%", "/db/100%"), ("/db/%zz", "/db/%zz"), ("/db/a%2", "/db/a%2")]


@pytest.mark.parametrize(("path", "target"), TARGETS)
def test_a_target_that_the_server_has_guessed_at_names_no_key(app, node, path, target):
    assert raw(app, "POST", path, b"bar", REQUEST_URI=target).status == 400
    assert node.calls == []


# Parameters.


@pytest.mark.parametrize(
    ("query", "how"),
    [
        ("", ("linearizable", 0, 5.0)),
        ("level=linearizable", ("linearizable", 0, 5.0)),
        ("level=leader", ("leader", 0, 5.0)),
        ("level=stale", ("stale", 0, 5.0)),
        ("level=stale&min_index=1041&timeout=500ms", ("stale", 1041, 0.5)),
        ("min_index=0", ("linearizable", 0, 5.0)),
        ("timeout=60s", ("linearizable", 0, 60.0)),
        ("timeout=1m", ("linearizable", 0, 60.0)),
    ],
)
def test_parameters_of_a_read(client, node, query, how):
    assert client.get(f"/db/foo?{query}").status_code == 200
    assert node.calls == [("read", Get("foo"), *how)]


BAD_TIMEOUTS = [
    "timeout=", "timeout=5", "timeout=0s", "timeout=-1s", "timeout=61s", "timeout=1h", "timeout=nan", "timeout=%D9%A5s",
    "timeout=" + 5000 * "9" + "s", "timeout=1s&timeout=2s",
]  # fmt: skip
BAD_OF_A_READ = [
    "level=stael", "level=", "level=STALE", "Level=stale", "level", "level=stale&level=linearizable", "leve=stale",
    "min_index=", "min_index=-1", "min_index=x", "min_index=1.0", "min_index=1e3", "min_index=%D9%A1", "min_index=%2B1",
    "min_index=" + 5000 * "9", "redirect", "=", "x=1", "%00", "a%0Ab=1", "%FF", *BAD_TIMEOUTS,
]  # fmt: skip
BAD_OF_A_WRITE = ["level=stale", "min_index=1", "redirect=maybe", "redirect&redirect", "redirct", "x", *BAD_TIMEOUTS]


@pytest.mark.parametrize("query", BAD_OF_A_READ, ids=lambda query: query[:30])
def test_a_bad_parameter_of_a_read_is_refused(client, node, query):
    assert_refused(client.get(f"/db/foo?{query}"), node)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("query", BAD_OF_A_WRITE, ids=lambda query: query[:30])
def test_a_bad_parameter_of_a_write_is_refused(client, node, method, query):
    assert_refused(client.open(f"/db/foo?{query}", method=method), node)


def test_a_refusal_names_the_parameter(client, node):
    assert_refused(client.get("/db/foo?leve=stale"), node, says="'leve'")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_timeout_of_a_write(client, node, method):
    client.open("/db/foo?timeout=1.5s", method=method)
    assert node.calls[0][2] == 1.5


# Conditions.

TAGS = [
    (None, None),
    ("*", "*"),
    (" * ", "*"),
    ('"41"', (41,)),
    ('"41", "42"', (41, 42)),
    ('"41","42" , "43"', (41, 42, 43)),
    (', "41",, "42",', (41, 42)),
    ('"abc"', ()),
    ('"a,b", "7"', (7,)),
    ('"041"', ()),
    ('"0"', ()),
    ('""', ()),
    ('"-1"', ()),
    ('"' + 5000 * "9" + '"', ()),
]
BAD_TAGS = [
    "", "41", '"41', '41"', "'41'", '"41" "42"', '*, "41"', '"41", *', "**", 'w/"41"', "W/41", '"4 1"', ",", '"1", x',
    101 * '"1",',
]  # fmt: skip


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize(("text", "tags"), TAGS)
def test_conditions_reach_the_command(client, node, method, header, text, tags):
    client.open("/db/foo", method=method, headers={} if text is None else {header: text})
    expected = Conditions(if_match=tags) if header == "If-Match" else Conditions(if_none_match=tags)
    assert [call[1].conditions for call in node.calls] == [expected]


@pytest.mark.parametrize(("text", "strong", "both"), [('W/"41"', (), (41,)), ('W/"41", "42"', (42,), (41, 42))])
def test_a_weak_tag_says_which_version_a_client_has_but_not_its_bytes(client, node, text, strong, both):
    """RFC 9110, section 13.1: the comparison is strong for If-Match and weak for If-None-Match."""
    client.put("/db/foo", headers={"If-Match": text})
    client.put("/db/foo", headers={"If-None-Match": text})
    assert [call[1].conditions for call in node.calls] == [Conditions(if_match=strong), Conditions(if_none_match=both)]


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("text", BAD_TAGS, ids=lambda text: text[:20])
def test_a_malformed_condition_is_refused(app, node, header, text):
    environ = {"HTTP_" + header.upper().replace("-", "_"): text}
    for method in ("POST", "PUT", "DELETE"):
        answer = raw(app, method, "/db/foo", **environ)
        assert (answer.status, answer.headers["X-Raft-Error"]) == (400, "bad_request")
        assert header.encode() in answer.body
    assert node.calls == []


def test_both_conditions_count(client, node):
    client.put("/db/foo", headers={"If-Match": '"1"', "If-None-Match": '"2"'})
    assert node.calls[0][1].conditions == Conditions((1,), (2,))


@pytest.mark.parametrize(("index", "etag"), [(41, '"41"'), (0, None)])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_condition_that_does_not_hold_answers_412_with_the_current_etag(client, node, method, index, etag):
    node.outcome = Outcome("refused", index)
    answer = client.open("/db/foo", method=method, headers={"If-Match": '"40"'})
    assert_error(answer, "precondition_failed", 412, "no")
    assert (answer.headers.get("ETag"), answer.headers["X-Raft-Index"]) == (etag, "1041")


# Not the leader.

LEADER = "http://localhost:4002"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("query", ["", "?redirect=0", "?redirect=false"])
def test_a_write_to_a_follower_is_refused_with_the_line_of_the_original(client, node, method, query):
    node.error = errors.NotLeader(leader=LEADER)
    answer = client.open(f"/db/foo{query}", method=method)
    assert_error(answer, "not_leader", 400, "safe")
    assert answer.text == "raft.Server: Not current leader\n"
    assert answer.headers["X-Raft-Leader"] == LEADER


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "target",
    [
        "/db/foo?redirect",
        "/db/a%2Fb//%2E%2E/c%20%C5%BE?timeout=2s&redirect=true",
        "/db/%2e%2E?redirect=1",
        "/db/100%25?redirect=",
    ],
)
def test_redirect_leads_to_the_same_path_and_query_on_the_leader(client, node, method, target):
    node.error = errors.NotLeader(leader=LEADER)
    answer = client.open("/db/x?redirect", method=method, data=b"bar", environ_overrides={"REQUEST_URI": target})
    assert (answer.status_code, answer.headers["Location"], answer.data) == (307, LEADER + target, b"")
    assert answer.headers["X-Raft-Node"] == "n1" and "X-Raft-Error" not in answer.headers


@pytest.mark.parametrize("target", [None, "http://localhost:4001/db/100%25%20%C5%BE?redirect"])
def test_redirect_without_a_path_in_the_target(app, node, target):
    node.error = errors.NotLeader(leader=LEADER)
    environ = {"REQUEST_URI": target} if target else {}
    answer = raw(app, "PUT", "/db/100% \xc5\xbe", QUERY_STRING="redirect", **environ)
    assert (answer.status, answer.headers["Location"]) == (307, LEADER + "/db/100%25%20%C5%BE?redirect")


def test_redirect_without_a_known_leader_is_not_leader(client, node):
    node.error = errors.NotLeader()
    del node.raft_headers["X-Raft-Leader"]
    answer = client.post("/db/foo?redirect")
    assert_error(answer, "not_leader", 400, "safe")
    assert "X-Raft-Leader" not in answer.headers


def test_options_says_in_order_what_a_path_can_do(client):
    answer = client.options("/db/foo")
    assert (answer.status_code, answer.headers["Allow"]) == (200, "DELETE, GET, HEAD, OPTIONS, POST, PUT")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8" and answer.data == b""


# Errors: the table of section 3.

ERRORS = [
    (errors.NotLeader(), "not_leader", 400, "safe"),
    (errors.NoLeader(), "no_leader", 503, "safe"),
    (errors.NoQuorum("out of reach: n2, n3"), "no_quorum", 503, "safe"),
    (errors.CommitTimeout(), "commit_timeout", 504, "maybe"),
    (errors.LeadershipLost(), "leadership_lost", 503, "maybe"),
    (errors.Discarded(), "discarded", 503, "safe"),
    (errors.BadRequest(), "bad_request", 400, "no"),
    (errors.PreconditionFailed(), "precondition_failed", 412, "no"),
    (errors.TooLarge(), "too_large", 413, "no"),
    (errors.NotFound(), "not_found", 404, "no"),
    (errors.MethodNotAllowed(), "method_not_allowed", 405, "no"),
    (errors.Overloaded(), "overloaded", 503, "safe"),
    (errors.StorageFailed(), "storage_failed", 500, "maybe"),
    (errors.StorageFailed("no space left", full=True), "storage_failed", 507, "maybe"),
    (errors.Stopping(), "stopping", 503, "safe"),
]
EVERYTHING = [("GET", "/db/foo"), ("PUT", "/db/foo"), ("DELETE", "/db/foo"), ("DELETE", "/members/n3"), ("POST", "/leader")]
every_request = pytest.mark.parametrize(("method", "path"), EVERYTHING)
every_error = pytest.mark.parametrize(("error", "code", "status", "retry"), ERRORS, ids=lambda value: str(value)[:20])


@every_request
@every_error
def test_an_error_of_the_node_is_one_line_with_its_code(client, node, method, path, error, code, status, retry):
    node.error = error
    answer = client.open(path, method=method)
    assert_error(answer, code, status, retry)
    assert answer.text == f"{error}\n"
    assert answer.headers.get("Retry-After") == ("1" if code == "overloaded" else None)
    assert answer.headers["X-Raft-Leader"] == LEADER


@every_error
def test_an_error_is_a_problem_for_who_accepts_json(client, node, error, code, status, retry):
    node.error = error
    answer = client.put("/db/foo", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
    assert (answer.headers["X-Raft-Error"], answer.headers["X-Raft-Retry"]) == (code, retry)
    problem = json.loads(answer.data)
    assert problem.pop("title")
    assert problem == {"status": status, "detail": str(error), "code": code, "retry": retry, "leader": LEADER}
    assert answer.data.endswith(b"}\n")


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        (None, False),
        ("*/*", False),
        ("text/html, */*;q=0.8", False),
        ("text/plain", False),
        ("application/json", True),
        ("application/problem+json", True),
        ("application/json, */*;q=0.5", True),
        ("application/json, text/plain, */*", True),
        ("text/plain, application/json;q=0.5", False),
        ("application/json;q=0, text/html", False),
        ("!!;;,", False),
    ],
)
def test_who_gets_json(client, node, accept, is_json):
    node.error = errors.NoQuorum()
    answer = client.get("/db/foo", headers={"Accept": accept} if accept else {})
    assert (answer.content_type == "application/problem+json") == is_json


def test_a_problem_without_a_leader_says_null(client, node):
    node.error = errors.NoLeader()
    del node.raft_headers["X-Raft-Leader"]
    assert client.get("/db/foo", headers={"Accept": "application/json"}).get_json()["leader"] is None


def test_an_error_is_one_line_whatever_its_text(client, node):
    node.error = errors.NoQuorum("n2: refused\r\nn3: timed out\n")
    assert client.get("/db/foo").text == "n2: refused n3: timed out\n"


@every_request
def test_an_unexpected_error_is_logged_and_not_shown(client, node, caplog, method, path):
    node.error = ZeroDivisionError("secret detail")
    with caplog.at_level(logging.ERROR):
        answer = client.open(path, method=method)
    assert_error(answer, "internal", 500, "maybe")
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert "ZeroDivisionError: secret detail" in caplog.text
    assert len(caplog.records) == 1


PATHS = [
    "/", "/db", "/DB/foo", "/dbx", "/members/", "/members/a/b", "/members//n3", "/join/", "/status/", "/static/x", "/favicon.ico",
    "/\xff",
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", PATHS)
def test_an_unknown_path_is_not_found(app, node, method, path):
    answer = raw(app, method, path)
    assert (answer.status, answer.headers["X-Raft-Error"], answer.headers["X-Raft-Retry"]) == (404, "not_found", "no")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.body.strip() and b"<" not in answer.body
    assert answer.headers["X-Raft-Node"] == "n1"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/db/foo", {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}),
        ("TRACE", "/db/a//b", {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}),
        ("GET", "/join", {"POST", "OPTIONS"}),
        ("POST", "/members", {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/members/n1", {"DELETE", "OPTIONS"}),
        ("DELETE", "/leader", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("POST", "/status", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/livez", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", "/readyz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_wrong_method_names_the_right_ones(client, node, method, path, allowed):
    answer = client.open(path, method=method)
    assert_error(answer, "method_not_allowed", 405, "no")
    assert set(answer.headers["Allow"].split(", ")) == allowed
    assert node.calls == []


def test_options_answers_the_methods(client, node):
    answer = client.options("/db/foo")
    assert answer.status_code == 200 and "PUT" in answer.headers["Allow"] and answer.headers["X-Raft-Node"] == "n1"
    assert node.calls == []


# The cluster.


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ({"name": "n4", "connectionString": "http://localhost:4004"}, ("n4", "localhost:4004", True)),
        ({"name": "n4", "connectionString": "http://localhost:4004", "voter": True}, ("n4", "localhost:4004", True)),
        ({"name": "n4", "connectionString": "http://10.0.0.4:4004/", "voter": False}, ("n4", "10.0.0.4:4004", False)),
        ({"name": "A.b_c-" + "x" * 58, "connectionString": "http://a_b.c:65535"}, ("A.b_c-" + "x" * 58, "a_b.c:65535", True)),
        ({"name": "n4", "connectionString": "http://[::1]:1"}, ("n4", "[::1]:1", True)),
    ],
)
@pytest.mark.parametrize("content_type", [None, CURL_D, "application/json"])
def test_join(client, node, body, call, content_type):
    answer = client.post("/join", data=json.dumps(body), content_type=content_type)
    assert (answer.status_code, answer.data) == (200, b"")
    assert node.calls == [("join", *call, 30.0)]
    assert answer.headers["X-Raft-Node"] == "n1"


NAMED = '{"name": %s, "connectionString": "http://localhost:4004"}'
DIALED = '{"name": "n4", "connectionString": %s}'
BAD_NAMES = [
    "null", "1", "[]", "{}", "true", '""', '" "', '"a b"', '"a/b"', '"\xe9"', '"a\\n"', '"\\ud800"', '"' + "x" * 65 + '"',
]  # fmt: skip
BAD_URLS = [
    "", "localhost:4004", "//localhost:4004", "http://", "http://localhost", "http://localhost:", "http://:4004",
    "https://localhost:4004", "ftp://localhost:4004", "HTTP://localhost:4004", "http://u@localhost:4004",
    "http://localhost:0", "http://localhost:65536", "http://localhost:x", "http://localhost:-1", "http://localhost:\u0664",
    "http://localhost:4004/x", "http://localhost:4004?x", "http://localhost:4004#x", "http://localhost:4004\\n",
    "http://local host:4004", "http://\xe9:4004", "http://::1:4004", "http://[::1:4004", "http://[zz]:4004", "http://[:::]:4004",
]  # fmt: skip
BAD_JOINS = [
    "", "{}", "null", "[]", "1", '"x"', "{", "NaN", "[" * 60_000, "name=n4", '{"name": "n4"}', '{"connectionString": "http://h:1"}',
    *(NAMED % name for name in BAD_NAMES),
    *(DIALED % f'"{url}"' for url in BAD_URLS),
    *(DIALED % url for url in ("null", "1", "[]", "{}", "true")),
    *(DIALED[:-1] % '"http://localhost:4004"' + rest for rest in (
        ', "voter": null}', ', "voter": 0}', ', "voter": "false"}', ', "voters": false}', "}}")),
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_JOINS, ids=lambda body: ascii(body[:70]))
def test_a_bad_join_is_refused_and_asks_nothing_of_the_node(client, node, body):
    assert_refused(client.post("/join", data=body), node)
    assert_refused(client.post("/join", data=body.encode() + b"\xff"), node)


def test_a_huge_join_is_refused(client, node):
    assert_error(client.post("/join", data=b" " * 65537), "too_large", 413, "no")
    assert node.calls == []


def test_join_on_a_follower_names_the_leader_or_leads_there(client, node):
    node.error = errors.NotLeader(leader=LEADER)
    body = {"name": "n4", "connectionString": "http://localhost:4004"}
    assert_error(client.post("/join", json=body), "not_leader", 400, "safe")
    answer = client.post("/join?redirect", json=body)
    assert (answer.status_code, answer.headers["Location"]) == (307, LEADER + "/join?redirect")


def test_remove_a_member(client, node):
    answer = client.delete("/members/n3?timeout=2s")
    assert (answer.status_code, answer.data) == (200, b"")
    assert client.delete(f"/members/n3?id={32 * 'a'}").status_code == 200
    assert node.calls == [("remove", "n3", 2.0, None), ("remove", "n3", 30.0, 32 * "a")]
    assert_error(client.delete("/members/n3?id=n3"), "bad_request", 400, "no")


def test_members(client, node):
    answer = client.get("/members")
    assert (answer.content_type, answer.get_json()) == ("application/json", {"members": node.members()})
    assert answer.data.endswith(b"\n")


def test_status_adds_the_version(client, node):
    answer = client.get("/status")
    assert answer.get_json() == {**node.status(), "version": "1.2.3"}
    assert answer.data.endswith(b"\n") and dict(answer.headers).items() >= RAFT_HEADERS.items()


def test_identity(client, node):
    assert client.get("/raft/identity").get_json() == node.identity()


def test_leader(client, node):
    assert client.get("/leader").get_json() == {"name": "n2", "address": "localhost:4002"}
    node.leader_now = None
    assert_error(client.get("/leader"), "no_leader", 503, "safe")


@pytest.mark.parametrize(("body", "name"), [(b"", None), (b"{}", None), (b'{"name": "n3"}', "n3")])
def test_hand_over_leadership(client, node, body, name):
    answer = client.post("/leader", data=body)
    assert answer.get_json() == {"name": "n3", "address": "localhost:4003"}
    assert node.calls == [("transfer_leadership", name, 30.0)]


BAD_LEADERS = ['{"name": null}', '{"name": ""}', '{"name": 3}', '{"nam": "n3"}', "null", "[]", "n3", '{"name": "a b"}']


@pytest.mark.parametrize("body", BAD_LEADERS)
def test_a_bad_hand_over_is_refused(client, node, body):
    assert_refused(client.post("/leader", data=body), node)


@pytest.mark.parametrize("path", ["/members", "/leader", "/status"])
def test_the_cluster_api_refuses_parameters_it_does_not_have(client, node, path):
    assert_refused(client.get(path + "?level=stale"), node, says="'level'")


@pytest.mark.parametrize(("method", "path"), [("POST", "/join"), ("POST", "/leader"), ("DELETE", "/members/n3")])
def test_a_change_of_the_cluster_refuses_parameters_it_does_not_have(client, node, method, path):
    assert_refused(client.open(path + "?voter=false", method=method), node, says="'voter'")


def test_livez_and_readyz(client, node):
    assert (client.get("/livez").status_code, client.get("/livez").text) == (200, "ok\n")
    assert (client.get("/readyz").status_code, client.get("/readyz").text) == (200, "ok\n")


@pytest.mark.parametrize(("leader", "code"), [(None, "no_leader"), ({"name": "n2", "address": "localhost:4002"}, "no_quorum")])
def test_readyz_says_why_not(client, node, leader, code):
    node.reason, node.leader_now = "still joining", leader
    assert_error(client.get("/readyz"), code, 503, "safe")
    assert client.get("/readyz").text == "still joining\n"
    assert client.get("/livez").status_code == 200


# Embedding, and what the package may know.


def test_an_app_can_be_made_while_the_node_knows_nothing_yet():
    web.create_app(object(), "1.2.3")


def test_two_apps_answer_for_their_own_nodes(node):
    other = StubNode()
    clients = [web.create_app(each, "1").test_client() for each in (node, other)]
    clients[1].get("/db/foo")
    assert (node.calls, len(other.calls)) == ([], 1)


def test_mounted_in_an_app_of_ones_own_it_keeps_to_its_prefix(node):
    app = Flask(__name__)
    app.get("/hello")(lambda: "hello")
    web.mount(app, node, "1.2.3", url_prefix="/kv")
    client = app.test_client()
    assert client.get("/hello").text == "hello" and "X-Raft-Node" not in client.get("/hello").headers
    assert client.get("/nothing").content_type.startswith("text/html")
    assert client.get("/kv/db/a//b/?level=stale").data == b"bar"
    assert node.calls == [("read", Get("a//b/"), "stale", 0, 5.0)]
    assert client.get("/kv/status").status_code == 200
    node.error = errors.NoQuorum()
    assert_error(client.get("/kv/db/foo"), "no_quorum", 503, "safe")
    node.error = ZeroDivisionError()
    assert_error(client.get("/kv/db/foo"), "internal", 500, "maybe")


def test_mounted_in_an_app_of_ones_own_it_answers_for_what_flask_refuses_below_it(node):
    app = Flask(__name__)
    web.mount(app, node, "1.2.3")
    answer = raw(app, "PUT", "/db/foo", b"x", CONTENT_LENGTH="3", **{"wsgi.input": BrokenBody()})
    assert (answer.status, answer.headers["X-Raft-Error"]) == (400, "bad_request")
    assert node.calls == []


class BrokenBody(BytesIO):
    """What a server hands out when the client goes away while it sends."""

    def readinto(self, buffer):
        raise OSError("connection reset")


def test_the_web_knows_only_errors_config_and_kv():
    for path in Path(web.__file__).parent.glob("*.py"):
        statements = list(ast.walk(ast.parse(path.read_text())))
        assert not [each for each in statements if isinstance(each, ast.Import) and {"threading", "sqlite3", "time"} & names(each)]
        sources = {each.module for each in statements if isinstance(each, ast.ImportFrom)}
        rooms = {source.split(".")[1] for source in sources if source.startswith("raftd.")}
        assert rooms <= {"web", "errors", "config", "kv"} and "raftd" not in sources, path


def names(statement):
    return {alias.name for alias in statement.names}
