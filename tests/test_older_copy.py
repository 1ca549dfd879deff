"""Files of an earlier moment, such as a backup put back: what they say is sound, and the server has forgotten what it promised since.

By itself it cannot know. The leader does, if the server has told it: what a follower has confirmed to the leader of a term it keeps as
long as that leads (section 5.3), and each request says whether the entry before it is one of those.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import pytest

from cluster import Cluster, wait_until
from one_server import HEARTBEAT, accept, ask, follower, leader, propose, refuse, replicate, save
from raftd.errors import DamagedFiles, Refusal, StorageFailed
from raftd.raft.configuration import Configuration, Member
from raftd.raft.core import Unsaved
from raftd.raft.messages import COMMAND, AppendEntries, Entry, HardState, RequestVote
from raftd.storage import Identity, Storage
from raftd.node import Node
from test_node import PATIENT, Group, Machine, MemoryStorage, Wires


# The core


def test_a_new_leader_does_not_know_what_others_have_confirmed():
    raft = leader(1, 1, committed=False)
    assert raft.request_for("n2").confirmed_index == 0


def test_a_leader_says_what_was_confirmed_to_it():
    raft = leader(1, 1)
    accept(raft, "n3")
    raft.tick(raft.now + HEARTBEAT)
    assert raft.request_for("n3") == AppendEntries(raft.term, "n1", 2, 1, (), 3, raft.role.round, 2)
    propose(raft)
    assert raft.data_for("n3").confirmed_index == 2


def test_entries_on_their_way_are_not_confirmed():
    raft = leader(1, 1)
    replicate(raft, "n2", "n3")
    propose(raft)
    raft.role.progress["n3"].next_index = raft.log.last_index + 1  # as if more could be sent before the answer
    request = raft._append_entries_for(raft.role.progress["n3"], ())
    assert (request.prev_log_index, request.confirmed_index) == (4, 3)


def test_what_a_follower_refuses_is_not_confirmed():
    raft = leader(1, 1, 1, 1, committed=False)
    refuse(raft, "n3", (4, 1), 2)
    request = raft.data_for("n3")
    assert (request.prev_log_index, request.confirmed_index) == (1, 0)


def test_what_was_confirmed_is_said_also_when_it_is_compacted():
    """The follower would take a snapshot, and nobody would know what else it has forgotten."""
    raft = leader(1, 1)
    replicate(raft, "n2", "n3")
    propose(raft)
    replicate(raft, "n2")
    raft.applied(4)
    raft.compact(4, 0, 0)
    save(raft)
    assert raft.log.snapshot_index == 4 and raft.needs_snapshot("n3")
    raft.tick(raft.now + HEARTBEAT)
    request = raft.request_for("n3")
    assert (request.prev_log_index, request.confirmed_index) == (0, 3)


@pytest.mark.parametrize("term", [1, 2])
@pytest.mark.parametrize("prev", [(5, 1), (6, 1), (0, 0)], ids=["before the next", "earlier", "before what is compacted"])
def test_a_follower_without_an_entry_that_it_has_confirmed_is_lost(term, prev):
    """Also if it has forgotten the term."""
    raft = follower(1, 1)
    ask(raft, AppendEntries(term, "n2", *prev, (), 5, 0, 5))
    assert raft.lost == (5, 0)


def test_a_follower_with_another_entry_in_its_place_is_lost():
    raft = follower(1, 1)
    ask(raft, AppendEntries(3, "n2", 2, 2, (), 0, 0, 2))
    assert raft.lost == (2, 2)


@pytest.mark.parametrize("term, prev, confirmed", [
    (1, (5, 1), 2), (1, (2, 1), 2), (1, (1, 1), 1), (0, (5, 0), 5), (1, (0, 0), 0), (2, (2, 2), 1)],
    ids=["what follows", "the last entry", "an earlier entry", "of an earlier leader", "nothing", "another entry, which was not confirmed"])
def test_one_that_has_all_is_not(term, prev, confirmed):
    raft = follower(1, 1)
    ask(raft, AppendEntries(term, "n2", *prev, (), 0, 0, confirmed))
    assert raft.lost is None


# The node


def test_a_node_that_is_an_older_copy_ends_and_its_files_are_refused_from_then_on():
    nodes = Group(3, PATIENT)
    try:
        leading = nodes.leader()
        old = nodes.followers(leading)[0]
        storage, machine = nodes.storages[old.name], nodes.machines[old.name]
        leading.propose(b"a", 5)
        wait_until(lambda: machine.position == nodes.machines[leading.name].position, "it has the first")
        older = list(storage.entries), machine.position, list(machine.commands)
        leading.propose(b"b", 5)
        wait_until(lambda: leading.look(lambda raft: raft.match_index(old.name) == raft.log.last_index), "it has confirmed the second")
        promised = leading.look(lambda raft: raft.log.last_index)
        del nodes.wires.nodes[old.name]
        old.stop()
        storage.entries, machine.position, machine.commands = older
        again, answered = nodes.add(old.name), []
        handle, again.handle = again.handle, lambda *request: answered.append(handle(*request)) or answered[-1]
        wait_until(lambda: nodes.failures or len(answered) > 20, "it ends, or answers as if nothing were")
        assert nodes.failures and answered == []
        assert isinstance(nodes.failures[0], DamagedFiles) and len(nodes.failures) == 1
        assert f"entry {promised} was confirmed by this server, and is not in its log" in str(nodes.failures[0])
        assert storage.lost_entry[0] == promised
        with pytest.raises(Refusal, match="was confirmed by this server"):
            again.handle(leading.name, 0, RequestVote(99, leading.name, 99, 99, True))
        with pytest.raises(StorageFailed):
            again.read(None, "linearizable", 1)
        assert leading.propose(b"c", 5)
    finally:
        nodes.stop()


@contextmanager
def told_by_n2(disk_is_slow=False):
    """A node, n1, of three that n2 leads, whose disk hangs: (node, its disk, the answer that waits for that, what the node ended with).

    If it was slow before, it is the log-writer that is at work, and who has the answer to give waits for that.
    """
    members, failures = {name: Member(name, f"host:{name[1:]}", True, f"id-{name}") for name in ("n1", "n2", "n3")}, []
    disk = MemoryStorage("n1", members)
    settings = replace(PATIENT, rpc_timeout_seconds=2)  # the answer can wait for a second
    node = Node("n1", "host:1", disk, Wires().transport("n1"), Machine(), settings, failures.append).start()
    with ThreadPoolExecutor(1) as pool:
        try:
            node.handle("n2", 0, AppendEntries(1, "n2", 0, 0))
            node._save_seconds = float(disk_is_slow)
            disk.ready.clear(), disk.reached.clear()
            waiting = pool.submit(node.handle, "n2", 0, AppendEntries(1, "n2", 0, 0, (Entry(1, 1, COMMAND, b"x"),)))
            assert disk.reached.wait(30)
            yield node, disk, waiting, failures
        finally:
            disk.ready.set()
            node.stop()


LOST = AppendEntries(1, "n2", 9, 1, (), 0, 0, 9)


def test_what_waits_for_the_disk_is_not_confirmed_once_the_loss_is_known():
    """The write that is under way ends well, or fails; nothing is said, the file is not read again, and nothing else is written."""
    for failure, disk_is_slow in product((None, StorageFailed("an I/O error")), (False, True)):
        with told_by_n2(disk_is_slow) as (node, disk, waiting, failures):
            disk.failure, before = failure, len(disk.saves)
            with pytest.raises(Refusal, match="entry 9 was confirmed"):
                node.handle("n2", 0, LOST)
            disk.ready.set()
            with pytest.raises(Refusal, match="entry 9 was confirmed"):
                waiting.result(30)
            wait_until(lambda: failures, "it ends")
            assert isinstance(failures[0], DamagedFiles) and disk.lost_entry == (9, 0)
            assert (len(disk.saves) - before, disk.reopened) == (0 if failure else 1, 0)


def test_the_answer_that_cannot_wait_longer_is_none():
    with told_by_n2(disk_is_slow=True) as (node, disk, waiting, _):
        with pytest.raises(Refusal):
            node.handle("n2", 0, LOST)
        with pytest.raises(Refusal, match="entry 9 was confirmed"):  # the disk still hangs
            waiting.result(30)


def test_nothing_is_written_once_the_loss_is_known():
    """Not even the new term that came with it."""
    with told_by_n2() as (node, disk, waiting, failures):
        disk.ready.set()
        waiting.result(30)
        saves = len(disk.saves)
        with pytest.raises(Refusal):
            node.handle("n3", 0, AppendEntries(2, "n3", 9, 2, (), 0, 0, 9))
        wait_until(lambda: failures, "it ends")
        assert len(disk.saves) == saves and disk.hard_state.term == 1


def test_a_loss_that_cannot_be_written_down_ends_the_node_all_the_same(caplog):
    with told_by_n2() as (node, disk, _, failures):
        disk.lost = lambda index, term: raise_(StorageFailed("an I/O error"))
        with pytest.raises(Refusal):
            node.handle("n2", 0, LOST)
        disk.ready.set()
        wait_until(lambda: failures, "it ends")
        assert isinstance(failures[0], DamagedFiles) and "entry 9 was confirmed" in str(failures[0])
    assert "cannot be written error=an I/O error" in caplog.text


def raise_(error):
    raise error


# The files


IDENTITY = Identity("n1", "f" * 32, "c" * 32)


def test_files_that_have_lost_an_entry_for_sure_are_refused_also_after_a_power_cut(tmp_path, monkeypatch):
    storage, synced = Storage.create(tmp_path, IDENTITY, Configuration({"n1": Member("n1", "localhost:4001")})), []
    storage.load()
    storage.save(Unsaved(HardState(3, None), None, 1, (Entry(1, 3, COMMAND, b"x"),)))
    monkeypatch.setattr("os.fdatasync", lambda descriptor: synced.append((tmp_path / "raft.promised").read_bytes()))
    storage.lost(4, 3)
    storage.close()
    assert synced == [(tmp_path / "raft.promised").read_bytes()]
    for _ in range(2):
        storage = Storage.open(tmp_path)
        with pytest.raises(DamagedFiles, match="entry 4 was in it and is not.*join it again with an empty data path"):
            storage.load()
        storage.close()


# Real servers


@pytest.mark.cluster
def test_a_backup_put_back_is_refused_and_a_new_server_takes_its_place(tmp_path):
    """The case of a person who restores yesterday's copy of one server, and of a supervisor that starts it again and again."""
    with Cluster(tmp_path) as cluster:
        leading = cluster.leader()
        old = cluster.followers(leading)[0]
        cluster.write("a", b"1")
        cluster.wait_converged()
        old.terminate()
        shutil.copytree(old.path, tmp_path / "backup")
        old.start()
        cluster.write("b", b"2")
        cluster.wait_converged()
        old.terminate()
        shutil.rmtree(old.path)
        shutil.copytree(tmp_path / "backup", old.path)
        old.start(wait=False)
        assert old.exit_status() == 1
        said = old.log_of_this_start().splitlines()
        assert said[-1].startswith("raftd: ") and "was confirmed by this server, and is not in its log" in said[-1], said
        assert "remove this node from the cluster and join it again with an empty data path" in said[-1]
        assert "Traceback" not in old.log_of_this_start()
        leading.kill()  # nobody is left who knows; the server with the backup must not help to elect another
        other = next(server for server in cluster.servers if server not in (leading, old))
        for _ in range(2):
            old.start(wait=False)
            assert old.exit_status() == 1
            assert "was in it and is not" in old.log_of_this_start().splitlines()[-1]
        leading.start()
        cluster.leader([leading, other])
        assert cluster.write("c", b"3", among=[leading, other])
        assert cluster.leader([leading, other]).call("DELETE", f"/members/{old.name}").status == 200
        new = cluster.new(name="n9")
        new.start(join=leading.address)
        wait_until(lambda: new.get("b").body == b"2", "the new server has all")
