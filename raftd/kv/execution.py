"""What commands do to the tables of state.db.

Must not know: files, threads, transactions. Whatever database has the tables of ``database`` will do.

All that is decided here depends on the entries of the log and nothing else, so that every server comes to the same: also when a key
expires (``time`` of a Request), and which requests are remembered.
"""

from typing import NamedTuple

from raftd.kv import database
from raftd.kv.commands import (
    UNCONDITIONAL, Delete, DeletePrefix, Expire, Found, Get, Outcome, Request, Set, Touch, Transaction,
)
from raftd.kv.database import (
    DELETED, EXPIRED, MOST_CHANGES_OF_AN_ENTRY, PUT, Head, Totals, change_checksum, change_id, end_of, head_checksum, index_of,
)
from raftd.kv.encoding import decode_outcome, digest, encode_outcome
from raftd.sqlitefile import execute_in, execute_rows

MAX_RESULT_BYTES = 1 << 20  # of the values that one transaction answers
MAX_KEPT_RESULT_BYTES = 64 << 10  # the same, of one with an idempotency key: what it has answered is kept for the next time
_ROWS_AT_ONCE = 1000  # of a prefix that is deleted

_HEADS = f"SELECT key, {database.HEAD} FROM kv WHERE key"
_CHANGE = f"SELECT {database.CHANGE} FROM changes WHERE id = ?"
_REQUESTS = f"SELECT key, {database.REQUEST} FROM requests WHERE key"


class Limits(NamedTuple):
    """What is kept, the newest of each; the same on all servers, since what is not kept decides what comes of commands.

    requests         with an idempotency key: so many are remembered
    changes, change_bytes    for those who watch: so many at the least, as long as their values are not larger
    removed_at_once          what is not kept any more may be there until there is so much of it
    expired_at_once          keys that one Expire removes
    """

    requests: int = 100_000
    changes: int = 100_000
    change_bytes: int = 1 << 30
    removed_at_once: int = 2048
    expired_at_once: int = 500


LIMITS = Limits()


class Known(NamedTuple):
    """What is known of the tables without a look at them.

    totals         as they are
    next_deadline  the earliest time at which a key expires, None if none does
    heads          {key: its head, None if there is no such key}, of some keys
    """

    totals: Totals
    next_deadline: int | None
    heads: dict


def know(connection, path):
    """What there is to know, of no keys yet. Raises DamagedFiles; *path* is named in that."""
    return Known(database.read_totals(connection, path), _next_deadline(connection), {})


def execute(cursor, path, commands, position, known, limits=LIMITS):
    """Do the (index, command) pairs in order and move to *position*; returns (an Outcome for each, Known, with all keys that they were
    about, the rows of ``changes`` that were written, None if they may be too many for memory).

    *path* is named in errors. *known*: after all earlier batches, with any keys.
    """
    batch = Batch(cursor, path, commands, known, limits)
    outcomes = batch.perform_all(commands)
    batch.write()
    database.write_position(cursor, position)
    next_deadline = _next_deadline(cursor) if batch.deadlines_have_changed else known.next_deadline
    return outcomes, Known(batch.totals, next_deadline, batch.heads), batch.written


def _next_deadline(cursor):
    rows = cursor.execute("SELECT expires_at FROM kv WHERE expires_at > 0 ORDER BY expires_at LIMIT 1").fetchall()
    return rows[0][0] if rows else None


