"""Frames of peers: garbage, and well-formed lies, on the connection of a member to a real node with its files, and what must hold then.

The node has no threads and its clock is ours: what its threads would do is done in turn, so that a run depends on nothing but its input.
"""

import logging
import random
import shutil
import socket
import tempfile
from collections import Counter
from types import SimpleNamespace

from fuzzing import Finding, number, rarely, scratch, some, spoiled
from raftd import node as node_module
from raftd import wire
from raftd.config import Settings
from raftd.errors import Refusal
from raftd.kv import Delete, KeyValueStore, Set, UnknownCommand, encode
from raftd.node import Node
from raftd.raft.configuration import Configuration, Member
from raftd.raft.core import Unsaved
from raftd.raft.messages import (
    COMMAND, CONFIGURATION, NOOP, AppendEntries, AppendEntriesReply, Entry, HardState, InstallSnapshot, ReadIndex, RequestVote,
    RequestVoteReply, TimeoutNow,
)
from raftd.storage import Identity, Storage
from raftd.transport import PeerServer

SETTINGS = Settings(rpc_timeout_seconds=0.002)  # nobody is there who would answer later
MEMBERS = Configuration({name: Member(name, f"127.0.0.1:{port}", True, f"id-{name}") for port, name in enumerate(("n1", "n2", "n3"), 1)})
SENDERS = ("n2", "n3", "n2", "n3", "n2", "n3", "n2", "n3", "stranger", "n1")
FRAMES_AT_ONCE = 20
CONFIGURATIONS = (MEMBERS.encode(), MEMBERS.without("n3").encode(), MEMBERS.with_member(Member("n4", "127.0.0.1:4", False, "x")).encode(),
                  b"[]")
LYING_CONFIGURATIONS = (b"", b"null", b"[1]", b'["ab"]', b'[["n1"]]', b'[[1,"a",true,""]]', b'[["n1","a",1,""]]', b'[["n1",null,true,""]]',
                        b"[" * 5000, b'[["n1","\\ud800",true,""]]', b'[["n1","a\\n",true,""]]', b'[["n1","a",true,""],["n1","b",true,""]]',
                        b'[["","a",true,""]]', b'[[["n1"],"a",true,""]]', b'{"n1":["n1","a",true,""]}', b"[[" + b"9" * 5000 + b"]]",
                        b'[["n1","' + b"a" * 1000 + b'",true,""]]')
UNKNOWN_COMMANDS = (b"", b"\0", b"\1", b"\2\1\0\0\1a", b"\1\3\0\0\1a", b"\1\1\0\xff\xffa", b"\1\1\xff\0\1a", b"\1\1\0\0\1\xff")


class OlderCopy(Exception):
    """The node believes that its files are older than what it has said: it ends."""


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class StillNode(Node):
    """A Node without threads. ``settle`` does what they would do; ``waited``: the last request was obeyed
    so far, and only its answer failed."""

    waited = False

    def _wait_for_reply(self, answer, future):
        self.waited = True
        self.settle()
        return super()._wait_for_reply(answer, future)

    def _store_chunk(self, answer):
        self.waited = True
        super()._store_chunk(answer)

    def settle(self):
        """Write, then install or apply, until nothing is left to do. Raises UnknownCommand."""
        raft = self._raft
        while raft.has_unsaved or raft.has_committed or self._install:
            if raft.has_unsaved:
                unsaved = raft.take_unsaved()
                self._storage.save(unsaved)
                raft.saved(unsaved)
            elif self._install:
                self._install_snapshot(*self._install)
            else:
                entries = raft.take_committed(1 << 20)
                self._applied(entries, self._apply(entries, raft.configurations.at(entries[-1].index)[1].encode()))
            with self._lock:
                self._settle_locked()


