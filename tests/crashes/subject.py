"""The production server without its port, in a process of its own that tells what it does and promises.

It reads commands from the standard input, a line each, and tells on the standard output, each time in one write: before and after
every step of the two engines, and whatever leaves the server: replies to peers, requests for votes, answers to clients. In a recording
of its system calls these lines stand at their place.
"""

import base64
import logging
import os
import pickle
import sys
import threading
import time
import traceback
from dataclasses import replace
from functools import partial

from raftd import node as node_module
from raftd import server as server_module
from raftd import storage as storage_module
from raftd.cli import Options
from raftd.config import Settings
from raftd.errors import PeerUnreachable, RaftdError, Refusal, StorageFailed
from raftd.kv import KeyValueStore, Position
from raftd.kv import store as store_module
from raftd.raft.messages import (
    AppendEntries, AppendEntriesReply, InstallSnapshot, RequestVote, RequestVoteReply, TimeoutNow, TimeoutNowReply,
)
from raftd.raft.roles import Candidate
from raftd.server import DataPath, Server
from raftd.storage import Storage

NAME, ADDRESS = "n1", "127.0.0.1:1"
SETTINGS = Settings(heartbeat_seconds=10, election_timeout_seconds=30, rpc_timeout_seconds=1, compact_entries=25, keep_entries=8,
                    write_timeout_seconds=20)  # who leads is for the commands to say, not for a clock
DEADLINE_SECONDS = 20
_telling = threading.Lock()


def encoded(message):
    return base64.b64encode(pickle.dumps(message)) + b"\n"


def decoded(line):
    return pickle.loads(base64.b64decode(line))


def tell(*message):
    with _telling:
        os.write(1, encoded(message))


class TellingStorage(Storage):
    """raft.db, and what happens to it. *failing*: the next save raises "before" or "after" it has saved."""

    failing = None

    @classmethod
    def create(cls, directory, identity, configuration):
        tell("creating", identity, configuration)
        made = super().create(directory, identity, configuration)
        tell("created")
        return made

    @classmethod
    def open(cls, directory):
        tell("opening")
        return super().open(directory)

    def load(self):
        saved = super().load()
        tell("loaded", saved)
        return saved

    def save(self, unsaved):
        tell("saving", unsaved)
        failing, TellingStorage.failing = self.failing, None
        if failing == "before":
            raise StorageFailed("as if the disk had refused it")
        super().save(unsaved)
        if failing == "after":
            raise StorageFailed("as if the disk had not confirmed it")
        tell("saved")


class TellingStore(KeyValueStore):
    """state.db, and what happens to it."""

    def __init__(self, directory, may_create=True):
        tell("opening state")
        super().__init__(directory, may_create)
        tell("opened state", self.position, self.durable_index)

    def apply(self, batch, index, term, configuration):
        tell("applying", batch, Position(index, term, configuration, self.position.installed_index))
        outcomes = super().apply(batch, index, term, configuration)
        tell("applied")
        return outcomes

    def checkpoint(self):
        tell("checkpointing")
        durable_index = super().checkpoint()
        tell("durable", durable_index)
        return durable_index

    def install(self, incoming):
        tell("installing", incoming.index)
        super().install(incoming)
        tell("installed", self.position)

    def snapshot(self, go_on=lambda: None):
        tell("copying")
        snapshot = super().snapshot(go_on)
        tell("copied")
        return snapshot


class Peers:
    """The other members, as the transport of the server sees them. *mode*: "deaf"; "votes", and nothing else; "obeys"."""

    mode = "obeys"

    def __init__(self, settings, hello):
        pass

    def connection(self, link):
        return self

    def identify(self, address):
        raise PeerUnreachable(f"nobody at {address}")

    def interrupt(self):
        pass

    abort = interrupt

    def post(self, member, request, configuration_index, done):
        return False

    def close(self):
        pass

    def call(self, member, request, configuration_index):
        match request:
            case RequestVote(pre_vote=True) if self.mode != "deaf":
                return RequestVoteReply(request.term - 1, True)
            case RequestVote(pre_vote=False):
                tell("voting", request)
                if self.mode != "deaf":
                    return RequestVoteReply(request.term, True)
            case AppendEntries() if self.mode == "obeys":
                tell("followed", request.entries)
                return AppendEntriesReply(request.term, True, request.prev_log_index + len(request.entries))
            case TimeoutNow() if self.mode == "obeys":
                return TimeoutNowReply(request.term)
        raise PeerUnreachable(f"{member.name} does not answer")


