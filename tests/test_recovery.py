"""What a node does when its files, its snapshots or its peers fail it: each test holds a defect that a review found."""

import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from cluster import RAFTD, Cluster, the_fault_lasts, wait_until
from raftd import cli, joining, wire
from raftd.config import Settings
from raftd.errors import (
    DamagedFiles, LeadershipLost, NoLeader, NoQuorum, PeerUnreachable, RaftdError, Refusal, StartupError, StorageFailed, Stopping,
)
from raftd.kv import KeyValueStore, Set, encode
from raftd.kv.snapshot import BadSnapshot
from raftd.raft.configuration import NOBODY, Member
from raftd.raft.core import Unsaved
from raftd.raft.messages import (
    COMMAND, AppendEntries, AppendEntriesReply, Entry, HardState, InstallSnapshot, ReadIndex, RequestVote, TimeoutNow,
)
from raftd.server import Server
from raftd.storage import Identity, Storage
from raftd.transport import Connection, Frames
from test_node import PATIENT, TINY, Group, MemorySnapshot, clients, depose, group, retries_soon  # noqa: F401, a fixture for all

SLOW_SECONDS = 1.0  # how long something takes that may be slow


# Files


def storage_with(directory, name="n1", entries=8):
    """A Storage, open, with term 7 and some entries in it."""
    storage = Storage.create(str(directory), Identity(name, f"id-{name}", "cluster"), NOBODY)
    storage.load()
    rows = tuple(Entry(index, 7, COMMAND, b"old") for index in range(1, entries + 1))
    storage.save(Unsaved(HardState(7, "b"), None, 1, rows))
    return storage


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def run_raftd(path, *flags):
    return subprocess.run([*RAFTD, "-p", "0", *flags, str(path)], capture_output=True, text=True, timeout=30)


ORPHANS = [("raft.db-wal",), ("state.db-wal",), ("state.db",), ("raft.db-wal", "state.db", "state.db-wal")]


@pytest.mark.parametrize("names", ORPHANS, ids="+".join)
def test_files_without_their_log_are_refused_in_one_line(tmp_path, names):
    """SQLite would apply an old write-ahead log to a new file: the term and vote of a server that is gone. As after ``rm PATH/*.db``."""
    crashed, path = tmp_path / "crashed", tmp_path / "path"
    crashed.mkdir(), path.mkdir()
    storage, state = storage_with(crashed), KeyValueStore(str(crashed))
    state.apply([(1, encode(Set("k", b"v")))], 1, 7, b"[]")
    for name in names:  # while both are open, as if the process had been killed
        shutil.copy(crashed / name, path / name)
    storage.close(), state.close()
    assert (path / names[0]).stat().st_size > 0
    before = contents(path)
    done = run_raftd(path)
    assert (done.returncode, done.stdout) == (1, "")
    complaints = [line for line in done.stderr.splitlines() if line.startswith("raftd: ")]
    assert len(complaints) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "no raft.db" in complaints[0] and names[0] in complaints[0]
    assert {name: data for name, data in contents(path).items() if name != "lock"} == before


def test_the_files_of_another_server_are_refused(tmp_path):
    """Under another name it would vote once more in terms in which it has voted."""
    storage_with(tmp_path).close()
    starting = Server(cli.parse(["-p", "0", "-name", "another", str(tmp_path)]), threading.Event(), pytest.fail)
    try:
        with pytest.raises(StartupError, match="are those of n1, not of another; a name cannot change"):
            starting.start()
    finally:
        starting.stop()
    with closing(Storage.open(str(tmp_path))) as storage:
        assert storage.load().hard_state == HardState(7, "b")


@pytest.mark.cluster
def test_a_state_of_another_cluster_is_refused(tmp_path):
    """It stands at an entry of the same index and term, but was reached with other members."""
    with Cluster(tmp_path, start=False) as cluster:
        one, other = cluster.new().start(), cluster.new().start()
        for server in (one, other):
            assert server.put("whose", server.name.encode()).status == 200
        for server in (one, other):
            assert server.terminate() == 0
        shutil.copy(other.path / "state.db", one.path / "state.db")
        one.start(wait=False)
        assert one.exit_status() == 1
        assert "a file was lost or exchanged" in one.log_of_this_start().splitlines()[-1]


