"""Joins the parts to a process: files, node, port, signals; and the order in which they start and stop."""

import gc
import logging
import os
import re
import secrets
import signal
import socket
import threading
from contextlib import suppress

from raftd import __version__, listener, promised
from raftd.config import is_name
from raftd.errors import REPLACE_NODE, DamagedFiles, Refusal, StartupError, Stopping, StorageFailed
from raftd.expiry import Expiry
from raftd.joining import NO_MEMBER, Joiner, find_cluster, voters_at
from raftd.kv import KeyValueStore
from raftd.node import Node
from raftd.raft.configuration import NOBODY, Configuration, Member
from raftd.sqlitefile import present, sync_directory
from raftd.storage import DirectoryLock, Identity, Storage, new_id
from raftd.transport import PeerServer, Transport
from raftd.web import create_app

log = logging.getLogger(__name__)

HAND_OVER_SECONDS = 1.0
NEW_OBJECTS_BETWEEN_LOOKS = 20_000
PAUSE_SECONDS = 0.005  # between the steps in which the state is verified
_OUR_FILES = re.compile(r"(raft|state)\.db(-wal|-shm|-journal|\.new)?|state\.db\.(incoming|outgoing)-[0-9]+(-journal)?|raft\.promised")


def run(options):
    """Run a node as *options* (``cli.Options``) say, until SIGTERM or SIGINT; returns the exit status. Raises StartupError."""
    stopping, alarm, signals, failures = threading.Event(), Alarm(), [], []

    def stop(number, _):
        signals.append(number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    def fail(error):
        failures.append(error)
        stopping.set()
        alarm.wake()

    server = Server(options, stopping, fail)
    try:
        server.start()
        _look_for_cycles_seldom()
        alarm.sleep_until(stopping)
        if signals:
            log.info("stopping signal=%s", signal.Signals(signals[0]).name)
    except StartupError as error:
        if not signals and not failures:
            raise
        log.warning("stopped before the start was complete: %s", error)
    finally:
        server.stop()
    if failures:
        raise failures[0]
    log.info("stopped")
    return 0


def _look_for_cycles_seldom():
    """Python looks for garbage in cycles after every 700 new objects: a batch of writes is thousands, none of them in a cycle."""
    gc.collect()
    gc.freeze()  # what a server is made of stays
    gc.set_threshold(NEW_OBJECTS_BETWEEN_LOOKS, *gc.get_threshold()[1:])


class Alarm:
    """Wakes the main thread: at every signal, and by ``wake``.

    The system gives a signal to any thread, and Python runs its handler in the main thread when that next does something. While it
    waits for an Event it does nothing, and would sleep through a signal that another thread was given.
    """

    def __init__(self):
        self._sleeper, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)

    def wake(self):
        with suppress(BlockingIOError):  # full: it is awake already
            self._waker.send(b"\0")

    def sleep_until(self, event):
        while not event.is_set():
            self._sleeper.recv(4096)


class DataPath:
    """The directory of one server: made if it is not there, locked, and taken back by ``close`` if it is new and was not kept.

    Raises StartupError when it cannot be used, DamagedFiles when a part of it is missing.
    """

    def __init__(self, path):
        self.path = path
        try:
            self._made = _make_directories(os.path.abspath(path))
            self._lock = DirectoryLock(path)
            try:
                self.is_new = not Storage.exists(path)
                self._keep = not self.is_new
                if self.is_new:
                    self._check_empty()
            except BaseException:
                self._lock.release()
                raise
        except (FileExistsError, NotADirectoryError):
            raise StartupError(f"{path} is not a directory; raftd needs one of its own") from None
        except OSError as error:
            raise StartupError(f"{path} cannot be used: {error.strerror}") from error

    def _check_empty(self):
        """Nothing of a server whose log is gone: SQLite would even apply an old WAL to a new file."""
        orphans = [name for name in (promised.NAME, "raft.db-wal", "raft.db-journal", "state.db", "state.db-wal") if self._holds(name)]
        if orphans:
            raise DamagedFiles(f"{self.path} has {' and '.join(orphans)} but no raft.db, so the log is lost; {REPLACE_NODE}")
        if self._holds("log") and self._holds("conf"):
            raise StartupError(f"{self.path} holds data of the original raftd, which this one cannot read; choose another data path")

    def _holds(self, name):
        return present(os.path.join(self.path, name))

    def keep(self):
        """From now on somebody may rely on the files."""
        self._keep = True

    def take_back(self):
        """The start has failed and nobody relies on the files after all, if they are new."""
        self._keep = not self.is_new

    def close(self):
        if not self._keep:
            for name in sorted(os.listdir(self.path), key="raft.db".__eq__):  # that last: without it the others are orphans
                if _OUR_FILES.fullmatch(name):
                    os.remove(os.path.join(self.path, name))
            for directory in reversed(self._made):
                with suppress(OSError):  # somebody else has put something there
                    os.rmdir(directory)
        self._lock.release()


