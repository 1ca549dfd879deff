"""What the types of ``raftd.client`` say to a program that uses it: mypy reads this, nothing runs it."""

from typing import assert_type

from raftd.client import Client, Entry, Event, Lock, Transaction
from raftd.errors import RaftdError


def program(client: Client) -> None:
    assert_type(client.get("key"), bytes | None)
    assert_type(client.get("key", b""), bytes)
    assert_type(client.get("key", 0), bytes | int)
    assert_type(client["key"], bytes)
    assert_type(client.within(0.5).get("key"), bytes | None)
    assert_type("key" in client, bool)
    assert_type(client.entry("key"), Entry | None)
    index = assert_type(client.set("key", "value", ttl="30s"), int)
    assert_type(client.cas("key", b"value", index), int)
    assert_type(client.delete("key"), bool)
    done = assert_type(client.txn([{"set": "key", "value": b"value"}], if_=[{"key": "key", "index": index}]), Transaction)
    assert_type(done.succeeded, bool)
    for entry in client.list("k", keys_only=True):
        assert_type((entry.key, entry.value, entry.index, entry.version), tuple[str, bytes | None, int, int | None])
    with client.watch("k", since=index) as changes:
        for change in changes:
            assert_type(change, Event)
    try:
        with client.lock("door", ttl=15) as lock:
            assert_type(lock, Lock)
            client.set("key", "value", fence=lock)
    except RaftdError as error:
        assert_type((error.code, error.status, error.retry, error.index, error.leader), tuple[str, int, str, int, str | None])