@pytest.mark.cluster
def test_a_state_that_is_gone_is_not_replaced_by_an_empty_one(tmp_path):
    """The log does not go back to its beginning any more, so it cannot fill it."""
    with Cluster(tmp_path, start=False) as cluster:
        server = cluster.new().start()
        for number in range(40):
            assert server.put(f"large{number}", bytes(1 << 20), "?timeout=20s", timeout=25).status == 200
        wait_until(lambda: server.status()["snapshot_index"], "the log is compacted")
        assert server.terminate() == 0
        (server.path / "state.db").rename(tmp_path / "state.db")
        before = sorted(contents(server.path))
        for _ in range(2):
            server.start(wait=False)
            assert server.exit_status() == 1
            assert "state.db is missing" in server.log_of_this_start().splitlines()[-1]
            assert sorted(contents(server.path)) == before
        (tmp_path / "state.db").rename(server.path / "state.db")
        server.start()
        wait_until(lambda: server.get("large0").body == bytes(1 << 20), "nothing was lost")


@pytest.mark.cluster
def test_a_key_that_changed_on_the_disk_ends_the_server(tmp_path):
    """It would look missing, and no read would notice."""
    with Cluster(tmp_path, start=False) as cluster:
        server = cluster.new().start()
        for number in range(100):
            assert server.put(f"colour-{number:03d}", b"x" * 50).status == 200
        assert server.terminate() == 0
        data = (server.path / "state.db").read_bytes()
        assert b"colour-051" in data
        (server.path / "state.db").write_bytes(data.replace(b"colour-051", b"colour-0q1"))
        server.start(wait=False)
        assert server.exit_status() == 1
        last = server.log_of_this_start().splitlines()[-1]
        assert last.startswith("raftd: ") and "damaged" in last and "join it again" in last


@pytest.fixture
def start_that_fails(monkeypatch, capfd):
    """``start_that_fails(path)``: raftd, in this process, on *path*, with nobody to join, and less patience than it has."""
    def start(path):
        assert cli.main(["-p", "0", "-join", "127.0.0.1:1", str(path)]) == 1
        assert "nobody to join" in capfd.readouterr().err
    monkeypatch.setattr(joining, "PATIENCE_SECONDS", 0.3)
    return start


def test_each_start_reads_all_of_the_state(tmp_path, monkeypatch):
    """And what that finds is told to who ends the process."""
    damage, failures = DamagedFiles("state.db: damaged"), []

    def verify(self, pause):
        raise damage
    monkeypatch.setattr(KeyValueStore, "verify", verify)
    server = Server(cli.parse(["-p", "0", str(tmp_path / "n1")]), threading.Event(), failures.append)
    try:
        server.start()
    finally:
        server.stop()
    assert failures == [damage]


@pytest.mark.parametrize("where", ["path", "deep/down/path"])
def test_a_start_that_fails_leaves_no_directory(tmp_path, start_that_fails, where):
    start_that_fails(tmp_path / where)
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_leaves_the_files_of_others(tmp_path, start_that_fails):
    (tmp_path / "notes").write_text("mine")
    start_that_fails(tmp_path)
    assert contents(tmp_path) == {"notes": b"mine"}


def test_a_leftover_of_a_log_that_was_never_made_is_no_orphan(tmp_path):
    """A crash while the first files were made: the same command goes through the next time."""
    (tmp_path / "raft.db.new").write_bytes(b"half")
    (tmp_path / "raft.db.bak").write_bytes(b"mine")
    storage_with(tmp_path).close()
    assert (tmp_path / "raft.db.bak").read_bytes() == b"mine"
    assert not (tmp_path / "raft.db.new").exists()


