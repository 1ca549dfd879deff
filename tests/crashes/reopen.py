"""Opens what a power cut has left as the server does, and says what it found. In this process, with the production code."""

import os
import random
import time
from typing import Any, NamedTuple

from raftd.errors import RaftdError, StartupError
from raftd.kv import KeyValueStore, Position, database
from raftd.node import restore
from raftd.raft.configuration import NOBODY
from raftd.server import DataPath
from raftd.storage import Identity, Storage, new_id

from crashes.knowledge import Log
from crashes.subject import NAME, SETTINGS

_OUR_FILES = {"raft.db", "raft.db-wal", "raft.db-shm", "state.db", "state.db-wal", "state.db-shm", "raft.db-journal", "raft.promised"}


def _rows(connection, path):
    database.check_all(connection, path)
    return {key: (value, index) for key, value, index in connection.execute("SELECT key, value, modified_index FROM items")}


class Found(NamedTuple):
    """What was on the disk. *refused*: why it was not opened; *log* is None when there was no server, and one was made."""

    refused: str | None
    identity: Any = None
    log: Any = None
    position: Position | None = None
    rows: dict | None = None
    applied: int = 0  # as the core sees it


def reopen(path, verify=False):
    """Open the data path as ``Server`` does, and read all of it; as ``Found``. *verify* it too, as a server does soon after the start."""
    storage = state = data = None
    try:
        data = DataPath(path)
        was_new = data.is_new
        storage = Storage.create(path, Identity(NAME, new_id(), new_id()), NOBODY) if was_new else Storage.open(path)
        saved = storage.load()
        state = KeyValueStore(path, may_create=not saved.base.index)
        raft = restore(NAME, saved, state.position, SETTINGS, random, time.monotonic())
        if verify:
            state.verify()
        rows = state._readers.read(_rows, path)
        leftovers = set(os.listdir(path)) - _OUR_FILES
        if leftovers:
            return Found(f"{', '.join(sorted(leftovers))} stayed behind")
        if was_new:
            return Found(None)
        return Found(None, storage.identity, Log.of(saved), state.position, rows, raft.last_applied)
    except (StartupError, RaftdError) as error:
        return Found(f"{type(error).__name__}: {error}")
    finally:
        for part in (state, storage):
            if part:
                part.close()
        if data:
            data.keep()
            data.close()
