"""Clients that lie, dawdle, vanish or never read: what they must not get, and what they must not take from others."""

import errno
import fcntl
import os
import resource
import select
import socket
import sys
import tempfile
import termios
import threading
import time
from array import array
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from statistics import median

import pytest
from waitress import parser, wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected

from cluster import UNHURRIED, Client, Cluster, Writers, holds_for, needs_root, the_fault_lasts, wait_until
from raftd import listener
from raftd.kv import Found, Set
from raftd.web import create_app
from test_clocks import no_election
from test_lane import NOT_PLAIN, PLAIN, LaneNode, NoPeers, Wire, asked, header, listening_for, request, status_of, stop

TCP_REPAIR = 19  # <linux/tcp.h>
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


@pytest.mark.parametrize("line", ["GET a://" + "1" * 60_000 + " x", "GET a://" + "b" * 60_000 + " HTTP/1.1 \0", "GET / HTTP/1.2", "GET /",
                                  ""], ids=range(5))
def test_what_is_no_request_line_is_not_looked_at_by_waitress(monkeypatch, line):
    seen = []

    def look(line):
        seen.append(line)
        raise parser.ParsingError("as waitress would")
    monkeypatch.setattr(parser, "crack_first_line", look)
    with pytest.raises(parser.ParsingError):
        listener.Parser(Adjustments()).parse_header(line.encode() + b"\r\nHost: x\r\n")
    assert not seen


NO_FIELDS = [b"X : y", b"X\0: y", b": y", b"X", b" X: y", b"X: \0", b"X: a\nY: b", b"X: a\rY: b", b"X:\x0bchunked"]


def test_waitress_sees_fields_as_it_reads_them_at_once_and_none_that_are_no_fields(monkeypatch):
    seen, usual = [], b"GET / HTTP/1.1\r\nHost: x"
    monkeypatch.setattr(parser.HTTPRequestParser, "parse_header", lambda self, head: seen.append(head))
    listener.Parser(Adjustments()).parse_header(usual + b"\r\nX:" + b" \t" * 30_000 + b"x\r\nY:z \r\nZ:")
    assert seen == [usual + b"\r\nX: x\r\nY: z\r\nZ: "]
    for line in NO_FIELDS:
        with pytest.raises(parser.ParsingError):
            listener.Parser(Adjustments()).parse_header(usual + b"\r\n" + line)
    assert len(seen) == 1


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


@pytest.mark.parametrize("line", [b"1" * 5000, b"1;" + b"x" * 5000, b"0\r\n" + b"x" * 5000], ids=["size", "extension", "trailer"])
def test_a_line_between_chunks_is_refused_before_it_has_an_end(line):
    reading = listener.Parser(Adjustments())
    reading.received(b"PUT /db/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert not reading.completed
    reading.received(line)
    assert reading.completed and reading.error.code == 400


def test_who_has_gone_before_its_refusal_is_no_fault_of_ours(node, port, monkeypatch, caplog):
    """waitress wanted to log the path of a request that had none, which was an exception of its own."""
    refusals = []

    def write(self, data):
        refusals.append(data)
        raise ClientDisconnected
    monkeypatch.setattr(listener.Refused, "write", write)
    with Wire(port) as wire:
        wire.send("GET /db/a HTTP/9\r\n\r\n")
        assert wire.answer()[0] == ""
    monkeypatch.undo()
    assert status_of(asked(port, "GET", "/livez")) == 200
    assert refusals and not [record for record in caplog.records if record.levelname == "ERROR"]


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
                  request("POST", "/db/b", b"x", NOT_PLAIN), request("POST", "/db/c", b"x", "Expect: 100-continue\r\n"))
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
def serving_for(node, impatient=False, **settings):
    """The Listener that answers for *node*, with these of its settings, and its port. *impatient*: waitress waits for nothing long."""
    node.settings = replace(node.settings, **settings)
    listening = listener.bind("127.0.0.1", 0)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)  # else the kernel keeps as much as it has seen others take
    serving = listener.Listener(listening, create_app(node, "1.2.3"), NoPeers(), node)
    if impatient:
        adjustments = serving._server.adj
        adjustments.channel_timeout, adjustments.cleanup_interval, adjustments.asyncore_loop_timeout = 0.3, 0.1, 0.1
    serving.start()
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
            assert status_of(asked(port, "GET", "/db/a", more=NOT_PLAIN)) == 200
            assert status_of(asked(port, "POST", "/db/a", b"x")) == 200


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
        channels = serving._server.active_channels
        wait_until(lambda: "connections ended" in caplog.text or sum(channel.held_bytes > 0 for channel in list(channels.values())) == 40,
                   "some are gone, or all wait")
        wait_until(lambda: len(channels) < 30, "some are gone")
        wait_until_still(lambda: len(channels))
        wait_until(lambda: held(serving) <= 9 * MIB, "little waits")
        assert status_of(asked(port, "GET", "/db/a")) == 200
        assert len(serving._server.active_channels) > 3, "too many are gone"
    assert sum("connections ended" in line for line in caplog.messages) == 1


