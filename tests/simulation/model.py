"""What the committed commands come to, said again in a few lines of its own: the state at every index, and how it came to be.

It is no copy of the code that it judges: it keeps all of the past, and has neither tables nor batches.
"""

from bisect import bisect_right
from typing import NamedTuple

from raftd.kv import Delete, DeletePrefix, Expire, Found, Get, Request, Set, Touch, Transaction, decode
from raftd.kv.execution import Limits

# So few that they are reached in a run.
LIMITS = Limits(requests=8, changes=20, change_bytes=60, removed_at_once=5, expired_at_once=2)


class Row(NamedTuple):
    """A key, and what it is. ``deadline_of``: the index of the entry that said that it expires, after *ttl*; None if it does not."""

    value: bytes
    modified_index: int
    created_index: int
    version: int
    expires_at: int
    deadline_of: int | None
    ttl: int


class Model:
    """``outcomes``: (kind, index, detail, replayed) by index, as in ``Outcome``; ``changes``: all of them, with their ids."""

    def __init__(self):
        self.outcomes = {}
        self.changes = []  # (id, kind, previous_index, key, value)
        self.expired = {}  # index: the rows that this entry has removed, since their time was over
        self._time, self._requests, self._request_count = 0, {}, 0
        self._rows = {}  # key: Row
        self._versions = {}  # key: ([index], [Row or None])

    # What it was

    def at(self, key, index):
        """The Row of *key* once entry *index* was applied; None if there is no such key."""
        indexes, states = self._versions.get(key, ((), ()))
        position = bisect_right(indexes, index)
        return states[position - 1] if position else None

    def rows_at(self, index):
        rows = ((key, self.at(key, index)) for key in self._versions)
        return {key: row for key, row in rows if row}

    def changes_at(self, index):
        """All that had happened once entry *index* was applied."""
        return self.changes[:bisect_right(self.changes, index * 1_000_000, key=lambda change: change[0])]

    # What happens

    def commit(self, entry):
        self._index, self._happened = entry.index, []
        self.outcomes[entry.index] = self._request(decode(entry.command))
        for place, (kind, previous_index, key, value) in enumerate(self._happened, 1):
            self.changes.append((entry.index * 1_000_000 - len(self._happened) + place, kind, previous_index, key, value))

    def _request(self, command):
        if not isinstance(command, Request):
            return self._perform(command)
        self._time = max(self._time, command.time)
        if not command.key:
            return self._fenced(command)
        number, known, outcome = self._requests.get(command.key, (-1000, None, None))
        if number > self._request_count - LIMITS.requests:
            return (*outcome[:3], True) if known == command[0::3] else ("reused", self._index, None, False)
        outcome = self._fenced(command)
        self._request_count += 1
        self._requests[command.key] = self._request_count, command[0::3], outcome
        return outcome

    def _fenced(self, request):
        if request.fence:
            holder = self._rows.get(request.fence.key)
            if not holder or holder.created_index != request.fence.token:
                return "fenced", holder.created_index if holder else 0, None, False
        return self._perform(request.command)

    def _perform(self, command):
        match command:
            case Set(key) | Delete(key) | Touch(key):
                return (*self._one(command), None, False)
            case Transaction(conditions, then, otherwise):
                succeeded = sum(not self._is(*condition) for condition in conditions) == 0
                results = tuple(self._part(operation) for operation in (then if succeeded else otherwise))
                return "transacted", self._index, (succeeded, results), False
            case DeletePrefix(prefix):
                doomed = sorted(key for key in self._rows if key.startswith(prefix))
                for key in doomed:
                    self._remove(key, 2)
                return "deleted-prefix", self._index, len(doomed), False
            case Expire():
                return "expired", self._index, self._expire(), False
        raise AssertionError(f"no command: {command!r}")

    def _one(self, command):
        key, row = command.key, self._rows.get(command.key)
        modified_index, (wanted, unwanted) = row.modified_index if row else 0, command.conditions
        if wanted is not None and (not row or wanted != "*" and modified_index not in wanted) \
                or unwanted is not None and row and (unwanted == "*" or modified_index in unwanted):
            return "refused", modified_index
        if isinstance(command, Set):
            self._set(key, command.value, command.ttl)
            return "written", self._index
        if not row:
            return "missing", self._index
        if isinstance(command, Touch):
            self._keep(key, row._replace(**self._deadline(command.ttl)))
            return "touched", modified_index
        self._remove(key, 2)
        return "deleted", self._index

    def _is(self, key, what, wanted):
        row = self._rows.get(key)
        return {"index": row.modified_index if row else 0, "exists": row is not None, "value": row and row.value}[what] == wanted

    def _part(self, operation):
        row = self._rows.get(operation.key)
        if isinstance(operation, Get):
            if not row:
                return Found(None, 0, self._index)
            left = max(0, row.expires_at - self._time) / 1000 if row.expires_at else None
            return Found(row.value, row.modified_index, self._index, row.created_index, row.version, left)
        if isinstance(operation, Set):
            self._set(operation.key, operation.value, operation.ttl)
        elif row:
            self._remove(operation.key, 2)
        return isinstance(operation, Set) or row is not None

    def _expire(self):
        due = sorted((row.expires_at, key) for key, row in self._rows.items() if 0 < row.expires_at <= self._time)
        self.expired[self._index] = [self._rows[key] for _, key in due[:LIMITS.expired_at_once]]
        for _, key in due[:LIMITS.expired_at_once]:
            self._remove(key, 3)
        return len(self.expired[self._index])

    def _deadline(self, ttl):
        return {"expires_at": self._time + ttl if ttl else 0, "deadline_of": self._index if ttl else None, "ttl": ttl}

    def _set(self, key, value, ttl):
        row = self._rows.get(key)
        self._happened.append((1, row.modified_index if row else 0, key, value))
        created_index, version = (row.created_index, row.version + 1) if row else (self._index, 1)
        self._keep(key, Row(value, self._index, created_index, version, **self._deadline(ttl)))

    def _remove(self, key, kind):
        self._happened.append((kind, self._rows[key].modified_index, key, b""))
        self._keep(key, None)

    def _keep(self, key, row):
        indexes, states = self._versions.setdefault(key, ([], []))
        indexes.append(self._index)
        states.append(row)
        if row:
            self._rows[key] = row
        else:
            del self._rows[key]
