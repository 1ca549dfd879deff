"""The HTTP surface in this process: the listener, the express lane and the Flask app, with a node that only notes what it is asked.

Everything happens in the one thread that attacks, so that a run depends on nothing but its input. Only what waitress would do in other
threads is done in turn instead.
"""

import logging
import re
import select
import socket
import time
from collections import Counter, deque
from contextlib import closing
from functools import partial
from types import SimpleNamespace

from waitress import wasyncore

from fuzzing import Finding, answers, rarely
from fuzzing.conversations import conversation
from raftd import listener
from raftd.config import Settings
from raftd.errors import CommitTimeout, HistoryGone, NoQuorum, NotLeader, Overloaded, RaftdError, Refusal, StorageFailed, Stopping
from raftd.kv import Changes, DeletePrefix, Found, History, Item, List, Listed, Outcome, Request, Transaction, decode
from raftd.kv.clock import Clock
from raftd.node import Applied
from raftd.server import Server
from raftd.transport import PeerServer
from raftd.web import create_app

MOST_CPU_SECONDS = 2.0  # for one conversation, of at most 300 kB; it takes a few milliseconds
FIRST_MARK = 2000
LOUD = logging.WARNING  # nothing that a client says is worth more in the log than this; a fault of ours is


class NoWatchers:
    """Nothing changes here: what would be watched ends after its head, who would wait has waited."""

    are_full = False

    def take(self, connection, head, stream):
        with closing(connection):
            connection.sendall(head)

    def park(self, key, index, seconds, connection, resume):
        resume()


class NotingNode:
    """Numbers whatever would change something, and shows the number in the answer: an answer that refuses must have no new one."""

    name, address = "n1", "localhost:4001"
    settings = Settings(max_value_bytes=1000)
    is_installing = False
    state_machine = SimpleNamespace(clock=Clock(), subscribe=lambda applied, waits: None)

    def __init__(self):
        self.marks, self.admitted, self.failure, self.kind, self.found = 0, 0, None, "written", Found(b"bar", 41, 1040)

    def term_in_charge(self, timeout):
        return 7, timeout

    def _change(self):
        if self.failure:
            raise self.failure
        self.marks += 1
        return FIRST_MARK + self.marks

    def submit_all(self, proposals):
        refused = []
        for command, future in proposals:
            try:
                future.set_result(self.propose(command, 1))
            except RaftdError:
                refused.append((command, future))
        return refused

    def propose(self, command, timeout):
        command = decode(command)
        index = self._change()
        return Applied(index, self._outcome(command.command if isinstance(command, Request) else command, index))

    def _outcome(self, command, index):
        if isinstance(command, DeletePrefix):
            return Outcome("deleted-prefix", index, 3)
        if isinstance(command, Transaction):
            return Outcome("transacted", index, (True, [self.found if type(part).__name__ == "Get" else True for part in command.then]))
        return Outcome(self.kind, 0 if self.kind == "missing" else index)

    def join(self, name, address, voter, timeout):
        self._change()

    def remove(self, name, timeout, id):
        self._change()

    def transfer_leadership(self, name, timeout):
        self._change()
        return {"name": "n3", "address": "localhost:4003"}

    def submit_read(self, future, leased=False):
        future.set_result(1)

    submit_stale_read = submit_read

    def look_up(self, query):
        match query:
            case List():
                return Listed([Item("k", self.found.value, 41, 41, 1, None)], None, self.found.applied_index)
            case Changes(after):
                if after == FIRST_MARK:
                    raise HistoryGone(FIRST_MARK + 1)
                return History([], self.found.applied_index)
        return self.found

    def read(self, query, level="linearizable", min_index=0, timeout=5.0):
        return self.look_up(query)

    def out_of_reach(self):
        return ""

    def leader(self):
        return {"name": "n2", "address": "localhost:4002"}

    def headers(self):
        return {"X-Raft-Index": str(FIRST_MARK + self.marks), "X-Raft-Term": "7", "X-Raft-Node": "n1",
                "X-Raft-Leader": "http://localhost:4002"}

    def status(self):
        return {"name": "n1"}

    def identity(self):
        return {"name": "n1", "id": "id1", "cluster": "c1"}

    def members(self):
        return []

    def not_ready(self):
        return None

    def admit(self, sender, configuration_index):
        self.admitted += 1
        raise Refusal("strangers all")


FAILURES = (NotLeader(leader="http://localhost:4002"), NoQuorum("no majority\nanswers"), CommitTimeout(), Overloaded("too many"),
            Stopping(),
            StorageFailed("full", full=True))


class Queue:
    """In place of waitress's pools of threads."""

    def __init__(self):
        self.queue = deque()

    def add_task(self, channel):
        self.queue.append(channel)

    def shutdown(self, cancel_pending=True, timeout=0):
        self.queue.clear()


class Log(logging.Handler):
    """Keeps what is logged too loudly."""

    def __init__(self):
        super().__init__(LOUD)
        self.lines = []

    def emit(self, record):
        if record.exc_info or record.levelno > LOUD or "exception" in record.getMessage():
            self.lines.append(logging.Formatter("%(name)s %(levelname)s %(message)s").format(record))


