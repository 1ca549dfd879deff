"""raft.promised: one line beside raft.db, what was in that when a save last returned.

A write-ahead log that is removed, emptied or cut short after a crash takes with it what was in nothing else, and SQLite takes what is
left for all there ever was: a server would forget its vote without a word. The same goes for an older raft.db, put in the place of the
newer one. Against the line it shows, as it does when raft.db is that of another server.

The line is written after each save and not synced, so it costs no more than a system call. A power cut may leave an older one: it never
says more than raft.db has, but it may say less. That holds because what it tells of never falls, save for the end of the log when
entries are overwritten; before that is done, the line takes back what it says of them, and that is synced.
"""

import os
import zlib
from contextlib import suppress
from typing import NamedTuple

from raftd.errors import REPLACE_NODE, DamagedFiles
from raftd.sqlitefile import storage_errors

NAME = "raft.promised"
_LENGTH = 160  # bytes, filled up with spaces: a shorter line must leave nothing of the longer one before it


class Said(NamedTuple):
    """The term, whether a vote was given in it, and the last entry of the log."""

    term: int = 0
    voted: bool = False
    last_index: int = 0
    last_term: int = 0


class Promised:
    """The open file, of the raft.db whose identity is *id*. Methods raise StorageFailed; the first one DamagedFiles, if it is not that."""

    def __init__(self, directory, id):
        self._id, self._path = id, os.path.join(directory, NAME)
        with storage_errors(self._path):
            self._file = open(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)
            try:
                self.said = self._read()
            except BaseException:
                self._file.close()
                raise

    def _read(self):
        """A line that is damaged, or is not there, says nothing. Raises DamagedFiles for one of other files than raft.db."""
        said, id = Said(), self._id
        with suppress(ValueError):
            line, _, checksum = os.pread(self._file.fileno(), _LENGTH, 0).decode("ascii").rstrip().rpartition(" ")
            of, *numbers = line.split(" ")
            term, voted, last_index, last_term = map(int, numbers)
            if int(checksum, 16) == zlib.crc32(line.encode()):
                said, id = Said(term, bool(voted), last_index, last_term), of
        if id != self._id:
            raise DamagedFiles(f"{self._path} is that of another server than the raft.db beside it: one of them was exchanged; "
                               f"{REPLACE_NODE}")
        return said

    def missing_from(self, saved):
        """What raft.db, which holds *saved*, has lost, in words; None if it has all."""
        said, (term, voted_for) = self.said, saved.hard_state
        if (term, voted_for is not None) < (said.term, said.voted):
            return f"term {said.term}" if term < said.term else f"the vote of term {term}"
        if said.last_index > saved.base.index and saved.term_at(said.last_index) != said.last_term:
            return f"entry {said.last_index}"
        return None

    def write(self, said):
        """raft.db holds *said* for sure."""
        line = f"{self._id} {said.term:d} {said.voted:d} {said.last_index:d} {said.last_term:d}"
        with storage_errors(self._path):
            os.pwrite(self._file.fileno(), f"{line} {zlib.crc32(line.encode()):08x}".ljust(_LENGTH - 1).encode() + b"\n", 0)
        self.said = said

    def take_back(self, last_index, last_term):
        """Entries after this one are about to be overwritten."""
        if self.said.last_index > last_index:
            self._write_for_sure(self.said._replace(last_index=last_index, last_term=last_term))

    def add(self, index, term):
        """raft.db has not this entry, but should."""
        self._write_for_sure(self.said._replace(last_index=index, last_term=term))

    def _write_for_sure(self, said):
        self.write(said)
        with storage_errors(self._path):
            os.fdatasync(self._file.fileno())

    def close(self):
        """Idempotent."""
        self._file.close()
