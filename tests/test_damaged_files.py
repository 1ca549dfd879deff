"""The files of a server that was killed are damaged, one way after the other; then it is started.

It must notice, at the start or when it reads all of its state soon after, and say so in one line; or nothing that it promised may be
missing. What was damaged is never served, and no vote is cast twice (faults 46 to 51). How the others repair a server by a new one is in
``test_cluster_faults``; the damages of single rows in ``test_storage`` and ``test_kv_store``.
"""

import os
import random
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from crashes.driver import CLUSTER, Driver, Ended, Process
from crashes.enumeration import scratch_directory
from crashes.knowledge import Knowledge
from crashes.reopen import reopen
from crashes.subject import ADDRESS, NAME
from raftd.kv import BadSnapshot, Get, KeyValueStore, Set, encode
from raftd.raft.configuration import Configuration, Member
from raftd.raft.core import Unsaved
from raftd.raft.messages import COMMAND, Entry, HardState
from raftd.storage import Identity, Storage

FLIPS = 200  # in each file
FILES = ("raft.db", "raft.db-wal", "raft.promised", "state.db", "state.db-wal")

pytestmark = pytest.mark.timeout(300)


class Killed:
    """A server that has been through a lot and was killed: its files in ``path``, what it had promised in ``knowledge``."""

    def __init__(self, directory, seed):
        rng, self.path, self._scratch = random.Random(seed), directory / f"killed-{seed}", directory
        self.knowledge = Knowledge({})
        self.is_alone = seed % 2 == 0
        driver = Driver(rng, self.knowledge, "" if self.is_alone else CLUSTER)
        process = Process(self.path, self.knowledge, driver.joins)
        try:
            driver.run(process, 25)
            process.end_after(rng.randrange(20), Process.kill)
            while True:
                driver.step(process)
        except Ended:
            self.knowledge.cut()
        finally:
            process.close()

    def size(self, name):
        return (self.path / name).stat().st_size if (self.path / name).exists() else 0

    def verdict(self, damage):
        """What the server says once ``damage(path)`` has been done to a copy of its files: why it is refused, or "" if all is there."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as directory:
            path = Path(directory) / "data"
            shutil.copytree(self.path, path)
            damage(path)
            found = reopen(path, verify=True)
        if found.refused:
            assert "\n" not in found.refused and ".db" in found.refused, found.refused
            return found.refused
        problems = self.knowledge.problems(found, damaged=True)
        assert problems == [], problems
        return ""


@pytest.fixture(scope="module", params=[4, 1], ids=["alone", "one of three"])
def killed(request):
    with scratch_directory() as scratch:
        yield Killed(Path(scratch), request.param)


@pytest.fixture(scope="module")
def other(killed):
    """Of another cluster: it has other members."""
    with scratch_directory() as scratch:
        yield Killed(Path(scratch), seed=7 if killed.is_alone else 6)


def flip(path, rng):
    """One bit, anywhere."""
    with open(path, "r+b") as file:
        file.seek(at := rng.randrange(path.stat().st_size))
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))


def all_in_the_file(path):
    """Else it depends on when the server was killed whether raft.db has a page that is in use, and not in its WAL."""
    with closing(sqlite3.connect(path / "raft.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def test_undamaged_files_have_all_that_was_promised(killed):
    """Else the other tests here would say nothing."""
    assert killed.verdict(lambda path: None) == killed.verdict(all_in_the_file) == ""
    assert killed.size("raft.db-wal") > 0 and killed.knowledge.logs[-1].entries


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere(killed, name):
    rng, refused = random.Random(name), 0
    if not killed.size(name):
        assert name == "state.db-wal", "emptied by the last checkpoint, and nothing was applied since"
        return
    for _ in range(FLIPS):
        refused += bool(killed.verdict(lambda path: (all_in_the_file(path) if name == "raft.db" else None, flip(path / name, rng))))
    assert bool(refused) is (name != "raft.promised") or name == "state.db-wal", "what that loses is in the log of entries"


def cut(size):
    def damage(path):
        os.truncate(path, size(path.stat().st_size))
    return damage


CUTS = {"a byte less": cut(lambda size: size - 1), "half": cut(lambda size: size // 2), "empty": cut(lambda size: 0), "gone": os.remove}


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short_or_gone(killed, name, how):
    if not killed.size(name):
        return
    refused = killed.verdict(lambda path: CUTS[how](path / name))
    if name in ("raft.db", "state.db") and how in ("empty", "gone"):
        assert refused


def killed_with(directory, saved, applied, voted_for="n2"):
    """The files of a server that was killed with so many entries saved and applied, nothing of it moved out of the write-ahead logs."""
    directory.mkdir()
    members = Configuration({NAME: Member(NAME, ADDRESS)})
    storage = Storage.create(str(directory), Identity(NAME, "id-n1", CLUSTER), members)
    storage.load()
    state = KeyValueStore(str(directory))
    storage.save(Unsaved(HardState(3, None), None, 1, ()))
    for index in range(1, saved + 1):
        storage.save(Unsaved(None, None, index, (Entry(index, 3, COMMAND, encode(Set(f"key{index}", b"value"))),)))
    for index in range(1, applied + 1):
        state.apply([(index, encode(Set(f"key{index}", b"value")))], index, 3, members.encode())
    storage.save(Unsaved(HardState(4, voted_for), None, saved + 1, ()))
    left = directory.with_name(f"{directory.name}-killed")
    shutil.copytree(directory, left)
    storage.close(), state.close()
    return left


@pytest.mark.parametrize("how", ["half", "empty", "gone"])
def test_a_log_that_has_lost_what_was_applied(tmp_path, how):
    """SQLite goes on without a word when its end is missing. But what was promised is known, and where the state stands."""
    path = killed_with(tmp_path / "data", saved=40, applied=30)
    assert reopen(str(path)).log.last_index == 40
    for name, said in (("again", "term 4 was in it and is not"), ("unsaid", "a file was lost or exchanged")):
        path = killed_with(tmp_path / name, saved=40, applied=30)
        CUTS[how](path / "raft.db-wal")
        if name == "unsaid":
            (path / "raft.promised").unlink()
        for _ in range(2):
            assert said in reopen(str(path)).refused


def test_the_log_of_another_moment_is_refused(tmp_path):
    """An older copy of raft.db alone; it has forgotten a vote, and the state is ahead of it."""
    older = killed_with(tmp_path / "older", saved=20, applied=5, voted_for=None)
    path = killed_with(tmp_path / "data", saved=40, applied=30)
    for name in ("raft.db", "raft.db-wal"):
        shutil.copy(older / name, path / name)
    assert "raft.db: the vote of term 4 was in it and is not" in reopen(str(path)).refused


def test_the_state_of_another_moment_is_brought_up_by_the_log(tmp_path):
    """An older copy of state.db alone is no harm as long as the log has all that it lacks."""
    older = killed_with(tmp_path / "older", saved=20, applied=5)
    path = killed_with(tmp_path / "data", saved=40, applied=30)
    for name in ("state.db", "state.db-wal"):
        shutil.copy(older / name, path / name)
    found = reopen(str(path))
    assert not found.refused and found.position.index == 5 and found.log.last_index == 40 and len(found.rows) == 5


@pytest.mark.parametrize("names", [("raft.db", "raft.db-wal"), ("state.db", "state.db-wal"), ("raft.db",), ("state.db",)], ids="+".join)
def test_files_of_another_server_are_refused(killed, other, names):
    def exchange(path):
        for name in names:
            (path / name).unlink(missing_ok=True)
            if (other.path / name).exists():
                shutil.copy(other.path / name, path / name)
    assert killed.verdict(exchange)


@pytest.mark.slow
def test_a_flipped_bit_in_a_copy_on_its_way_is_noticed(tmp_path):
    """In any chunk: the copy is not taken for the state, and none of it is used."""
    leader, follower, rng = KeyValueStore(made(tmp_path / "leader")), KeyValueStore(made(tmp_path / "follower")), random.Random(7)
    batch = [(index, encode(Set(f"key{index}", rng.randbytes(100)))) for index in range(1, 200)]
    leader.apply(batch, 199, 1, b"[]")
    follower.apply([(1, encode(Set("own", b"old")))], 1, 1, b"[]")
    snapshot = leader.snapshot()
    data = snapshot.read(0, snapshot.size)
    for _ in range(FLIPS):
        incoming = follower.receive(snapshot.index, snapshot.term, snapshot.size, snapshot.sha256)
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        for start in range(0, len(data), 4000):
            incoming.write(start, flipped[start:start + 4000])
        with pytest.raises(BadSnapshot, match="SHA-256"):
            follower.install(incoming)
        assert (follower.position.index, follower.read(Get("own")).value) == (1, b"old")
    leader.close(), follower.close()


def made(path):
    path.mkdir()
    return str(path)
