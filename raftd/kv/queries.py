"""What a query finds in the tables of state.db.

Must not know: files, threads. A query that needs more than one SELECT makes them in one transaction, so that all it finds is of one
moment. All raise StorageFailed if something is not as it was written; *path* is named in that.
"""

import json
from contextlib import contextmanager

from raftd.errors import HistoryGone, StorageFailed
from raftd.kv import database
from raftd.kv.commands import Found, History, Item, Listed
from raftd.kv.database import WITH_CHANGES, Change, change_checksum, change_id, end_of, head_checksum, index_of, seconds_left

MAX_BYTES = 8 << 20  # of the keys and values in one answer; one more may come
MAX_LOOKED_AT = 10_000  # changes, for one key

# One SELECT sees one state: the row and the index are of the same moment.
_KEY_AND_INDEX = f"SELECT applied_index, {database.HEAD}, kind, previous_index, changes.checksum, value FROM position" \
                 f" LEFT JOIN kv ON kv.key = ? {WITH_CHANGES}"
# Each row that SQLite gives by itself costs a fight for Python's lock, of which others with much to do let go only every 5 ms. So the
# changes come in one piece: first up to which there are so many, of so many bytes, then those.
_LAST = """
    SELECT max(id) FROM (
        SELECT id, sum(size) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - size AS before
        FROM (SELECT id, length(value) AS size FROM changes WHERE id > ? ORDER BY id LIMIT ?)
    ) WHERE before <= ?
"""
_CHANGES = """
    SELECT json_group_array(json_array(id, kind, previous_index, checksum, hex(key), hex(value)))
    FROM (SELECT * FROM changes WHERE id > ? AND id <= ? ORDER BY id)
"""


def find(connection, path, key, now):
    """What *key* is, as Found; *now* tells the time."""
    rows = connection.execute(_KEY_AND_INDEX, (key,)).fetchall()
    if not rows:
        raise StorageFailed(f"{path}: damaged: the index at which it stands is gone")
    [(applied_index, id, created_index, version, expires_at, head_sum, kind, previous_index, change_sum, value)] = rows
    if id is None and head_sum is None:
        return Found(None, 0, applied_index)
    if head_checksum(key, id, created_index, version, expires_at) != head_sum \
            or change_checksum(id, kind, previous_index, key, value) != change_sum:  # of another key, too
        raise database.damaged_row(path, key)
    return Found(value, index_of(id), applied_index, created_index, version, seconds_left(expires_at, now))


def list_keys(connection, path, query, now):
    """The answer to the List *query*, as Listed."""
    columns, join = (database.HEAD, "") if query.keys_only else (f"{database.HEAD}, {database.CHANGE}", WITH_CHANGES)
    # One lower bound, or SQLite would pass all keys from the prefix on, again for each page.
    first, beyond = (query.after, ">") if query.after >= query.prefix else (query.prefix, ">=")
    statement = f"SELECT kv.key, {columns} FROM kv {join} WHERE kv.key {beyond} ? AND kv.key < ? ORDER BY kv.key"
    items, size, next_after = [], 0, None
    with _one_moment(connection):
        applied_index = database.read_position(connection, path).index
        for row in connection.execute(statement, (first, end_of(query.prefix))):
            if len(items) == query.limit or size > MAX_BYTES:
                next_after = items[-1].key
                break
            items.append(_item(path, row, now))
            size += len(row[0]) + len(items[-1].value or b"")
    return Listed(items, next_after, applied_index)


def history(connection, path, query):
    """The answer to the Changes *query*, as History. Raises HistoryGone, too."""
    with _one_moment(connection):
        applied_index = database.read_position(connection, path).index
        start = database.read_totals(connection, path).history_start
        if query.after < start:
            raise HistoryGone(index_of(start))
        ((last,),) = connection.execute(_LAST, (query.after, query.limit, query.most_bytes)).fetchall()
        ((text,),) = connection.execute(_CHANGES, (query.after, last)).fetchall()
    return History([_change(path, *row) for row in json.loads(text)], applied_index)


def has_changed(connection, path, query):
    """The answer to HasChanged."""
    with _one_moment(connection):
        heads, after = connection.execute("SELECT change_id FROM kv WHERE key = ?", (query.key,)).fetchall(), change_id(query.index)
        if heads or not query.index:
            return bool(heads) and heads[0][0] > after
        if after < database.read_totals(connection, path).history_start:
            return True
        keys = connection.execute("SELECT key FROM changes WHERE id > ? ORDER BY id LIMIT ?", (after, MAX_LOOKED_AT)).fetchall()
        return len(keys) == MAX_LOOKED_AT or (query.key,) in keys


def _change(path, id, kind, previous_index, checksum, key_hex, value_hex):
    key, value = bytes.fromhex(key_hex).decode(errors="replace"), bytes.fromhex(value_hex)
    database.check_change(path, id, kind, previous_index, checksum, key, value)
    return Change(id, kind, previous_index, key, value)


@contextmanager
def _one_moment(connection):
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def _item(path, row, now):
    key, id, created_index, version, expires_at, _, *change = row
    database.check_head(path, *row[:6])
    value = database.value_in(path, key, change) if change else None
    return Item(key, value, index_of(id), created_index, version, seconds_left(expires_at, now))