def _make_directories(path):
    """Make the directory *path*, and those above it, durably; returns those that were not there, the outermost first."""
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return []
    except FileNotFoundError:
        made = _make_directories(os.path.dirname(path))
        os.mkdir(path)
    else:
        made = []
    sync_directory(path)
    return [*made, path]


class Server:
    """A node with its files and its port. *stopping* ends a start that takes long; *fail* is told what ends the node."""

    def __init__(self, options, stopping, fail):
        self._options, self._stopping, self._fail = options, stopping, fail
        self._closers = []  # what stop() calls, the last first
        self._node, self._threads = None, []  # those that end by themselves once ``stopping`` is set
        self._must_join = self._never_joined = False

    def start(self):
        """Everything up to ``Listening at``. Raises StartupError; then ``stop`` cleans up."""
        options = self._options
        listening = listener.bind(options.bind, options.port)
        self._closers.append(listening.close)
        self._address = f"{options.host}:{listening.getsockname()[1]}"
        self._data = DataPath(options.path)
        self._closers.append(self._data.close)
        log.info("Initializing Raft Server: %s", options.path)
        state = self._start_node(self._open_storage())
        log.info("Initializing HTTP server")
        app = create_app(self._node, __version__)
        self._data.keep()
        serving = listener.Listener(listening, app, self._peers, self._node)
        self._transport.watch = serving.watch
        self._closers.append(serving.start().stop)
        self._closers.append(Expiry(self._node).start().stop)
        self._become_member()
        log.info("Listening at: http://%s", self._address)
        self._run("state-check", self._verify_state, state)

    def stop(self):
        """Answer what is in flight, hand leadership over, close port and files."""
        self._stopping.set()
        if self._node:
            self._node.drain(HAND_OVER_SECONDS)
            self._node.hand_over(HAND_OVER_SECONDS)
            self._node.halt()  # whoever still waits is told so
        while self._closers:
            self._closers.pop()()
        for thread in self._threads:
            thread.join()

    def _run(self, name, target, *args):
        thread = threading.Thread(target=target, args=args, name=name)
        self._threads.append(thread)
        thread.start()

    # Files

    def _open_storage(self):
        storage = self._create() if self._data.is_new else self._recover()
        self._closers.append(storage.close)
        return storage

    def _create(self):
        options = self._options
        name = options.name or secrets.token_hex(4)[:7]
        if options.join:
            cluster, found_at = find_cluster(options.join, self._stopping)
            log.info("Attempting to join leader: %s", found_at)
            self._must_join = True
            return Storage.create(options.path, Identity(name, new_id(), cluster), NOBODY)
        identity = Identity(name, new_id(), new_id())
        first = Member(name, self._address, True, identity.id)
        storage = Storage.create(options.path, identity, Configuration({name: first}))
        log.info("Initializing new cluster")
        return storage

    def _recover(self):
        options, storage = self._options, Storage.open(self._options.path)
        identity = storage.identity
        if options.name not in (None, identity.name):
            storage.close()
            raise StartupError(f"the files in {options.path} are those of {identity.name}, not of {options.name}; a name cannot change")
        voters = voters_at(options.join, identity.cluster, self._stopping) if options.join else None
        self._must_join = voters is not None and identity.name not in voters
        return storage

    # The node

    def _start_node(self, storage):
        options, identity = self._options, storage.identity
        saved = storage.load()
        self._never_joined = not saved.base.configuration.members and not saved.entries
        if self._never_joined and not options.join:
            raise StartupError(f"the node in {options.path} has not joined its cluster yet; start it with -join HOST:PORT")
        self._must_join = self._must_join or self._never_joined
        state = KeyValueStore(options.path, may_create=not saved.base.index)
        self._closers.append(state.close)
        self._transport = Transport(options.settings, self._hello)
        self._node = Node(identity.name, self._address, storage, self._transport, state, options.settings, self._fail)
        self._closers.append(self._node.stop)
        self._peers = PeerServer(self._admit, self._node.handle, self._node.connection_lost)
        if not self._data.is_new:
            log.info("Recovered from log")
        log.info("this node name=%s cluster=%s term=%s last_index=%s", identity.name, identity.cluster, saved.hard_state.term,
                 saved.base.index + len(saved.entries))
        self._node.start()
        return state

    def _verify_state(self, state):
        """Reads notice a value that has changed on the disk, but not a key: so all is read once, little by little."""
        try:
            state.verify(self._pause)
        except DamagedFiles as error:
            self._fail(error)
        except Stopping:
            pass
        except StorageFailed as error:
            log.warning("the state could not be verified, and is not before the next start error=%s", error)

    def _pause(self):
        if self._stopping.wait(PAUSE_SECONDS):
            raise Stopping()

    def _hello(self, member):
        """How this server introduces itself to a peer; ``_admit`` is the other end."""
        index = self._node.look(lambda raft: raft.configurations.latest_index)
        return {"Raft-Cluster": self._node.cluster, "Raft-From": self._node.name, "Raft-To": member.name, "Raft-To-Id": member.id,
                "Raft-Configuration": index}

    def _admit(self, fields):
        identity = self._node.identity()
        if fields.get("raft-cluster") != identity["cluster"]:
            raise Refusal("this server belongs to another cluster")
        if (fields.get("raft-to"), fields.get("raft-to-id")) != (identity["name"], identity["id"]):
            raise Refusal(f"this server is {identity['name']}, with other files than those of {fields.get('raft-to')}")
        sender, index = fields.get("raft-from", ""), fields.get("raft-configuration", "")
        if not is_name(sender) or not re.fullmatch(r"[0-9]{1,19}", index):
            raise Refusal("the peer does not say who it is")
        self._node.admit(sender, int(index))
        return sender

    # Membership

    def _become_member(self):
        node, options = self._node, self._options
        known = node.look(lambda raft: raft.configuration.members)
        if self._must_join:
            self._join()
        elif node.name in known and known[node.name].address != self._address:
            others = [member.address for member in known.values() if member.name != node.name]
            joiner = self._joiner([*others, self._address])
            self._run("announcer", joiner.announce, node.cluster)
        elif node.name not in known:
            log.warning(NO_MEMBER)
        elif options.join:
            log.info("already a member of the cluster, -join is not needed")

    def _joiner(self, addresses):
        identity = self._node.identity()
        return Joiner(identity["name"], identity["id"], self._address, addresses, self._stopping)

    def _join(self):
        """When a first join fails, the files go only if the cluster does not count this node, or forgets it."""
        joiner = self._joiner(self._options.join)
        try:
            joiner.join()
        except StartupError as error:
            if self._never_joined and joiner.may_be_in and not joiner.withdraw():
                raise StartupError(f"{error}; the cluster may have taken this node in, so its files are kept: run the same command "
                                   "again") from error
            if self._never_joined:
                self._data.take_back()
            raise
