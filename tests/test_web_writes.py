"""What the web makes of requests that ask for more than a plain write: exactly once, fences, expiry, prefixes, lists, transactions."""

import json
from dataclasses import replace

import pytest
from test_web import StubNode, assert_error, assert_refused

from raftd import web
from raftd.config import MAX_KEY_BYTES
from raftd.errors import NotLeader
from raftd.kv import (
    Conditions, Delete, DeletePrefix, Fence, Found, Get, If, Item, List, Listed, Outcome, Request, Set, Touch, Transaction,
)

TIME = 1007  # what the stub's clock says to the leader of its term


@pytest.fixture
def node():
    return StubNode()


@pytest.fixture
def client(node):
    return web.create_app(node, "1.2.3").test_client()


def proposed(node):
    [(_, command, _)] = node.calls
    return command


# Exactly once


@pytest.mark.parametrize("key", ["k", "x" * 255, "a b, c", '"quoted"', "7a59d9ec-0d47-4a4b-9d8f-1b5b0f3b0f7e"])
def test_an_idempotency_key_goes_with_the_command(client, node, key):
    assert client.post("/db/foo", data=b"bar", headers={"Idempotency-Key": key}).status_code == 200
    assert proposed(node) == Request(Set("foo", b"bar"), 0, key)


@pytest.mark.parametrize("letter", ["à", "Å", "Š", "\x1c", "\x85", "\xa0"])
def test_what_python_takes_for_a_space_is_a_part_of_an_idempotency_key(client, node, letter):
    key = f"k{letter}".encode().decode("latin-1")
    client.post("/db/foo", data=b"bar", headers={"Idempotency-Key": key})
    client.post("/db/foo", data=b"bar", headers={"Idempotency-Key": f" {key}\t"})
    assert [command.key for _, command, _ in node.calls] == [key, key]


@pytest.mark.parametrize(("method", "path", "data", "command"), [
    ("DELETE", "/db/foo", b"", Delete("foo")),
    ("DELETE", "/db/?prefix=foo", b"", DeletePrefix("foo")),
    ("POST", "/txn", b'{"then": [{"delete": "foo"}]}', Transaction((), (Delete("foo"),))),
])
def test_any_write_may_have_one(client, node, method, path, data, command):
    node.outcome = {Transaction: Outcome("transacted", 41, (True, (True,))), DeletePrefix: Outcome("deleted-prefix", 41, 3),
                    Delete: Outcome("deleted", 41)}[type(command)]
    client.open(path, method=method, data=data, headers={"Idempotency-Key": "k"})
    assert proposed(node) == Request(command, 0, "k")


@pytest.mark.parametrize("key", ["", " ", "x" * 256])
@pytest.mark.parametrize(("method", "path"), [("POST", "/db/foo"), ("PUT", "/db/foo"), ("DELETE", "/db/foo"), ("DELETE", "/db/?prefix=a")])
def test_a_bad_idempotency_key_is_refused(client, node, method, path, key):
    assert_refused(client.open(path, method=method, headers={"Idempotency-Key": key}), node, says="Idempotency-Key is 1 to 255 characters")


@pytest.mark.parametrize(("outcome", "status", "etag"), [
    (Outcome("written", 41), 200, '"41"'), (Outcome("deleted", 41), 200, None), (Outcome("missing", 41), 404, None),
    (Outcome("refused", 40), 412, '"40"'), (Outcome("refused", 0), 412, None), (Outcome("touched", 39), 200, '"39"'),
])
def test_a_replay_is_the_first_answer_and_says_that_it_is_one(client, node, outcome, status, etag):
    node.outcome = outcome
    first = client.post("/db/foo", headers={"Idempotency-Key": "k"})
    node.outcome = outcome._replace(replayed=True)
    again = client.post("/db/foo", headers={"Idempotency-Key": "k"})
    assert (first.status_code, first.headers.get("ETag"), first.headers.get("Idempotent-Replay")) == (status, etag, None)
    assert again.headers.pop("Idempotent-Replay") == "true"
    assert (again.status_code, again.data, again.headers) == (first.status_code, first.data, first.headers)


