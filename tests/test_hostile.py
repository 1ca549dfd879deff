"""Clients that lie, dawdle, vanish or never read: what they must not get, and what they must not take from others."""

import errno
import select
import socket
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from waitress import wasyncore

from cluster import holds_for, the_fault_lasts, wait_until
from raftd import listener
from raftd.kv import Found, Set
from raftd.web import create_app
from test_lane import NOT_PLAIN, PLAIN, LaneNode, NoPeers, Wire, asked, header, listening_for, request, status_of, stop

MOST_CPU_SECONDS = 2.0  # for a head; a hundredth of it is what one takes


@pytest.fixture
def node():
    return LaneNode()


@pytest.fixture
def port(node):
    with listening_for(node) as port:
        yield port


# A head


HEADS = {
    "blanks": b"GET / HTTP/1.1\r\nX:" + b" " * 60_000 + b"x\r\n\r\n",
    "blanks and what no field has": b"GET / HTTP/1.1\r\nX:" + b" \t" * 30_000 + b"\0\r\n\r\n",
    "words and what no field has": b"GET / HTTP/1.1\r\nX: " + b"a " * 30_000 + b"\0\r\n\r\n",
    "folded blanks": b"GET / HTTP/1.1\r\nX:\r\n" + b" " * 60_000 + b"x\r\n\r\n",
    "a host of digits": b"GET a://" + b"1" * 60_000 + b" x\r\n\r\n",
    "a host": b"GET a://" + b"b" * 60_000 + b" HTTP/1.1 \0\r\n\r\n",
    "a path": b"GET /db/" + b"%41" * 20_000 + b" HTTP/1.1\r\n\r\n",
    "the same field": b"GET / HTTP/1.1\r\n" + b"A:\r\n" * 15_000 + b"\r\n",
    "other fields": b"GET / HTTP/1.1\r\n" + b"".join(b"%d:\r\n" % number for number in range(7000)) + b"\r\n",
    "entity tags": b"PUT /db/a HTTP/1.1\r\nIf-Match: " + b'"1",' * 15_000 + b"x\r\n\r\n",
    "commas": b"PUT /db/a HTTP/1.1\r\nIf-Match: " + b"," * 60_000 + b"x\r\n\r\n",
    "kinds of answers": b"GET /db/a?x HTTP/1.1\r\nAccept: " + b"a/b;q=" * 10_000 + b"x\r\n\r\n",
    "parameters": b"GET /db/a?" + b"a=b&" * 15_000 + b" HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_head_costs_no_more_than_it_is_long(node, port, head):
    """An expression that looks at every blank from every blank held the interpreter for minutes, and with it all of Raft."""
    began = time.process_time()
    with Wire(port, 100) as wire:
        wire.send(head)
        assert status_of(wire.answer()) in (200, 400, 404, 413)
    assert time.process_time() - began < MOST_CPU_SECONDS
    assert node.calls == []


def test_a_head_has_a_limit_and_so_has_a_line_between_chunks(node, port):
    head = b"GET / HTTP/1.1\r\nX: ".ljust(listener.MAX_HEAD_BYTES, b"x")
    chunked = b"PUT /db/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    for endless, status in ((head, 413), (chunked + b"1" * 5000, 400), (chunked + b"1;" + b"x" * 5000, 400),
                            (chunked + b"0\r\n" + b"x" * 5000, 400)):
        with Wire(port) as wire:
            wire.send(endless)
            answer = wire.answer()
            assert status_of(answer) == status and wire.answer()[0] == "", "it goes on"
    assert node.calls == []


# How long a request is


SMUGGLED = "POST /db/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
UNCLEAR = {
    "two lengths": "Content-Length: 5\r\nContent-Length: 6\r\n", "a length twice": "Content-Length: 5\r\nContent-Length: 5\r\n",
    "lengths in a list": "Content-Length: 5, 6\r\n", "a sign": "Content-Length: +5\r\n", "no number": "Content-Length: 5x\r\n",
    "no decimal number": "Content-Length: 0x5\r\n", "no number at all": "Content-Length:\r\n",
    "less than nothing": "Content-Length: -5\r\n",
    "length and chunked": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "chunked and length": "Transfer-Encoding: chunked\r\nContent-Length: 100\r\n",
    "chunked twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "chunked in a list": "Transfer-Encoding: chunked, chunked\r\n",
    "no coding": "Transfer-Encoding:\r\n", "no coding in a list": "Transfer-Encoding: ,\r\n",
    "another coding": "Transfer-Encoding: identity\r\n",
    "nearly chunked": "Transfer-Encoding: xchunked\r\n", "chunked in quotes": 'Transfer-Encoding: "chunked"\r\n',
    "a blank before the colon": "Transfer-Encoding : chunked\r\n", "a tab that is none": "Transfer-Encoding:\x0bchunked\r\n",
    "folded": "X: y\r\n Transfer-Encoding: chunked\r\n", "folded length": "Content-Length:\r\n 5\r\n",
    "a line that ends early": "X: y\nTransfer-Encoding: chunked\r\n", "another that ends early": "X: y\rContent-Length: 5\r\n",
    "HTTP/1.0": ("Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n", "HTTP/1.0"),
    "HTTP/1.2": ("Transfer-Encoding: chunked\r\n", "HTTP/1.2"), "HTTP/2.0": ("Transfer-Encoding: chunked\r\n", "HTTP/2.0"),
}


