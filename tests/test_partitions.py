"""Networks that break: real processes in network namespaces, whose packets the test drops. Needs root."""

import os
import random
import time

import pytest

from chaos.faults import REPLY_WORD
from chaos.world import SERVER
from cluster import (ELECTION_SECONDS, SLOWER, UNHURRIED, Client, Cluster, Network, RegisterClients, Writers, holds_for, needs_network,
                     the_fault_lasts, wait_until)

pytestmark = [pytest.mark.cluster, pytest.mark.root, needs_network]

REFUSES_SECONDS = 3.0  # the longest election timeout when they are SLOWER: a leader that is cut off refuses reads and writes by then
SLACK_SECONDS = 1.0  # for a machine that others use too


@pytest.fixture
def network():
    with Network() as network:
        yield network


@pytest.fixture
def three(request, tmp_path, network):
    with Cluster(tmp_path, 3, network, getattr(request, "param", SLOWER)) as cluster:
        yield cluster


unhurried = pytest.mark.parametrize("three", [UNHURRIED], ids=["unhurried"], indirect=True)


def hurry(server):
    """It stands for election soon from now on, after the timeout that is the default."""
    assert server.terminate() == 0
    server.flags = ()
    server.start()
    wait_until(lambda: server.ready, "it is back")


def test_isolated_leader_refuses_reads_and_writes(network, three):
    """In the original a partitioned leader never stepped down: 1,417 of 1,417 reads there were stale."""
    leader = three.leader()
    others = three.followers(leader)
    assert leader.put("key", b"old").status == 200
    term = leader.status()["term"]
    network.isolate(leader)
    cut = time.monotonic()
    write = leader.put("lost", b"x", "?timeout=5s")
    assert write.code in ("no_quorum", "leadership_lost", "no_leader", "not_leader") and write.retry in ("maybe", "safe"), write
    assert time.monotonic() - cut < REFUSES_SECONDS + SLACK_SECONDS
    three.write("key", b"new", among=others)
    for _ in range(5):
        answer = leader.get("key", "?timeout=1s")
        assert answer.code in ("no_leader", "no_quorum"), answer
        assert answer.retry == "safe"
    assert leader.put("key", b"x").code in ("not_leader", "no_leader")
    assert leader.get("key", "?level=stale").body == b"old"
    assert leader.call("GET", "/readyz").status == 503
    successor = three.leader(others)
    after = successor.status()["term"]
    assert after <= term + 2, "election after election"
    network.heal()
    wait_until(lambda: leader.get("key").body == b"new", "it is back")
    three.wait_converged()
    assert three.leader() is successor
    assert three.terms() == [after] * 3, "the term was inflated"
    assert all(server.get("lost").status == 404 for server in three.servers)


def test_a_leader_cut_off_answers_no_stale_read_at_any_moment(network, three):
    with RegisterClients(three.servers) as clients:
        for _ in range(2):
            leader = three.leader()
            network.isolate(leader)
            successor = three.leader(three.followers(leader))
            clients.wait_for_reads(successor)
            network.heal()
            clients.wait_for_reads(leader)
    assert clients.violations() == []


@pytest.mark.slow
@unhurried
def test_a_server_cut_off_for_ten_seconds_returns_without_an_election(network, three):
    """In the original it had raised the term 45 times, and stopped writes for 1.4 s."""
    leader = three.leader()
    away = three.followers(leader)[0]
    hurry(away)
    term = leader.status()["term"]
    with Writers([leader], 4, pause=0.005) as writers:
        network.isolate(away)
        the_fault_lasts.wait(10)
        network.heal()
        wait_until(lambda: away.ready, "it is back")
        three.wait_voters(3)
        writers.wait_for_more(100)
    assert (leader.leads, three.terms()) == (True, [term] * 3)
    assert writers.nothing_held_up
    three.wait_converged()


def test_the_majority_goes_on_and_the_minority_loses_nothing(tmp_path, network):
    """Two of five, the leader among them, are cut off from three."""
    with Cluster(tmp_path, 5, network, SLOWER) as cluster:
        leader = cluster.leader()
        minority, majority = [leader, cluster.followers(leader)[0]], cluster.followers(leader)[1:]
        with Writers(cluster.servers, 4) as writers:
            for server in minority:
                network.isolate(server, *majority)
            cut = time.monotonic()
            gap = writers.gap_after(cut + REFUSES_SECONDS) + REFUSES_SECONDS
            successor = cluster.leader(majority)
            assert all(server.get("x", "?timeout=500ms").status == 503 for server in minority)
            network.heal()
            cluster.wait_voters(5)
            writers.wait_for_more(50)
        assert gap < 10 + writers.noise_seconds, gap
        assert cluster.leader() is successor
        data = cluster.data_of_each()
        assert all(not writers.missing_in(found) for found in data.values())
        assert all(found == data["n1"] for found in data.values())