class Attacked:
    """n1 of three, on files in *directory*, with a log and a role that *rng* has chosen."""

    def __init__(self, directory, rng, clock):
        self.directory, self.clock = directory, clock
        self.storage = Storage.create(directory, Identity("n1", "id-n1", "c1"), MEMBERS)
        self.state = KeyValueStore(directory)
        self._fill(rng)
        self.node = self._new_node()
        self.raft = self.node._raft
        self._take_role(rng)
        self.node.settle()
        self.committed, self.led = {}, False

    def _new_node(self):
        connection = SimpleNamespace(call=None, interrupt=lambda: None, close=lambda: None)
        transport = SimpleNamespace(connection=lambda lane: connection, identify=None)
        return StillNode("n1", "127.0.0.1:1", self.storage, transport, self.state, SETTINGS, random=random.Random(1))

    def _fill(self, rng):
        """A log of a few entries, as an honest leader would have left it, of which some are applied."""
        entries, term = [], 0
        for index in range(1, rng.randint(0, 12) + 1):
            term += rng.choice((0, 0, 1)) or not term
            entries.append(Entry(index, term, *rng.choice(((NOOP, b""), (COMMAND, encode(Set("k", b"%d" % index)))))))
        vote = rng.choice((None, "n1", "n2"))
        self.storage.save(Unsaved(HardState(term + rng.choice((0, 1)), vote), None, 1, tuple(entries)))
        applied = rng.randint(0, len(entries))
        if applied:
            last = entries[applied - 1]
            self.state.apply([(entry.index, entry.command) for entry in entries[:applied] if entry.kind == COMMAND], last.index, last.term,
                             MEMBERS.encode())

    def _take_role(self, rng):
        kind = rng.choice(("follower", "follower of n2", "candidate", "leader", "leader"))
        if kind == "follower of n2":
            self.raft.handle(AppendEntries(max(1, self.raft.term), "n2", self.raft.log.last_index, self.raft.log.last_term))
        elif kind != "follower":
            self.stand_for_election()
            if kind == "leader":
                self.win()

    def stand_for_election(self):
        """Become a candidate of the next term, as nobody is heard and n2 would vote for it."""
        self.clock.now += 10
        self.raft.tick(self.clock.now)
        self.raft.handle_reply("n2", RequestVote(self.raft.term + 1, "n1", 0, 0, True), RequestVoteReply(self.raft.term, True))
        self.node.settle()

    def win(self):
        """Lead, with a first entry that n2 has too."""
        raft = self.raft
        raft.handle_reply("n2", RequestVote(raft.term, "n1", 0, 0), RequestVoteReply(raft.term, True))
        self.node.settle()
        self.hear_n2()

    def hear_n2(self):
        raft = self.raft
        raft.handle_reply("n2", AppendEntries(raft.term, "n1", 0, 0), AppendEntriesReply(raft.term, True, raft.log.last_index))
        self.node.settle()

    def close(self):
        self.state.close()
        self.storage.close()

    # What must hold

    def view(self):
        """What a request that is refused must leave as it was."""
        raft = self.raft
        log = raft.log.entries(raft.log.first_index, raft.log.last_index)
        return raft.term, raft.voted_for, raft.commit_index, raft.log.snapshot_index, log, raft.configuration, self.state.position

    def check(self, before):
        """After a request, whatever became of it."""
        raft, (term, vote, commit, *_) = self.raft, before
        _require(raft.term >= term, "the term has fallen")
        _require(raft.term > term or vote in (None, raft.voted_for), f"the vote of term {term} has changed from {vote} to {raft.voted_for}")
        _require(raft.term <= term + node_module.MAX_TERM_STEP + 1, f"the term went from {term} to {raft.term} at once")
        _require(commit <= raft.commit_index <= raft.log.last_index, "the commit index has fallen, or points at nothing")
        _require(raft.last_applied <= raft.commit_index, "more is applied than committed")
        self._check_log()

    def _check_log(self):
        log, last_term = self.raft.log, self.raft.log.snapshot_term
        for entry in log.entries(log.first_index, log.last_index):
            _require(last_term <= entry.term <= self.raft.term, f"the terms of the log are out of order at {entry}")
            last_term = entry.term
            known = self.committed.get(entry.index, entry)
            _require(known == entry, f"a committed entry was {known} and is {entry}")
            if entry.index <= self.raft.commit_index:
                self.committed[entry.index] = entry

    def check_at_the_end(self):
        """What is on the disk is what the node believes; and the node can still lead, and be understood."""
        raft = self.raft
        self.node.settle()
        saved = self.storage.load()
        _require(saved.hard_state == (raft.term, raft.voted_for), f"on the disk: {saved.hard_state}, here: {(raft.term, raft.voted_for)}")
        _require(tuple(saved.entries) == raft.log.entries(raft.log.first_index, raft.log.last_index), "the log on the disk is another")
        again = self._new_node()._raft
        _require((again.term, again.log.last_index) == (raft.term, raft.log.last_index), "a restart makes another node")
        if raft.configuration.members == MEMBERS.members:
            self._check_it_can_lead()

    def _check_it_can_lead(self):
        raft = self.raft
        if not raft.is_leader:
            self.clock.now += 10
            self.stand_for_election()
            self.win()
        _require(raft.is_leader, f"it can lead no more: {raft.role}, term {raft.term}")
        self.led = True
        entry = raft.propose(encode(Set("k", b"v")))
        for _ in range(5):
            self.clock.now += 1
            request = raft.data_for("n2") or raft.request_for("n2")
            if request is not None:
                frame = wire.encode(request, 0)
                wire.decode(frame[:wire.HEADER.size], frame[wire.HEADER.size:])
        self.hear_n2()
        _require(raft.last_applied >= entry.index, "what is proposed now is not applied")


