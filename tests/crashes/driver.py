"""The rest of the world of one server: its clients, and the two other members of its cluster, which never fail.

Everything is drawn from a random generator: appends, conflicts, votes, leadership of the server itself, snapshots, restarts.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from raftd.errors import RaftdError
from raftd.kv import Conditions, Delete, KeyValueStore, Position, Set, encode
from raftd.raft.configuration import Configuration, Member
from raftd.raft.messages import (
    COMMAND, CONFIGURATION, NOOP, AppendEntries, Entry, InstallSnapshot, InstallSnapshotReply, RequestVote, TimeoutNow,
)

from crashes import calls
from crashes.knowledge import NEW_STATE
from crashes.subject import ADDRESS, NAME, decoded, encoded

TOP = Path(__file__).resolve().parents[2]
CLUSTER = "c" * 32
OTHERS = {name: Member(name, f"127.0.0.1:{number}", True, f"id-{name}") for number, name in ((2, "n2"), (3, "n3"))}


class Ended(Exception):
    """The process is gone, as it should be."""


class Process:
    """A ``subject`` that runs on *path*; all it tells goes to *live*, a Knowledge.

    ``end_after(count, end)``: ``end(process)`` is called when it has told so much more. Then whoever waits is told that it has Ended,
    unless the end is put off: by another call of ``end_after``.
    """

    def __init__(self, path, live, joins="", plant=None, trace_path=None):
        recorder = calls.recorder(trace_path) if trace_path else []
        command = [*recorder, sys.executable, "-m", "crashes.subject", str(path), joins, *([plant] if plant else [])]
        environment = {**os.environ, "PYTHONPATH": f"{TOP}:{TOP / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
        self.live, self.pid, self._end, self._end_in = live, None, None, None
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd="/")

    def end_after(self, count, end):
        self._end, self._end_in = end, count

    def wait(self):
        """The answer to the command under way. Raises Ended."""
        for line in self._process.stdout:
            message = decoded(line)
            self._take(message)
            if self._end_in is not None:
                self._end_in -= 1
                if self._end_in < 0 and message[0] != "done":  # it is at work
                    self._end_in = None
                    self._end(self)
                    if self._end_in is None:
                        self._drain()
                        raise Ended()
            if message[0] == "done":
                return message[1]
        raise AssertionError("the server has ended by itself")

    def _take(self, message):
        match message:
            case "pid", pid:
                self.pid = pid
            case "failed", error:
                raise AssertionError(f"the server has failed: {error}")
            case "done", _:
                pass
            case _:
                self.live.take(message)

    def _drain(self):
        """What it had told before it ended."""
        for line in self._process.stdout:
            if line.endswith(b"\n"):  # else it was interrupted
                self._take(decoded(line))

    def call(self, name, *arguments):
        self._process.stdin.write(encoded((name, *arguments)))
        self._process.stdin.flush()
        return self.wait()

    def stop(self):
        """SIGSTOP; returns when it does nothing any more."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def close(self):
        """However it stands, it is gone then."""
        with suppress(OSError):
            if self._process.poll() is None and self.pid:
                self.kill()
        with suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)


class Others:
    """n2 and n3: their log, what is committed of it, and the state there. The one that leads is ``leader``."""

    def __init__(self, state, entries, term, rng):
        self.rng, self.leader, self.term = rng, "n2", term
        self._state = state  # before the first of the entries
        self.entries = {entry.index: entry for entry in entries}
        self.commit = state.position.index

    @property
    def first(self):
        """What comes before their entries."""
        return self._state.position.index

    @property
    def last(self):
        return max(self.entries, default=self.first)

    def term_at(self, index):
        return self._state.position.term if index == self._state.position.index else self.entries[index].term

    def append(self, kind, command):
        index = self.last + 1
        self.entries[index] = Entry(index, self.term, kind, command)

    def lead(self, term):
        """One of them leads, in a new term. What is not committed may not be in its log."""
        keep = self.rng.randint(self.commit, self.last)
        self.entries = {index: entry for index, entry in self.entries.items() if index <= keep}
        self.leader, self.term = self.rng.choice(list(OTHERS)), term
        self.append(NOOP, b"")

    @property
    def configuration_index(self):
        return max([index for index, entry in self.entries.items() if entry.kind == CONFIGURATION], default=0)

    @property
    def members(self):
        index = self.configuration_index
        return Configuration.decode(self.entries[index].command if index else self._state.position.configuration).members

    def state(self):
        """The State at the commit index."""
        position, configuration = self._state.position, self._state.position.configuration
        state = self._state
        for index in range(position.index + 1, self.commit + 1):
            entry = self.entries[index]
            configuration = entry.command if entry.kind == CONFIGURATION else configuration
            batch = [(index, entry.command)] if entry.kind == COMMAND else []
            state = state.with_batch(batch, Position(index, entry.term, configuration, 0))
        return state