@pytest.mark.parametrize("framing", UNCLEAR.values(), ids=UNCLEAR)
def test_a_request_whose_length_is_not_clear_ends_its_connection(node, port, framing):
    """Another server on the way may have read it otherwise: what one takes for a body must not be a request to the other."""
    fields, version = framing if isinstance(framing, tuple) else (framing, "HTTP/1.1")
    with Wire(port) as wire:
        wire.send(f"POST /db/a?x {version}\r\nHost: x\r\n{fields}\r\n", "0\r\n\r\n", SMUGGLED)
        answer = wire.answer()
        assert (status_of(answer), header(answer, "X-Raft-Error"), header(answer, "Connection")) == (400, "bad_request", "close")
        assert wire.answer()[0] == ""
    assert node.calls == []


BROKEN_CHUNKS = ["zz\r\nabc\r\n", "-1\r\n\r\n", "0x1\r\na\r\n", "1\r\nab\r\n0\r\n\r\n", "1;\r\na\r\n0\r\n\r\n", "1;a=\"\r\na\r\n0\r\n\r\n",
                 "+1\r\na\r\n",
                 " 1\r\na\r\n", "1 \r\na\r\n"]


@pytest.mark.parametrize("chunks", BROKEN_CHUNKS)
def test_a_broken_chunk_ends_its_connection(node, port, chunks):
    with Wire(port) as wire:
        wire.send("PUT /db/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", chunks, SMUGGLED)
        answer = wire.answer()
        assert (status_of(answer), header(answer, "Connection")) == (400, "close")
        assert wire.answer()[0] == ""
    assert node.calls == []


def test_what_is_like_a_request_in_a_body_is_a_body(node, port):
    for more in (PLAIN, NOT_PLAIN):
        assert status_of(asked(port, "PUT", "/db/a", SMUGGLED.encode(), more)) == 200
    assert [call[1] for call in node.calls] == 2 * [Set("a", SMUGGLED.encode())]


# Expectations


@pytest.mark.parametrize("path", ["/db/a", "/db/a?level=stale", "/livez"])
def test_who_expects_to_go_on_and_has_nothing_more_to_say_is_answered(port, path):
    """waitress said "100 Continue", and waited for a body that does not come; the next request got the fields of this one."""
    with Wire(port) as wire:
        for _ in range(2):
            wire.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n")
            assert status_of(wire.answer()) == 200


@pytest.mark.parametrize(("length", "status"), [("x", 400), ("-1", 400), ("30000000", 413)])
def test_who_expects_to_go_on_with_what_cannot_be_is_refused_at_once(node, port, length, status):
    """Before the body: that is what the expectation is for."""
    with Wire(port) as wire:
        wire.send(f"PUT /db/a HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n")
        assert status_of(wire.answer()) == status
    assert node.calls == []


def test_the_refusal_of_a_head_request_has_no_body(port):
    with Wire(port) as wire:
        wire.send("HEAD /db/a HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n")
        answer = wire.answer("HEAD")
        assert status_of(answer) == 400 and int(header(answer, "Content-Length")) > 0
        assert wire.line() == "", "there is more"


# Upgrades


def test_nothing_is_done_behind_an_upgrade(node, port):
    """The connection belongs to peers then, however that ends."""
    with Wire(port) as wire:
        wire.send("GET /raft/ HTTP/1.1\r\nUpgrade: x\r\n\r\n", request("POST", "/db/a", b"x"),
                  request("POST", "/db/b", b"x", NOT_PLAIN))
        assert wire.answer()[0] == ""
    assert status_of(asked(port, "GET", "/livez")) == 200
    assert node.calls == []


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_an_upgrade_elsewhere_is_no_upgrade(port, method):
    answer = asked(port, method, "/db/a", b"x" if method == "POST" else None, "Connection: Upgrade\r\nUpgrade: h2c\r\n")
    assert status_of(answer) == 200