@pytest.mark.parametrize("what", ["an older copy", "another server's", "nothing"])
def test_a_log_that_was_exchanged_is_not_opened_again(tmp_path, what):
    """An older copy may have forgotten a vote and entries that were acknowledged."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir(), other.mkdir()
    storage_with(mine).close()
    if what == "an older copy":
        shutil.copy(mine / "raft.db", other / "raft.db")
    else:
        storage_with(other, "n9").close()
    storage = Storage.open(str(mine))
    storage.load()
    storage.save(Unsaved(HardState(9, "c"), None, 9, (Entry(9, 9, COMMAND, b"acknowledged"),)))
    if what == "nothing":
        os.remove(mine / "raft.db")
    else:
        os.replace(other / "raft.db", mine / "raft.db")
    with pytest.raises(StorageFailed):
        storage.save(Unsaved(None, None, 10, ()))
    with pytest.raises(DamagedFiles):
        storage.reopen()
    storage.close()


def test_the_end_of_a_log_that_was_moved_away_does_not_go_into_another_file(tmp_path):
    """Its write-ahead log is still in its place: SQLite would move what is in it to whatever file has the name now."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir(), other.mkdir()
    storage_with(other, "n9").close()
    foreign = (other / "raft.db").read_bytes()
    storage = storage_with(mine)
    storage.save(Unsaved(HardState(9, "c"), None, 9, (Entry(9, 9, COMMAND, b"acknowledged"),)))
    os.rename(mine / "raft.db", tmp_path / "moved away")
    os.replace(other / "raft.db", mine / "raft.db")
    with pytest.raises(DamagedFiles, match="was exchanged while raftd had it open"):
        storage.reopen()
    storage.close()
    assert (mine / "raft.db").read_bytes() == foreign
    os.replace(tmp_path / "moved away", mine / "raft.db")
    storage = Storage.open(str(mine))
    assert (storage.load().hard_state, storage.load().entries[-1].command) == (HardState(9, "c"), b"acknowledged")
    storage.close()


def test_the_same_log_is_opened_again_after_a_failed_save(tmp_path):
    storage = storage_with(tmp_path)
    with pytest.raises(StorageFailed):
        storage.save(Unsaved(None, None, 9, (Entry(3, 9, COMMAND, b"that index is taken"),)))
    for _ in range(2):
        storage.reopen()
    assert (storage.load().hard_state, len(storage.load().entries)) == (HardState(7, "b"), 8)
    storage.close()


def test_a_node_whose_log_was_exchanged_ends():
    nodes = Group(1, PATIENT)
    try:
        nodes.leader()
        storage = nodes.storages["n1"]

        def reopen():
            raise DamagedFiles("raft.db was exchanged")
        storage.failure, storage.reopen = StorageFailed("exchanged"), reopen
        with pytest.raises(RaftdError):
            nodes[1].propose(b"a", 5)
        wait_until(lambda: nodes.failures, "it is reported")
        assert isinstance(nodes.failures[0], DamagedFiles)
    finally:
        nodes.stop()


# Snapshots to others


class Copies:
    """Makes the snapshots of *machine*, at the moment they are asked for; each is done when ``begun`` and ``allowed`` let it.

    ``changed(snapshot)`` may put something into the snapshot before it is given away.
    """

    def __init__(self, machine, changed=lambda snapshot: None):
        self._machine, self._changed, self.made = machine, changed, []
        self.begun, self.allowed = threading.Event(), threading.Event()
        self.allowed.set()
        machine.snapshot = self

    def __call__(self, go_on=lambda: None):
        snapshot = MemorySnapshot(self._machine)
        self.begun.set()
        while not self.allowed.wait(0.01):
            go_on()
        self.made.append(snapshot)
        self._changed(snapshot)
        return snapshot


def leave_behind(nodes, count=60):
    """(leader, a follower that is cut off and too far behind for the log)."""
    leader = nodes.leader()
    behind = nodes.followers(leader)[0]
    nodes.wires.cut(behind.name)
    for number in range(count):
        leader.propose(b"command %d" % number, 5)
    wait_until(lambda: leader.status()["snapshot_index"] > behind.status()["last_log_index"], "the log is compacted")
    return leader, behind