def test_an_idempotency_key_of_another_request_is_422(client, node):
    node.outcome = Outcome("reused", 41)
    assert_error(client.post("/db/foo", headers={"Idempotency-Key": "k"}), "idempotency_mismatch", 422, "no")


# Fences


@pytest.mark.parametrize(("field", "fence"), [
    ("lock=7", Fence("lock", 7)), ("locks/a=b=12", Fence("locks/a=b", 12)), ("K%C3%B6ln%20=1", Fence("Köln ", 1)),
    (f"{'x' * MAX_KEY_BYTES}={10**17}", Fence("x" * MAX_KEY_BYTES, 10**17)),
])
def test_a_fence_goes_with_the_command(client, node, field, fence):
    client.delete("/db/foo", headers={"X-Raft-Fence": field})
    assert proposed(node) == Request(Delete("foo"), 0, "", fence)


@pytest.mark.parametrize("field", ["", "lock", "=7", "lock=", "lock=0", "lock=07", "lock=x", "lock=-1", "lo ck=7", "lock=%zz=7", "%FF=7",
                                   "lock=1234567890123456789", "lock%=7"])
def test_a_bad_fence_is_refused(client, node, field):
    assert_refused(client.post("/db/foo", headers={"X-Raft-Fence": field}), node, says="X-Raft-Fence")


def test_the_key_of_a_fence_is_a_key(client, node):
    answer = client.post("/db/foo", headers={"X-Raft-Fence": f"{'x' * (MAX_KEY_BYTES + 1)}=7"})
    assert_error(answer, "too_large", 413, "no")
    assert node.calls == []


@pytest.mark.parametrize(("index", "says"), [(41, "created at 41"), (0, "is not there")])
def test_a_fence_that_does_not_hold_answers_412(client, node, index, says):
    node.outcome = Outcome("fenced", index)
    answer = client.post("/db/foo", headers={"X-Raft-Fence": "lock=7"})
    assert_error(answer, "precondition_failed", 412, "no")
    assert says in answer.text and "ETag" not in answer.headers


# Expiry


@pytest.mark.parametrize(("text", "ttl"), [("30s", 30_000), ("1ms", 1), ("1.5s", 1500), ("2m", 120_000), ("24h", 86_400_000)])
def test_a_time_to_live_goes_with_the_time_of_the_leader(client, node, text, ttl):
    assert client.put(f"/db/foo?ttl={text}", data=b"bar", headers={"If-None-Match": "*"}).status_code == 200
    assert proposed(node) == Request(Set("foo", b"bar", Conditions(None, "*"), ttl), TIME)


def test_to_wait_for_the_time_of_the_leader_is_a_part_of_the_timeout(client, node):
    """The stub waits half of it."""
    client.put("/db/foo?ttl=30s&timeout=4s")
    client.put("/db/foo?timeout=4s")
    assert [timeout for _, _, timeout in node.calls] == [2.0, 4.0]


def test_who_does_not_lead_knows_no_time(client, node):
    def term_in_charge(timeout):
        raise NotLeader(leader="http://localhost:4002")
    node.term_in_charge = term_in_charge
    answer = client.put("/db/foo?ttl=30s", data=b"bar")
    assert_error(answer, "not_leader", 400, "safe")
    assert node.calls == [] and answer.text == "raft.Server: Not current leader\n"
    assert client.put("/db/foo?ttl=30s&redirect", data=b"bar").headers["Location"] == "http://localhost:4002/db/foo?ttl=30s&redirect"