def _require(truth, complaint):
    if not truth:
        raise Finding(complaint)


# What is sent


def frame(rng, raft, sender):
    """Bytes: mostly one frame that *raft*, a core, may find worth a thought."""
    configuration_index = rng.choice((0, 0, raft.configurations.latest_index, 1 << 40, (1 << 64) - 1))
    chance = 1 - rng.random()  # what comes first is the usual, as everywhere
    if chance < 0.04:
        return rng.randbytes(rng.randint(1, 60))
    if chance < 0.08:
        return with_checksum(rng, rng.choice((0, 1, 2, 3, 6, 8, 10, 11, 99, 254, 255)), rng.randbytes(rng.randint(0, 60)),
                             configuration_index)
    try:
        whole = wire.encode(request(rng, raft, sender), configuration_index)
    except (OverflowError, wire.struct.error):  # a number that no frame has
        return b""
    if chance < 0.12:
        return spoiled(rng, whole)
    if chance < 0.25:
        _, kind, index, _ = wire.HEADER.unpack(whole[:wire.HEADER.size])
        return with_checksum(rng, kind, spoiled(rng, whole[wire.HEADER.size:], (b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7)), index)
    return whole


def with_checksum(rng, kind, payload, configuration_index):
    """A frame of anything, with a checksum that is right; its length nearly always too."""
    whole = wire._frame(kind, configuration_index, payload)
    if rarely(rng, 0.05):
        return wire.struct.pack(">I", rng.choice((0, len(payload) + 1, wire.MAX_PAYLOAD, wire.MAX_PAYLOAD + 1, (1 << 32) - 1))) + whole[4:]
    return whole


def request(rng, raft, sender):
    """A request with numbers near those of *raft*, or far away."""
    term = near(rng, raft.term)
    if rarely(rng, 0.05):
        sender = rng.choice(("n2", "n3", "n1", "stranger", "", "é" * 10, "n2\n"))
    match rng.randrange(12):
        case 0 | 1 | 2 | 3 | 4:
            return append_entries(rng, raft, term, sender)
        case 5 | 6 | 7:
            return RequestVote(term, sender, near(rng, raft.log.last_index), near(rng, raft.log.last_term), rarely(rng, 0.3),
                               rarely(rng, 0.5))
        case 8:
            return ReadIndex(term, sender)
        case 9:
            return TimeoutNow(term, sender)
        case 10:
            return rng.choice((RequestVoteReply(term, True), AppendEntriesReply(term, True, number(rng))))
    data = rng.randbytes(rng.choice((0, 1, 100)))
    return InstallSnapshot(term, sender, near(rng, raft.commit_index), near(rng, raft.term), rng.choice((0, len(data), number(rng))),
                           rng.randbytes(rng.choice((32, 32, 0, 100))), rng.choice((0, 0, number(rng))), data)


