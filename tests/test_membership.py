"""Members that come and go while something goes wrong: two under one name, changes that are not committed, leaders that are deposed."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cluster import holds_for, the_fault_lasts, wait_until
from raftd import membership
from raftd.errors import BadRequest, CommitTimeout, LeadershipLost, NoQuorum, NotFound, NotLeader, RaftdError, Refusal
from raftd.node import Node
from raftd.raft.configuration import Configuration, Member
from raftd.raft.messages import COMMAND, CONFIGURATION, AppendEntries, Entry, HardState
from raftd.storage import Identity
from test_node import FAST, PATIENT, Machine, MemoryStorage, Wires, clients, group

SHORT_ROUNDS = replace(PATIENT, max_append_bytes=50, election_timeout_seconds=1)


def add_twin(nodes, name, address, id):
    """Another server under *name*, at *address*, with files of its own; requests for a member with *id* reach it."""
    storage, machine = MemoryStorage(name, {}), Machine()
    storage.identity = Identity(name, id, "cluster")
    twin = Node(name, address, storage, nodes.wires.transport(name), machine, PATIENT, nodes.failures.append)
    nodes.nodes[id] = nodes.wires.nodes[id] = twin.start()
    nodes.storages[id], nodes.machines[id] = storage, machine
    carry = nodes.wires.call

    def by_id(sender, member, request, index):
        return carry(sender, replace(member, name=id) if member.id == id else member, request, index)
    nodes.wires.call = by_id


def forget(nodes, *names):
    """These have stopped and count no more."""
    for name in names:
        nodes.nodes.pop(name).stop(), nodes.machines.pop(name), nodes.storages.pop(name)


def outcome(future):
    error = future.exception()
    return "joined" if error is None else type(error)


def configurations_in(storage):
    """Every membership that the log has held, the oldest first."""
    return [Configuration.decode(entry.command) for entry in storage.entries if entry.kind == CONFIGURATION]


def test_of_two_servers_with_one_name_that_join_together_one_becomes_a_member():
    """The other must never vote with the progress of the first: its disk is empty."""
    for _ in range(3):
        with clients(2) as pool, group(1) as nodes:
            leader, both_are_identified = nodes.leader(), threading.Barrier(2)
            for number in range(20):
                leader.propose(b"%d" % number, 5)
            nodes.add("n2")
            add_twin(nodes, "n2", "host:22", "id-twin")

            def identify(address, nodes=nodes, barrier=both_are_identified):
                identity = nodes.wires._identify(address)
                barrier.wait(5)
                return identity
            joins = [pool.submit(membership.join, leader, identify, "n2", address, True, time.monotonic() + 20)
                     for address in ("host:2", "host:22")]
            assert sorted(map(outcome, joins), key=str) == sorted(["joined", BadRequest], key=str)
            winner = ("id-n2", "id-twin")[[outcome(join) for join in joins].index("joined")]
            assert {held.members["n2"].id for held in configurations_in(nodes.storages["n1"]) if "n2" in held.members} == {winner}
            leader.propose(b"with both", 5)
            forget(nodes, "n2" if winner == "id-twin" else "id-twin")
            assert nodes.commands_everywhere()[-1] == b"with both"


def test_a_server_is_not_promoted_with_the_progress_of_its_namesake():
    """The first is removed while it catches up, and another takes its name."""
    with clients(1) as pool, group(1) as nodes:
        leader = nodes.leader()
        leader.propose(b"a", 5)
        nodes.add("n2")
        add_twin(nodes, "n2", "host:22", "id-twin")
        nodes.wires.lose = lambda sender, receiver, request: "request" if receiver == "n2" and getattr(request, "entries", ()) else None
        first = pool.submit(leader.join, "n2", "host:2", True, 20)
        wait_until(lambda: len(leader.members()) == 2, "it is a learner")
        with pytest.raises(BadRequest):
            leader.join("n2", "host:22", timeout=5)
        leader.remove("n2", timeout=5)
        leader.join("n2", "host:22", timeout=10)
        assert outcome(first) == BadRequest
        assert [held.members["n2"].id for held in configurations_in(nodes.storages["n1"]) if held.is_voter("n2")] == ["id-twin"]
        forget(nodes, "n2")
        leader.propose(b"b", 5)
        assert nodes.commands_everywhere() == [b"a", b"b"]


def test_a_late_answer_of_a_removed_server_is_not_that_of_its_namesake():
    """It has lost its files meanwhile and joined again: what it confirmed before counts for nothing."""
    answered, released = threading.Event(), threading.Event()
    with group(1) as nodes:
        leader, carry = nodes.leader(), nodes.wires.call
        leader.propose(b"a", 5)

        def late(sender, member, request, index):
            reply = carry(sender, member, request, index)
            if member.id == "id-n2" and getattr(request, "entries", ()):
                answered.set()
                released.wait(20)
            return reply
        nodes.wires.call = late
        nodes.add("n2")
        try:
            leader.join("n2", "host:2", False, 10)
            assert answered.wait(10)
            waiting, = [thread for thread in threading.enumerate() if thread.name == "to-n2-data"]
            leader.remove("n2", timeout=5)
            add_twin(nodes, "n2", "host:22", "id-twin")
            nodes.wires.lose = lambda _, receiver, request: "request" if receiver == "id-twin" and getattr(request, "entries", ()) else None
            leader.join("n2", "host:22", False, 5)
        finally:
            released.set()
        waiting.join(10)
        assert not waiting.is_alive() and leader.look(lambda raft: raft.match_index("n2")) == 0
        nodes.wires.cut()
        forget(nodes, "n2")
        assert nodes.commands_everywhere() == [b"a"]


class Rounds:
    """A leader, with a clock of its own, whose newcomer takes so many seconds for each round; the log grows all the time."""

    def __init__(self, *seconds):
        self.now, self.left, self.seconds, self.brought = 0.0, 0.0, list(seconds), 0
        self.settings = SimpleNamespace(election_timeout_seconds=1.0)
        self.raft = SimpleNamespace(
            is_leader=True, log=SimpleNamespace(last_index=10), configuration=SimpleNamespace(members={"n2": None}),
            match_index=lambda name: self.brought, silent_for=lambda name: 0.0)

    def look(self, question):
        return question(self.raft)

    def wait_until(self, question, deadline):
        if not self.left:
            self.left, self.brings = self.seconds.pop(0), self.raft.log.last_index
        step = min(self.left, deadline - self.now)
        self.now, self.left, self.raft.log.last_index = self.now + step, self.left - step, self.raft.log.last_index + 5
        self.brought = self.brought if self.left else self.brings
        return question(self.raft)


def test_a_newcomer_has_caught_up_after_a_round_that_is_shorter_than_an_election_timeout(monkeypatch):
    """Each round brings what the log had when it began, and takes as long as that takes (thesis 4.2.1)."""
    for seconds in ([7.0, 1.5, 1.0, 0.5, 0.25], [0.5, 9.0], [2.0, 2.0, 2.0, 0.75, 1.0]):
        rounds = Rounds(*seconds)
        monkeypatch.setattr(membership, "time", SimpleNamespace(monotonic=lambda rounds=rounds: rounds.now))
        membership._wait_until_caught_up(rounds, Member("n2", "host:2", False, "id-n2"), 100.0)
        assert rounds.seconds == seconds[-1:], "the one before the last is the first that is short"


def test_a_newcomer_that_has_all_but_took_long_for_it_waits_another_round(monkeypatch):
    """The next may be as long, and nothing would be committed meanwhile (thesis 4.2.1)."""
    goals, allowed, has_or_nobody_asks = [], 0, membership._has_or_nobody_asks

    def note(name, goal, raft):
        goals.append(goal)
        return has_or_nobody_asks(name, goal, raft)
    monkeypatch.setattr(membership, "_has_or_nobody_asks", note)
    with clients(1) as pool, group(1, SHORT_ROUNDS) as nodes:
        leader = nodes.leader()
        nodes.wires.lose = lambda _, receiver, request: (
            "request" if receiver == "n2" and any(entry.index > allowed for entry in getattr(request, "entries", ())) else None)
        nodes.add("n2")
        join = pool.submit(leader.join, "n2", "host:2", True, 20)
        wait_until(lambda: goals, "the first round has begun")
        the_fault_lasts.wait(2 * SHORT_ROUNDS.election_timeout_seconds)
        for _ in range(3):
            leader.propose(bytes(50), 5)
        allowed = goals[0]

        def is_voter():
            return leader.look(lambda raft: raft.configuration.is_voter("n2"))
        wait_until(lambda: goals[-1] > goals[0] or is_voter(), "the first round is over")
        assert not is_voter()
        allowed = goals[-1] + 1000
        join.result(20)
        assert is_voter()


def test_only_the_server_that_asked_is_promoted():
    """Between two looks of the join that waits, its learner may go and a namesake come."""
    twin, newcomer = (Member("n2", "host:2", False, id) for id in ("id-twin", "id-n2"))
    for configuration in (Configuration({"n2": twin}), Configuration({})):
        with pytest.raises(BadRequest):
            membership._promoted(configuration, newcomer)
    assert membership._promoted(Configuration({"n2": newcomer}), newcomer).is_voter("n2")


@pytest.mark.parametrize("change", ["join", "join again with another address", "remove"])
def test_what_is_not_committed_is_not_reported_as_done(change):
    """A repeated request must not be told "it is so" on the strength of an entry that may still be rolled back."""
    with group() as nodes:
        leader = nodes.leader()
        nodes.add("n4")
        if change != "join":
            leader.join("n4", "host:4", timeout=10)

        def ask(timeout):
            if change == "remove":
                leader.remove("n4", timeout=timeout)
            elif change == "join":
                leader.join("n4", "host:4", False, timeout)
            else:
                membership.join(leader, lambda address: nodes.nodes["n4"].identity(), "n4", "host:44", True, time.monotonic() + timeout)
        nodes.wires.lose = lambda sender, receiver, request: "request" if getattr(request, "entries", ()) else None
        with pytest.raises(CommitTimeout):
            ask(0.2)
        for _ in range(2):
            with pytest.raises(NoQuorum) as refusal:
                ask(0.2)
            assert refusal.value.retry == "safe"
        assert leader.look(lambda raft: raft.commit_index < raft.configurations.latest_index)
        nodes.wires.cut()
        if change == "remove":
            with pytest.raises(NotFound):
                ask(10)
        else:
            ask(10)
        assert leader.look(lambda raft: raft.commit_index >= raft.configurations.latest_index)
        if change == "remove":
            forget(nodes, "n4")


def test_a_deposed_leader_says_so_to_who_waits_for_a_change():
    with clients(3) as pool, group() as nodes:
        leader = nodes.leader()
        nodes.add("n4")
        nodes.wires.lose = lambda sender, receiver, request: "request" if getattr(request, "entries", ()) else None
        began = time.monotonic()
        last = leader.status()["last_log_index"]
        first = pool.submit(leader.join, "n4", "host:4", True, 20)
        wait_until(lambda: leader.status()["last_log_index"] > last, "the change is in the log")
        again, removal = pool.submit(leader.join, "n4", "host:4", True, 20), pool.submit(leader.remove, "n4", 20)
        holds_for(0.1, lambda: not (first.done() or again.done() or removal.done()), "all wait")
        nodes.wires.cut(leader.name)
        nodes.pace(FAST)
        assert (outcome(again), outcome(removal)) == (NotLeader, NotLeader)
        assert first.exception().retry in ("maybe", "safe")
        assert time.monotonic() - began < 15
        successor = nodes.next_leader([node for name, node in nodes.nodes.items() if name not in (leader.name, "n4")])
        for call in (lambda: leader.join("n4", "host:4"), lambda: leader.remove("n4"), lambda: leader.transfer_leadership(None)):
            with pytest.raises(NotLeader):
                call()
        nodes.wires.cut()
        assert "n4" not in {member["name"] for member in successor.members()}
        forget(nodes, "n4")
        successor.propose(b"a", 5)
        assert nodes.commands_everywhere() == [b"a"]


def test_a_learner_that_is_removed_while_it_joins_is_told_soon():
    with clients(1) as pool, group(1) as nodes:
        leader = nodes.leader()
        nodes.add("n2")
        nodes.wires.lose = lambda sender, receiver, request: "request" if receiver == "n2" and getattr(request, "entries", ()) else None
        join = pool.submit(leader.join, "n2", "host:2", True, 30)
        wait_until(lambda: len(leader.members()) == 2, "it is a learner")
        began = time.monotonic()
        leader.remove("n2", timeout=5)
        with pytest.raises(BadRequest):
            join.result(20)
        assert time.monotonic() - began < 10
        assert [member["name"] for member in leader.members()] == ["n1"]
        forget(nodes, "n2")


def test_a_learner_that_stays_behind_is_reported_as_still_at_work():
    with group(1) as nodes:
        leader = nodes.leader()
        nodes.add("n2")
        nodes.wires.lose = lambda sender, receiver, request: "request" if receiver == "n2" and getattr(request, "entries", ()) else None
        for _ in range(2):
            with pytest.raises(CommitTimeout):
                leader.join("n2", "host:2", True, 0.3)
        assert [member["voter"] for member in leader.members()] == [True, False]
        nodes.wires.cut()
        leader.join("n2", "host:2", True, 10)


def test_a_join_whose_leader_is_deposed_when_it_has_begun_is_perhaps_done():
    """The learner is there, and the next leader may promote it: neither "it is so" nor "certainly not"."""
    with clients(1) as pool, group() as nodes:
        leader = nodes.leader()
        nodes.add("n4")
        nodes.wires.lose = lambda sender, receiver, request: "request" if receiver == "n4" and getattr(request, "entries", ()) else None
        join = pool.submit(leader.join, "n4", "host:4", True, 20)
        wait_until(lambda: len(leader.members()) == 4 and leader.look(
            lambda raft: raft.commit_index >= raft.configurations.latest_index), "it is a learner")
        nodes.wires.cut(leader.name)
        nodes.pace(FAST, leader)
        with pytest.raises(LeadershipLost) as failure:
            join.result(20)
        assert failure.value.retry == "maybe"
        nodes.wires.cut()


def server_with(configuration, log):
    """(node, its storage), not started as part of a group: ``x``, in term 2, with *log*, of which nothing is committed."""
    storage = MemoryStorage("x", configuration.members)
    storage.hard_state, storage.entries = HardState(2, None), log
    return Node("x", "x:1", storage, Wires().transport("x"), Machine(), PATIENT).start()


def test_an_uncommitted_configuration_makes_nobody_deaf():
    """x has one at 50 that was never committed; the cluster went on with another at 48, in which L leads. x must hear L."""
    old = Configuration({name: Member(name, f"{name}:1", True, name) for name in "abcex"})
    dead, new = (old.with_member(Member(name, f"{name}:1", True, name)) for name in ("d", "L"))
    log = [Entry(index, 1, COMMAND, b"") for index in range(1, 48)]
    log += [Entry(48, 2, COMMAND, b""), Entry(49, 2, COMMAND, b""), Entry(50, 2, CONFIGURATION, dead.encode())]
    node = server_with(old, log)
    try:
        reply = node.handle("L", 48, AppendEntries(9, "L", 47, 1, (Entry(48, 9, CONFIGURATION, new.encode()),), 47))
        assert (reply.success, reply.term) == (True, 9)
        assert node.leader() == {"name": "L", "address": "L:1"}
        assert "d" not in {member["name"] for member in node.members()}
    finally:
        node.stop()


def test_a_leader_that_an_uncommitted_configuration_leaves_out_is_heard_also_when_it_connects():
    """The leader before it appended the removal of c, which only x has; then c was elected by the others, who never heard of it."""
    old = Configuration({name: Member(name, f"{name}:1", True, name) for name in "abcx"})
    log = [Entry(1, 1, COMMAND, b""), Entry(2, 2, CONFIGURATION, old.without("c").encode())]
    node = server_with(old, log)
    try:
        node.admit("c", 0)
        assert node.handle("c", 0, AppendEntries(3, "c", 1, 1, (Entry(2, 3, COMMAND, b"other"),), 1)).success
        node.admit("c", 0)
        assert "c" in {member["name"] for member in node.members()}
    finally:
        node.stop()


def test_a_committed_configuration_shuts_strangers_out():
    """Who has been removed, and does not know it, has an older one."""
    old = Configuration({name: Member(name, f"{name}:1", True, name) for name in "abcx"})
    without = old.without("c")
    log = [Entry(1, 1, COMMAND, b""), Entry(2, 2, CONFIGURATION, without.encode()), Entry(3, 2, COMMAND, b"")]
    node = server_with(old, log)
    try:
        assert node.handle("a", 2, AppendEntries(2, "a", 3, 2, (), 3)).success
        for sender, index in (("c", 0), ("c", 1), ("stranger", 1)):
            with pytest.raises(Refusal):
                node.admit(sender, index)
        node.admit("c", 4)
    finally:
        node.stop()


def test_changes_are_decided_one_after_the_other():
    """The same join, many times at once: one learner, one promotion, no more entries than that."""
    with clients(8) as pool, group(1) as nodes:
        leader = nodes.leader()
        nodes.add("n2")
        joins = [pool.submit(leader.join, "n2", "host:2", True, 20) for _ in range(8)]
        assert {outcome(join) for join in joins} == {"joined"}
        assert [[member.voter for member in held.members.values()] for held in configurations_in(nodes.storages["n1"])] == [
            [True, False], [True, True]]
        removals = [pool.submit(leader.remove, "n2", 20) for _ in range(8)]
        assert sorted(map(str, map(outcome, removals))) == sorted(map(str, ["joined"] + 7 * [NotFound]))
        forget(nodes, "n2")


def test_two_names_for_one_address_are_refused_also_together():
    with clients(2) as pool, group(1) as nodes:
        leader, barrier = nodes.leader(), threading.Barrier(2)

        def identify(name):
            barrier.wait(5)
            return {"name": name, "id": f"id-{name}", "cluster": "cluster"}
        joins = [pool.submit(membership.join, leader, lambda address, name=name: identify(name), name, "host:2", False,
                             time.monotonic() + 10) for name in ("n2", "n3")]
        assert sorted(map(str, map(outcome, joins))) == sorted(map(str, ["joined", BadRequest]))
        assert len(leader.members()) == 2


def test_the_steps_of_a_join_need_only_a_leader_that_answers():
    """A join on a follower changes nothing and names the leader."""
    with group() as nodes:
        follower = nodes.followers()[0]
        wait_until(follower.leader, "it knows the leader")
        asked = SimpleNamespace(identify=lambda address: pytest.fail("a follower has dialled back"))
        with pytest.raises(NotLeader) as refusal:
            membership.join(follower, asked.identify, "n4", "host:4", True, time.monotonic() + 5)
        assert refusal.value.leader == f"http://{follower.leader()['address']}"
        with pytest.raises(RaftdError):
            follower.remove("n1", timeout=1)


def test_a_name_is_removed_only_with_the_files_that_are_meant():
    """Who gives his join up must not remove another that bears the name."""
    with group(1) as nodes:
        leader = nodes.leader()
        nodes.add("n2")
        leader.join("n2", "host:2", False, 10)
        with pytest.raises(NotFound, match="n2 is a member with other files"):
            leader.remove("n2", timeout=5, id="id-twin")
        assert {member["name"] for member in leader.members()} == {"n1", "n2"}
        leader.remove("n2", timeout=5, id="id-n2")
        assert {member["name"] for member in leader.members()} == {"n1"}
        forget(nodes, "n2")