def test_what_clients_do_not_complete_is_bounded(node, monkeypatch):
    monkeypatch.setattr(listener, "MAX_BACKLOG_BYTES", 5 * MIB)
    body = b"PUT /db/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 900_000
    with serving_for(node) as (serving, port):
        with deaf(port, 40, body) as sockets:
            wait_until(lambda: len(select.select(sockets, [], [], 0)[0]) > 10 or held(serving) > 20 * MIB, "some are gone")
            assert held(serving) <= 20 * MIB
            wait_until(lambda: held(serving) <= 17 * MIB, "little waits")
            assert status_of(asked(port, "PUT", "/db/b", b"x" * 1_000_000)) == 200
        wait_until(lambda: not serving._server.active_channels, "none is left")
    assert [call[1].key for call in node.calls] == ["b"]


def test_large_writes_that_wait_for_a_thread_are_bounded(node, monkeypatch):
    monkeypatch.setattr(listener, "MAX_QUEUED_BYTES", 2 * MIB)
    free = threading.Event()
    propose, node.propose = node.propose, lambda *call: free.wait(30) and propose(*call)
    with serving_for(node, client_threads=1) as (serving, port):
        waiting = serving._dispatcher._clients.queue
        wires = [Wire(port, 30) for _ in range(40)]
        for number, wire in enumerate(wires):
            wire.send(request("PUT", f"/db/k{number}", b"x" * 200_000))
        wait_until(lambda: select.select([wire.socket for wire in wires], [], [], 0)[0] or len(waiting) == 39, "some are refused")
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
    with serving_for(node, impatient=True) as (serving, port):
        came = []

        class Noted(listener.Channel):
            def add_channel(self, map=None):
                super().add_channel(map)
                came.append(self)
        serving._server.channel_class = Noted
        with deaf(port, 3, said):
            wait_until(lambda: len(came) == 3 and not any(channel.connected for channel in came), "they came, and are gone")
        node.holds = lambda command: True
        with Wire(port, 20) as waiting:  # for its commit, longer than that
            waiting.send(request("POST", "/db/a", b"x"))
            wait_until(lambda: node.held, "it waits")
            holds_for(0.6, lambda: len(serving._server.active_channels) == 1, "it is let wait")
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
    with serving_for(node, impatient=True) as (serving, port):
        serving._server.adj.channel_timeout = 60
        with Wire(port) as before:
            before.send(request("GET", "/livez"))
            assert status_of(before.answer()) == 200
            monkeypatch.setattr(wasyncore.dispatcher, "accept", accept_if_there_is_one)
            with Wire(port) as waiting:
                waiting.send(request("GET", "/livez"))
                wait_until(lambda: len(tries) >= 2, "it tries again")
                assert tries[1] - tries[0] > listener.ACCEPT_PAUSE_SECONDS / 2, "it tries too often"
                before.send(request("GET", "/livez"))
                assert status_of(before.answer()) == 200
                lack.clear()
                assert status_of(waiting.answer()) == 200
    assert sum("new connections have to wait" in line for line in caplog.messages) == 1


# A live cluster of three


