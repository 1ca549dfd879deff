"""Clients that lie, dawdle, vanish or never read: what they must not get, and what they must not take from others."""

import time

import pytest

from raftd import listener
from raftd.kv import Set
from test_lane import NOT_PLAIN, PLAIN, LaneNode, Wire, asked, header, listening_for, request, status_of

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