@pytest.mark.parametrize("text", ["", "0s", "0.1ms", "5", "s", "-1s", "1d", "1e3s", "100000h", "inf", "nan", "٣s", "1s&ttl=1s"])
def test_a_bad_time_to_live_is_refused(client, node, text):
    assert_refused(client.post(f"/db/foo?ttl={text}"), node, says="ttl")


def test_a_touch_gives_the_key_another_time(client, node):
    node.outcome = Outcome("touched", 39)
    answer = client.post("/db/foo?touch&ttl=30s", headers={"If-Match": '"39"'})
    assert (answer.status_code, answer.headers["ETag"], answer.headers["X-Raft-Index"]) == (200, '"39"', "1041")
    assert proposed(node) == Request(Touch("foo", 30_000, Conditions((39,), None)), TIME)


@pytest.mark.parametrize(("query", "data"), [("touch", b""), ("touch&ttl=30s", b"value"), ("touch=yes&ttl=30s", b"")])
def test_a_touch_has_a_time_to_live_and_no_value(client, node, query, data):
    assert_refused(client.post(f"/db/foo?{query}", data=data), node, says="touch")


def test_touch_is_for_keys_that_are_there(client, node):
    node.outcome = Outcome("missing", 41)
    assert_error(client.post("/db/foo?touch&ttl=30s"), "not_found", 404, "no")


@pytest.mark.parametrize("query", ["touch=0", "touch=false"])
def test_no_touch_is_a_write(client, node, query):
    client.post(f"/db/foo?{query}", data=b"bar")
    assert proposed(node) == Set("foo", b"bar")


@pytest.mark.parametrize("path", ["/db/foo?ttl=1s", "/db/foo?touch"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_only_a_write_of_a_key_has_a_time_to_live(client, node, method, path):
    assert_refused(client.open(path, method=method), node, says="no parameter")


@pytest.mark.parametrize(("expires_in", "text"), [(None, None), (29.9876, "29.988"), (0, "0.000")])
def test_a_read_says_when_the_key_expires(client, node, expires_in, text):
    node.found = Found(b"bar", 41, 1040, 41, 1, expires_in)
    assert client.get("/db/foo").headers.get("X-Raft-Expires-In") == text


# Lists


LISTED = Listed([Item("a", b"1", 5, 3, 2, None), Item("b", b"\xff", 6, 6, 1, 29.5), Item('"', b"", 7, 7, 1, None)], "b", 1040)


def test_a_list_is_json(client, node):
    node.listed = LISTED
    answer = client.get("/db/?prefix=a")
    assert (answer.status_code, answer.content_type, answer.headers["X-Raft-Index"]) == (200, "application/json", "1040")
    assert answer.json == {"items": [
        {"key": "a", "value": "1", "index": 5, "created_index": 3, "version": 2, "expires_in": None},
        {"key": "b", "value_base64": "/w==", "index": 6, "created_index": 6, "version": 1, "expires_in": 29.5},
        {"key": '"', "value": "", "index": 7, "created_index": 7, "version": 1, "expires_in": None}], "next": "b", "index": 1040}


@pytest.mark.parametrize(("query", "wanted", "how"), [
    ("", List(""), ("linearizable", 0, 5.0)),
    ("?prefix=a%2Fb&limit=7&after=a/b/c", List("a/b", "a/b/c", 7), ("linearizable", 0, 5.0)),
    ("?prefix=K%C3%B6ln&keys_only&level=stale&min_index=9&timeout=1s", List("Köln", keys_only=True), ("stale", 9, 1.0)),
    ("?keys_only=true&limit=1000", List("", limit=1000, keys_only=True), ("linearizable", 0, 5.0)),
    ("?keys_only=false", List(""), ("linearizable", 0, 5.0)),
])
def test_what_a_list_asks_for(client, node, query, wanted, how):
    assert client.get(f"/db/{query}").json == {"items": [], "next": None, "index": 1040}
    assert node.calls == [("read", wanted, *how)]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=", "limit=x", "limit=-1", "limit=٣", "prefix=%FF", "after=%C3",
                                   "keys_only=x",
                                   "keys=1", "prefix=a&prefix=b"])
