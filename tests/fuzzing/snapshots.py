"""Chunks of snapshots, wrong in every way, to a real node with its files: its state is the old one, or all of one that was announced."""

import hashlib
import logging
import random
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fuzzing import Finding, number, rarely, scratch, spoiled
from fuzzing.files import edit_row, edit_schema
from fuzzing.frames import LYING_CONFIGURATIONS, MEMBERS, Attacked, Clock
from raftd import node as node_module
from raftd.errors import DamagedFiles, RaftdError, Refusal
from raftd.kv import Get, KeyValueStore, Set, encode
from raftd.raft.messages import InstallSnapshot, InstallSnapshotReply

KEYS = [f"k{number}" for number in range(30)]
CHUNKS_AT_ONCE = 15


class Copy(NamedTuple):
    """A snapshot to send. ``state`` is {key: value}, None for what no follower may install."""

    name: str
    index: int
    term: int
    data: bytes
    state: dict | None

    @property
    def checksum(self):
        return hashlib.sha256(self.data).digest()


def copies(directory):
    """Two good ones, and bad ones whose checksum is right all the same."""
    good = [_good(directory, index, MEMBERS.encode()) for index in (100, 200)]
    bad = [Copy("nothing", 100, 1, b"", None), Copy("random", 150, 1, random.Random(1).randbytes(9000), None),
           Copy("half", 100, 1, good[0].data[:len(good[0].data) // 2], None), Copy("of another index", 101, 1, good[0].data, None),
           Copy("of another term", 100, 2, good[0].data, None)]
    for number_ in range(12):
        rng, path = random.Random(number_), Path(directory) / "edited.db"
        path.write_bytes(good[1].data)
        (edit_row if number_ % 3 else edit_schema)(rng, path)
        bad.append(Copy(f"edited {number_}", 200, 1, path.read_bytes(), None))
        path.write_bytes(spoiled(rng, good[1].data))
        bad.append(Copy(f"spoiled {number_}", 200, 1, path.read_bytes(), None))
    return good, bad


def _good(directory, index, configuration):
    made = tempfile.mkdtemp(dir=directory)
    store, state = KeyValueStore(made), {key: f"{key} at {index} ".encode() * 30 for key in KEYS}
    store.apply([(number, encode(Set(key, value))) for number, (key, value) in enumerate(state.items(), 1)], index, 1, configuration)
    snapshot = store.snapshot()
    data = snapshot.read(0, snapshot.size)
    store.close()
    return Copy(f"good {index}", index, 1, data, state)


class Snapshots:
    """``with Snapshots() as snapshots: snapshots.attack(rng)``. Raises Finding; ``counts`` says what was exercised."""

    name, unit = "snapshots", "chunks"
    exercised = ("chunks", "asked for more", "refused", "installed", "bad copies refused", "ended by a lying configuration",
                 "whole at the end")

    def __enter__(self):
        self.counts, self._clock = Counter(), Clock()
        self._directory = scratch("snapshots")
        self._good, self._bad = copies(self._directory)
        lies = [_good(self._directory, 150, lie) for lie in LYING_CONFIGURATIONS[:6]]
        self._lies = [copy._replace(name="lie", state=None) for copy in lies]
        self._time, node_module.time = node_module.time, self._clock
        self._logger = logging.getLogger("raftd.node")
        self._logger.disabled = True
        return self

    def __exit__(self, *_):
        self._logger.disabled = False
        node_module.time = self._time
        shutil.rmtree(self._directory, ignore_errors=True)

    def attack(self, rng):
        directory, sent = tempfile.mkdtemp(dir=self._directory), []
        attacked = Attacked(directory, rng, self._clock)
        self._allowed = {attacked.state.position.index: self._state_of(attacked), **{copy.index: copy.state for copy in self._good}}
        self._wanted = {}
        try:
            chosen = [rng.choice(self._good), rng.choice(self._bad), *rng.choices((self._good + self._bad), k=1)]
            chosen += [rng.choice(self._lies)] if rarely(rng, 0.1) else []
            for _ in range(rng.randint(1, CHUNKS_AT_ONCE)):
                self._clock.now += rng.choice((0, 0.1, 60))
                self._send(attacked, *self._chunk(rng, attacked, rng.choice(chosen)), sent)
            self._finish(attacked)
        except DamagedFiles as error:
            if "the members at entry" not in str(error) or not any("lie" in what for what in sent):
                raise Finding(f"{error!r}\nchunks: {sent}") from error
            self.counts["ended by a lying configuration"] += 1
        except Exception as error:
            raise Finding(f"{error!r}\nchunks: {sent}") from error
        finally:
            attacked.close()
            shutil.rmtree(directory)

    def _chunk(self, rng, attacked, copy):
        """(copy, request): mostly what the node wants next of *copy*."""
        size, wanted = len(copy.data), self._wanted.get(copy.checksum, 0)
        offset = wanted if not rarely(rng, 0.3) else rng.choice((0, max(0, wanted - 1), wanted + 1, size, number(rng), rng.randint(0,
                                                                                                                                   size)))
        length = rng.choice((size // 3 + 1, size // 3 + 1, size, 1, 0))
        leader, term = attacked.raft.leader_id, max(1, attacked.raft.term) + rng.choice((0, 0, 0, 0, 1))
        if leader not in ("n2", "n3") or rarely(rng, 0.2):
            leader = rng.choice(("n2", "n3"))
        request = InstallSnapshot(term, leader, copy.index, copy.term, size, copy.checksum, offset, copy.data[offset:offset + length])
        if rarely(rng, 0.1):
            other = rng.choice(({"last_included_index": number(rng) >> 2}, {"size": max(0, size + rng.choice((-1, 1, 1000)))},
                                {"checksum": rng.randbytes(rng.choice((0, 32)))}, {"last_included_term": term + 1}))
            request = replace(request, **other)
        return copy, request

    def _send(self, attacked, copy, request, sent):
        sent.append(f"{copy.name}: {request}")
        self.counts["chunks"] += 1
        before, raft = attacked.state.position, attacked.raft
        try:
            reply = attacked.node.handle(request.leader_id, 0, request)
        except Refusal:
            self.counts["refused"] += 1
            reply = None
        attacked.node.settle()
        position = attacked.state.position
        if position.index < before.index:
            raise Finding(f"the state went back from {before.index} to {position.index}")
        if self._state_of(attacked) != self._allowed.get(position.index):
            raise Finding(f"another state at {position.index}")
        if not position.index == raft.last_applied <= raft.commit_index:
            raise Finding(f"the state stands at {position.index}, the log at {raft.last_applied} of {raft.commit_index}")
        self._count(copy, reply, before, position)

    def _count(self, copy, reply, before, position):
        if type(reply) is InstallSnapshotReply and not reply.installed:
            self._wanted[copy.checksum] = reply.next_offset if reply.next_offset < len(copy.data) else 0
            self.counts["asked for more"] += 1
            self.counts["bad copies refused"] += copy.state is None and reply.next_offset == 0
        self.counts["installed"] += position.index > before.index

    def _state_of(self, attacked):
        try:
            return {key: value for key in ("k", *KEYS) if (value := attacked.state.read(Get(key)).value) is not None}
        except RaftdError as error:
            raise Finding(f"a state that cannot be read: {error!r}") from error

    def _finish(self, attacked):
        """An honest leader comes, and its copy arrives."""
        copy, raft, offset = self._good[1], attacked.raft, 0
        term = raft.term + 1
        for _ in range(20):
            self._clock.now += 100
            request = InstallSnapshot(term, "n2", copy.index, copy.term, len(copy.data), copy.checksum, offset,
                                      copy.data[offset:offset + 5000])
            try:
                reply = attacked.node.handle("n2", 0, request)
            except Refusal:
                continue
            finally:
                attacked.node.settle()
            if reply.installed:
                break
            offset = reply.next_offset
        if attacked.state.position.index < copy.index or self._state_of(attacked) != copy.state:
            raise Finding(f"an honest copy does not arrive: the state stands at {attacked.state.position.index}")
        self.counts["whole at the end"] += 1