class Batch:
    """Commands that are done one after the other, as far as they are about single keys in memory; what changes is written together.

    Heads and changes are rows here: ``database.Head`` and (id, kind, previous_index, checksum, key, value).
    """

    def __init__(self, cursor, path, commands, known, limits):
        self._cursor, self._path, self._known_heads, self._limits = cursor, path, known.heads, limits
        self.totals = known.totals
        self.deadlines_have_changed = False
        self.heads = {}  # key -> its head, None if there is no such key; of those that were looked at
        self._dirty = {}  # the same, of those whose heads are to be written
        self._more_keys = 0  # than ``totals`` say
        self._changes, self._values = [], {}  # to be written; id -> value of them
        self.written = []  # changes that are; None if they may be too many
        self._superseded = []  # ids of changes before the history begins that are the latest of no key any more
        self._requests = {}  # idempotency key -> (id, digest, outcome), of those that are known
        self._new_requests = {}  # the same, to be written
        self._look_up(commands)

    # Commands

    def perform_all(self, commands):
        """Do the (index, command) pairs; returns their Outcomes."""
        outcomes, plain = [], []
        for index, command in commands:
            if type(command) is Set:
                key, value, conditions, ttl = command
                if conditions is UNCONDITIONAL and not ttl:
                    plain.append((index * MOST_CHANGES_OF_AN_ENTRY, key, value, 0))
                    outcomes.append(Outcome("written", index))
                    continue
            if plain:
                self._put_all(plain)
                plain = []
            outcomes.append(self._perform(index, command))
        self._put_all(plain)
        return outcomes

    def _perform(self, index, command):
        if type(command) is not Request:
            return self._do(index, command)
        if command.time > self.totals.time:
            self.totals = self.totals._replace(time=command.time)
        if not command.key:
            return self._do_fenced(index, command)
        known, told = self._requests.get(command.key), digest(command)
        if known and self._is_remembered(known[0]):
            return decode_outcome(known[2]) if known[1] == told else Outcome("reused", index)
        outcome = self._do_fenced(index, command)
        self._remember(command.key, told, encode_outcome(outcome), is_new=not known)
        return outcome

    def _do_fenced(self, index, request):
        if request.fence:
            head = self._head(request.fence.key)
            created_index = head.created_index if head else 0
            if created_index != request.fence.token:
                return Outcome("fenced", created_index)
        return self._do(index, request.command, MAX_KEPT_RESULT_BYTES if request.key else MAX_RESULT_BYTES)

    def _do(self, index, command, most_result_bytes=MAX_RESULT_BYTES):
        match command:
            case Set() | Delete() | Touch():
                return self._do_one(index, command)
            case Transaction(conditions, then, otherwise):
                succeeded = all(self._holds(condition) for condition in conditions)
                return self._transact(index, succeeded, then if succeeded else otherwise, most_result_bytes)
            case DeletePrefix(prefix):
                return self._delete_prefix(index, prefix)
            case Expire():
                return self._expire(index)
        raise AssertionError(f"no command: {command!r}")

    def _do_one(self, index, command):
        head = self._head(command.key)
        modified_index = head.modified_index if head else 0
        if command.conditions is not UNCONDITIONAL and not command.conditions.hold(modified_index):
            return Outcome("refused", modified_index)
        if type(command) is Set:
            self._put(change_id(index), command.key, command.value, self._deadline(command.ttl))
            return Outcome("written", index)
        if head is None:
            return Outcome("missing", index)
        if type(command) is Touch:
            self._become(command.key, head._replace(expires_at=self._deadline(command.ttl)))
            return Outcome("touched", modified_index)
        self._remove(change_id(index), DELETED, command.key)
        return Outcome("deleted", index)

    def _deadline(self, ttl):
        return self.totals.time + ttl if ttl else 0

    def _holds(self, condition):
        head, wanted = self._head(condition.key), condition.wanted
        match condition.what:
            case "index":
                return (head.modified_index if head else 0) == wanted
            case "exists":
                return (head is not None) == wanted
            case "value":
                return head is not None and self._size(head) == len(wanted) and self._value(condition.key, head) == wanted
        raise AssertionError(f"no condition: {condition!r}")

    def _transact(self, index, succeeded, operations, most_result_bytes):
        if all([type(operation) is Set for operation in operations]):
            return self._transact_sets(index, succeeded, operations)
        if self._size_of_results(operations) > most_result_bytes:
            return Outcome("too-large", most_result_bytes)
        left, results = self._count_changes(operations), []
        for operation in operations:
            key = operation.key
            if type(operation) is Get:
                results.append(self._found(index, key))
                continue
            if does := type(operation) is Set or self._head(key) is not None:
                left -= 1
            if type(operation) is Set:
                self._put(change_id(index, left), key, operation.value, self._deadline(operation.ttl))
            elif does:
                self._remove(change_id(index, left), DELETED, key)
            results.append(does)
        return Outcome("transacted", index, (succeeded, tuple(results)))

    def _transact_sets(self, index, succeeded, sets):
        last, count = change_id(index), len(sets)
        self._put_all([(id, key, value, self._deadline(ttl) if ttl else 0)
                       for id, (key, value, _, ttl) in zip(range(last - count + 1, last + 1), sets, strict=True)])
        return Outcome("transacted", index, (succeeded, (True,) * count))

    def _count_changes(self, operations):
        """How many of *operations* change something: all but a Get, and the Delete of what is not there."""
        there, count = {}, 0
        for operation in operations:
            if type(operation) is Set:
                there[operation.key] = True
                count += 1
            elif type(operation) is Delete:
                count += there[operation.key] if operation.key in there else self._head(operation.key) is not None
                there[operation.key] = False
        return count

    def _size_of_results(self, operations):
        """Of the values that the Gets among *operations* find."""
        written, size = {}, 0
        for operation in operations:
            key = operation.key
            if type(operation) is Get:
                head = self._head(key)
                size += written[key] if key in written else self._size(head) if head else 0
            else:
                written[key] = len(operation.value) if type(operation) is Set else 0
        return size

    def _found(self, index, key):
        head = self._head(key)
        if head is None:
            return Found(None, 0, index)
        expires_in = database.seconds_left(head.expires_at, lambda: self.totals.time)
        return Found(self._value(key, head), head.modified_index, index, head.created_index, head.version, expires_in)

    def _delete_prefix(self, index, prefix):
        self._write_keys()
        self.written = None
        self.heads.update({key: None for key in self.heads if key.startswith(prefix)})
        self._known_heads.clear()
        bounds, cursor = (prefix, end_of(prefix)), self._cursor
        ((count,),) = cursor.execute("SELECT count(*) FROM kv WHERE key >= ? AND key < ?", bounds).fetchall()
        kept = min(count, self._limits.changes)  # of more the first would be no history any more
        if kept < count:
            self._forget_history(change_id(index, kept), 0, 0)
        doomed = cursor.connection.execute(
            f"SELECT key, {database.HEAD} FROM kv WHERE key >= ? AND key < ? ORDER BY key LIMIT -1 OFFSET ?", (*bounds, count - kept))
        left = kept
        while rows := doomed.fetchmany(_ROWS_AT_ONCE):
            for row in rows:
                database.check_head(self._path, *row)
                left -= 1
                self._removed(change_id(index, left), DELETED, row[0], row[1])
            self._write_changes()
        self._superseded.clear()
        cursor.execute("DELETE FROM changes WHERE id <= ? AND id IN (SELECT change_id FROM kv WHERE key >= ? AND key < ?)",
                       (self.totals.history_start, *bounds))
        cursor.execute("DELETE FROM kv WHERE key >= ? AND key < ?", bounds)
        self._more_keys -= count
        self.deadlines_have_changed = True
        return Outcome("deleted-prefix", index, count)

    def _expire(self, index):
        self._write_keys()
        rows = self._cursor.execute(
            "SELECT key FROM kv WHERE expires_at > 0 AND expires_at <= ? ORDER BY expires_at, key LIMIT ?",
            (self.totals.time, self._limits.expired_at_once)).fetchall()
        keys = [key for (key,) in rows]
        self._load(keys)
        for more, key in zip(range(len(keys) - 1, -1, -1), keys, strict=True):
            self._remove(change_id(index, more), EXPIRED, key)
        return Outcome("expired", index, len(keys))

    # Keys

    def _look_up(self, commands):
        """What the (index, command) pairs are about, together."""
        keys, request_keys = [], []
        for _, command in commands:
            if type(command) is Set:
                keys.append(command.key)
                continue
            keys += _keys_of(command)
            if type(command) is Request and command.key:
                request_keys.append(command.key)
        self._load(keys)
        self._load_requests(request_keys)

    def _load(self, keys):
        heads, checksum_of = self.heads, head_checksum
        known, wanted = self._known_heads, []
        for key in keys:
            if key not in heads:
                heads[key] = head = known.get(key)
                if head is None and key not in known:
                    wanted.append(key)
        for key, id, created_index, version, expires_at, checksum in execute_in(self._cursor, _HEADS, wanted):
            if checksum_of(key, id, created_index, version, expires_at) != checksum:  # this server would decide unlike the others
                raise database.damaged_row(self._path, key)
            heads[key] = id, created_index, version, expires_at

    def _head(self, key):
        if key not in self.heads:
            self._load([key])
        head = self.heads[key]
        return head and Head(*head)

    def _value(self, key, head):
        """The value of *key*, whose head that is."""
        if head.change_id in self._values:
            return self._values[head.change_id]
        return database.value_in(self._path, key, self._cursor.execute(_CHANGE, (head.change_id,)).fetchone())

    def _size(self, head):
        """How long the value of that head is, without a look at it."""
        if head.change_id in self._values:
            return len(self._values[head.change_id])
        rows = self._cursor.execute("SELECT length(value) FROM changes WHERE id = ?", (head.change_id,)).fetchall()
        return rows[0][0] if rows else 0

    def _put(self, id, key, value, expires_at):
        self._put_all([(id, key, value, expires_at)])

    def _put_all(self, rows):
        """Give keys values; a row is the id of the change, the key, the value, and when it expires."""
        heads, dirty, values, changes = self.heads, self._dirty, self._values, self._changes
        history_start, checksum_of = self.totals.history_start, change_checksum
        for id, key, value, expires_at in rows:
            before = heads[key]
            if before is None:
                previous_index, created_index, version, expired_at = 0, index_of(id), 1, 0
                self._more_keys += 1
            else:
                before_id, created_index, version, expired_at = before
                previous_index, version = index_of(before_id), version + 1
                if before_id <= history_start:
                    self._superseded.append(before_id)
            if expires_at != expired_at:
                self.deadlines_have_changed = True
            heads[key] = dirty[key] = id, created_index, version, expires_at
            values[id] = value
            changes.append((id, PUT, previous_index, checksum_of(id, PUT, previous_index, key, value), key, value))

    def _remove(self, id, kind, key):
        self._removed(id, kind, key, self.heads[key][0])
        self._become(key, None)
        self._more_keys -= 1

    def _removed(self, id, kind, key, before_id):
        """*key*, whose latest change is *before_id*, is removed by the change *id*."""
        if before_id <= self.totals.history_start:
            self._superseded.append(before_id)
        self._values[id] = b""
        self._changes.append((id, kind, index_of(before_id), change_checksum(id, kind, index_of(before_id), key, b""), key, b""))

    def _become(self, key, head):
        self.heads[key] = self._dirty[key] = head
        self.deadlines_have_changed = True

    # Requests that may come again

    def _load_requests(self, keys):
        for row in execute_in(self._cursor, _REQUESTS, list(dict.fromkeys(keys))):
            database.check_request(self._path, *row)
            self._requests[row[0]] = row[1:4]

    def _is_remembered(self, number):
        """By the order of the log, so that every server forgets the same requests."""
        return number > self.totals.requests - self._limits.requests

    def _remember(self, key, told, outcome, is_new):
        """*is_new*: there is no row of an earlier request with *key*, which is forgotten and may be replaced."""
        number = self.totals.requests + 1
        self.totals = self.totals._replace(requests=number, kept_requests=self.totals.kept_requests + is_new)
        self._requests[key] = self._new_requests[key] = number, told, outcome

    # Writing

    def write(self):
        """Bring it all into the tables."""
        self._write_keys()
        self._write_requests()
        self._trim_history()
        self.totals = self.totals._replace(keys=self.totals.keys + self._more_keys)
        database.write_totals(self._cursor, self.totals)

    def _write_keys(self):
        checksum_of = head_checksum
        rows = [(key, id, created_index, version, expires_at, checksum_of(key, id, created_index, version, expires_at))
                for key, head in self._dirty.items() if head is not None for id, created_index, version, expires_at in (head,)]
        rows.sort()  # each page of the table is needed once
        removed = [key for key, head in self._dirty.items() if head is None] if len(rows) < len(self._dirty) else []
        self._dirty.clear()
        execute_rows(self._cursor, "REPLACE INTO kv", rows)
        execute_in(self._cursor, "DELETE FROM kv WHERE key", removed)
        self._write_changes()
        execute_in(self._cursor, "DELETE FROM changes WHERE id", self._superseded)
        self._superseded.clear()

    def _write_changes(self):
        execute_rows(self._cursor, "INSERT INTO changes", self._changes)
        if self.written is not None:
            self.written += self._changes
        totals, count, size = self.totals, len(self._changes), sum(map(len, self._values.values()))
        self.totals = totals._replace(history_changes=totals.history_changes + count, history_bytes=totals.history_bytes + size)
        self._changes.clear()
        self._values.clear()

    def _write_requests(self):
        if not self._new_requests:
            return
        rows = [(number, key, told, outcome, database.request_checksum(key, number, told, outcome))
                for key, (number, told, outcome) in self._new_requests.items()]
        execute_rows(self._cursor, "REPLACE INTO requests", rows)
        at_once = self._limits.removed_at_once
        if self.totals.requests // at_once > (self.totals.requests - len(rows)) // at_once:
            self._cursor.execute("DELETE FROM requests WHERE id <= ?", (self.totals.requests - self._limits.requests,))
            self.totals = self.totals._replace(kept_requests=self.totals.kept_requests - self._cursor.rowcount)

    def _trim_history(self):
        start, changes, size = self.totals[4:]
        if changes > self._limits.changes + self._limits.removed_at_once:
            ((start, removed),) = self._cursor.execute(
                "SELECT max(id), sum(length(value)) FROM (SELECT id, value FROM changes WHERE id > ? ORDER BY id LIMIT ?)",
                (start, changes - self._limits.changes)).fetchall()
            changes, size = self._limits.changes, size - removed
        if size > self._limits.change_bytes:
            rows = self._cursor.execute("SELECT id, length(value) FROM changes WHERE id > ? ORDER BY id", (start,))
            while size > self._limits.change_bytes:
                start, length = rows.fetchone()
                changes, size = changes - 1, size - length
        if start > self.totals.history_start:
            self._forget_history(start, changes, size)

    def _forget_history(self, start, changes, size):
        """The history begins after the change *start*, with so many *changes*, whose values have that *size*."""
        self._cursor.execute(
            "DELETE FROM changes WHERE id > ? AND id <= ?"
            " AND NOT EXISTS (SELECT 1 FROM kv WHERE kv.key = changes.key AND change_id = changes.id)",
            (self.totals.history_start, start))
        self.totals = self.totals._replace(history_start=start, history_changes=changes, history_bytes=size)


def _keys_of(command):
    """The keys that *command* is about, each by itself."""
    match command:
        case Set() | Delete() | Touch():
            return (command.key,)
        case Transaction(conditions, then, otherwise):
            return [part.key for parts in (conditions, then, otherwise) for part in parts]
        case Request():
            return [*_keys_of(command.command), *([command.fence.key] if command.fence else [])]
    return ()
