"""``/watch`` and reads that wait, as the web sees them: what is asked for, and the stream of a server that cannot take it over."""

import threading
from contextlib import closing
from itertools import islice
from types import SimpleNamespace

import pytest
from test_web import StubNode, assert_error, assert_refused

from raftd import web
from raftd.errors import HistoryGone
from raftd.kv import Changes, Get, HasChanged, KeyValueStore, Set, encode
from raftd.web.db import OFFER, WAITED
from raftd.web.parameters import wait_of
from raftd.web.watch import Offer, Stream


@pytest.fixture
def node():
    return StubNode()


@pytest.fixture
def client(node):
    return web.create_app(node, "1.2.3").test_client()


def watched(client, target, is_full=False, **headers):
    """(the answer, the Stream that a server would take over)."""
    offer = Offer(is_full)
    return client.get(target, headers=headers, environ_overrides={OFFER: offer}), offer.taken


def test_a_stream_begins_where_the_state_is_now(client, node):
    answer, stream = watched(client, "/watch")
    assert (answer.status_code, answer.content_type) == (200, "text/event-stream; charset=utf-8")
    assert "Content-Length" not in answer.headers and answer.headers["X-Raft-Node"] == "n1"
    assert answer.headers["Cache-Control"] == "no-cache" and answer.headers["X-Accel-Buffering"] == "no"
    assert (stream.position, stream.prefix, stream.keys_only) == (1040_000_000, "", False)
    [(_, query, level, _, _)] = node.calls
    assert (query.limit, level) == (0, "linearizable"), "what was answered before is not told"


@pytest.mark.parametrize(("target", "headers", "position", "prefix", "keys_only"), [
    ("/watch?since=7", {}, 7_000_000, "", False), ("/watch?since=0&prefix=a%2F&keys_only", {}, 0, "a/", True),
    ("/watch?since=7.999998", {}, 7_999_998, "", False), ("/watch?since=7", {"Last-Event-ID": "9"}, 9_000_000, "", False),
    ("/watch", {"Last-Event-ID": "9.000001"}, 9_000_001, "", False),
])
def test_where_a_stream_goes_on(client, node, target, headers, position, prefix, keys_only):
    answer, stream = watched(client, target, **headers)
    assert answer.status_code == 200 and node.calls == []
    assert (stream.position, stream.prefix, stream.keys_only) == (position, prefix, keys_only)


@pytest.mark.parametrize("target", ["/watch?since=", "/watch?since=x", "/watch?since=-1", "/watch?since=7.5", "/watch?since=7.9999999",
                                    "/watch?since=" + "9" * 19, "/watch?since=1.0000000", "/watch?since=٣", "/watch?level=stale",
                                    "/watch?prefix=%FF", "/watch?keys_only=x"])
def test_a_bad_stream_is_refused(client, node, target):
    assert_refused(client.get(target), node)


def test_a_bad_last_event_id_is_refused(client, node):
    assert_refused(client.get("/watch", headers={"Last-Event-ID": "x"}), node, says="Last-Event-ID")


def test_a_history_that_is_gone_is_410_with_the_oldest_index(client, node):
    node.history = HistoryGone(500)
    answer = client.get("/watch?since=7")
    assert_error(answer, "history_gone", 410, "no")
    assert answer.headers["X-Raft-Oldest-Index"] == "500" and "500" in answer.text


def test_where_as_many_watch_as_may_the_next_is_sent_away(client, node):
    answer, stream = watched(client, "/watch?since=7", is_full=True)
    assert_error(answer, "overloaded", 503, "safe")
    assert stream is None and answer.headers["Retry-After"] == "1"


def test_head_has_no_stream(client):
    offer = Offer(False)
    answer = client.head("/watch?since=7", environ_overrides={OFFER: offer})
    assert (answer.status_code, answer.data, offer.taken) == (200, b"", None)


