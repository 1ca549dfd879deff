"""Files and frames of other versions: what this one wrote stays readable; what it does not know is refused by name, and nothing applied.

``formats/`` holds the files of format 1 as SQL, and here are frames of protocol raftd/3: whoever changes them without a new number
meets these tests. No second version of raftd exists yet that could be run beside this one.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cluster import Cluster
from raftd import sqlitefile, wire
from raftd.errors import StartupError
from raftd.kv import (
    Changes, Conditions, Delete, DeletePrefix, Expire, Fence, Get, If, KeyValueStore, Outcome, Position, Request, Set, Touch, Transaction,
    decode, encode,
)
from raftd.raft.configuration import Configuration, Member
from raftd.raft.core import Base, Unsaved
from raftd.raft.messages import (
    COMMAND, CONFIGURATION, NOOP, AppendEntries, AppendEntriesReply, Entry, HardState, InstallSnapshot, InstallSnapshotReply, ReadIndex,
    ReadIndexReply, RequestVote, RequestVoteReply, TimeoutNow, TimeoutNowReply,
)
from raftd.storage import Identity, Storage

FORMAT = {"raft": 1, "state": 2}
FORMATS = Path(__file__).resolve().parent / "formats"
ONE = Configuration({"n1": Member("n1", "127.0.0.1:4001", True, "0123abcd")})
TWO = Configuration({**ONE.members, "n2": Member("n2", "[::1]:4002", False, "4567")})

COMMANDS = {
    Set("color", b"red"): "0101000005636f6c6f72726564",
    Delete("a/b", Conditions("*", None)): "0102010003612f62",
    Set("žluť", bytes(range(8)), Conditions((2, 4), "*")): "0101060006c5be6c75c5a500000002000000000000000200000000000000040001020304050607",
    Touch("k", 1500): "01040000016b00000000000005dc",
    Set("k", b"v", ttl=1500): "01030000016b00000000000005dc76",
    DeletePrefix("a/"): "0105000002612f",
    Transaction((), (Delete("b"),)): "0106000000000000000000000105000000016200000000",
    Expire(): "0107000000",
    Transaction((If("a", "index", 0), If("b", "exists", False), If("c", "value", b"v")), (Set("a", b"1", ttl=5), Delete("b")), (Get("c"),)):
        "010900000000000003010000000161000000000000000002000000016200000000000000000300000001630000000176000000020400000001610000000000"
        "000005000000013105000000016200000001060000000163",
    Request(Delete("k"), 5000, "key", Fence("lock", 7)):
        "01080000000000000000001388000000036b6579000000046c6f636b000000000000000701020000016b",
}
FRAMES = {
    RequestVote(3, "n1", 9, 2, True, False):
        "00000020020000000000000005ecc86e2e0000000000000003000000026e31000000000000000900000000000000020100",
    RequestVoteReply(3, True): "00000009030000000000000005379eba3e000000000000000301",
    AppendEntries(3, "n1", 4, 2, (Entry(5, 3, COMMAND, b"x"), Entry(6, 3, NOOP, b"")), 4, 7, 3, 250):
        "000000590100000000000000055d1695b4000000000000000300000000000000040000000000000002000000000000000400000000000000070000000000"
        "000003000000fa00000002000000026e31000000000000000301000000017800000000000000030000000000",
    AppendEntriesReply(3, False, 1, 2, 3, True):
        "000000220400000000000000057caa1abc00000000000000030000000000000000010000000000000002000000000000000301",
    InstallSnapshot(3, "n1", 9, 2, 10, b"\1\2", 4, b"data"):
        "0000003c05000000000000000590230c4b0000000000000003000000026e3100000000000000090000000000000002000000000000000a"
        "00000002010200000000000000040000000464617461",
    InstallSnapshotReply(3, 8, True): "00000011060000000000000005202103f90000000000000003000000000000000801",
    ReadIndex(3, "n1"): "0000000e070000000000000005af528a810000000000000003000000026e31",
    ReadIndexReply(3, 9): "00000010080000000000000005713bf5d500000000000000030000000000000009",
    TimeoutNow(3, "n1"): "0000000e0900000000000000054221bbdd0000000000000003000000026e31",
    TimeoutNowReply(3): "000000080a0000000000000005285d3a110000000000000003",
}


@pytest.fixture
def written(tmp_path):
    """A data path that a raftd has left."""
    for name, number in FORMAT.items():
        write(tmp_path, name, number)
    return tmp_path


def write(directory, name, number):
    with closing(sqlite3.connect(directory / f"{name}.db")) as connection:
        connection.executescript((FORMATS / f"{name}-{number}.sql").read_text())


def test_a_log_of_format_1_is_read(written):
    with closing(Storage.open(written)) as storage:
        assert storage.identity == Identity("n1", "0123abcd", "c0ffee")
        set_, delete, conditional = list(COMMANDS)[:3]
        assert storage.load() == (HardState(3, "n2"), Base(1, 1, ONE), [
            Entry(2, 1, COMMAND, encode(set_)), Entry(3, 2, CONFIGURATION, TWO.encode()), Entry(4, 2, COMMAND, encode(delete)),
            Entry(5, 3, COMMAND, encode(conditional))])


def test_a_state_of_format_2_is_read(written):
    with closing(KeyValueStore(written)) as state:
        assert state.position == Position(8, 2, TWO.encode(), 0)
        assert state.read(Get("color"))[:5] == (b"blue", 6, 8, 2, 2)
        assert state.read(Get("lock")).expires_in <= 60
        assert state.time == 5000
        assert [tuple(change) for change in state.read(Changes(0)).changes] == [
            (2000000, 1, 0, "color", b"red"), (4000000, 1, 0, "a/b", b""), (5000000, 2, 4, "a/b", b""), (5999999, 1, 2, "color", b"blue"),
            (6000000, 1, 0, "lock", b"me")]
        state.verify()
        again = state.apply([(9, encode(Request(Delete("a/b"), key="request")))], 9, 2, TWO.encode())
        assert again == [Outcome("deleted", 5, None, True)]


def test_a_state_of_format_1_is_refused_by_name(tmp_path):
    """It does not say how often a key was written, and servers that made that up would differ."""
    write(tmp_path, "state", 1)
    with pytest.raises(StartupError, match="format 1 is unknown to this raftd, which knows 2; use the raftd that wrote it$"):
        KeyValueStore(tmp_path)


@pytest.mark.parametrize("name", ["raft", "state"])
def test_new_files_are_of_the_known_format(tmp_path, written, name):
    """To the letter, or the number in them must be another."""
    made = tmp_path / "made"
    made.mkdir()
    Storage.create(made, Identity("n1", "i", "c")).close()
    KeyValueStore(made).close()
    schemas = []
    for directory in (made, written):
        with closing(sqlite3.connect(directory / f"{name}.db")) as connection:
            numbers = [connection.execute(f"PRAGMA {pragma}").fetchone() for pragma in ("application_id", "user_version")]
            schemas.append((numbers, sorted(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))))
    assert schemas[0] == schemas[1]


@pytest.mark.parametrize(("command", "data"), COMMANDS.items(), ids=str)
def test_commands_of_format_1(command, data):
    assert encode(command).hex() == data and decode(bytes.fromhex(data)) == command


@pytest.mark.parametrize(("message", "frame"), FRAMES.items(), ids=lambda value: type(value).__name__)
def test_frames_of_protocol_3(message, frame):
    assert wire.PROTOCOL == "raftd/3"
    assert wire.encode(message, 5).hex() == frame
    data = bytes.fromhex(frame)
    assert wire.decode(data[:wire.HEADER.size], data[wire.HEADER.size:]) == (message, 5)


def test_every_message_has_its_frame_here():
    assert {type(message) for message in FRAMES} == set(wire.REPLIES) | set(wire.REPLIES.values())


# What is not known


def test_an_entry_of_an_unknown_kind_in_the_log_is_refused_by_name(written):
    """It was taken for one that says nothing: this server would have made another state than the others."""
    with closing(Storage.open(written)) as storage:
        storage.save(Unsaved(None, None, 6, (Entry(6, 3, 7, b"what"), Entry(7, 3, NOOP, b""))))
    with closing(Storage.open(written)) as storage, pytest.raises(StartupError, match="entry 6 of the log is of kind 7.*upgrade"):
        storage.load()


@pytest.mark.parametrize(("number", "todo"), [(3, "upgrade"), (0, "use the raftd that wrote it")])
@pytest.mark.parametrize("name", ["raft", "state"])
def test_an_unknown_format_of_a_file_is_refused_by_name_and_left_alone(written, name, number, todo):
    with closing(sqlite3.connect(written / f"{name}.db")) as connection:
        connection.execute(f"PRAGMA user_version = {number}")
    before = (written / f"{name}.db").read_bytes()
    with pytest.raises(StartupError, match=f"format {number} is unknown to this raftd, which knows {FORMAT[name]}; {todo}$"):
        sqlitefile.check_header(written / f"{name}.db", 0x72616674 if name == "raft" else 0x7261666B, FORMAT[name])
    with pytest.raises(StartupError, match=f"format {number}.*{todo}"):
        Storage.open(written) if name == "raft" else KeyValueStore(written)
    assert (written / f"{name}.db").read_bytes() == before


@pytest.mark.cluster
@pytest.mark.parametrize(("entry", "names"), [
    ((COMMAND, b"\2\1\0\0\1aevil"), "operation 1 of format 2"), ((COMMAND, b"\1\x63\0\0\1a"), "operation 99"), ((9, b""), "of kind 9"),
])
def test_a_server_ends_at_what_it_does_not_know_before_it_is_applied(tmp_path, entry, names):
    """One line that says what, exit status 1, again at each start; and the state stands where it stood."""
    with Cluster(tmp_path, 1) as cluster:
        server = cluster[1]
        assert server.put("a", b"1").status == 200
        assert server.terminate() == 0
        before = server.data()
        with closing(Storage.open(server.path)) as storage:
            saved = storage.load()
            first = saved.base.index + len(saved.entries) + 1
            storage.save(Unsaved(None, None, first, (Entry(first, saved.hard_state.term, *entry),
                                                     Entry(first + 1, saved.hard_state.term, COMMAND, encode(Set("b", b"2"))))))
        for _ in range(2):
            server.start(wait=False)
            assert server.exit_status() == 1
            last = server.log_of_this_start().splitlines()[-1]
            assert last.startswith("raftd: ") and names in last and "upgrade" in last, last
            assert server.data() == before == {"a": b"1"}
