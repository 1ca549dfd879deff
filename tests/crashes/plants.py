"""Bugs to plant into the server, by name: whoever looks for crash states must find each of them. Also ``bin/crashes --plant NAME``."""

import sqlite3
from contextlib import closing
from types import SimpleNamespace

from raftd import promised, server, sqlitefile, storage
from raftd.kv import KeyValueStore, database, execution, snapshot, store
from raftd.raft.core import Raft


def _without(module, *names):
    """*module* with functions that do nothing: for one of those that use it."""
    return SimpleNamespace(**{**vars(module), **{name: lambda path: None for name in names}})


def _set_at_each_connection(module, name, pragma):
    """Connections that ``module.name`` makes are given another setting."""
    connect = getattr(module, name)

    def connect_and_set(*arguments):
        connection = connect(*arguments)
        connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection
    setattr(module, name, connect_and_set)


def log_not_synced():
    """A save returns before the disk has it."""
    _set_at_each_connection(storage, "_connect", "synchronous = NORMAL")


def state_never_synced():
    """Not even at a checkpoint."""
    _set_at_each_connection(database, "open_writer", "synchronous = OFF")


def data_path_not_synced():
    """The name of the data path is not made durable."""
    server.sync_directory = lambda path: None


def first_start_not_synced():
    """Nor is the name of raft.db."""
    storage.sqlitefile = _without(_with_wal_mode(sqlitefile), "sync_directory")


def rename_not_synced():
    """The name of a state that was installed is not made durable."""
    snapshot.sqlitefile = _with_wal_mode(sqlitefile)
    store.sqlitefile = _without(sqlitefile, "sync_directory")


def _with_wal_mode(module):
    """A file is synced with the mode it will have: to change that later, SQLite itself syncs the directory, and hides the bug."""
    def sync(path):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        sqlitefile.sync(path)
    return SimpleNamespace(**{**vars(module), "sync": sync})


def old_log_not_removed_for_sure():
    """The write-ahead log of the old state may come back, beside the new one."""
    calls = []

    def every_other(path):
        calls.append(path)
        if len(calls) % 2 == 0:
            sqlitefile.sync_directory(path)
    store.sqlitefile = SimpleNamespace(**{**vars(sqlitefile), "sync_directory": every_other})


def snapshot_renamed_before_it_is_synced():
    _set_at_each_connection(database, "open_alone", "synchronous = OFF")
    snapshot.sqlitefile = _without(sqlitefile, "sync")
    store.sqlitefile = _without(sqlitefile, "sync")


def index_and_data_in_two_transactions():
    def write_position(cursor, position):
        cursor.execute("COMMIT")
        cursor.execute("BEGIN IMMEDIATE")
        database.write_position(cursor, position)
    execution.database = SimpleNamespace(**{**vars(database), "write_position": write_position})


def vote_not_saved():
    save = storage.Storage.save

    def forget_and_save(self, unsaved):
        forgetful = unsaved.hard_state and unsaved.hard_state._replace(voted_for=None)
        save(self, unsaved._replace(hard_state=forgetful))
    storage.Storage.save = forget_and_save


def promised_before_it_is_saved():
    """A server whose power was cut is told that it has lost what it never had."""
    save = storage.Storage._save

    def promise_and_save(self, unsaved, overwrites):
        self._promised.write(storage._said_after(unsaved, self._promised.said))
        save(self, unsaved, overwrites)
    storage.Storage._save = promise_and_save


def promised_log_not_taken_back():
    """Entries are overwritten, and after a power cut it is said again that they are there."""
    promised.os = SimpleNamespace(**{**vars(promised.os), "fdatasync": lambda descriptor: None})


def answered_before_it_is_saved():
    """Replies to peers do not wait for the disk."""
    release = Raft._release_answers

    def release_all(self):
        saved, self._hard_state_saved = self._hard_state_saved, True
        release(self)
        self._hard_state_saved = saved
    Raft._release_answers = release_all


def compacted_before_the_checkpoint():
    """The log is cut although the state it stands for is not on the disk yet."""
    KeyValueStore.checkpoint = lambda self: self._position.index


PLANTS = {name: plant for name, plant in list(globals().items())
          if callable(plant) and not name.startswith("_") and plant.__module__ == __name__}