class Driver:
    """What happens to the server in one life after the other. *others* is None as long as it is alone; *joins* names their cluster
    when it is to become a member of one that there is already."""

    _alone = {"propose": 6, "settle": 1, "copy": 1, "distrust": 1, "fail": 1, "meet": 2}  # steps, and how often each is done
    _among = {"append": 8, "rival": 3, "vote": 2, "lead": 2, "install": 1, "settle": 1, "copy": 1, "distrust": 1, "fail": 1}

    def __init__(self, rng, live, joins):
        self._rng, self.live, self.joins = rng, live, joins
        self.others = self._found_cluster() if joins else None
        self._written, self._leads = 0, False
        self._never_done = set(self._alone) | set(self._among)  # each is done at least once, in time

    def _found_cluster(self):
        others = Others(NEW_STATE, (), 1, self._rng)
        others.append(CONFIGURATION, Configuration(dict(OTHERS)).encode())
        others.append(NOOP, b"")
        others.commit = others.last
        return others

    def run(self, process, steps):
        """Let it start, and live through so many steps."""
        self._leads = False
        process.wait()
        if self.joins:
            if NAME not in self.others.members:
                member = Member(NAME, ADDRESS, True, self.live.identity.id)
                self.others.append(CONFIGURATION, Configuration({**OTHERS, NAME: member}).encode())
        elif list(self.live.logs[-1].members) == [NAME]:
            self.others = None  # also when the power was cut before they were members
        elif not self.others:
            self._know_others()
        if self.others:
            self._follow()
            if self.live.highest_term > self.others.term:
                self.others.leader = None
        for _ in range(steps):
            self.step(process)

    def step(self, process):
        steps = self._among if self.others else self._alone
        missing = [step for step in steps if step in self._never_done and step != "meet"]
        if missing and self._rng.randrange(2):
            step = self._rng.choice(missing)
        else:
            (step,) = self._rng.choices(list(steps), steps.values())
        self._never_done.discard(step)
        getattr(self, f"_{step}")(process)

    # What clients ask

    def _command(self):
        """Few keys, so that they are written again; values all different, so that none is taken for another."""
        key, self._written = f"key{self._rng.randrange(30)}", self._written + 1
        size = self._rng.choice((10, 10, 300, 3000))
        kind, conditions = self._rng.randrange(10), Conditions()
        if kind == 0:
            return encode(Delete(key))
        if kind == 1:
            conditions = Conditions(if_none_match="*")
        if kind == 2:
            conditions = Conditions(if_match="*")
        return encode(Set(key, (b"%d." % self._written).ljust(size, b"x"), conditions))

    def _commands(self, most=12):
        return [self._command() for _ in range(self._rng.randint(1, most))]

    def _propose(self, process):
        process.call("propose", self._commands(30))

    def _settle(self, process):
        return process.call("settle")

    def _copy(self, process):
        process.call("copy")

    def _distrust(self, process):
        process.call("distrust")

    def _fail(self, process):
        """Its disk refuses the next save; it opens the log again."""
        process.call("fail", self._rng.choice(("before", "after")))
        if not self.others:
            process.call("propose", self._commands())
            self._settle(process)
        elif not self._leads:
            self._append(process)

    def _meet(self, process):
        """The others become members."""
        for member in OTHERS.values():
            while isinstance(process.call("add", member), RaftdError):  # its disk has just been made to fail
                self._settle(process)
        self._settle(process)
        self._know_others()
        self._leads = True

    def _know_others(self):
        """They have all that it has."""
        log, state = self.live.logs[-1], self.live.states[-1]
        entries = [entry for index, entry in sorted((log.entries | self.live.followed).items()) if index > state.position.index]
        self.others = Others(state, entries, self.live.highest_term, self._rng)
        self._follow()

    # What the other members do

    def _depose(self):
        """It leads no longer: somebody else does, in a newer term."""
        self.others.lead(max(self.others.term, self.live.highest_term) + 1)
        self._leads = False

    def _append(self, process):
        """Entries, from where its log is like that of the leader; now and then some that it has already."""
        others = self.others
        if self._leads or others.leader is None:
            self._depose()
        for command in self._commands() if self._rng.randrange(6) else []:
            others.append(COMMAND, command)
        self._send(process, self._rng.randint(others.commit, others.last))

    def _send(self, process, commit):
        others, log = self.others, self.live.logs[-1]
        first = others.first
        alike = [index for index in range(first, others.last + 1) if log.term_at(index) == others.term_at(index)]
        previous = max([index for index in alike if index >= log.base.index], default=first)
        previous = max(first, previous - self._rng.choice((0, 0, 0, 2)))
        entries = tuple(others.entries[index] for index in range(previous + 1, others.last + 1))
        others.commit = max(others.commit, commit)
        request = AppendEntries(others.term, others.leader, previous, others.term_at(previous), entries, others.commit, 1)
        return process.call("handle", others.leader, others.configuration_index, request)

    def _rival(self, process):
        """Another leader, whose log may lack what was not committed."""
        if not self._leads:
            self._depose()
        self._append(process)

    def _vote(self, process):
        """Candidates, one after the other in the same term; who wins need not be heard of again."""
        others = self.others
        others.term = max(others.term, self.live.highest_term) + 1
        self._leads = False
        candidates = list(OTHERS) if self._rng.randrange(2) else list(OTHERS)[::-1]
        for candidate in candidates[:self._rng.randint(1, 2)]:
            request = RequestVote(others.term, candidate, 1 << 20, others.term, False, True)
            process.call("handle", candidate, others.configuration_index, request)
        others.leader = None
        if self._rng.randrange(3):
            others.lead(others.term)
            others.leader = candidates[0]
            self._send(process, others.commit)

    def _lead(self, process):
        """It is made the leader: alone with its entries, which are gone with the next leader, or followed by the others."""
        others = self.others
        self._append(process)
        self._send(process, others.last)
        mode = self._rng.choice(("obeys", "obeys", "votes", "deaf"))
        process.call("peers", mode)
        process.call("handle", others.leader, others.configuration_index, TimeoutNow(others.term, others.leader))
        self._leads, others.leader = True, None
        self._settle(process)
        if mode == "obeys":
            process.call("propose", self._commands(20))
        elif mode == "votes":
            process.call("propose", self._commands(), False)
        self._settle(process)
        self._follow()

    def _follow(self):
        """What it has sent as their leader is committed: both of them have it."""
        others, followed = self.others, self.live.followed
        if followed and max(followed) > others.commit:
            others.entries = {index: entry for index, entry in (others.entries | followed).items() if index <= max(followed)}
            others.commit = max(followed)

    def _install(self, process):
        """It has missed so much that it is sent a copy of the state, just when it has written its own, or long after."""
        others = self.others
        if self._leads or others.leader is None:
            self._depose()
        if self._rng.randrange(4):
            self._append(process)
            self._send(process, others.last)
            self._settle(process)
        for command in self._commands(30):
            others.append(COMMAND, command)
        others.commit = others.last
        state = others.state()
        self.live.snapshots[state.position.index] = state
        with tempfile.TemporaryDirectory() as directory:
            store = store_with(directory, state)
            snapshot = store.snapshot()
            data = snapshot.read(0, snapshot.size)
            store.close()
        offset = 0
        for _ in range(100):
            request = InstallSnapshot(others.term, others.leader, state.position.index, state.position.term, snapshot.size,
                                      snapshot.sha256, offset, data[offset:offset + 8192])
            reply = process.call("handle", others.leader, others.configuration_index, request)
            if not isinstance(reply, InstallSnapshotReply) or reply.installed:
                return
            offset = reply.next_offset


def store_with(directory, state):
    """A KeyValueStore that holds *state*."""
    store = KeyValueStore(directory)
    batch = sorted((index, encode(Set(key, value))) for key, (value, index) in state.rows.items())
    store.apply(batch, state.position.index, state.position.term, state.position.configuration)
    return store