class Surface:
    """``with Surface() as surface: surface.attack(rng)``. Raises Finding; ``counts`` says what was exercised."""

    name, unit = "http", "requests"
    exercised = ("requests", "written", "read", "refused", "errors of the node", "continued", "handed to peers")

    def __enter__(self):
        self.node, self.queue, self.counts, self._log = NotingNode(), Queue(), Counter(), Log()
        self._listening = listener.bind("127.0.0.1", 0)
        self._peers = PeerServer(partial(Server._admit, SimpleNamespace(_node=self.node)), None)
        self._listener = listener.Listener(self._listening, create_app(self.node, "1.2.3"), self._peers, self.node)
        self._server, dispatcher = self._listener._server, self._listener._dispatcher
        self._server.watchers = dispatcher.watchers = NoWatchers()
        for pool in ("_clients", "_quick", "_changes"):
            getattr(dispatcher, pool).set_thread_count(0)
            setattr(dispatcher, pool, self.queue)
        logging.getLogger().addHandler(self._log)
        return self

    def __exit__(self, *_):
        logging.getLogger().removeHandler(self._log)
        wasyncore.close_all(self._server._map)

    def attack(self, rng):
        node = self.node
        node.failure = rng.choice(FAILURES) if rarely(rng, 0.1) else None
        node.kind = rng.choice(("written",) * 8 + ("missing", "deleted"))
        node.found = Found(*rng.choice(((b"bar", 41), (b"\xff", 41), (b"", 41), (None, 0))), FIRST_MARK)
        self.say(conversation(rng))

    def say(self, said):
        """Have the conversation; raises Finding."""
        began, before, heard = time.thread_time(), self.node.marks, []
        try:
            self._listen(said, heard)
            seconds, heard = time.thread_time() - began, b"".join(heard)
            if seconds > MOST_CPU_SECONDS:
                raise Finding(f"it took {seconds:.1f} s of the processor")
            if self._log.lines:
                raise Finding("in the log: " + "\n".join(self._log.lines))
            self._check(answers.answers_in(heard, said.sent), before, said)
        except Finding as finding:
            self._log.lines.clear()
            raise Finding(f"{finding}\nsaid, then {said.end}: {shown(said.pieces)}\nheard: {shown(heard)}") from None

    def _listen(self, said, heard):
        """Append to *heard* what the server says to all that, until it has nothing more to say."""
        client, served = socket.socketpair()
        client.setblocking(False)
        channel = self._channel = self._server.channel_class(self._server, served, ("127.0.0.1", 1), self._server.adj,
                                                             map=self._server._map)
        try:
            for piece in said.pieces:
                self._send(client, piece, heard)
            if said.end == "close":
                client.close()
            elif said.end == "end":
                client.shutdown(socket.SHUT_WR)
            self._run(client, heard)
            self._check_nothing_waits(channel)
        finally:
            client.close()
            if channel.socket is not None:
                channel.handle_close()

    @staticmethod
    def _check_nothing_waits(channel):
        """A request of which nothing is missing must not wait for more, nor one behind it."""
        waiting, partial = channel.requests, channel.request
        if channel.connected and (waiting or partial and partial.headers_finished and (partial.error or partial.body_rcv is None)):
            raise Finding(f"a request that is complete is not answered: {waiting or partial.headers}")

    def _send(self, client, piece, heard):
        while piece:
            try:
                piece = piece[client.send(piece):]
            except BlockingIOError:
                pass
            except OSError:  # it has closed the connection already
                return
            self._run(client, heard)

    def _run(self, client, heard):
        """The thread that reads requests, and in turn with it those that answer them, until nothing moves any more."""
        quiet = 0
        while quiet < 2 or self._has_more_to_read():
            self._server._map.before_wait()
            wasyncore.poll2(0, self._server._map)
            self._server._map.after_wait()
            quiet += 1
            while self.queue.queue:
                self.queue.queue.popleft().service()
                quiet = 0
            try:
                while client.fileno() >= 0 and (data := client.recv(1 << 20)):
                    heard.append(data)
                    quiet = 0
            except OSError:
                pass

    def _has_more_to_read(self):
        """waitress takes 8 kB at a time."""
        channel = self._channel
        return channel.connected and channel.readable() and select.select([channel.socket], [], [], 0)[0]

    def _check(self, said_back, before, said):
        """Each mark appears in an answer, for the first time in one that says that it was done."""
        seen, counts = before, self.counts
        counts["handed to peers"] = self.node.admitted
        counts["requests"] += max(1, len(said_back))
        counts["continued"] += b"100-continue" in said.sent.lower()
        for answer in said_back:
            index = int(answer.fields.get("x-raft-index", 0)) - FIRST_MARK
            done = answer.status < 400 or answer.code == "not_found"
            kind = ("read" if index <= seen else "written") if done else "refused" if answer.status < 500 else "errors of the node"
            counts[kind] += 1
            if index > seen and not done:
                raise Finding(f"refused, and done: {answer}")
            seen = max(seen, index)
        if seen != self.node.marks and said.end != "close":
            raise Finding(f"{self.node.marks - seen} changes that no answer tells of")


def shown(data):
    """*data* for a person: what repeats itself is cut out."""
    return re.sub(r"(.{1,4}?)\1{40,}", lambda found: f"{found[1]}<{len(found[0]) // len(found[1])} times>", repr(data))