MOST_SECONDS = 15.0  # that an honest request may take while others do what they can; undisturbed it takes some milliseconds
MOST_MEMORY_BYTES = 300 * MIB  # more than before, at any time
REQUESTS_TO_COMPARE = 30


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    with enough_descriptors(), Cluster(tmp_path_factory.mktemp("three"), flags=UNHURRIED) as cluster:
        for key, size in (("large", MIB), ("quarter", MIB // 4)):  # of the larger one, all threads at once would want both cores for long
            assert cluster.leader().put(key, b"x" * size).status == 200
        cluster.wait_converged()
        cluster.usual_seconds = median(seconds_of_honest_requests(cluster, cluster.leader()))
        yield cluster


@contextmanager
def enough_descriptors():
    """For thousands of connections of ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192) if hard != resource.RLIM_INFINITY else 8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def seconds_of_honest_requests(cluster, leader):
    """How long each takes: writes and reads, plain and not, on all servers, on connections of their own and on kept ones."""
    kept, seconds = {server: Client(server.address) for server in cluster.servers}, []
    for number in range(REQUESTS_TO_COMPARE):
        server = cluster.servers[number % 3]
        for ask in (partial(leader.put, f"honest{number}", b"x"), partial(server.get, "honest0"),
                    partial(kept[server].call, "GET", "/db/honest0", headers={"Connection": "te"}),
                    partial(kept[leader].call, "PUT", "/db/honest", b"y" * 100_000)):
            began = time.monotonic()
            answer = ask(timeout=30)
            assert answer.status == 200, answer
            seconds.append(time.monotonic() - began)
    for client in kept.values():
        client.close()
    return seconds


@contextmanager
def nothing_is_lost_by(cluster):
    """What happens in this block harms nobody: the leader stays, honest requests are answered, memory is bounded."""
    leader, terms, usual = cluster.leader(), cluster.terms(), cluster.usual_seconds
    before = {server: server.used() for server in cluster.servers}
    yield leader
    seconds = seconds_of_honest_requests(cluster, leader)
    grown = {server: server.used().memory - before[server].memory for server in cluster.servers}
    print(f"honest requests: {usual * 1000:.1f} ms undisturbed, {median(seconds) * 1000:.1f} ms now, {max(seconds) * 1000:.0f} ms at most; "
          f"memory +{max(grown.values()) >> 20} MB", file=sys.stderr)
    assert max(seconds) < MOST_SECONDS and median(seconds) < 20 * usual + 0.1, (usual, seconds)
    assert max(grown.values()) < MOST_MEMORY_BYTES, grown
    assert leader.leads and cluster.terms() == terms, "an election was held"


def all_is_as_before(cluster, before):
    """The connections and threads of those who came are gone."""
    def is_so():
        return all(server.used().sockets <= before[server].sockets + 4 and server.used().threads <= before[server].threads + 4
                   for server in cluster.servers)  # 4: a follower that asks its leader connects to it
    wait_until(is_so, "connections and threads are gone")


@contextmanager
def connections(server, count, said=b"", **options):
    """So many, on which that is said, and no more."""
    host, port = server.address.split(":")
    sockets = []
    try:
        for _ in range(count):
            one = socket.socket()
            for name, value in options.items():
                one.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
            one.settimeout(30)
            one.connect((host, int(port)))
            with suppress(OSError):  # it has closed the connection before all was said
                one.sendall(said)
            sockets.append(one)
        yield sockets
    finally:
        for one in sockets:
            one.close()


def head_of(length, path="/db/hostile"):
    return f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


CROWDS = {  # how many connections at the leader, a fifth of that at each of the others, and what they say
    "1,000 idle": (1000, b""),
    "500 whose heads do not end": (500, head_of(10)[:-2]),
    "300 whose bodies do not end": (300, head_of(MIB) + b"x" * 300_000),
    "300 whose bodies end too late": (300, head_of(3, "/db/short") + b"abcdef" * 1000),
    "300 chunks that do not end": (300, b"PUT /db/hostile HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n" + b"x" * 100_000),
    "100 that read nothing": (100, 20 * b"GET /db/large HTTP/1.1\r\nHost: x\r\n\r\n"),
    "100 that read nothing of Flask": (100, 20 * b"GET /db/quarter?level=stale HTTP/1.1\r\nHost: x\r\nConnection: te\r\n\r\n"),
    "300 lies about an upgrade": (300, b"GET /raft/ HTTP/1.1\r\nUpgrade: raftd/3\r\nRaft-From: n2\r\n\r\n"),
}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(("count", "said"), CROWDS.values(), ids=CROWDS)
def test_a_crowd_does_no_harm(three, count, said):
    before = {server: server.used() for server in three.servers}
    with ExitStack() as crowd, nothing_is_lost_by(three):
        for server in three.servers:
            crowd.enter_context(connections(server, count if server.leads else count // 5, said, SO_RCVBUF=4096))
    all_is_as_before(three, before)
    assert {server.get("hostile").body for server in three.servers} == {b""}, "half a body was taken for a whole one"


@pytest.mark.slow
@pytest.mark.cluster
def test_1500_connections_at_a_leader(three):
    """More than ``select`` could look at; each of them asks, is answered, and stays."""
    before = {server: server.used() for server in three.servers}
    with nothing_is_lost_by(three) as leader, connections(leader, 1500, b"GET /db/honest0 HTTP/1.1\r\nHost: x\r\n\r\n") as sockets:
        assert {one.recv(100)[:15] for one in sockets} == {b"HTTP/1.1 200 OK"}
    all_is_as_before(three, before)


@pytest.mark.slow
@pytest.mark.cluster
def test_300_that_say_a_byte_at_a_time(three):
    """Heads and bodies, a byte a second: each connection is never idle for long, and holds no thread."""
    before, stopping = {server: server.used() for server in three.servers}, threading.Event()
    with ExitStack() as crowd:
        sockets = [one for server in three.servers for one in crowd.enter_context(connections(server, 100))]
        said = [head_of(1000)[at:at + 1] if number % 2 else (head_of(1000) if at == 0 else b"x")
                for number in range(2) for at in range(60)]

        def trickle():
            for at in range(60):
                for number, one in enumerate(sockets):
                    one.sendall(said[number % 2 * 60 + at])
                if stopping.wait(1):
                    return
        thread = threading.Thread(target=trickle)
        thread.start()
        with nothing_is_lost_by(three):
            the_fault_lasts.wait(2)
        stopping.set()
        thread.join()
    all_is_as_before(three, before)
    assert three.leader().get("hostile").status == 404


@needs_root
@pytest.mark.slow
@pytest.mark.cluster
def test_300_that_have_vanished(three):
    """Without a word: the server cannot know, and has to go on for a while as if they were there."""
    before = {server: server.used() for server in three.servers}
    with nothing_is_lost_by(three) as leader:
        for said in (b"", head_of(1000) + b"x", 3 * b"GET /db/large HTTP/1.1\r\nHost: x\r\n\r\n"):
            with connections(leader, 100, said, SO_RCVBUF=4096) as sockets:
                for one in sockets:
                    one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)  # closed now, it says no word to the other side
        assert leader.used().sockets >= before[leader].sockets + 100, "they are still there for it"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", f"Content-Length: {200 * MIB}"])
def test_200_mb_from_each_of_ten(three, framing):
    """Refused as soon as it is too much; what comes all the same is not kept."""
    before, chunk = {server: server.used() for server in three.servers}, b"100000\r\n" + b"x" * MIB + b"\r\n"
    head = f"PUT /db/hostile HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode()

    def pour(one):
        with suppress(OSError):
            for _ in range(200):
                one.sendall(chunk)
    with nothing_is_lost_by(three) as leader, connections(leader, 10, head) as sockets:
        threads = [threading.Thread(target=pour, args=(one,)) for one in sockets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "it takes all of it"
    all_is_as_before(three, before)
    assert three.leader().get("hostile").status == 404


@pytest.mark.slow
@pytest.mark.cluster
def test_no_descriptors_left_on_a_leader_of_three(tmp_path):
    """Peers are connected, and go on; clients wait; and when there are some again all is as it was, the log too."""
    with Cluster(tmp_path) as cluster:
        leader, terms = cluster.leader(), cluster.terms()
        with Writers([leader, *cluster.followers(leader)], 2) as writers:
            pid = leader.process.pid
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (40, hard))
            with connections(leader, 50) as sockets:
                writers.wait_for_more(100)
                the_fault_lasts.wait(2)
                for one in sockets:
                    one.close()
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            wait_until(lambda: leader.get("missing").status == 404, "new connections are served again")
            writers.wait_for_more(100)
        assert no_election(cluster, leader, terms, writers)
        leader.kill()
        leader.start()
        data = cluster.data_of_each()
        assert all(not writers.missing_in(data[server.name]) for server in cluster.servers)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_log_that_nobody_reads_stops_no_leader(tmp_path):
    """stderr is a pipe that is full (etcd #22214): lines are dropped, heartbeats are not."""
    fifo = tmp_path / "stderr"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with Cluster(tmp_path, start=False) as cluster:
        leader = cluster.new().start(flags=["-trace"], prefix=["sh", "-c", 'exec "$@" 2>"$0"', str(fifo)], wait=False)
        wait_until(lambda: leader.ready, "it leads")
        for _ in range(2):
            cluster.new().start(join=leader)
        cluster.wait_voters(3)
        terms = cluster.terms()
        with Writers([leader, *cluster.followers(leader)], 4) as writers:
            wait_until(lambda: waiting_in(reader) >= 60_000, "nothing more fits in")
            writers.wait_for_more(300)
            holds_for(2, lambda: no_election(cluster, leader, terms, writers), "it leads")
            writers.wait_for_more(300)
        assert no_election(cluster, leader, terms, writers) and writers.longest_wait < MOST_SECONDS
        assert leader.terminate(10) == 0, "it does not end"
        os.close(reader)


def waiting_in(descriptor):
    """Bytes that wait in a pipe."""
    waiting = array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
    return waiting[0]