def near(rng, here):
    """*here*, a little more or less, or anything."""
    return max(0, here + rng.choice((0, 0, 0, 1, 1, -1, 2, -2, 10))) if not rarely(rng, 0.15) else number(rng)


def append_entries(rng, raft, term, sender):
    """Mostly the log goes on where it is, or a little before."""
    prev = near(rng, raft.log.last_index) if not rarely(rng, 0.3) else rng.randint(raft.log.snapshot_index, raft.log.last_index)
    prev_term = raft.log.term_at(prev) if not rarely(rng, 0.2) else None
    last = prev_term = near(rng, raft.term) if prev_term is None else prev_term
    entries = []
    for index in range(prev + 1, prev + 1 + len(some(rng, 20, lambda rng: 0))):
        last = last if not rarely(rng, 0.2) else min(term, last + 1) if not rarely(rng, 0.1) else near(rng, last)
        entries.append(Entry(index, last, *content(rng)))
    leader_commit = near(rng, raft.commit_index if rarely(rng, 0.5) else prev + len(entries))
    read_round = number(rng) if rarely(rng, 0.1) else rng.randint(0, 5)
    confirmed_index = near(rng, prev) if rarely(rng, 0.05) else 0
    return AppendEntries(term, sender, prev, prev_term, tuple(entries), leader_commit, read_round, confirmed_index)


def content(rng):
    """(kind, command) of an entry."""
    match rng.randrange(20):
        case 0:
            return CONFIGURATION, rng.choice(CONFIGURATIONS)
        case 1:
            return CONFIGURATION, rng.choice(LYING_CONFIGURATIONS)
        case 2:
            return rng.choice((3, 4, 127, 255)), b""
        case 3:
            return COMMAND, rng.choice(UNKNOWN_COMMANDS)
        case 4 | 5:
            return NOOP, rng.choice((b"", b"", b"x"))
    return COMMAND, encode(rng.choice((Set(rng.choice("kl"), rng.randbytes(8)), Delete("k"))))


# The target