def test_writes_go_on_while_a_snapshot_is_made_and_the_log_is_kept_from_before_it():
    with group(settings=TINY) as nodes:
        leader, behind = leave_behind(nodes)
        copies = Copies(nodes.machines[leader.name])
        copies.allowed.clear()
        nodes.wires.cut()
        assert copies.begun.wait(10)
        longest = 0
        for number in range(40):  # four compactions
            began = time.monotonic()
            leader.propose(b"more %d" % number, 5)
            longest = max(longest, time.monotonic() - began)
        assert leader.status()["snapshot_index"] > 0
        copies.allowed.set()
        assert len(nodes.commands_everywhere()) == 100
        assert longest < 3, "a write has waited for the copy"
        assert len(copies.made) == 1, "the log did not lead on from the snapshot"
        assert nodes.machines[behind.name].position.installed_index == copies.made[0].index


def test_a_snapshot_is_given_up_when_it_is_too_old_to_lead_on():
    """The log is kept for it, but not without bound; and then another is made, rather than a useless one sent."""
    with group(settings=replace(TINY, keep_bytes=850)) as nodes:
        leader, behind = leave_behind(nodes)
        copies = Copies(nodes.machines[leader.name])
        copies.allowed.clear()
        nodes.wires.cut()
        assert copies.begun.wait(10)
        for number in range(200):  # more than 16 times as many bytes, with about 170 for each entry
            leader.propose(b"more %d" % number, 5)
        wait_until(lambda: leader.status()["last_log_index"] - leader.status()["snapshot_index"] < 120, "the log stays bounded")
        copies.allowed.set()
        assert len(nodes.commands_everywhere()) == 260
        assert len(copies.made) == 2
        assert nodes.machines[behind.name].position.installed_index == copies.made[1].index


@pytest.mark.parametrize("what", ["read", "close", "snapshot"])
def test_a_copy_that_cannot_be_made_read_or_removed_is_no_end_of_the_node(what):
    with group(settings=TINY) as nodes:
        leader, behind = leave_behind(nodes)
        failed = []

        def change(snapshot):
            original = getattr(snapshot, what, None)

            def refuse(*args):
                if len(failed) < 2 or what == "close":
                    failed.append(what)
                    raise StorageFailed("too many open files")
                return original and original(*args)
            if what == "snapshot":
                refuse()
            else:
                setattr(snapshot, what, refuse)
        Copies(nodes.machines[leader.name], change)
        term = leader.status()["term"]
        nodes.wires.cut()
        assert len(nodes.commands_everywhere()) == 60
        leader.propose(b"still", 5)
        wait_until(lambda: failed, "it has failed")
        assert nodes.failures == [] and leader.status()["term"] == term
        assert nodes.machines[behind.name].position.installed_index > 0


def test_a_copy_that_stays_unreadable_is_made_again():
    """Its file was removed, say. To offer the same one again and again, with no write to outdate it, helps nobody."""
    with group(settings=TINY) as nodes:
        leader, behind = leave_behind(nodes)
        broken = []

        def change(snapshot):
            def refuse(*_):
                raise StorageFailed("no such file")
            if not broken:
                broken.append(snapshot)
                snapshot.read = refuse
        Copies(nodes.machines[leader.name], change)
        nodes.wires.cut()
        wait_until(lambda: nodes.machines[behind.name].position.installed_index > 0, "the follower has another", 5)


def test_a_node_stops_soon_while_a_copy_is_made():
    with group(settings=TINY) as nodes:
        leader, _ = leave_behind(nodes)
        copies = Copies(nodes.machines[leader.name])
        copies.allowed.clear()
        nodes.wires.cut()
        assert copies.begun.wait(10)
        began = time.monotonic()
        leader.halt()
        assert time.monotonic() - began < 5


