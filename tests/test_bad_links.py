"""Links that lose, delay, double, reorder and damage packets: real processes, whose packets all pass through the test. Needs root."""

import os
import time

import pytest

from cluster import Cluster, RegisterClients, Writers, call, needs_network, the_fault_lasts, wait_until
from tunnels import TunnelNetwork, bad_weather, bit_errors

pytestmark = [pytest.mark.cluster, pytest.mark.root, needs_network,
              pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="needs /dev/net/tun")]


@pytest.fixture
def network():
    with TunnelNetwork() as network:
        yield network


@pytest.fixture
def three(tmp_path, network):
    with Cluster(tmp_path, 3, network) as cluster:
        yield cluster


def test_the_weather_is_bad(network):
    """The test of the tests: an answer over such a link takes as long as it should, and some packets are lost."""
    host = network.add_host()
    seen = []

    def policy(source, target, packet):
        seen.append((source, target))
        return [] if len(seen) == 1 else [(0.1, packet)]
    network.policy = policy
    began = time.monotonic()
    answer = call(f"{host.address}:4001", "GET", "/", namespace=network.hub)
    assert answer.was_not_sent and b"refused" in answer.body
    assert time.monotonic() - began > 1.1, "the lost packet was not sent again, or nothing was late"
    assert {(network.HUB_ADDRESS, host.address), (host.address, network.HUB_ADDRESS)} <= set(seen)


def no_election_for_a_while(cluster, writers):
    term = max(cluster.terms())
    writers.wait_for_more(50)
    return max(cluster.terms()) == term


@pytest.mark.slow
@pytest.mark.parametrize("loss, doubled, most_seconds", [(0.1, 0.2, 0.1), (0.3, 0.0, 0.0), (0.0, 0.5, 0.2)],
                         ids=["all of it", "loss of a third", "late and doubled"])
def test_lost_late_and_doubled_packets(network, three, loss, doubled, most_seconds):
    """A cluster may be slow then, but never wrong; it does not elect without end; and it is as before when that is over."""
    term = max(three.terms())
    with RegisterClients(three.servers) as clients, Writers(three.servers, 2) as writers:
        network.policy = bad_weather(1, loss, doubled, most_seconds)
        the_fault_lasts.wait(6)
        network.policy = None
        writers.gap_after(time.monotonic())
        wait_until(lambda: no_election_for_a_while(three, writers), "elections end")
    assert max(three.terms()) - term <= 8, "elections without end"
    assert clients.violations() == []
    data = three.data_of_each()
    assert data["n1"] == data["n2"] == data["n3"] and not writers.missing_in(data["n1"])


def test_bit_errors_between_peers_are_never_believed(network, three):
    """They pass TCP's checksum, as some do in the field: each frame has one of its own, and is refused."""
    with Writers(three.servers, 4, size=500) as writers:
        network.policy = policy = bit_errors(2, 0.02, network.HUB_ADDRESS)
        wait_until(lambda: policy.flipped > 100, "bits are flipped")
        network.policy = None
        writers.gap_after(time.monotonic())
        writers.wait_for_more(50)
    assert sum(server.log().count("does not match its checksum") for server in three.servers) > 10
    data = three.data_of_each()
    assert data["n1"] == data["n2"] == data["n3"] and not writers.missing_in(data["n1"])
    assert all(value.startswith(key[1:].replace("-", ":").encode()) for key, value in data["n1"].items())