class Frames:
    """``with Frames() as frames: frames.attack(rng)``. Raises Finding; ``counts`` says what was exercised."""

    name, unit = "frames", "frames"
    exercised = ("frames", "answered", "refused", "nonsense", "terms taken over", "votes given", "entries taken", "entries replaced",
                 "unknown commands", "called an older copy", "led at the end")

    def __enter__(self):
        self.counts, self._clock = Counter(), Clock()
        self._directory = scratch("frames")
        self._time, node_module.time = node_module.time, self._clock
        self._loggers = [logging.getLogger(name) for name in ("raftd.node", "raftd.transport")]
        for logger in self._loggers:  # what is refused is logged, rightly; that is not what is looked at here
            logger.disabled = True
        return self

    def __exit__(self, *_):
        for logger in self._loggers:
            logger.disabled = False
        node_module.time = self._time
        shutil.rmtree(self._directory, ignore_errors=True)

    def attack(self, rng):
        directory = tempfile.mkdtemp(dir=self._directory)
        attacked, sent = Attacked(directory, rng, self._clock), []
        try:
            for _ in range(rng.randint(1, FRAMES_AT_ONCE)):
                if not self._send(attacked, rng, sent):
                    return
            attacked.check_at_the_end()
            self.counts["led at the end"] += attacked.led
        except UnknownCommand:  # it stops, as it must: this raftd would make another state than others
            self.counts["unknown commands"] += 1
        except OlderCopy:  # as above; a peer that lies can make it believe so
            self.counts["called an older copy"] += 1
        except Exception as error:
            told = "\n".join(f"  {sender}: {shown(data)}" for sender, data in sent)
            raise Finding(f"{error!r}\n{told}\nto n1, in term {attacked.raft.term} now, as {attacked.raft.role}") from error
        finally:
            attacked.close()
            shutil.rmtree(directory)

    def _send(self, attacked, rng, sent):
        """One frame on a connection of its own; False if it ended the node."""
        sender = rng.choice(SENDERS)
        data = frame(rng, attacked.raft, sender)
        sent.append((sender, data))
        self._clock.now += rng.choice((0, 0.01, 0.3, 2))
        if attacked.raft.is_leader and rarely(rng, 0.3):
            attacked.raft.propose(encode(Set("k", b"ours")))
        failures = []

        def handle(sender, configuration_index, request):
            try:
                return self._handle(attacked, sender, configuration_index, request)
            except Refusal:
                raise
            except Exception as error:
                failures.append(error)
                raise Refusal("it failed") from error
        heard = conversation(PeerServer(None, handle), sender, data)
        self.counts["frames"] += 1
        if failures:
            raise failures[0]
        self._count(heard)
        return True

    def _handle(self, attacked, sender, configuration_index, request):
        before, raft, attacked.node.waited = attacked.view(), attacked.raft, False
        length, has_prev = raft.log.last_index, isinstance(request, AppendEntries) and raft.log.matches(
            request.prev_log_index, request.prev_log_term)
        try:
            reply = attacked.node.handle(sender, configuration_index, request)
        except Refusal:
            if raft.lost:
                index = request.confirmed_index
                lost = index > length or index and index == request.prev_log_index and not has_prev
                _require(lost, f"{request} does not say that it has lost anything")
                raise OlderCopy from None
            if not attacked.node.waited:
                _require(attacked.view() == before, f"refused, and changed: {before} {attacked.view()}")
            raise
        finally:
            attacked.node.settle()
            attacked.check(before)
        _require(type(reply) is wire.REPLIES[type(request)] and reply.term == raft.term, f"{reply} to {request}")
        self.counts["terms taken over"] += raft.term > before[0]
        self.counts["votes given"] += raft.voted_for not in (before[1], None)
        self.counts["entries taken"] += raft.log.last_index > length
        self.counts["entries replaced"] += raft.log.entries(raft.log.first_index, raft.log.last_index)[:len(before[4])] != before[4]
        return reply

    def _count(self, heard):
        _, _, frames = heard.partition(b"\r\n\r\n")
        if not frames:
            self.counts["nonsense"] += 1
        while frames:  # more than one, when what came can be read as more than one
            header, rest = frames[:wire.HEADER.size], frames[wire.HEADER.size:]
            payload, frames = rest[:(length := wire.payload_length(header))], rest[length:]
            try:
                wire.decode(header, payload)
                self.counts["answered"] += 1
            except Refusal:
                self.counts["refused"] += 1


def conversation(server, sender, data):
    """What *server*, a PeerServer, says on a connection of *sender* on which *data* comes."""
    served, peer = socket.socketpair()
    with peer:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        server._serve((sender, "test"), TcpLike(served))
        heard = b""
        while more := peer.recv(1 << 16):
            heard += more
    return heard


def shown(data):
    """A frame for a person."""
    try:
        return f"{wire.decode(data[:wire.HEADER.size], data[wire.HEADER.size:])} {data.hex()}"
    except (wire.WireError, wire.struct.error, Refusal) as error:
        return f"{error}: {data.hex()}"


class TcpLike:
    """A socket that has no options of TCP, and needs none."""

    def __init__(self, socket_):
        self._socket = socket_

    def __getattr__(self, name):
        return getattr(self._socket, name)

    def setsockopt(self, *_):
        pass