def test_a_bad_list_is_refused(client, node, query):
    assert_refused(client.get(f"/db/?{query}"), node)


@pytest.mark.parametrize("name", ["prefix", "after"])
def test_what_is_longer_than_a_key_is_refused(client, node, name):
    assert_error(client.get(f"/db/?{name}={'x' * (MAX_KEY_BYTES + 1)}"), "too_large", 413, "no")
    assert node.calls == []


def test_a_key_has_no_parameters_of_a_list(client, node):
    assert_refused(client.get("/db/foo?limit=1"), node, says="no parameter")


def test_a_list_that_is_too_long_as_json_goes_on_on_the_next_page(client, node):
    """A byte may take six there."""
    node.listed = Listed([Item(f"k{number}", b"\0" * (1 << 20), 5, 5, 1, None) for number in range(4)], None, 1040)
    answer = client.get("/db/")
    assert [item["key"] for item in answer.json["items"]] == ["k0"] and answer.json["next"] == "k0"
    assert len(answer.data) < 7 << 20


# Prefixes


def test_a_prefix_is_deleted_and_the_count_answered(client, node):
    node.outcome = Outcome("deleted-prefix", 1041, 3)
    answer = client.delete("/db/?prefix=a%2F")
    assert (answer.status_code, answer.json, answer.headers["X-Raft-Index"]) == (200, {"deleted": 3, "index": 1041}, "1041")
    assert proposed(node) == DeletePrefix("a/")


def test_all_keys_are_deleted_only_when_that_is_said(client, node):
    assert_refused(client.delete("/db/?prefix="), node, says="all=true")
    assert_refused(client.delete("/db/?prefix=&all=false"), node, says="all=true")
    assert_refused(client.delete("/db/"), node, says="?prefix=P")
    assert_refused(client.delete("/db/?all=true"), node, says="?prefix=P")
    node.outcome = Outcome("deleted-prefix", 1041, 3)
    client.delete("/db/?prefix=&all=true")
    assert proposed(node) == DeletePrefix("")


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_a_prefix_has_no_version(client, node, header):
    assert_refused(client.delete("/db/?prefix=a", headers={header: "*"}), node, says=header)


