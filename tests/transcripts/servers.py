"""Servers, the links between them, and what is told of what they do.

A server is a core as production runs it. Its disk is done with a write at once, unless it is said to be slow; its clock stands still,
unless a command moves it; its state machine applies what it is given, and is always on the disk.
"""

import json
import random
from dataclasses import dataclass, replace
from types import SimpleNamespace

from transcripts.words import described, listed, role_of

from raftd.config import Settings
from raftd.node import restore
from raftd.raft.configuration import Configuration
from raftd.raft.core import Base, Raft
from raftd.raft.messages import COMMAND, Entry, HardState, InstallSnapshot
from raftd.storage import Saved

CHUNK_BYTES = 40  # of a snapshot, in one request
MOST_ROUNDS = 1000  # a scenario that never comes to rest is wrong


class Server:
    """A core, and what a crash leaves: the rows of its log, and the state machine, which knows where it stands."""

    def __init__(self, name, settings, configuration, terms=(), term=0):
        self.name, self.settings, self.slow = name, settings, False
        entries = [Entry(index, of_term, COMMAND, b"x=%d/%d" % (index, of_term)) for index, of_term in enumerate(terms, 1)]
        self.disk = Saved(HardState(term, None), Base(0, 0, configuration), entries)
        self.values, self.position = {}, SimpleNamespace(index=0, term=0, installed_index=0, configuration=configuration.encode())
        self.start()

    def start(self):
        before = -self.settings.election_timeout_seconds / 2  # what it may have promised before it started is over
        self.raft = restore(self.name, self.disk, self.position, self.settings, random.Random(self.name), before)
        self.raft.tick(0.0)
        self.up, self.writing, self.seen, self.incoming = True, None, None, {}

    def end_write(self):
        """The disk is done with the write that is under way, which is returned: first it has it, then the core is told."""
        unsaved, self.writing = self.writing, None
        base = unsaved.base or self.disk.base
        rows = [entry for entry in self.disk.entries if entry.index < unsaved.log_from] + list(unsaved.entries)
        self.disk = Saved(unsaved.hard_state or self.disk.hard_state, base, [entry for entry in rows if entry.index > base.index])
        self.raft.saved(unsaved)
        return unsaved

    def apply(self):
        for entry in self.raft.take_committed(1 << 20):
            if entry.kind == COMMAND:
                key, value = entry.command.decode().split("=")
                self.values = {**self.values, key: value}
            configuration = self.raft.configurations.at(entry.index)[1].encode()
            self.position = SimpleNamespace(index=entry.index, term=entry.term, installed_index=0, configuration=configuration)
            self.raft.applied(entry.index)

    def snapshot(self):
        """The state, as bytes."""
        return json.dumps([self.position.index, self.position.term, self.position.configuration.decode(), self.values]).encode()

    def receive(self, answer):
        """Store a chunk of a snapshot; with the last one it is installed."""
        request = answer.request
        data = self.incoming.get(request.checksum, b"")
        if request.offset == len(data):
            data = self.incoming[request.checksum] = data + request.data
        if len(data) == request.size:
            self._install(*json.loads(data))
        self.raft.chunk_stored(answer, len(data), installed=len(data) == request.size)

    def _install(self, index, term, configuration, values):
        if index > self.position.index:
            self.values = values
            self.position = SimpleNamespace(index=index, term=term, installed_index=index, configuration=configuration.encode())
            self.raft.snapshot_installed(index, term, Configuration.decode(configuration))


@dataclass(eq=False)
class Message:
    """A request of one server to another, and its reply when there is one. With a name, each way waits for a command."""

    sender: Server
    receiver: Server
    request: object
    asker: Raft
    name: str = ""
    reply: object = None

    @property
    def link(self):
        return self.sender.name, self.receiver.name


