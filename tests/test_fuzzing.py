"""Hostile input, a little of it each time; ``bin/fuzz`` is for much. And that what it is for is found: bugs are planted here."""

import importlib.machinery
import importlib.util
import random
import subprocess
import sys
from contextlib import nullcontext
from itertools import count
from pathlib import Path

from unittest.mock import ANY

import pytest
from fuzzing import Bytes, Finding, campaign, case, files, frames, spoiled
from fuzzing.conversations import Conversation
from fuzzing.surface import Surface
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import wait_until
from raftd import cli, kv, listener, storage, transport, wire
from raftd.errors import RaftdError, Refusal
from raftd.kv import database, queries, snapshot
from raftd.raft.core import Raft
from raftd.raft.messages import AppendEntries, ReadIndex, RequestVote, TimeoutNow
from raftd.web import db, parameters
from test_node import FAST, group

FUZZ = Path(__file__).resolve().parent.parent / "bin/fuzz"
EXAMPLES = {"http": 150, "frames": 40, "snapshots": 10, "files": 20, "flags": 300, "replies": 200}  # about a second each
CASES = {"http": 500, "frames": 60, "snapshots": 15, "files": 30, "flags": 1000, "replies": 500}


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_property_is_violated(name):
    """hypothesis decides what is said: what it finds is short."""
    with campaign.TARGETS[name]() as target:
        @settings(max_examples=EXAMPLES[name], deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
        @given(st.randoms(use_true_random=False))
        def attack(rng):
            target.attack(rng)
        attack()


@pytest.mark.parametrize("name", CASES)
def test_the_first_cases_find_nothing(name):
    counts, finding = campaign.run(name, 0, CASES[name])
    assert finding is None
    assert counts[campaign.TARGETS[name].unit] >= CASES[name]


def test_a_frame_that_comes_twice_is_answered_twice():
    """And is no finding: case 6007549 is one that can be taken over whole, and comes again."""
    counts, finding = campaign.run("frames", 6007549, 1)
    assert finding is None and counts["answered"] > 1


@pytest.mark.cluster
def test_the_first_cases_find_nothing_in_a_process():
    counts, finding = campaign.run("live", 0, 600)
    assert finding is None
    assert not campaign.not_exercised("live", counts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["http", "frames", "flags", "replies"])
def test_many_cases_with_one_command_that_says_what_was_exercised(name):
    done = subprocess.run([sys.executable, FUZZ, name, "--count", "2500"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{campaign.TARGETS[name].unit}, 0 findings" in done.stdout and "not exercised" not in done.stderr


def test_a_case_is_the_same_each_time():
    counts = [campaign.run("http", 40, 60) for _ in range(2)]
    assert counts[0] == counts[1]
    assert [case("a", 1).random(), case("a", 1).random()] == [case("a", 1).random()] * 2 != [case("a", 2).random()] * 2


def test_bytes_decide_and_when_there_are_none_left_the_first_is_chosen():
    one, other = (Bytes(random.Random(5).randbytes(50)) for _ in range(2))
    assert [one.randrange(7) for _ in range(99)] == [other.randrange(7) for _ in range(99)]
    assert {one.choice("abc") for _ in range(9)} == {"a"} and one.random() == 0.0
    assert spoiled(Bytes(b""), b"x" * 50) == spoiled(Bytes(b""), b"x" * 50)


# What is cut off


WHOLE_REQUESTS = [
    b"POST /db/a HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nhello world",
    b"PUT /db/a?timeout=1s HTTP/1.1\r\nHost: x\r\nIf-Match: \"1\"\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n",
    b"DELETE /db/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: 56\r\n\r\n{\"name\": \"n2\", \"connectionString\": \"http://127.0.0.1:1\"}",
    b"POST /db/a HTTP/1.0\r\nContent-Length: 1\r\n\r\nx",
]


@pytest.mark.parametrize("whole", WHOLE_REQUESTS, ids=range(len(WHOLE_REQUESTS)))
@pytest.mark.parametrize("end", ["close", "end", "wait"])
def test_a_request_that_is_cut_off_at_any_byte_changes_nothing(whole, end):
    with Surface() as surface:
        for length in range(len(whole)):
            surface.say(Conversation([whole[:length]] if length else [], end))
        assert surface.node.marks == 0
        surface.say(Conversation([whole], "end"))
        assert surface.node.marks == 1


def test_a_request_that_comes_a_byte_at_a_time_is_whole():
    with Surface() as surface:
        for number, whole in enumerate(WHOLE_REQUESTS, 1):
            surface.say(Conversation([whole[at:at + 1] for at in range(len(whole))], "end"))
            assert surface.node.marks == number


def test_pages_of_a_state_in_the_place_of_others():
    """Each leaf in the place of each other page: what is missing then is noticed."""
    with files.Files() as target:
        original = target._originals[0]
        whole = original.files["state.db"]
        for here in range(0, len(whole), 3 * 4096):
            for there in range(2 * 4096, len(whole), 2 * 4096):
                directory = target._directory / "pages"
                directory.mkdir()
                original.put(directory)
                (directory / "state.db").write_bytes(whole[:there] + whole[here:here + 4096] + whole[there + 4096:])
                target._look(directory, original)
                files.shutil.rmtree(directory)
        assert target.counts["refused"] > 5


# A cluster that is lied to


def test_a_cluster_goes_on_after_a_storm_of_lies():
    """Votes, terms, heartbeats and reads that nobody has asked for, in the name of each other, with numbers up to 2^64."""
    rng = random.Random(11)
    with group(settings=FAST) as nodes:
        nodes.leader().propose(b"before", 5)
        for _ in range(600):
            node = rng.choice(list(nodes.nodes.values()))
            sender = rng.choice([name for name in nodes.nodes if name != node.name])
            lie = frames.request(rng, node._raft, sender)
            if isinstance(lie, AppendEntries):  # who commits for others what they have not can make them differ: Raft is not for liars
                lie = AppendEntries(lie.term, lie.leader_id, lie.prev_log_index, lie.prev_log_term)
            if isinstance(lie, (AppendEntries, RequestVote, TimeoutNow, ReadIndex)):
                deliver(node, sender, lie)
        wait_until(lambda: proposed(nodes.leader(), b"after"), "a leader that stays")
        first, *others = nodes.commands_everywhere()
        assert first == b"before" and set(others) == {b"after"}  # more than once if the first leader did not stay


def proposed(leader, command):
    try:
        return leader.propose(command, 10)
    except RaftdError:
        return None


def deliver(node, sender, lie):
    try:
        frame = wire.encode(lie, 0)
        message, index = wire.decode(frame[:wire.HEADER.size], frame[wire.HEADER.size:])
        node.handle(sender, index, message)
    except (Refusal, wire.WireError, wire.struct.error):
        pass


# Planted bugs


def found_in(name, cases):
    """What the first so many cases find."""
    for first in count(0, 200):
        if first >= cases:
            return None
        _, finding = campaign.run(name, first, 200)
        if finding:
            return finding


def forgets_what_is_expected(monkeypatch):
    monkeypatch.setattr(listener.Parser, "received", listener.HTTPRequestParser.received)


def lets_waitress_read_heads(monkeypatch):
    monkeypatch.setattr(listener.Parser, "parse_header", listener.HTTPRequestParser.parse_header)


def answers_behind_an_upgrade(monkeypatch):
    def hand_to_peers(self, channel, headers):
        peer_socket = channel.socket.dup()
        channel.requests = []
        self._peers.serve(peer_socket, {name.lower().replace("_", "-"): value for name, value in headers.items()})
    monkeypatch.setattr(listener.Dispatcher, "_hand_to_peers", hand_to_peers)


def fails_at_large_numbers(monkeypatch):
    monkeypatch.setitem(parameters._PARSERS, "min_index", int)


def writes_before_it_looks(monkeypatch):
    key_of = db.key_of

    def put(key):
        db.current_node().propose(kv.encode(kv.Set("x", b"")), 1)
        return key_of(key)
    monkeypatch.setattr(db, "key_of", put)


def obeys_liars(monkeypatch):
    monkeypatch.setattr(Raft, "contradiction", lambda self, request: None)


def takes_any_term(monkeypatch):
    monkeypatch.setattr("raftd.node.MAX_TERM_STEP", 1 << 63)


def votes_twice(monkeypatch):
    def hear_leader(self, request, before=Raft._hear_leader):
        before(self, request)
        self.voted_for = None
    monkeypatch.setattr(Raft, "_hear_leader", hear_leader)


def takes_any_bytes_for_a_log(monkeypatch):
    monkeypatch.setattr(storage, "_checksum", lambda *fields, data=b"": 0)


def does_not_look_at_rows(monkeypatch):
    monkeypatch.setattr(queries, "head_checksum", lambda *_: ANY)
    monkeypatch.setattr(queries, "change_checksum", lambda *_: ANY)
    monkeypatch.setattr(database, "check_rows", lambda *_: None)
    monkeypatch.setattr(database, "check_counts", lambda *_: None)


def lets_errors_of_sqlite_out(monkeypatch):
    monkeypatch.setattr(storage, "storage_errors", lambda *_, **__: nullcontext())


def installs_any_copy(monkeypatch):
    monkeypatch.setattr(snapshot.Incoming, "_check_and_mark", lambda self: None)


def mixes_copies(monkeypatch):
    monkeypatch.setattr(snapshot.Incoming, "announces", lambda *_: True)


def takes_any_port(monkeypatch):
    monkeypatch.setattr(cli, "_port", int)
    monkeypatch.setitem(cli.FLAGS, "p", cli.FLAGS["p"]._replace(read=int))


def repeats_what_a_peer_says(monkeypatch):
    monkeypatch.setattr(transport, "MAX_REASON", 10**6)


BUGS = {
    "http": [forgets_what_is_expected, lets_waitress_read_heads, answers_behind_an_upgrade, fails_at_large_numbers, writes_before_it_looks],
    "frames": [obeys_liars, takes_any_term, votes_twice], "files": [takes_any_bytes_for_a_log, does_not_look_at_rows,
                                                                    lets_errors_of_sqlite_out],
    "snapshots": [installs_any_copy, mixes_copies], "flags": [takes_any_port], "replies": [repeats_what_a_peer_says],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "plant"), [(name, plant) for name, bugs in BUGS.items() for plant in bugs],
                         ids=[plant.__name__ for bugs in BUGS.values() for plant in bugs])
def test_a_planted_bug_is_found(monkeypatch, name, plant):
    plant(monkeypatch)
    assert found_in(name, 6000)


# The command


@pytest.fixture
def command():
    loader = importlib.machinery.SourceFileLoader("fuzz_command", str(FUZZ))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("fuzz_command", loader))
    loader.exec_module(module)
    return module


def test_a_finding_is_told_with_how_to_see_it_again(command, monkeypatch, capsys):
    takes_any_port(monkeypatch)
    assert command.main(["flags", "--count", "3000"]) == 1
    told = capsys.readouterr().err
    number = int(told.split("--from ")[1].split()[0])
    assert f"case {number} of flags" in told and "raftd [" in told
    assert command.main(["flags", "--from", str(number), "--count", "1"]) == 1
    assert capsys.readouterr().err == told
    monkeypatch.undo()
    assert command.main(["flags", "--from", str(number), "--count", "1"]) == 0


def test_what_is_not_reached_is_no_success(command, monkeypatch, capsys):
    monkeypatch.setattr(campaign.TARGETS["flags"], "exercised", ("command lines", "flying"))
    assert command.main(["flags", "--count", "2000"]) == 1
    assert "not exercised at all: flying" in capsys.readouterr().err


def test_input_that_was_kept(command, tmp_path, monkeypatch, capsys):
    kept = tmp_path / "input"
    kept.write_bytes(random.Random(1).randbytes(500))
    assert command.main(["http", "--input", str(kept)]) == 0
    assert "1 requests" in capsys.readouterr().out
    monkeypatch.setattr(Surface, "say", lambda self, said: (_ for _ in ()).throw(Finding("there it is")))
    assert command.main(["http", "--input", str(kept)]) == 1
    assert capsys.readouterr().err == "there it is\n"


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["http", "--count", "0"], ["http", "--from", "-1"], ["live", "--guided"],
                                       ["all", "--input", "x"]])
def test_a_wrong_command_line(command, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2 and "usage: bin/fuzz" in capsys.readouterr().err


@pytest.mark.slow
def test_guided_by_what_is_reached_where_that_is_possible(command, monkeypatch, capsys):
    """atheris is no part of the test tools: where it is not, one line says so."""
    if importlib.util.find_spec("atheris"):
        assert command.main(["flags", "--guided", "--count", "600"]) == 0
        assert "flags, guided: 600 cases, 0 findings" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "atheris", None)
    assert command.main(["flags", "--guided"]) == 2
    assert "needs atheris" in capsys.readouterr().err