def test_a_real_copy_ends_when_it_is_given_up(tmp_path):
    store = KeyValueStore(str(tmp_path))
    try:
        for start in range(0, 1000, 100):
            batch = [(index, encode(Set(f"k{index}", bytes(10_000)))) for index in range(start + 1, start + 101)]
            store.apply(batch, start + 100, 1, b"[]")

        def stop():
            raise Stopping()
        with pytest.raises(Stopping):
            store.snapshot(stop)
        assert not list(tmp_path.glob("*outgoing*"))
        snapshot = store.snapshot()
        assert snapshot.index == 1000
        snapshot.close()
    finally:
        store.close()


# Snapshots from others


def test_a_snapshot_that_is_being_installed_is_asked_about_seldom_and_sent_once():
    with group(settings=TINY) as nodes:
        leader, behind = leave_behind(nodes)
        copies, machine = Copies(nodes.machines[leader.name]), nodes.machines[behind.name]
        install, asked, sent, took, installing = machine.install, [], [], [], threading.Event()

        def slow(incoming):
            machine._incoming = None  # as the real one does: it is used up
            began = time.monotonic()
            installing.set()
            the_fault_lasts.wait(SLOW_SECONDS)
            installing.clear()
            took.append(time.monotonic() - began)
            install(incoming)

        def count(sender, receiver, request):
            if isinstance(request, InstallSnapshot):
                sent.append(len(request.data))
                if installing.is_set():
                    asked.append(request)
        machine.install, nodes.wires.lose = slow, count
        assert len(nodes.commands_everywhere()) == 60
        assert len(copies.made) == 1 and sum(sent) == copies.made[0].size
        assert 0 < len(asked) < took[0] / (TINY.rpc_timeout_seconds / 2) + 3, "the leader asks again and again"
        leader.propose(b"still", 5)


@pytest.mark.parametrize("error", [BadSnapshot("more than was announced"), StorageFailed("no room"), Stopping()], ids=str)
def test_a_chunk_that_cannot_be_stored_leaves_no_answer_behind_and_one_line_in_the_log(caplog, error):
    """The leader sends it again ten times a second, for as long as the disk is full."""
    caplog.set_level("INFO")
    with group() as nodes:
        leader = nodes.leader()
        follower = nodes.followers(leader)[0]

        def refuse(*_):
            raise error
        nodes.machines[follower.name].receive = refuse
        for offset in range(5):
            with pytest.raises(Refusal):
                follower.handle(leader.name, 0, InstallSnapshot(leader.status()["term"], leader.name, 500, 1, 10, b"h", offset, b"x"))
        assert not [answer for answer in follower.look(lambda raft: list(raft._answers)) if isinstance(answer.request, InstallSnapshot)]
        assert sum("a chunk of a snapshot cannot be stored" in record.getMessage() for record in caplog.records) == 1
        leader.propose(b"still", 5)


# Calls that are interrupted