@pytest.mark.parametrize("target", ["/db/#?prefix=a", "/db/\t?prefix=a"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_path_that_is_read_otherwise_than_sent_is_refused(client, node, method, target):
    answer = client.open("/db/?prefix=a", method=method, environ_overrides={"REQUEST_URI": target})
    assert_refused(answer, node, says="%23")


# Transactions


def txn(client, **members):
    return client.post("/txn", data=json.dumps({name.rstrip("_"): member for name, member in members.items()}))


def test_a_transaction(client, node):
    node.outcome = Outcome("transacted", 1041, (True, (True, True, False, Found(b"\xff", 41, 1041, 40, 2, 1.5), Found(None, 0, 1041))))
    answer = txn(client, if_=[{"key": "a", "index": 0}, {"key": "b", "exists": True}, {"key": "c", "value": "é"},
                              {"key": "d", "value_base64": "/w=="}],
                 then=[{"set": "a", "value": "1"}, {"delete": "b"}, {"delete": "none"}, {"get": "c"}, {"get": "none"}],
                 else_=[{"set": "e", "value_base64": "AA==", "ttl": "30s"}])
    assert (answer.status_code, answer.content_type, answer.headers["X-Raft-Index"]) == (200, "application/json", "1041")
    assert answer.json == {"succeeded": True, "index": 1041, "results": [
        {"set": "a", "index": 1041}, {"delete": "b", "deleted": True}, {"delete": "none", "deleted": False},
        {"get": "c", "exists": True, "value_base64": "/w==", "index": 41, "created_index": 40, "version": 2, "expires_in": 1.5},
        {"get": "none", "exists": False}]}
    assert proposed(node) == Request(Transaction(
        (If("a", "index", 0), If("b", "exists", True), If("c", "value", "é".encode()), If("d", "value", b"\xff")),
        (Set("a", b"1"), Delete("b"), Delete("none"), Get("c"), Get("none")), (Set("e", b"\0", ttl=30_000),)), TIME)


def test_the_results_are_of_the_list_that_was_done(client, node):
    node.outcome = Outcome("transacted", 41, (False, (True,)), replayed=True)
    answer = txn(client, if_=[{"key": "a", "exists": True}], then=[{"delete": "a"}, {"get": "a"}], else_=[{"set": "e", "value": ""}])
    assert answer.json == {"succeeded": False, "index": 41, "results": [{"set": "e", "index": 41}]}
    assert (answer.headers["X-Raft-Index"], answer.headers["Idempotent-Replay"]) == ("1041", "true")
    assert proposed(node).command == Transaction((If("a", "exists", True),), (Delete("a"), Get("a")), (Set("e", b""),))


@pytest.mark.parametrize(("operation", "time"), [
    ({"get": "a"}, TIME), ({"set": "a", "value": "", "ttl": "30s"}, TIME), ({"set": "a", "value": ""}, 0), ({"delete": "a"}, 0)])
def test_a_transaction_that_tells_when_a_key_expires_goes_with_the_time_of_the_leader(client, node, operation, time):
    node.outcome = Outcome("transacted", 41, (True, (Found(None, 0, 41),)))
    for how in ({"then": [{"get": "b"}], "else": []}, {"then": [operation]}, {"else": [operation]}):
        client.post("/txn", json=how)
    assert [getattr(command, "time", 0) for _, command, _ in node.calls] == [TIME, time, time]


def test_a_transaction_that_would_answer_too_much_is_413(client, node):
    node.outcome = Outcome("too-large", 65536)
    answer = txn(client, then=[{"get": "a"}])
    assert_error(answer, "too_large", 413, "no")
    assert "at most 65536 bytes" in answer.text


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_a_transaction_says_its_conditions_in_its_body(client, node, header):
    assert_refused(client.post("/txn", data=b'{"then": [{"get": "a"}]}', headers={header: "*"}), node, says=header)


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{", b'"x"', b"{}", b'{"then": []}', b'{"if": [], "then": [], "else": []}', b'{"if": [{"key": "a", "exists": true}]}',
    b'{"then": [{"delete": "a"}], "more": 1}', b'{"then": {"delete": "a"}}', b'{"then": [{"put": "a"}]}', b'{"then": ["a"]}',
    b'{"then": [null]}',
    b'{"then": [{"set": "a"}]}', b'{"then": [{"set": "a", "value": 1}]}', b'{"then": [{"set": "a", "value": null}]}',
    b'{"then": [{"set": "a", "value": "1", "value_base64": "MQ=="}]}', b'{"then": [{"set": "a", "value_base64": "M"}]}',
    b'{"then": [{"set": "a", "value_base64": "\\u00e9"}]}', b'{"then": [{"set": "a", "value_base64": "M Q=="}]}',
    b'{"then": [{"set": "a", "value": "1", "ttl": 30}]}', b'{"then": [{"set": "a", "value": "1", "ttl": "0s"}]}',
    b'{"then": [{"set": "a", "value": "1", "more": 1}]}', b'{"then": [{"set": "", "value": "1"}]}', b'{"then": [{"set": 5, "value": "1"}]}',
    b'{"then": [{"set": "\\ud800", "value": "1"}]}', b'{"then": [{"set": "a", "value": "\\ud800"}]}',
    b'{"then": [{"set": "a", "value": "1", "delete": "a"}]}', b'{"then": [{"delete": "a", "value": "1"}]}',
    b'{"then": [{"get": "a", "level": "stale"}]}',
    b'{"if": [{"key": "a"}], "then": [{"get": "a"}]}', b'{"if": [{"exists": true}], "then": [{"get": "a"}]}',
    b'{"if": [{"key": "a", "exists": 1}], "then": [{"get": "a"}]}', b'{"if": [{"key": "a", "index": -1}], "then": [{"get": "a"}]}',
    b'{"if": [{"key": "a", "index": true}], "then": [{"get": "a"}]}', b'{"if": [{"key": "a", "index": 1.5}], "then": [{"get": "a"}]}',
    b'{"if": [{"key": "a", "index": 9223372036854775808}], "then": [{"get": "a"}]}',
    b'{"if": [{"key": "a", "index": 1, "exists": true}], "then": [{"get": "a"}]}',
    b'{"if": [{"key": "a", "version": 1}], "then": [{"get": "a"}]}',
    b'{"if": [["a"]], "then": [{"get": "a"}]}', b'{"if": [{"key": ["a"], "exists": true}], "then": [{"get": "a"}]}',
    b'{"then": [{"set": "a", "value": "1", "set": "b"}]}', b'{"then": [{"delete": "a"}], "then": [{"delete": "b"}]}',
    b'[' * 60_000, '{"then": [{"set": "a", "value": "\u20ac"}]}'.encode("utf-16"), b'\xef\xbb\xbf{"then": [{"delete": "a"}]}',
    b'{"then": [{"set": "a", "value": "\xff"}]}',
])
def test_a_transaction_that_is_not_understood_is_refused(client, node, body):
    assert_refused(client.post("/txn", data=body), node)


@pytest.mark.parametrize("name", ["if", "then", "else"])
def test_a_transaction_has_128_parts_of_a_kind(client, node, name):
    part = {"if": {"key": "a", "exists": True}, "then": {"get": "a"}, "else": {"get": "a"}}[name]
    node.outcome = Outcome("transacted", 41, (True, ()))
    for count, status in ((128, 200), (129, 413)):
        node.outcome = Outcome("transacted", 41, (name != "else", (Found(None, 0, 41),) * (count if name != "if" else 1)))
        answer = client.post("/txn", data=json.dumps({"then": [{"get": "a"}], name: [part] * count}))
        assert answer.status_code == status
    assert_error(answer, "too_large", 413, "no")


def test_a_transaction_is_at_most_1_mib(client, node):
    node.settings = replace(node.settings, max_value_bytes=1 << 20)
    node.outcome = Outcome("transacted", 41, (True, (True,)))
    head, tail = b'{"then": [{"set": "a", "value": "', b'"}]}'
    fill = (1 << 20) - len(head) - len(tail)
    assert client.post("/txn", data=head + b"x" * fill + tail).status_code == 200
    assert_error(client.post("/txn", data=head + b"x" * (fill + 1) + tail), "too_large", 413, "no")


def test_a_value_in_a_transaction_is_as_large_as_any(client, node):
    node.settings = replace(node.settings, max_value_bytes=10)
    node.outcome = Outcome("transacted", 41, (True, (True,)))
    assert txn(client, then=[{"set": "a", "value": "x" * 10}]).status_code == 200
    for where in ("then", "else"):
        answer = client.post("/txn", json={"then": [{"delete": "b"}], where: [{"set": "a", "value": "x" * 11}]})
        assert_error(answer, "too_large", 413, "no")
        assert answer.text == "a value is at most 10 bytes long\n"
    assert len(node.calls) == 1


def test_a_key_in_a_transaction_is_a_key(client, node):
    assert_error(txn(client, then=[{"get": "x" * (MAX_KEY_BYTES + 1)}]), "too_large", 413, "no")
    assert node.calls == []


def test_txn_has_one_method(client):
    answer = client.get("/txn")
    assert_error(answer, "method_not_allowed", 405, "no")
    assert answer.headers["Allow"] == "OPTIONS, POST"
