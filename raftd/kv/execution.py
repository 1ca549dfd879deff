"""What commands do to the tables of state.db, and what a query finds in them.

Must not know: files, threads, transactions. Whatever database has the tables of ``database`` will do.
"""

from itertools import groupby

from raftd.errors import StorageFailed
from raftd.kv import database
from raftd.kv.commands import UNCONDITIONAL, Found, Outcome, Set, is_plain_set
from raftd.sqlitefile import execute_rows

_INSERT = "INSERT INTO kv"
_OR_UPDATE = (
    "ON CONFLICT (key) DO UPDATE SET"
    " value = excluded.value, modified_index = excluded.modified_index, checksum = excluded.checksum"
)
_REMOVE = "DELETE FROM kv WHERE key = ?"
_ROW = "SELECT value, modified_index, checksum FROM kv WHERE key = ?"
# One SELECT sees one state: the row and the index are of the same moment.
_ROW_AND_INDEX = "SELECT applied_index, value, modified_index, kv.checksum FROM position LEFT JOIN kv ON kv.key = ?"


def execute(cursor, path, commands, position):
    """Do the (index, command) pairs in order and move to *position*; returns an Outcome for each. *path* is named in errors."""
    outcomes = [outcome for alike, run in groupby(commands, lambda numbered: is_plain_set(numbered[1]))
                for outcome in (_write(cursor, run) if alike else _perform_each(cursor, path, run))]
    database.write_position(cursor, position)
    return outcomes


def find(connection, path, key):
    """What *key* is, as Found. Raises StorageFailed if it is not as it was written; *path* is named in that."""
    rows = connection.execute(_ROW_AND_INDEX, (key,)).fetchall()
    if not rows:
        raise StorageFailed(f"{path}: damaged: the index at which it stands is gone")
    [(applied_index, *row)] = rows
    if row == [None, None, None]:
        return Found(None, 0, applied_index)
    database.check_row(path, key, *row)
    return Found(row[0], row[1], applied_index)


def _write(cursor, commands):
    """Do what the Sets among *commands* say, which depend on nothing; returns their Outcomes."""
    rows = [(command.key, command.value, index, database.row_checksum(command.key, command.value, index))
            for index, command in commands]
    execute_rows(cursor, _INSERT, rows, _OR_UPDATE)
    return [Outcome("written", row[2]) for row in rows]


def _perform_each(cursor, path, commands):
    return [_perform(cursor, path, index, command) for index, command in commands]


def _perform(cursor, path, index, command):
    """Do what *command*, the entry at *index*, says; returns its Outcome."""
    key = command.key
    if command.conditions is not UNCONDITIONAL:
        modified_index = _modified_index(cursor, path, key)
        if not command.conditions.hold(modified_index):
            return Outcome("refused", modified_index)
    if type(command) is Set:
        return _write(cursor, [(index, command)])[0]
    cursor.execute(_REMOVE, (key,))
    return Outcome("deleted" if cursor.rowcount else "missing", index)


def _modified_index(cursor, path, key):
    rows = cursor.execute(_ROW, (key,)).fetchall()
    if not rows:
        return 0
    database.check_row(path, key, *rows[0])  # a damaged index would make this server decide unlike the others
    return rows[0][1]
