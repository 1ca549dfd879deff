"""raft.promised: a server that has lost what it promised says so; one that has lost nothing is never refused."""

import os
import random
import shutil

import pytest

from raftd.errors import DamagedFiles, StorageFailed
from raftd.promised import NAME, Said
from raftd.raft.core import Base, Unsaved
from raftd.raft.messages import HardState
from raftd.storage import Storage
from test_storage import IDENTITY, ONE, entries, opened


def refusal(directory):
    """Why the files are refused, the same each time; None if they are not."""
    said = []
    for _ in range(2):
        try:
            with opened(directory) as (_, saved):
                said.append(None)
        except DamagedFiles as error:
            said.append(str(error))
    assert said[0] == said[1] and (said[0] is None or len(said[0].splitlines()) == 1)
    return said[0]


SAVES = {
    "term 2": Unsaved(HardState(2, None), None, 4, ()),
    "the vote of term 1": Unsaved(HardState(1, "n2"), None, 4, ()),
    "entry 4": Unsaved(None, None, 4, entries(1, first=4)),
    "term 2, and entry 3 with it": Unsaved(HardState(2, "n2"), None, 3, entries(2, first=3)),
    "entry 9": Unsaved(None, Base(9, 1, ONE), 10, ()),
}
LOSSES = {"gone": os.remove, "emptied": lambda wal: os.truncate(wal, 0), "cut short": lambda wal: os.truncate(wal, wal.stat().st_size - 1)}


@pytest.fixture
def killed(tmp_path):
    """``killed(unsaved)``: the files of a server that was killed when that was saved, after three entries of term 1."""
    def killed(unsaved):
        with opened(tmp_path / "data", create=True) as (storage, _):
            storage.save(Unsaved(HardState(1, None), None, 1, entries(1, 1, 1)))
            storage.reopen()  # so much is in the main file
            storage.load()
            storage.save(Unsaved(HardState(1, None), None, 4, ()))
            storage.save(unsaved)
            return shutil.copytree(tmp_path / "data", tmp_path / "killed")
    (tmp_path / "data").mkdir()
    return killed


@pytest.mark.parametrize("how", LOSSES)
@pytest.mark.parametrize("promise", SAVES)
def test_a_write_ahead_log_that_has_lost_what_was_promised(killed, promise, how):
    path = killed(SAVES[promise])
    whole = shutil.copytree(path, path.with_name("whole"))
    LOSSES[how](path / "raft.db-wal")
    lost = refusal(path)
    assert lost and "join it again with an empty data path" in lost
    assert f"raft.db: {promise.partition(',')[0]} was in it and is not" in lost
    assert refusal(whole) is None


def test_entries_that_were_overwritten_by_others_are_not_taken_for_them(killed):
    """As many as before, of another term; the term of the server is the same."""
    path = killed(Unsaved(None, None, 3, entries(0, first=3)))
    assert refusal(shutil.copytree(path, path.with_name("whole"))) is None
    os.remove(path / "raft.db-wal")
    assert "entry 3 was in it and is not" in (refusal(path) or "")


def test_what_stays_is_missed_while_what_comes_after_it_is_overwritten(tmp_path):
    """Killed between the line and the save, or while no save succeeds: the entries before are promised as ever."""
    (tmp_path / "data").mkdir()
    with opened(tmp_path / "data", create=True) as (storage, _):
        storage.save(Unsaved(HardState(1, None), None, 1, entries(1)))
        storage.reopen()
        storage.load()
        storage.save(Unsaved(None, None, 2, entries(1, 1, 1, 1, first=2)))
        storage._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StorageFailed):
            storage.save(Unsaved(HardState(2, None), None, 4, entries(2, first=4)))
        killed = shutil.copytree(tmp_path / "data", tmp_path / "killed")
        whole = shutil.copytree(killed, tmp_path / "whole")
    os.remove(killed / "raft.db-wal")
    assert refusal(whole) is None and "raft.db: entry 3 was in it and is not" in (refusal(killed) or "")


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo], ids=["a directory", "a pipe"])
def test_a_line_that_cannot_be_one_is_named(tmp_path, make):
    Storage.create(tmp_path, IDENTITY, ONE).close()
    (tmp_path / NAME).unlink()
    make(tmp_path / NAME)
    with pytest.raises(StorageFailed, match="raft.promised: "):
        Storage.open(tmp_path)