# Who does not read, does not go on, or does not come


MIB = 1 << 20


@contextmanager
def serving_for(node, **settings):
    """The Listener that answers for *node*, with these of its settings, and its port."""
    node.settings = replace(node.settings, **settings)
    listening = listener.bind("127.0.0.1", 0)
    serving = listener.Listener(listening, create_app(node, "1.2.3"), NoPeers(), node).start()
    try:
        yield serving, listening.getsockname()[1]
    finally:
        stop(serving)


@contextmanager
def deaf(port, count, *said):
    """So many connections that say that, and read nothing."""
    sockets = []
    try:
        for _ in range(count):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", port))
            one.sendall(b"".join(said))
            sockets.append(one)
        yield sockets
    finally:
        for one in sockets:
            one.close()


def wait_until_still(count):
    """Until *count* has not changed for half a second."""
    before = None
    while before != (now := count()):
        before = now
        the_fault_lasts.wait(0.5)


def held(serving):
    """What waits for clients in memory, in bytes."""
    return sum(channel.held_bytes for channel in list(serving._server.active_channels.values()))


@pytest.mark.parametrize("more", [PLAIN, NOT_PLAIN], ids=["the lane", "Flask"])
def test_who_asks_for_much_and_does_not_read_holds_no_thread(node, more):
    """waitress made a thread wait until it had room for the next answer: as many such clients as threads, and nobody else had one."""
    node.found = Found(b"x" * MIB, 41, 1040)
    with serving_for(node, client_threads=4) as (_, port), deaf(port, 8, *40 * [request("GET", "/db/a", more=more)]):
        wait_until(lambda: node.calls, "they are being answered")
        wait_until_still(lambda: len(node.calls))
        for _ in range(8):
            assert status_of(asked(port, "GET", "/db/a", more=NOT_PLAIN, seconds=10)) == 200
            assert status_of(asked(port, "POST", "/db/a", b"x", seconds=10)) == 200


@pytest.mark.parametrize("more", [PLAIN, NOT_PLAIN], ids=["the lane", "Flask"])
def test_who_reads_late_gets_all_answers(node, port, more):
    node.found = Found(b"x" * MIB, 41, 1040)
    with Wire(port, 20) as wire:
        wire.send(*(30 * [request("GET", "/db/a", more=more)]))
        wait_until(lambda: node.calls, "it is being answered")
        holds_for(0.3, lambda: len(node.calls) < 30, "it waits for its client")
        assert [len(wire.answer()[2]) for _ in range(30)] == 30 * [MIB]


def test_what_clients_do_not_read_is_bounded(node, monkeypatch, caplog):
    """Those go on which nothing has moved for longest, and one line says so."""
    monkeypatch.setattr(listener, "MAX_BACKLOG_BYTES", 5 * MIB)
    node.found = Found(b"x" * MIB, 41, 1040)
    with serving_for(node, max_value_bytes=1000) as (serving, port), deaf(port, 40, *10 * [request("GET", "/db/a")]):
        wait_until(lambda: len(serving._server.active_channels) < 30, "some are gone")
        wait_until(lambda: held(serving) <= 9 * MIB, "little waits")
        assert status_of(asked(port, "GET", "/db/a")) == 200
        assert len(serving._server.active_channels) > 3, "too many are gone"
    assert sum("connections ended" in line for line in caplog.messages) == 1


def test_what_clients_do_not_complete_is_bounded(node, monkeypatch):
    monkeypatch.setattr(listener, "MAX_BACKLOG_BYTES", 5 * MIB)
    body = b"PUT /db/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 900_000
    with serving_for(node) as (serving, port):
        with deaf(port, 40, body):
            wait_until(lambda: len(serving._server.active_channels) < 30, "some are gone")
            wait_until(lambda: held(serving) <= 17 * MIB, "little waits")
            assert status_of(asked(port, "PUT", "/db/b", b"x" * 1_000_000)) == 200
        wait_until(lambda: not serving._server.active_channels, "none is left")
    assert [call[1].key for call in node.calls] == ["b"]