class Cluster:
    """Servers by name, and what their doings were told as: ``output``, a list of lines."""

    def __init__(self):
        self.servers, self.settings = {}, Settings()
        self.cut_links, self.messages, self.unanswered, self.snapshots = set(), {}, set(), {}
        self.output, self.quiet, self.reads = [], False, 0

    def tell(self, *words):
        self.output.append(" ".join(words))

    # What happens in a server

    def settle(self, server):
        """The disk, unless it is slow, and the state machine do their work; what came of it is told."""
        while True:
            self._tell_changes(server)
            server.apply()
            server.writing = server.writing or server.raft.take_unsaved()
            if server.slow or server.writing is None:
                break
            server.end_write()
        answers, server.raft.finished_answers[:] = list(server.raft.finished_answers), []
        for answer in answers:
            self._take_reply(answer.context, answer.reply)
        self._tell_reads(server)

    def _tell_changes(self, server):
        raft, seen = server.raft, server.seen
        log = raft.log.entries(raft.log.first_index, raft.log.last_index)
        server.seen = SimpleNamespace(role=role_of(raft), commit_index=raft.commit_index, log=log)
        if seen is None:
            return
        if gone := [entry for entry in seen.log if entry.index > raft.log.snapshot_index and entry not in log]:
            self.tell(server.name, "removes", listed(gone))
        if server.seen.role != seen.role:
            self.tell(server.name, server.seen.role)
        if raft.commit_index > seen.commit_index:
            self.tell(server.name, f"commits up to {raft.commit_index}/{raft.log.term_at(raft.commit_index)}")

    def _tell_reads(self, server):
        waiting = []
        for read in server.raft.finished_reads:
            number, key = read.context
            if read.failed:
                self.tell(f"read {number} of {server.name} fails")
            elif server.position.index < read.index:
                waiting.append(read)
            else:
                self.tell(f"read {number} of {server.name}: {key}={server.values.get(key, '')} (read_index={read.index})")
        server.raft.finished_reads[:] = waiting

    # What happens between servers

    def send(self, sender, receiver, entries=True):
        """A Message with the next that *sender* has for *receiver*, or None."""
        server = self.servers[sender]
        request = (server.raft.data_for(receiver) if entries else None) or server.raft.request_for(receiver)
        if isinstance(request, InstallSnapshot):
            request = replace(request, data=self.snapshots[request.checksum][request.offset:request.offset + CHUNK_BYTES])
        self.settle(server)
        return request and Message(server, self.servers[receiver], request, server.raft)

    def tell_message(self, message, arrow, value, *more):
        if not self.quiet:
            name = f"{message.name}: " if message.name else ""
            self.tell(f"{name}{message.sender.name} {arrow} {message.receiver.name} {described(value)}", *more)

    def exchange(self, message):
        """The request gets there, and the reply back; or, without a way, it does not."""
        if message.receiver.up and message.link not in self.cut_links:
            self.tell_message(message, "->", message.request)
            self.arrive(message)
        else:
            self.tell_message(message, "->", message.request, "is lost")
            self.get_back(message)

    def arrive(self, message):
        answer = message.receiver.raft.handle(message.request)
        answer.context = message
        if isinstance(message.request, InstallSnapshot) and answer.make_reply is None:
            message.receiver.receive(answer)
        self.settle(message.receiver)
        if message.reply is None:
            self.unanswered.add(message.link)
            self.tell(message.receiver.name, "does not answer yet")

    def _take_reply(self, message, reply):
        if message.sender.up and message.sender.raft is message.asker:
            self.tell_message(message, "<-", reply)
            self.unanswered.discard(message.link)
            message.reply = reply
            if not message.name:
                self.get_back(message)

    def get_back(self, message):
        """The reply reaches who asked; None if there is none in time."""
        message.asker.handle_reply(message.receiver.name, message.request, message.reply)
        self.settle(message.sender)

    def talk(self, name, peers):
        """Quietly, *name* says all that it has to say to those of *peers* whom it reaches, and who do not owe an answer."""
        self.quiet = True
        for _ in range(MOST_ROUNDS):
            links = [(name, peer) for peer in peers if peer != name and self.servers[peer].up]
            sent = [self.send(*link) for link in links if link not in self.cut_links | self.unanswered]
            if not any(sent):
                break
            for message in filter(None, sent):
                self.exchange(message)
        else:
            raise ValueError(f"{name} never comes to rest")
        self.quiet = False