class Deaf:
    """n2: takes connections, agrees to each, answers the first request, and then neither reads nor answers any more."""

    def __init__(self):
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.member = Member("n2", f"127.0.0.1:{self._listening.getsockname()[1]}")
        self.connections = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        try:
            first, _ = self._listening.accept()
            self.connections.append(first)
            first.recv(8192)
            first.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            Frames(first).receive()
            first.sendall(wire.encode(AppendEntriesReply(1, True, 0), 0))
            while True:
                self.connections.append(self._listening.accept()[0])
        except OSError:
            pass

    def close(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(5)
        for connection in self.connections:
            connection.close()


@pytest.fixture
def deaf():
    peer = Deaf()
    yield peer
    peer.close()


HEARTBEAT = AppendEntries(1, "n1", 0, 0)
LARGE = AppendEntries(1, "n1", 0, 0, (Entry(1, 1, COMMAND, bytes(16 << 20)),))


@pytest.mark.parametrize("request_", [HEARTBEAT, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("connected", [True, False], ids=["open", "new"])
def test_an_interrupted_call_ends_at_once_and_so_do_those_after_it(deaf, request_, connected):
    """A peer that is stopped still has its kernel take connections and bytes. The time for a large frame is long."""
    connection = Connection(replace(Settings(), rpc_timeout_seconds=0.4 if connected else 20, election_timeout_seconds=30),
                            lambda member: {}, "data", lambda *_: None)
    connection.call(deaf.member, HEARTBEAT, 0)
    if not connected:
        connection.close()
    connection._settings = replace(connection._settings, rpc_timeout_seconds=20)
    with clients(1) as pool:
        call = pool.submit(connection.call, deaf.member, request_, 0)
        with pytest.raises(TimeoutError):
            call.result(0.3)
        began = time.monotonic()
        connection.interrupt()
        with pytest.raises(PeerUnreachable):
            call.result(10)
        for later in (request_, HEARTBEAT):
            with pytest.raises(PeerUnreachable):
                connection.call(deaf.member, later, 0)
        assert time.monotonic() - began < 10
    connection.close()


# Leaders that change, reads that fail


def test_a_proposal_of_a_new_leadership_does_not_die_with_those_of_the_old_one():
    """It leads, is deposed with a write under way, and leads again, all within an election timeout. No entry passes until then."""
    settings = replace(PATIENT, election_timeout_seconds=2)
    with clients(2) as pool, group(settings=settings) as nodes:
        leader = nodes.leader()
        wait_until(lambda: len({node.status()["last_log_index"] for node in nodes.nodes.values()}) == 1, "any of them could lead")
        lost = True
        nodes.wires.lose = lambda sender, receiver, request: "request" if lost and getattr(request, "entries", ()) else None
        last = leader.status()["last_log_index"]
        old = pool.submit(leader.propose, b"old", 20)
        wait_until(lambda: leader.status()["last_log_index"] > last, "it is in the log")
        successor = nodes.followers(leader)[0]
        deposed = time.monotonic()
        depose(nodes, leader, successor)
        wait_until(lambda: leader.leader() and leader.leader()["name"] == successor.name, "it knows")
        leader.handle(successor.name, 0, TimeoutNow(successor.status()["term"], successor.name))
        wait_until(lambda: leader.status()["role"] == "leader", "it leads again")
        index = leader.status()["last_log_index"]
        new = pool.submit(leader.propose, b"new", 20)
        wait_until(lambda: leader.status()["last_log_index"] > index, "it is in the log")
        assert time.monotonic() - deposed < settings.election_timeout_seconds, "too late to be what this test is about"
        with pytest.raises(LeadershipLost):
            old.result()  # an election timeout after it was deposed, nobody has said what becomes of it
        lost = False
        assert new.result().result == b"NEW"
        assert nodes.commands_everywhere() == [b"old", b"new"]


def test_reads_that_fail_are_asked_again_with_pauses():
    """Its leader leads no longer and there is no other: each attempt fails at once, and must not be one of thousands."""
    with clients(4) as pool, group() as nodes:
        leader = nodes.leader()
        follower = nodes.followers(leader)[0]
        follower.read(None)
        nodes.wires.lose = lambda sender, receiver, request: "request" if isinstance(request, RequestVote) else None
        nodes.machines[leader.name].failure = StorageFailed("no room")
        with pytest.raises(StorageFailed):
            leader.propose(b"a", 5)
        before, began = nodes.wires.carried[ReadIndex], time.monotonic()
        for read in [pool.submit(follower.read, None, timeout=1.5) for _ in range(4)]:
            with pytest.raises((NoLeader, NoQuorum)):
                read.result()
        asked, rounds = nodes.wires.carried[ReadIndex] - before, (time.monotonic() - began) / PATIENT.heartbeat_seconds
        assert 0 < asked <= 4 * (rounds + 1)
        nodes.machines[leader.name].failure = None
        nodes.wires.cut()
        nodes.next_leader()


def test_a_stop_removes_no_files_of_a_server_that_has_run(tmp_path):
    """Not even in a directory that this very process made, and although its log is gone: the state may be all that is left."""
    with Cluster(tmp_path, size=1) as cluster:
        server = cluster[1]
        assert server.put("key", b"value").status == 200
        (server.path / "raft.db").rename(tmp_path / "elsewhere")
        server.terminate()
        assert (server.path / "state.db").exists()