def test_large_writes_that_wait_for_a_thread_are_bounded(node, monkeypatch):
    monkeypatch.setattr(listener, "MAX_QUEUED_BYTES", 2 * MIB)
    free = threading.Event()
    propose, node.propose = node.propose, lambda *call: free.wait(30) and propose(*call)
    with serving_for(node, client_threads=1) as (_, port):
        wires = [Wire(port, 30) for _ in range(40)]
        for number, wire in enumerate(wires):
            wire.send(request("PUT", f"/db/k{number}", b"x" * 200_000))
        wait_until(lambda: select.select([wire.socket for wire in wires], [], [], 0)[0], "some are refused")
        free.set()
        answers = [wire.answer() for wire in wires]
        for wire in wires:
            wire.__exit__()
    refused = [answer for answer in answers if status_of(answer) == 503]
    assert refused and all((header(answer, "X-Raft-Error"), header(answer, "Retry-After")) == ("overloaded", "1") for answer in refused)
    assert len(node.calls) == 40 - len(refused) >= 10


def test_nothing_is_written_to_a_file_of_the_system(node, port, monkeypatch):
    """waitress keeps what is large in temporary files, which are not in the data path, and take a descriptor each."""
    def fail(*_, **__):
        raise AssertionError("a temporary file")
    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    node.found = Found(b"x" * MIB, 41, 1040)
    assert status_of(asked(port, "PUT", "/db/a", b"x" * MIB)) == 200
    for more in (PLAIN, NOT_PLAIN):
        assert len(asked(port, "GET", "/db/a", more=more)[2]) == MIB


def test_a_connection_that_is_kept_keeps_no_answer(node):
    node.found = Found(b"x" * MIB, 41, 1040)
    with serving_for(node) as (serving, port):
        wires = [Wire(port) for _ in range(10)]
        for number, wire in enumerate(wires):
            wire.send(request("GET", "/db/a", more=(PLAIN, NOT_PLAIN)[number % 2]))
            assert len(wire.answer()[2]) == MIB
        channels = list(serving._server.active_channels.values())
        wait_until(lambda: all(channel.outbufs[0].buf is None for channel in channels), "the buffers are gone")
        assert len(channels) == 10
        for wire in wires:
            wire.send(request("GET", "/db/a"))
            assert len(wire.answer()[2]) == MIB
            wire.__exit__()


SILENT = {"says nothing": b"", "says half": b"GET /db/a HTTP/1.1\r\nHost:", "reads nothing of the lane": 10 * request("GET", "/db/a"),
          "reads nothing of Flask": 10 * request("GET", "/db/a", more=NOT_PLAIN)}


@pytest.mark.parametrize("said", SILENT.values(), ids=SILENT)
def test_a_connection_on_which_nothing_moves_is_ended(node, said):
    """Also one that does not read: for the end of its answers waitress would wait for ever."""
    node.found = Found(b"x" * MIB, 41, 1040)
    with serving_for(node) as (serving, port):
        serving._server.adj.channel_timeout, serving._server.adj.cleanup_interval = 1, 1
        serving._server.next_channel_cleanup = 0
        with deaf(port, 3, said):
            wait_until(lambda: len(serving._server.active_channels) == 3, "they are there")
            wait_until(lambda: not serving._server.active_channels, "they are gone")
        node.holds = lambda command: True
        with Wire(port, 20) as waiting:  # for its commit, longer than that
            waiting.send(request("POST", "/db/a", b"x"))
            wait_until(lambda: node.held, "it waits")
            holds_for(3, lambda: len(serving._server.active_channels) == 1, "it is let wait")
            node.release(*node.held[0])
            assert status_of(waiting.answer()) == 200


def test_without_a_descriptor_connections_wait_and_the_log_is_not_flooded(node, monkeypatch, caplog):
    """waitress tried again at once, with a line of the log each time, at the cost of a whole processor."""
    accept, tries, lack = wasyncore.dispatcher.accept, [], [True]

    def accept_if_there_is_one(self):
        tries.append(time.monotonic())
        if lack:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)
    with serving_for(node) as (_, port):
        with Wire(port) as before:
            before.send(request("GET", "/livez"))
            assert status_of(before.answer()) == 200
            monkeypatch.setattr(wasyncore.dispatcher, "accept", accept_if_there_is_one)
            with Wire(port) as waiting:
                waiting.send(request("GET", "/livez"))
                began = time.monotonic()
                wait_until(lambda: len(tries) >= 2, "it tries again")
                assert (time.monotonic() - began) / len(tries) > listener.ACCEPT_PAUSE_SECONDS / 2, "it tries too often"
                before.send(request("GET", "/livez"))
                assert status_of(before.answer()) == 200
                lack.clear()
                assert status_of(waiting.answer()) == 200
    assert sum("new connections have to wait" in line for line in caplog.messages) == 1