def test_a_save_that_fails_promises_nothing(tmp_path):
    with opened(tmp_path, create=True) as (storage, _):
        storage.save(Unsaved(HardState(1, None), None, 1, entries(1)))
        before = (tmp_path / NAME).read_bytes()
        storage._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StorageFailed):
            storage.save(Unsaved(HardState(2, "n1"), None, 2, entries(2, first=2)))
        assert (tmp_path / NAME).read_bytes() == before
        storage.reopen()
        assert storage.load().hard_state == HardState(1, None)
    assert refusal(tmp_path) is None


def test_an_older_raft_db_alone_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with opened(tmp_path / "data", create=True) as (storage, _):
        storage.save(Unsaved(HardState(1, None), None, 1, ()))
    older = shutil.copytree(tmp_path / "data", tmp_path / "older")
    with opened(tmp_path / "data") as (storage, _):
        storage.save(Unsaved(HardState(1, "n3"), None, 1, ()))
    assert refusal(tmp_path / "data") is None and refusal(older) is None
    shutil.copy(older / "raft.db", tmp_path / "data")
    assert "the vote of term 1 was in it and is not" in (refusal(tmp_path / "data") or "")


@pytest.mark.parametrize("line", [b"", b"x" * 200, bytes(range(256)), b"\xff" * 160, b"f" * 32 + b" 9 1 9 9 00000000\n"], ids=range(5))
def test_a_line_that_is_damaged_says_nothing_and_is_written_anew(tmp_path, line):
    with opened(tmp_path, create=True) as (storage, _):
        storage.save(Unsaved(HardState(3, "n2"), None, 1, entries(1, 2)))
    good = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(line)
    assert refusal(tmp_path) is None
    assert (tmp_path / NAME).read_bytes()[:160] == good
    (tmp_path / NAME).unlink()
    assert refusal(tmp_path) is None
    assert (tmp_path / NAME).read_bytes() == good and good.endswith(b"\n") and len(good) == 160


def test_any_flipped_bit_of_the_line_is_noticed(tmp_path):
    with opened(tmp_path, create=True) as (storage, _):
        storage.save(Unsaved(HardState(3, "n2"), None, 1, entries(1, 2)))
    good = (tmp_path / NAME).read_bytes()
    length = len(good.rstrip())
    for bit in range(8 * length):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / NAME).write_bytes(flipped)
        storage = Storage.open(tmp_path)
        said = storage._promised.said
        storage.close()
        assert said in (Said(), Said(3, True, 2, 2)), bit


def test_the_line_of_other_files_is_refused(tmp_path):
    """A raft.db was exchanged for that of another server: with nothing applied yet, nothing else would tell."""
    with opened(tmp_path, create=True) as (storage, _):
        storage.save(Unsaved(HardState(3, "n2"), None, 1, entries(1, 2)))
    line = (tmp_path / NAME).read_bytes()
    (tmp_path / "new").mkdir()
    Storage.create(tmp_path / "new", IDENTITY._replace(id="e" * 32), ONE).close()
    (tmp_path / "new" / NAME).write_bytes(line)
    assert "is that of another server than the raft.db beside it" in refusal(tmp_path / "new")
    (tmp_path / "new" / NAME).unlink()
    assert refusal(tmp_path / "new") is None