def test_a_stream_that_nobody_takes_over_waits_in_its_thread(tmp_path):
    """So it is in a program that mounts the views in its own app."""
    with closing(KeyValueStore(tmp_path)) as store:
        def write(index):
            store.apply([(index, encode(Set(f"k{index}", b"v")))], index, 1, b"")
        write(1)
        stream = iter(Stream(SimpleNamespace(state_machine=store), 0, "", True, None))
        assert next(stream) == b": the changes after 0\nid: 0\n\n"
        assert next(stream) == b'id: 1\nevent: put\ndata: {"key": "k1", "index": 1, "previous_index": 0}\n\n'
        timer = threading.Timer(0.1, write, [2])
        timer.start()
        assert b'"k2"' in next(stream)
        timer.join()


def test_such_a_stream_says_that_it_is_still_there_and_that_the_history_is_gone():
    def read(query):
        if query.after:
            raise HistoryGone(500)
        return SimpleNamespace(changes=[])
    state = SimpleNamespace(read=read, wait_for_more=lambda position, seconds: False, position=SimpleNamespace(index=41))
    stream = Stream(SimpleNamespace(state_machine=state), 0, "", False, None)
    assert list(islice(iter(stream), 3)) == [b": the changes after 0\nid: 0\n\n", *[b": nothing new\nid: 0\n\n"] * 2]
    stream.position = 7
    assert [part.split(b"\n")[0] for part in stream] == [b": the changes after 0.000007", b"event: gone"]


# Reads that wait


def test_a_read_that_waits_is_a_read_when_the_key_has_changed(client, node):
    waits = []
    node.state_machine.wait_for_change = lambda *wait: waits.append(wait)
    assert client.get("/db/foo?wait=2s&index=41").data == b"bar"
    assert (waits, node.calls) == ([("foo", 41, 2.0)], [("read", Get("foo"), "linearizable", 0, 5.0)])
    client.get("/db/foo?wait=2s", environ_overrides={WAITED: True, OFFER: Offer(False)})
    assert client.get("/db/foo?wait=2s", environ_overrides={OFFER: Offer(False)}).status_code == 400, "no thread may wait here"
    client.get("/db/foo?wait=0s&index=41")
    client.get("/db/foo?index=41")
    assert len(waits) == 1 and len(node.calls) == 4


@pytest.mark.parametrize("query", ["wait=", "wait=5", "wait=601s", "wait=-1s", "wait=1s&index=x", "wait=1s&index=-1", "wait=1s&wait=1s"])
def test_a_bad_wait_is_refused(client, node, query):
    assert_refused(client.get(f"/db/foo?{query}"), node)


@pytest.mark.parametrize(("path", "query", "wanted"), [
    ("/db/a/b", "wait=30s&index=7", ("a/b", 7, 30.0)), ("/db/K\xc3\xb6ln", "level=stale&wait=500ms", ("Köln", 0, 0.5)),
    ("/db/a", "wait=0s", ("a", 0, 0.0)), ("/db/a", "await=1s", None), ("/db/", "wait=1s", None), ("/status", "wait=1s", None),
    ("/db/a", "wait=1s&wait=2s", None), ("/db/a", "wait=x", None), ("/db/a", "wait=1s&index=x", None), ("/db/\xff", "wait=1s", None),
    ("/db/a", "wait=1s&;", None), ("/db/a", "wait=%FF", None), ("/db/a", "wait=1s&level=stael", None), ("/db/a", "wait=1s&x=1", None),
    ("//db/a", "wait=1s", None), ("/db/a", "wait=1s&", None),
])
def test_what_a_read_waits_for_is_seen_before_a_view_is_asked(path, query, wanted):
    assert wait_of(path, query) == wanted


def test_waiting_in_a_thread_for_servers_that_cannot_do_without(tmp_path):
    with closing(KeyValueStore(tmp_path)) as store:
        store.apply([(1, encode(Set("a", b"1")))], 1, 1, b"")
        assert store.wait_for_change("a", 0, 0) and not store.wait_for_change("a", 1, 0.05)
        timer = threading.Timer(0.1, store.apply, [[(2, encode(Set("a", b"2")))], 2, 1, b""])
        timer.start()
        assert store.wait_for_change("a", 1, 20)
        timer.join()
        assert store.read(HasChanged("a", 1)) and store.read(Changes(0)).applied_index == 2
