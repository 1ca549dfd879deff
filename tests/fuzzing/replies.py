"""Lies of those who are asked: what answers a call to a peer, or the question who is at an address, may be anything."""

import json
from collections import Counter
from types import SimpleNamespace

from fuzzing import Finding, frames, number, rarely, spoiled
from fuzzing.conversations import CODINGS, LENGTHS
from raftd import transport, wire
from raftd.config import Settings
from raftd.errors import PeerUnreachable
from raftd.raft.configuration import Member
from raftd.raft.messages import (
    AppendEntries, AppendEntriesReply, InstallSnapshot, InstallSnapshotReply, ReadIndex, ReadIndexReply, RequestVote, RequestVoteReply,
    TimeoutNow,
    TimeoutNowReply,
)

MEMBER = Member("n2", "host:1")
REQUESTS = (RequestVote(3, "n1", 9, 2), AppendEntries(3, "n1", 0, 0), InstallSnapshot(3, "n1", 5, 2, 10, b"x" * 32, 0), ReadIndex(3, "n1"),
            TimeoutNow(3, "n1"))
STATUSES = ("HTTP/1.1 200 OK", "HTTP/1.1 101 Switching Protocols", "HTTP/1.1 101", "HTTP/1.1 403 Forbidden", "HTTP/1.1 " + "9" * 5000,
            "HTTP/1.1 \xb2", "HTTP/1.1", "", "garbage", "101 101", "HTTP/9 0101 x")
IDENTITIES = (b"[]", b"null", b"1", b"", b"[" * 8000, b'{"name":' * 1000, b'{"name":"n2"}', b'{"name":1,"id":[],"cluster":{}}', b"\xff",
              b"9" * 5000, b'{"name":"\\ud800","id":"\\u0000","cluster":"\\n"}',
              b'{"name":"n2","id":"' + b"x" * 7000 + b'","cluster":"c1"}', b"NaN")
MOST_TEXT = 1000  # of a reason, which goes to the log


class Scripted:
    """A socket on which *pieces* arrive, and then the end, or nothing any more."""

    def __init__(self, pieces, end):
        self._pieces, self._end = [piece for piece in pieces if piece], end

    def recv(self, count):
        if not self._pieces:
            if self._end:
                raise self._end
            return b""
        taken, rest = self._pieces[0][:count], self._pieces[0][count:]
        self._pieces[:1] = [rest] if rest else []
        return taken

    def __getattr__(self, name):  # sendall, settimeout, setsockopt, close
        return lambda *_: None


class Replies:
    """``with Replies() as replies: replies.attack(rng)``. Raises Finding; ``counts`` says what was exercised."""

    name, unit = "replies", "replies"
    exercised = ("replies", "taken for a reply", "unreachable", "identified")

    def __enter__(self):
        self.counts = Counter()
        self._before = transport._connected, transport.Lookup
        transport._connected = lambda addresses, deadline: self._socket
        transport.Lookup = lambda host, port: SimpleNamespace(asked=(host, port), done=True, result=lambda deadline: [])
        self._transport = transport.Transport(Settings(), lambda member: {"Raft-To": member.name})
        return self

    def __exit__(self, *_):
        transport._connected, transport.Lookup = self._before

    def attack(self, rng):
        end = rng.choice((None, TimeoutError("timed out"), OSError(5, "Input/output error")))
        pieces = self._pieces(rng)
        self._socket = Scripted(pieces, end)
        self.counts["replies"] += 1
        try:
            self._ask(rng)
        except PeerUnreachable as error:
            self.counts["unreachable"] += 1
            if not str(error).isprintable() or len(str(error)) > MOST_TEXT:
                raise Finding(f"not one line of a sane length: {error}\nheard: {pieces}") from error
        except Exception as error:
            raise Finding(f"{error!r}\nheard: {pieces}, then {end!r}") from error

    def _ask(self, rng):
        if rarely(rng, 0.3):
            identity = self._transport.identify("host:1")
            if set(map(type, identity.values())) != {str} or len(identity) != 3:
                raise Finding(f"identified as {identity}")
            self.counts["identified"] += 1
            return
        request = rng.choice(REQUESTS)
        reply = self._transport.connection("small").call(MEMBER, request, 0)
        if type(reply) is not wire.REPLIES[type(request)]:
            raise Finding(f"{reply} to {request}")
        self.counts["taken for a reply"] += 1

    def _pieces(self, rng):
        status = STATUSES[0 if rarely(rng, 0.2) else 1] if not rarely(rng, 0.2) else rng.choice(STATUSES)
        fields = [f"Content-Length: {rng.choice(LENGTHS)}", f"Transfer-Encoding: {rng.choice(CODINGS)}", "x",
                  "X: " + "y" * (number(rng) % 9000)]
        head = "\r\n".join([status, *rng.sample(fields, rng.choice((0, 0, 1, 2))), "", ""]).encode()
        head = spoiled(rng, head) if rarely(rng, 0.1) else head
        body = rng.choice(IDENTITIES) if rarely(rng, 0.3) else identity(rng)
        return [head, body] if rarely(rng, 0.3) else [head, *(reply(rng) for _ in range(rng.randint(0, 2)))]


def identity(rng):
    return json.dumps({"name": "n2", "id": rng.choice(("f00", "", "\n", 1)), "cluster": "c1"}).encode()


def reply(rng):
    """A frame, of any kind, right or wrong."""
    if rarely(rng, 0.2):
        return wire.encode_refusal(rng.choice(("no", "", "two\nlines", "x" * 5000, "\r\n\x1b[2J")))
    one = number(rng)
    message = rng.choice((RequestVoteReply(one, True), AppendEntriesReply(one, True, number(rng)), InstallSnapshotReply(1, one, False),
                          ReadIndexReply(1, one), TimeoutNowReply(one), TimeoutNow(1, "n2")))
    try:
        whole = wire.encode(message, 0)
    except wire.struct.error:
        return b""
    if rarely(rng, 0.2):
        return spoiled(rng, whole)
    if rarely(rng, 0.3):
        return frames.with_checksum(rng, whole[4], spoiled(rng, whole[wire.HEADER.size:]), 0)
    return whole