class Recorder:
    """Saves at random, and keeps after each the files (as WAL and all) and, of the line, which could come back after a power cut."""

    def __init__(self, rng, directory, monkeypatch):
        self.rng, self.directory, self.states = rng, directory, []
        self.term, self.voted_for, self.base, self.terms = 0, None, 0, []  # terms of the entries after base
        monkeypatch.setattr(os, "fdatasync", self._synced)
        self.lines, self.taken_back = [], None  # those that a sync has made impossible are gone

    def _synced(self, descriptor):
        self.lines, self.taken_back = [], (self.directory / NAME).read_bytes()

    def _random_save(self):
        rng, last = self.rng, self.base + len(self.terms)
        kind = rng.choice(["term", "vote", "append", "append", "append", "overwrite", "overwrite", "cut", "compact", "reset"])
        if kind == "term" or (kind == "vote" and self.voted_for):
            self.term, self.voted_for = self.term + rng.randint(1, 3), rng.choice([None, "n1", "n2"])
            return Unsaved(HardState(self.term, self.voted_for), None, last + 1, ())
        if kind == "vote":
            self.voted_for = "n3"
            return Unsaved(HardState(self.term, self.voted_for), None, last + 1, ())
        if kind == "compact" and self.terms:
            count = rng.randint(1, len(self.terms))
            self.base_term, self.base, self.terms = self.terms[count - 1], self.base + count, self.terms[count:]
            return Unsaved(None, Base(self.base, self.base_term, ONE), last + 1, ())
        if kind == "reset":
            self.base, self.terms = last + rng.randint(-min(2, len(self.terms)), 3), []
            return Unsaved(None, Base(self.base, self.term, ONE), self.base + 1, ())
        start = last + 1 if kind == "append" else rng.randint(self.base + 1, last + 1)
        new = [] if kind == "cut" else [rng.randint(0, self.term) for _ in range(rng.randint(1, 3))]
        self.terms = self.terms[:start - self.base - 1] + new
        return Unsaved(None, None, start, entries(*self.terms[start - self.base - 1:], first=start))

    def run(self, count):
        """Yields (files, lines that may be beside them after a power cut, the line after kill -9), the files before the save first."""
        with opened(self.directory, create=True) as (storage, _):
            files = shutil.copytree(self.directory, self.directory.with_name("files"))
            for number in range(count):
                self.lines.append(before := (self.directory / NAME).read_bytes())
                self.taken_back = None
                storage.save(self._random_save())
                line = (self.directory / NAME).read_bytes()
                yield files, [self.taken_back or before], self.taken_back or before
                files = shutil.copytree(self.directory, self.directory.with_name(f"files{number}"))
                yield files, [self.taken_back, *self.lines, line] if self.taken_back else [*self.lines, line], line


def promised(saved):
    """All that counts, to compare."""
    return saved.hard_state, saved.last_index, saved.base, saved.entries


@pytest.mark.parametrize("seed", range(8))
def test_files_that_are_whole_are_never_refused_and_older_ones_only_if_they_lack_nothing(tmp_path, seed, monkeypatch):
    """Whatever a power cut leaves of the line; and with the line of kill -9, older files of any moment are refused."""
    (tmp_path / "data").mkdir()
    older, refused = [], 0
    for files, lines, line in Recorder(random.Random(seed), tmp_path / "data", monkeypatch).run(20):
        for possible in dict.fromkeys(lines):
            (files / NAME).write_bytes(possible)
            assert refusal(files) is None, possible
        with opened(files) as (_, saved):
            now = promised(saved)
        for path, then in older[-5:]:
            (path / NAME).write_bytes(line)
            said = refusal(path)
            (path / NAME).unlink()
            assert said is None or then != now
            (state, last, *_), (state_now, *_) = then, now
            if state.term < state_now.term or (state.voted_for is None) > (state_now.voted_for is None) and state.term == state_now.term:
                assert said is not None
                refused += 1
            elif last < int(line.split()[3]):
                assert said is not None
                refused += 1
        older.append((files, now))
    assert refused > 10