def test_a_leader_that_hears_nothing_steps_down(network, three):
    """One way: it can send. Its heartbeats must not keep the others from electing for ever."""
    leader = three.leader()
    with Writers(three.servers, 2) as writers:
        network.deafen(leader)
        cut = time.monotonic()
        successor = three.leader(three.followers(leader))
        wait_until(lambda: not leader.leads, "it has stepped down", 5)
        assert writers.gap_after(cut + REFUSES_SECONDS) + REFUSES_SECONDS < 10 + writers.noise_seconds
        term = successor.status()["term"]
        holds_for(REFUSES_SECONDS, lambda: successor.status()["term"] == term, "it stands for election, and is refused")
        network.heal()
        wait_until(lambda: leader.ready, "it is back")
        writers.wait_for_more(50)
    assert three.terms() == [term] * 3
    assert three.leader() is successor


def test_a_leader_whose_requests_are_lost_is_replaced_once(network, three):
    """The other way: it hears, and cannot send. The original elected without end, and its terms deposed the next leader on return."""
    leader = three.leader()
    with Writers(three.servers, 2) as writers:
        network.silence(leader)
        successor = three.leader(three.followers(leader))
        writers.gap_after(time.monotonic())
        term = successor.status()["term"]
        holds_for(3, lambda: successor.status()["term"] == term, "no more elections")
        network.heal()
        wait_until(lambda: leader.ready, "it is back")
        writers.wait_for_more(50)
    assert three.terms() == [term] * 3
    assert three.leader() is successor


@unhurried
def test_a_follower_that_cannot_be_heard_disturbs_nobody(network, three):
    leader = three.leader()
    deaf = three.followers(leader)[0]
    hurry(deaf)
    term = leader.status()["term"]
    with Writers([leader], 2) as writers:
        network.deafen(deaf)
        the_fault_lasts.wait(4)  # it stands for election again and again; its requests arrive
        assert (leader.leads, leader.status()["term"]) == (True, term)
        network.heal()
        wait_until(lambda: deaf.ready, "it is back")
    assert three.terms() == [term] * 3
    assert writers.nothing_held_up


@unhurried
def test_one_link_down_is_no_hindrance(network, three):
    """The leader and a follower cannot reach each other; both reach the third (Cloudflare, 2020-11-02: six hours without end)."""
    leader = three.leader()
    cut, bridge = three.followers(leader)
    hurry(cut)
    term = leader.status()["term"]
    with Writers(three.servers, 2) as writers:
        network.isolate(leader, cut)
        the_fault_lasts.wait(4)
        writers.wait_for_more(20)
        assert max(server.status()["term"] for server in (leader, bridge)) <= term + 1, "an election without end"
        network.heal()
        wait_until(lambda: cut.ready, "it is back")
    three.wait_converged()
    assert max(three.terms()) <= term + 2
    assert not writers.missing_in(three.data_of_each()[cut.name])


# Five servers, of which some pairs do not hear each other. A majority is there that does


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    with Network() as network, Cluster(tmp_path_factory.mktemp("five"), 5, network, SLOWER) as cluster:
        yield cluster


def bridge(leader, a, b, c, d):
    """Two halves that hear each other only through one server."""
    return [(one, other) for one in (leader, a) for other in (c, d)]


def ring(leader, a, b, c, d):
    """Each hears its two neighbours: there is a majority around everybody, and no two have the same."""
    return [(leader, b), (leader, c), (a, c), (a, d), (b, d)]


def dangling(leader, a, b, c, d):
    """The leader hears one server, which hears everybody (Howard and Abraham): etcd without PreVote lost 8 of 36 s, the original 45."""
    return [(leader, b), (leader, c), (leader, d)]


@pytest.mark.parametrize("topology", [bridge, ring, dangling], ids=lambda topology: topology.__name__)
def test_partial_partitions_of_five_find_a_leader_and_keep_it(five, topology):
    leader = five.leader()
    term = leader.status()["term"]
    with RegisterClients(five.servers, key=topology.__name__) as clients, \
            Writers(five.servers, 2, pause=0.01, prefix=f"{topology.__name__}-") as writers:
        cut = five.network.sever(topology(leader, *five.followers(leader)))
        gap = writers.gap_after(time.monotonic() + REFUSES_SECONDS) + REFUSES_SECONDS
        settled = five.leader()
        after = settled.status()["term"]
        holds_for(3, lambda: settled.status()["term"] == after and settled.leads, "no election without end")
        writers.wait_for_more(20)
        cut.heal()
        for server in five.servers:
            wait_until(lambda ready=server: ready.ready, f"{server} is back")
    assert gap < 8 + writers.noise_seconds and after <= term + 3, (gap, term, after)
    assert five.leader() is settled and set(five.terms()) == {after}, "who comes back has deposed the leader"
    assert clients.violations() == []
    five.wait_converged()


