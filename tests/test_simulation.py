"""Many clusters under many faults: nothing in Figure 3 is ever violated, and once the faults end there is progress."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import simulation
from simulation import EXERCISED, Cluster, Faults, run, run_until

HERE = Path(__file__).resolve().parent
SIMULATE = HERE.parent / "bin/simulate"


@pytest.mark.parametrize("seed", range(60))
def test_safe_under_faults_then_live(seed):
    run(seed)


def test_many_seeds_with_one_command_that_says_what_was_exercised():
    done = subprocess.run([sys.executable, SIMULATE, "--seeds", "24", "--from", "1000"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tuple(re.findall(r"^ *[1-9][\d,]*  (.+)$", done.stdout, re.M)) == EXERCISED
    assert "24 seeds, 0 violations" in done.stdout


def test_a_violation_tells_its_story_and_how_to_see_it_again(monkeypatch):
    """Planted: a leader commits by counting entries of any term, which Figure 8 forbids; and a server that votes for everybody."""
    monkeypatch.setattr(simulation.Raft, "_refuses_votes", lambda self, request: False)
    monkeypatch.setattr(simulation.Log, "is_up_to_date", lambda self, index, term: True)
    with pytest.raises(AssertionError) as caught:
        for seed in range(60):
            run(seed)
    text = str(caught.value)
    assert re.search(r"^ +\d+\.\d+  n\d -> n\d (RequestVote|AppendEntries|InstallSnapshot|ReadIndex)", text, re.M), text
    assert re.search(r"again: bin/simulate --seeds 1 --from \d+$", text)


def test_a_healthy_cluster_keeps_its_leader_for_a_minute():
    """No election without a reason, and every write and read is answered."""
    cluster = Cluster(1, faults=Faults(writes=0.2))
    assert run_until(cluster, cluster.led, 5)
    term = cluster.leader.raft.term
    assert not run_until(cluster, lambda: cluster.leader is None or cluster.leader.raft.term != term, 60)
    assert len(cluster.history.committed) > 500 and cluster.history.counts["reads answered"] > 500


def test_members_that_are_left_out_do_not_disturb():
    """Servers that were removed without hearing of it go on asking for votes, and depose nobody (thesis 4.2.3)."""
    cluster = Cluster(2, size=5, spares=0, faults=Faults(heal=0, writes=0.2))
    assert run_until(cluster, cluster.led, 5)
    out = next(name for name in cluster.servers if name != cluster.leader.name)
    cluster.cut_off(out)
    raft = cluster.leader.raft
    raft.propose_configuration(raft.configuration.without(out))
    assert run_until(cluster, cluster.led, 5)
    term, leader = raft.term, raft
    cluster.peace()
    assert not run_until(cluster, lambda: cluster.leader is None or cluster.leader.raft.term != term, 20)
    assert cluster.leader.raft is leader


def test_a_server_cut_off_for_long_returns_without_an_election():
    """The original's fault: a node cut off for ten seconds raised the term 45 times and stopped writes when it came back."""
    cluster = Cluster(3, size=3, spares=0, faults=Faults(heal=0, writes=0.2))
    assert run_until(cluster, cluster.led, 5)
    term, out = cluster.leader.raft.term, next(name for name in cluster.servers if name != cluster.leader.name)
    cluster.cut_off(out)
    assert not run_until(cluster, lambda: False, 60)
    assert cluster.servers[out].raft.term == term
    cluster.peace()
    assert run_until(cluster, cluster.led, 5)
    assert cluster.leader.raft.term == term


@pytest.mark.parametrize("seed", range(4))
def test_a_leader_cut_off_steps_down_and_another_leads(seed):
    """The original's partitioned leader never stepped down. Here it notices within an election timeout."""
    cluster = Cluster(seed, size=3, spares=0, faults=Faults(heal=0, writes=0.2))
    assert run_until(cluster, cluster.led, 5)
    old = cluster.leader
    cluster.cut_off(old.name)
    assert run_until(cluster, lambda: not old.raft.is_leader, 1.0)
    assert run_until(cluster, lambda: cluster.leader is not None and cluster.leader.raft.commit_index > old.raft.commit_index, 5)


def test_one_broken_link_is_no_reason_for_elections():
    """Two followers that do not hear each other, and later a follower that hears only the other (faults 22 and 23)."""
    cluster = Cluster(5, size=3, spares=0, faults=Faults(heal=0, writes=0.2))
    assert run_until(cluster, cluster.led, 5)
    leader = cluster.leader.name
    one, other = (name for name in cluster.servers if name != leader)
    cluster.cut_link(one, leader)
    terms = {cluster.leader.raft.term}

    def note():
        terms.update(server.raft.term for server in cluster.servers.values())
    committed = len(cluster.history.committed)
    run_until(cluster, note, 30)
    assert len(terms) <= 3, f"terms {terms} while one link was down"
    assert len(cluster.history.committed) > committed + 100


def test_a_seed_is_the_same_run_in_another_process():
    """All that happens follows from the seed: otherwise a failure could not be looked at again."""
    code = "from simulation import Cluster\nc = Cluster(8, 5)\nfor _ in range(400): c.step()\nprint(c.trace)"
    path = f"{HERE}:{HERE.parent}"
    traces = {subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path, "PYTHONHASHSEED": seed}, check=True,
                             timeout=60, capture_output=True, text=True).stdout for seed in ("1", "2")}
    assert len(traces) == 1, traces
