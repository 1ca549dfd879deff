"""The changes that were made last, in memory: who is told of each as it happens reads nothing again that was just written.

Must not know: files, threads. A ``Recent`` never changes; the next one takes its place.
"""

from typing import NamedTuple

from raftd.kv.commands import History
from raftd.kv.database import Change, change_id

# What is kept: keys and values of so many bytes; but the newest batch, whatever it has.
MOST_BATCHES, MOST_CHANGES, MOST_BYTES = 32, 10_000, 4 << 20


class _Applied(NamedTuple):
    """What a batch has changed: *rows* of the table ``changes``, the last of them no later than the change *last*."""

    last: int
    rows: list
    size: int


class Recent(NamedTuple):
    """All changes after the change *after*, up to the entry *applied_index*, as *batches*."""

    after: int
    applied_index: int
    batches: tuple[_Applied, ...] = ()

    @classmethod
    def none(cls, index):
        """Of a state that stands at *index*."""
        return cls(change_id(index), index)

    def followed_by(self, rows, index):
        """This, and the next batch, after which the state stands at *index*; what is old is left out."""
        after, batches = self.after, [*self.batches, _Applied(change_id(index), rows, sum([len(row[-2]) + len(row[-1]) for row in rows]))]
        while len(batches) > 1 and (len(batches) > MOST_BATCHES or sum([len(batch.rows) for batch in batches]) > MOST_CHANGES
                                    or sum([batch.size for batch in batches]) > MOST_BYTES):
            after = batches.pop(0).last
        return Recent(after, index, tuple(batches))

    def history(self, query):
        """The answer to the Changes *query*, as History; None if it asks for what is older."""
        if query.after < self.after:
            return None
        changes, size = [], 0
        for batch in self.batches:
            for id, kind, previous_index, _, key, value in batch.rows if batch.last > query.after else ():
                if id > query.after:
                    if len(changes) == query.limit or size > query.most_bytes:
                        return History(changes, self.applied_index)
                    changes.append(Change(id, kind, previous_index, key, value))
                    size += len(value)
        return History(changes, self.applied_index)