# Answers that are lost, connections that are cut


@unhurried
def test_a_request_whose_answer_is_lost_was_executed_once(network, three):
    leader = three.leader()
    before = int(leader.put("key", b"before").headers["etag"].strip('"'))
    client = Client(leader.address, leader.client_namespace)
    client.call("GET", "/livez")
    cut = network.lose_answers(leader, b"HTTP", network.HUB_ADDRESS)
    answer = client.call("POST", "/db/key", b"value", timeout=1)
    assert answer.status is None and not answer.was_not_sent
    cut.heal()
    found = leader.get("key")
    assert (found.body, found.headers["etag"]) == (b"value", f'"{before + 1}"')


def test_a_leader_whose_followers_cannot_confirm_answers_nothing(network, three):
    """They have its entries on disk, and their answers are lost: it must neither acknowledge nor read, and nothing that was is lost."""
    leader = three.leader()
    with RegisterClients(three.servers) as clients:
        for _ in range(3):
            cuts = [network.lose_answers(server, REPLY_WORD) for server in three.followers(leader)]
            wait_until(lambda deposed=leader: not deposed.leads, "it steps down")
            write = leader.put("meanwhile", b"x", "?timeout=1s")
            assert write.status != 200, write
            for cut in cuts:
                cut.heal()
            leader = three.leader()
            clients.wait_for_more()
    assert clients.violations() == []
    three.wait_converged()


@unhurried
def test_connections_that_are_reset_are_made_anew(network, three):
    """No entry is lost or doubled by that. When it is the leader's host that refuses all others, another may be elected, but soon."""
    leader, terms = three.leader(), three.terms()
    with RegisterClients(three.servers) as clients, Writers(three.servers, 2, pause=0.005) as writers:
        for server in 3 * three.followers(leader):
            reset_for_a_moment(network, server, writers)
        assert three.terms() == terms, "a follower whose connections are reset elects nobody"
        for _ in range(3):
            reset_for_a_moment(network, three.leader(), writers)
    assert writers.nothing_held_up and max(three.terms()) <= max(terms) + 6
    assert clients.violations() == []
    data = three.data_of_each()
    assert data["n1"] == data["n2"] == data["n3"] and not writers.missing_in(data["n1"])


def reset_for_a_moment(network, server, writers):
    cut = network.reset(server)
    the_fault_lasts.wait(0.05)
    cut.heal()
    writers.wait_for_more(10)


@unhurried
def test_a_client_that_reaches_only_the_followers(network, three):
    """They read for it; of its writes they say at once where the leader is, and nothing is in doubt."""
    leader = three.leader()
    assert leader.put("key", b"value").status == 200
    host = network.host_of(leader)
    cut = network.cut([(host, f"INPUT -s {network.HUB_ADDRESS} -j DROP"), (host, f"OUTPUT -d {network.HUB_ADDRESS} -j DROP")])
    others = [server for server in three.servers if server is not leader]
    for server in others:
        assert server.get("key").body == b"value"
        refused = server.put("key", b"new")
        assert (refused.code, refused.retry, refused.leader) == ("not_leader", "safe", leader.address)
        assert server.put("key", b"new", "?redirect").headers["location"] == f"http://{leader.address}/db/key?redirect"
    assert leader.put("key", b"new", timeout=1).was_not_sent
    cut.heal()
    assert leader.get("key").body == b"value"
    assert three.leader() is leader


def test_a_host_that_drops_packets_and_a_paused_leader(tmp_path, network):
    """The original had no connect timeout: such a host and a leader paused for 0.7 s stopped two healthy of three for 131 s."""
    with Cluster(tmp_path, 3, network) as cluster:
        leader = cluster.leader()
        dropped, other = cluster.followers(leader)
        network.vanish(dropped)
        dropped.kill()
        with Writers([leader, other], 4) as writers:
            for _ in range(3):
                paused = cluster.leader([leader, other])
                paused.pause()
                the_fault_lasts.wait(0.7)
                paused.resume()
                resumed = time.monotonic()
                assert writers.gap_after(resumed) < 4 * ELECTION_SECONDS + writers.noise_seconds
            leading = cluster.leader([leader, other])
            began = time.monotonic()
            assert leading.terminate() == 0
            assert time.monotonic() - began < 5 + writers.noise_seconds
        network.heal()
        cluster.restart()
        data = cluster.data_of_each()
        assert all(not writers.missing_in(found) for found in data.values())