class Subject(Server):
    """A server that nobody reaches but through commands; its files are opened, made and closed as ever."""

    def start(self):
        self._address = ADDRESS
        self._data = DataPath(self._options.path)
        self._closers.append(self._data.close)
        self._state = self._start_node(self._open_storage())
        self._data.keep()
        tell("kept", self._node.identity())

    def handle(self, sender, configuration_index, request):
        tell("asked", request if not isinstance(request, InstallSnapshot) else replace(request, data=b""))
        try:
            reply = self._node.handle(sender, configuration_index, request)
        except Refusal as refusal:
            return str(refusal)
        tell("answered", request if not isinstance(request, InstallSnapshot) else replace(request, data=b""), reply)
        return reply

    def propose(self, commands, wait=True):
        """Many at the same time, so that they share saves and transactions."""
        tell("proposing", commands)
        futures = [self._node.submit(command) for command in commands]
        if wait:
            for command, future in zip(commands, futures, strict=True):
                tell("acknowledged", future.result(DEADLINE_SECONDS).index, command)

    def add(self, member):
        self._node.change_configuration(lambda configuration: configuration.with_member(member), time.monotonic() + DEADLINE_SECONDS)

    def settle(self):
        """Wait until it has nothing to do."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self._node.look(_is_settled):
            assert time.monotonic() < deadline, "it does not come to rest"
            time.sleep(0.001)

    def copy(self):
        self._state.snapshot().close()

    def distrust(self):
        """As if a sync of state.db had failed: it is written anew with the next checkpoint."""
        self._state._sync_failed = True

    def peers(self, mode):
        Peers.mode = mode

    def fail(self, when):
        """The next save fails, before or after the fact: the log is opened and read again."""
        TellingStorage.failing = when


def _is_settled(raft):
    """Saved and applied; and an election that others have a part in is over, and what they are sent is committed."""
    at_rest = not raft.has_unsaved and raft._saving_since is None and not raft.has_committed and raft._hard_state_saved
    elected = not isinstance(raft.role, Candidate) or Peers.mode == "deaf"
    followed = not raft.is_leader or Peers.mode != "obeys" or raft.commit_index == raft.log.last_index
    return at_rest and elected and followed


def _small_steps(connect):
    """raft.db goes back to the beginning of its write-ahead log often."""
    def connect_and_set(path):
        connection = connect(path)
        connection.execute("PRAGMA wal_autocheckpoint = 12").fetchall()
        return connection
    return connect_and_set


def prepare(plant=None):
    """Let the server tell, and come to the end of its steps soon; *plant* puts a bug into it."""
    server_module.Storage, server_module.KeyValueStore, server_module.Transport = TellingStorage, TellingStore, Peers
    logging.disable()
    server_module.HAND_OVER_SECONDS = 0.05
    node_module.RETRY_SECONDS, node_module.APPLY_PAUSE_SECONDS = 0.01, 0.001
    store_module._CHECKPOINT_COMMANDS = 40
    storage_module._connect = _small_steps(storage_module._connect)
    if plant:
        from crashes.plants import PLANTS
        PLANTS[plant]()


def options_for(path, joins):
    return Options(path=str(path), name=NAME, join=("127.0.0.1:2",) if joins else (), settings=SETTINGS)


def serve(path, joins, lines):
    """Start on *path*; do what the *lines* say until one says stop."""
    if joins:
        server_module.find_cluster = lambda addresses, stopping: (joins, addresses[0])
        server_module.voters_at = lambda addresses, cluster, stopping: None
    tell("pid", os.getpid())
    subject = Subject(options_for(path, joins), threading.Event(), partial(tell, "failed"))
    subject.start()
    tell("done", None)
    for line in lines:
        name, *arguments = decoded(line)
        if name == "stop":
            break
        try:
            result = getattr(subject, name)(*arguments)
        except RaftdError as error:
            result = error
        tell("done", result)
    tell("stopping")
    subject.stop()
    tell("stopped")
    tell("done", None)


if __name__ == "__main__":
    prepare(sys.argv[3] if len(sys.argv) > 3 else None)
    try:
        serve(sys.argv[1], sys.argv[2], sys.stdin.buffer)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # its threads must not keep it alive