@pytest.mark.slow
def test_a_cut_in_the_middle_of_a_snapshot(tmp_path, network):
    """The transfer goes on after the cut, or begins again; the old state stays until the new is complete."""
    with Cluster(tmp_path, 3, network, UNHURRIED) as cluster:
        leader = cluster.leader()
        behind = cluster.followers(leader)[0]
        behind.kill()
        for number in range(45):
            cluster.write(f"large{number}", bytes([number]) * (1 << 20))
        behind.start()
        wait_until(lambda: behind.status()["snapshot_index"] or list(behind.path.glob("*incoming*")), "it arrives")
        network.isolate(behind, leader)
        the_fault_lasts.wait(2)
        network.heal()
        cluster.wait_converged()
        assert behind.get("large0").body == bytes(1 << 20)
        data = cluster.data_of_each()
        assert data["n1"] == data["n2"] == data["n3"]


@pytest.mark.slow
@pytest.mark.parametrize("sender", ["lives", "dies"])
def test_a_snapshot_over_a_slow_link_holds_up_nobody(tmp_path, network, sender):
    """Neither the writes of the others nor, although it shares the link with the snapshot, the heartbeats for long: nobody is deposed.

    And if the sender dies in the middle, the next one sends it anew.
    """
    with Cluster(tmp_path, 3, network, UNHURRIED, raftd=[*SERVER, os.devnull]) as cluster:
        leader = cluster.leader()
        behind, other = cluster.followers(leader)
        behind.flags = ()  # it stands for election as soon as it misses heartbeats
        behind.kill()
        for number in range(5):  # more than the log keeps
            cluster.write("large", random.Random(number).randbytes(1 << 19))
        term = leader.status()["term"]
        end = network.slow_down(behind, "1900kbit", "400ms", arriving=True)  # a chunk takes longer than a small request may
        behind.start()
        wait_until(lambda: list(behind.path.glob("*incoming*")), "it arrives")
        with Writers([leader, other], 2, pause=0.01) as writers:
            if sender == "dies":
                leader.kill()
                writers.gap_after(time.monotonic())
            else:
                wait_until(lambda: behind.status()["snapshot_index"], "it is installed")
                assert (leader.leads, leader.status()["term"]) == (True, term) and writers.nothing_held_up
            wait_until(lambda: "installed a snapshot" in behind.log_of_this_start(), "it is installed")
        end()
        if sender == "dies":
            cluster.restart(leader)
        data = cluster.data_of_each()
        assert data["n1"] == data["n2"] == data["n3"] and not writers.missing_in(data["n1"])


def test_flapping_links_end_in_one_leader(network, three):
    with Writers(three.servers, 2) as writers:
        for round_number in range(12):
            network.isolate(three.servers[round_number % 3])
            the_fault_lasts.wait(0.3)
            network.heal()
            the_fault_lasts.wait(0.1)
        writers.gap_after(time.monotonic())
        writers.wait_for_more(50)
    data = three.data_of_each()
    assert all(not writers.missing_in(found) for found in data.values())
    assert data["n1"] == data["n2"] == data["n3"]


@unhurried
def test_a_join_of_a_host_that_drops_packets_is_refused(network, three):
    """It must end in time, and hold up no write."""
    leader, host = three.leader(), network.add_host()
    before = sorted(leader.members())
    network.vanish(host)
    with Writers([leader], 2) as writers:
        answer = leader.call("POST", "/join", f'{{"name":"x","connectionString":"http://{host.address}:4001"}}', timeout=20)
        assert answer.code == "bad_request"
    assert sorted(leader.members()) == before
    assert writers.nothing_held_up


@unhurried
def test_removal_of_a_member_that_is_cut_off(network, three):
    """It does not hear of its removal; when it returns it disturbs nobody."""
    leader = three.leader()
    away = three.followers(leader)[0]
    hurry(away)
    network.isolate(away)
    assert leader.call("DELETE", f"/members/{away.name}").status == 200
    the_fault_lasts.wait(2)  # it stands for election
    term = leader.status()["term"]
    network.heal()
    with Writers([leader], 2) as writers:
        the_fault_lasts.wait(3)
        writers.wait_for_more(20)
    assert (leader.leads, leader.status()["term"]) == (True, term)
    assert writers.nothing_held_up
