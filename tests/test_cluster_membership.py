"""Real clusters that grow and shrink: under load, again and again, through followers, and by people and programs that get it wrong."""

import json
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster import UNHURRIED, Cluster, Server, Writers, free_port, in_threads, the_fault_lasts, wait_until
from raftd import wire
from raftd.raft.messages import COMMAND, AppendEntries, Entry, InstallSnapshot, ReadIndex, RequestVote, TimeoutNow

pytestmark = pytest.mark.cluster


@pytest.fixture
def new_server(tmp_path):
    """Makes Servers that belong to no Cluster; they have ended after the test."""
    made = []

    def make(name, port, path=None):
        made.append(Server(name, port, path or tmp_path / name, tmp_path / f"{name}-{len(made)}.log"))
        return made[-1]
    yield make
    for server in made:
        server.end()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A cluster that tests share which must not change anything in it."""
    with Cluster(tmp_path_factory.mktemp("three"), flags=UNHURRIED) as cluster:
        yield cluster


def view(cluster):
    """What must stay as it is: members, leader, term, and the log, in which any attempt to change them would stand."""
    status = cluster.leader().status()
    members = sorted((member["name"], member["address"], member["voter"]) for member in status["members"])
    return members, status["leader"], status["term"], status["last_log_index"]


def join(server, name, address, **more):
    return server.call("POST", "/join", json.dumps({"name": name, "connectionString": f"http://{address}", **more}), timeout=40)


# Under load


@pytest.mark.slow
def test_joins_and_removals_under_load(tmp_path):
    """No write is held up, nothing is lost, and leadership never moves by itself."""
    with Cluster(tmp_path, 1, flags=UNHURRIED) as cluster:
        first = cluster[1]
        with Writers([first], 4, pause=0.005) as writers:
            term = first.status()["term"]
            for _ in range(4):
                cluster.new().start(join=first)
                writers.wait_for_more(20)
            cluster.wait_voters(5)
            for name in ("n5", "n3", "n2"):
                assert first.call("DELETE", f"/members/{name}").status == 200
                writers.wait_for_more(20)
            for number in (5, 3, 2):
                assert cluster[number].terminate() == 0
            writers.wait_for_more(20)
            assert first.status()["term"] == term
        cluster.servers[1:] = [cluster[4]]
        assert sorted(first.members()) == ["n1", "n4"]
        data = cluster.data_of_each()
        assert not writers.missing_in(data["n1"]) and data["n1"] == data["n4"]
        assert writers.nothing_held_up


def test_removal_of_the_leader_hands_over(tmp_path):
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        leader = cluster.leader()
        others = cluster.followers(leader)
        with Writers(cluster.servers, 4, pause=0.005) as writers:
            assert leader.call("DELETE", f"/members/{leader.name}", timeout=15).status == 200
            successor = cluster.leader(others)
            writers.wait_for_more(50)
        assert sorted(successor.members()) == sorted(other.name for other in others)
        assert "hands leadership over" in successor.log()
        assert writers.nothing_held_up
        assert leader.get("x").status == 503 or leader.get("x").status == 404
        term = successor.status()["term"]
        the_fault_lasts.wait(6)  # the removed server is still there, and hears no leader for an election timeout
        assert (successor.status()["term"], successor.leads) == (term, True)
        assert leader.terminate() == 0
        cluster.servers.remove(leader)
        data = cluster.data_of_each()
        assert not writers.missing_in(data[successor.name])


def test_leadership_handed_over_under_load(tmp_path):
    """POST /leader, with a name and without: no write waits for an election timeout, nothing is lost."""
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        with Writers(cluster.servers, 4, pause=0.005) as writers:
            for name in ("n2", "n3", "n1", None):
                def handed_over(name=name):
                    before = cluster.leader()
                    answer = before.call("POST", "/leader", json.dumps({"name": name}) if name else b"")
                    return answer.status == 200 and (before, answer)
                before, answer = wait_until(handed_over, f"leadership is handed over to {name}")
                assert json.loads(answer.body)["name"] == name if name else json.loads(answer.body)["name"] != before.name
                writers.wait_for_more(20)
            assert cluster.leader().call("POST", "/leader", b'{"name":"nobody"}').code == "not_found"
        assert writers.nothing_held_up
        assert not writers.missing_in(cluster.data_of_each()["n1"])


def test_a_removed_server_that_comes_back_disturbs_nobody(tmp_path):
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        leader = cluster.leader()
        removed = cluster.followers(leader)[0]
        removed.flags = ()  # it stands for election soon
        removed.kill()
        assert leader.call("DELETE", f"/members/{removed.name}").status == 200
        term = leader.status()["term"]
        removed.start()
        with Writers([leader], 2) as writers:
            the_fault_lasts.wait(3)  # several election timeouts
            writers.wait_for_more(20)
        assert (leader.status()["term"], leader.leads) == (term, True)
        assert writers.nothing_held_up
        assert removed.get("x").status == 503
        removed.terminate()
        removed.start(join=leader)
        wait_until(lambda: leader.members().get(removed.name, {}).get("voter"), "it is a member again")
        cluster.wait_converged()


def test_a_dead_member_can_be_removed_and_replaced(tmp_path):
    """The original had no way to remove a member."""
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        leader = cluster.leader()
        dead = cluster.followers(leader)[0]
        dead.kill()
        assert leader.call("DELETE", f"/members/{dead.name}").status == 200
        assert leader.call("DELETE", f"/members/{dead.name}").code == "not_found"
        cluster.servers.remove(dead)
        cluster.new(name="n4", path=tmp_path / "node.4").start(join=leader)
        cluster.wait_voters(3)
        cluster.wait_converged()


def test_the_last_voter_cannot_be_removed(tmp_path):
    with Cluster(tmp_path, 1, flags=UNHURRIED) as cluster:
        assert cluster[1].call("DELETE", "/members/n1").code == "bad_request"
        assert cluster[1].put("a", b"x").status == 200


# Joining


def test_join_through_a_follower_and_all_at_once(tmp_path):
    """In the original joining through a follower left a silent zombie. Here four ask at the same time."""
    with Cluster(tmp_path, 2, flags=UNHURRIED) as cluster:
        leader = cluster.leader()
        follower = cluster.followers(leader)[0]
        new = [cluster.new().start(join=follower, wait=False) for _ in range(3)]
        for server in new:
            server.wait_listening()
            assert f"Attempting to join leader: {leader.address}" in server.log()
        cluster.wait_voters(5)
        assert leader.put("a", b"x").status == 200
        assert [server.get("a").body for server in cluster.servers] == [b"x"] * 5


def test_joining_twice_is_harmless(tmp_path):
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        leader = cluster.leader()
        follower = cluster.followers(leader)[0]
        before = view(cluster)
        assert join(leader, follower.name, follower.address).status == 200
        assert join(leader, leader.name, leader.address).status == 200
        follower.terminate()
        follower.start(join=leader)
        assert "already a member" in follower.log_of_this_start()
        assert view(cluster) == before
        assert join(follower, "n9", follower.address).code == "not_leader"


def test_a_learner_has_no_vote(tmp_path):
    with Cluster(tmp_path, 1, flags=UNHURRIED) as cluster:
        leader, learner = cluster[1], cluster.new()
        learner.start(join=leader)
        wait_until(lambda: leader.members()["n2"]["voter"], "it votes")
        assert join(leader, "n2", learner.address, voter=False).code == "bad_request"
        assert leader.call("DELETE", "/members/n2").status == 200
        assert join(leader, "n2", learner.address, voter=False).status == 200
        assert leader.members()["n2"]["voter"] is False
        learner.kill()
        assert leader.put("a", b"x").status == 200
        learner.start()
        wait_until(lambda: learner.get("a").body == b"x", "the learner follows")
        assert learner.status()["role"] == "learner"


BAD_JOINS = {
    "empty": b"", "object": b"{}", "null": b"null", "list": b"[]", "text": b"hello", "not UTF-8": b"\xff\xfe",
    "no address": b'{"name":"x"}', "no name": b'{"connectionString":"http://127.0.0.1:1"}',
    "null fields": b'{"name":null,"connectionString":null}', "numbers": b'{"name":1,"connectionString":2}',
    "not a URL": b'{"name":"x","connectionString":"::::"}', "another scheme": b'{"name":"x","connectionString":"ftp://127.0.0.1:1"}',
    "no port": b'{"name":"x","connectionString":"http://127.0.0.1"}',
    "bad port": b'{"name":"x","connectionString":"http://127.0.0.1:99999"}',
    "bad escape": b'{"name":"x","connectionString":"http://127.0.0.1:%zz"}',
    "control": b'{"name":"x","connectionString":"http://a\\u0000b:1"}',
    "no such host": b'{"name":"x","connectionString":"http://no-such-host.invalid:4001"}',
    "bad name": b'{"name":"../x","connectionString":"http://127.0.0.1:1"}', "deep": b"[" * 60_000,
}


@pytest.mark.parametrize("body", BAD_JOINS.values(), ids=BAD_JOINS)
def test_a_bad_join_is_refused_and_changes_nothing(three, body):
    """In the original {}, null or a dead address stopped the cluster for good, and a bad URL crashed it."""
    before = view(three)
    answer = three.leader().call("POST", "/join", body, timeout=30)
    assert (answer.status, answer.code, answer.retry) == (400, "bad_request", "no"), answer
    assert view(three) == before
    assert three.leader().put("still", b"works").status == 200


def test_a_join_of_a_dead_address_is_refused(three):
    before, terms = view(three), three.terms()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert join(three.leader(), "x", f"127.0.0.1:{bound.getsockname()[1]}").code == "bad_request"
    assert (view(three), three.terms()) == (before, terms)


def test_a_join_of_a_silent_address_is_refused(three):
    """It takes connections, and says nothing."""
    before = view(three)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert join(three.leader(), "x", f"127.0.0.1:{silent.getsockname()[1]}").code == "bad_request"
    assert view(three) == before


def test_a_join_under_a_name_that_is_not_the_joiners_is_refused(three):
    before, follower = view(three), three.followers()[0]
    assert join(three.leader(), "x", follower.address).code == "bad_request"
    assert join(three.leader(), three.leader().name, follower.address).code == "bad_request"
    assert view(three) == before


def test_a_join_of_a_server_of_another_cluster_is_refused(three, tmp_path):
    before = view(three)
    with Cluster(tmp_path, 1) as other:
        other[1].terminate()
        other[1].name = "stranger"
        other[1].path = tmp_path / "stranger"
        other.restart()
        assert join(three.leader(), "stranger", other[1].address).code == "bad_request"
        assert view(three) == before
        assert other[1].put("a", b"x").status == 200


# Joins that fail leave nothing


def files(path):
    return sorted(file.name for file in path.iterdir()) if path.exists() else None


def test_a_joiner_whose_port_is_busy_is_no_member_and_leaves_no_files(three, new_server):
    """In the original it stayed a member."""
    before = view(three)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        joiner = new_server("n9", busy.getsockname()[1]).start(join=three.leader(), wait=False)
        assert joiner.exit_status() == 1
    assert "cannot listen" in joiner.log() and "Traceback" not in joiner.log()
    assert (files(joiner.path), view(three)) == (None, before)


def test_a_joiner_that_finds_nobody_leaves_no_files(new_server):
    joiner = new_server("n9", free_port()).start(join=f"127.0.0.1:{free_port()}", wait=False)
    assert joiner.exit_status() == 1
    assert "nobody to join" in joiner.log() and "Traceback" not in joiner.log()
    assert files(joiner.path) is None


def test_the_name_of_a_member_with_other_files_is_refused(three, new_server):
    before = view(three)
    joiner = new_server("n2", free_port()).start(join=three.leader(), wait=False)
    assert joiner.exit_status() == 1
    assert "DELETE /members/n2" in joiner.log() and "Traceback" not in joiner.log()
    assert (files(joiner.path), view(three)) == (None, before)


def test_a_wiped_server_joins_again_once_it_is_removed(tmp_path):
    """It has forgotten what it voted and acknowledged: it must not come back as the member it was."""
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        leader = cluster.leader()
        wiped = cluster.followers(leader)[0]
        assert leader.put("a", b"x").status == 200
        wiped.kill()
        for file in wiped.path.iterdir():
            file.unlink()
        wiped.start(join=leader, wait=False)
        assert wiped.exit_status() == 1
        assert f"DELETE /members/{wiped.name}" in wiped.log_of_this_start()
        assert files(wiped.path) == []
        alone = wiped.start()  # without -join it is a new cluster, which the old one must not mistake for its member
        assert leader.put("b", b"x").status == 200
        assert alone.get("a").status == 404
        assert leader.members()[wiped.name]["match_index"] < leader.status()["commit_index"]
        alone.terminate()
        for file in wiped.path.iterdir():
            file.unlink()
        assert leader.call("DELETE", f"/members/{wiped.name}").status == 200
        wiped.start(join=leader)
        assert wiped.get("b").body == b"x"
        cluster.wait_converged()


@pytest.mark.slow
def test_a_join_killed_in_the_middle_can_be_repeated(tmp_path):
    """At whatever moment the joiner dies, the cluster goes on, and the same command makes it a member.

    Also when it has become a voter by then: there is a majority without it.
    """
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        first, term = cluster.leader(), max(cluster.terms())
        moments = ["Initializing Raft Server", "Attempting to join", "Initializing HTTP", "heard the leader"]
        with Writers([first], 2, pause=0.01) as writers:
            for text in moments:
                joiner = cluster.new().start(join=first, wait=False)
                wait_until(lambda new=joiner, words=text: words in new.log() or not new.running, "the moment has come")
                joiner.kill()
                joiner.start(join=first, wait=False)
                joiner.wait_listening(60)
                wait_until(lambda new=joiner: first.members().get(new.name, {}).get("voter"), f"{joiner} votes")
                writers.wait_for_more(5)
        assert first.status()["term"] == term
        assert sorted(first.members()) == ["n1", "n2", "n3", "n4", "n5", "n6", "n7"]
        cluster.wait_converged()


def test_a_joiner_that_dies_for_good_is_not_counted(tmp_path):
    """From one voter to two, and the second says who it is and nothing more: the first must not lose its majority."""
    with Cluster(tmp_path, 1, flags=UNHURRIED) as cluster:
        first = cluster[1]
        identity = json.loads(first.call("GET", "/raft/identity").body)

        class Ghost(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/raft/identity" else 500)
                self.end_headers()
                self.wfile.write(json.dumps({"name": "ghost", "id": "1", "cluster": identity["cluster"]}).encode())

            def log_message(self, *_):
                pass
        with ThreadingHTTPServer(("127.0.0.1", 0), Ghost) as ghost, Writers([first], 2, pause=0.01) as writers:
            threading.Thread(target=ghost.serve_forever, daemon=True).start()
            try:
                body = json.dumps({"name": "ghost", "connectionString": f"http://127.0.0.1:{ghost.server_port}"})
                answer = first.call("POST", "/join?timeout=7s", body, timeout=20)
            finally:
                ghost.shutdown()
            writers.wait_for_more(20)
        assert answer.code == "bad_request"
        assert list(first.members()) == ["n1"]
        assert writers.nothing_held_up


def test_join_while_the_leader_dies(tmp_path):
    with Cluster(tmp_path) as cluster:
        leader = cluster.leader()
        others = cluster.followers(leader)
        joiner = cluster.new().start(join=cluster.servers[:3], wait=False)
        wait_until(lambda: "Attempting to join" in joiner.log(), "it asks")
        leader.kill()
        joiner.wait_listening(60)
        cluster.wait_voters(4, others)
        cluster.restart(leader)
        cluster.wait_converged()
        assert len(cluster.leader().members()) == 4


# Data paths and processes that do not belong


def test_a_second_process_on_one_data_path_is_refused(three, new_server):
    """In the original both answered, and nothing was left."""
    second = new_server("n1", free_port(), three[1].path).start(wait=False)
    assert second.exit_status() == 1
    assert "in use by another raftd process" in second.log() and "Traceback" not in second.log()
    assert three[1].get("x").status in (200, 404)
    assert three.leader().put("still", b"works").status == 200


def test_a_path_that_is_a_file_is_refused(tmp_path, new_server):
    (tmp_path / "file").write_bytes(b"precious")
    server = new_server("n1", free_port(), tmp_path / "file").start(wait=False)
    assert server.exit_status() == 1
    assert "is not a directory" in server.log() and "Traceback" not in server.log()
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_busy_port_is_refused_and_the_files_stay_as_they_were(tmp_path):
    with Cluster(tmp_path, 1) as cluster, socket.create_server(("127.0.0.1", 0)) as busy:
        assert cluster[1].put("a", b"x").status == 200
        assert cluster[1].terminate() == 0
        before = {file.name: file.read_bytes() for file in cluster[1].path.iterdir()}
        port, cluster[1].port = cluster[1].port, busy.getsockname()[1]
        assert cluster[1].start(wait=False).exit_status() == 1
        assert "cannot listen" in cluster[1].log()
        assert {file.name: file.read_bytes() for file in cluster[1].path.iterdir()} == before
        cluster[1].port = port
        cluster.restart()
        assert cluster[1].get("a").body == b"x"


def test_data_of_another_cluster_is_refused(three, tmp_path):
    before = view(three)
    with Cluster(tmp_path, 1) as other:
        assert other[1].put("a", b"x").status == 200
        assert other[1].terminate() == 0
        assert other[1].start(join=three.servers, wait=False).exit_status() == 1  # one answers in time
        assert "another cluster" in other[1].log_of_this_start() and "Traceback" not in other[1].log()
        assert view(three) == before
        other.restart()
        assert other[1].get("a").body == b"x"


def test_a_server_that_never_joined_does_not_start_alone(tmp_path):
    with Cluster(tmp_path, 1) as cluster:
        joiner = cluster.new()
        cluster[1].pause()
        joiner.start(join=cluster[1], wait=False)
        wait_until(lambda: "Initializing Raft Server" in joiner.log(), "it has begun")
        joiner.signal(signal.SIGTERM)
        assert joiner.exit_status() in (0, 1)
        cluster[1].resume()
        assert files(joiner.path) in (None, [])
        assert list(cluster[1].members()) == ["n1"]


# Strangers at /raft/


def frames_of_a_stranger(term):
    """One of each request, with a term that would depose anybody."""
    entry = Entry(1, term, COMMAND, b"\1\1evil")
    return [
        RequestVote(term, "stranger", 10**6, term), RequestVote(term, "stranger", 10**6, term, leadership_transfer=True),
        AppendEntries(term, "stranger", 0, 0, (entry,), 1), AppendEntries(term, "stranger", 10**6, term, (), 10**6),
        InstallSnapshot(term, "stranger", 10**6, term, 1, b"x" * 32, 0, b"x"), ReadIndex(term, "stranger"), TimeoutNow(term, "stranger"),
    ]


def head(fields, protocol=wire.PROTOCOL):
    lines = {"Host": "x", "Connection": "Upgrade", "Upgrade": protocol, "Raft-Lane": "small", **fields}
    return b"GET /raft/ HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("latin-1") + b"\r\n"


def conversation(address, head, *parts):
    """What the server says to *head*, and, if it takes the connection over, to *parts*, until it closes."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 10) as stranger:
        heard = b""
        try:
            stranger.sendall(head)
            while b"\r\n\r\n" not in heard and (data := stranger.recv(65536)):
                heard += data
            if heard.startswith(b"HTTP/1.1 101"):
                for part in parts:
                    stranger.sendall(part)
            stranger.shutdown(socket.SHUT_WR)
            while data := stranger.recv(65536):
                heard += data
        except OSError:
            pass  # it has closed the connection already
        return heard


def introduction(server, **other):
    identity = json.loads(server.call("GET", "/raft/identity").body)
    fields = {"Raft-Cluster": identity["cluster"], "Raft-From": "stranger", "Raft-To": identity["name"], "Raft-To-Id": identity["id"],
              "Raft-Configuration": "0"}
    return {**fields, **{name.replace("_", "-"): value for name, value in other.items()}}


STRANGERS = {
    "another cluster": {"Raft_Cluster": "0" * 32, "Raft_From": "n2"}, "unknown sender": {}, "nobody": {"Raft_From": ""},
    "for another server": {"Raft_To": "n9", "Raft_From": "n2"}, "for other files": {"Raft_To_Id": "0" * 32, "Raft_From": "n2"},
    "no configuration": {"Raft_Configuration": "", "Raft_From": "n2"}, "bad configuration": {"Raft_Configuration": "-1", "Raft_From": "n2"},
    "other digits": {"Raft_Configuration": "\xb2", "Raft_From": "n2"}, "far too many digits": {"Raft_Configuration": "9" * 5000},
    "no name": {"Raft_From": "n2/x", "Raft_Configuration": "1000"},
}


@pytest.mark.parametrize("how", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_refused_and_changes_nothing(three, how):
    """In the original strangers could change term and data through /raft/*, or crash a server."""
    before = view(three), [(server.status()["term"], server.status()["voted_for"]) for server in three.servers]
    for server in three.servers:
        for frame in frames_of_a_stranger(before[0][2] + 5):
            assert conversation(server.address, head(introduction(server, **how)), wire.encode(frame, 0)).startswith(b"HTTP/1.1 403")
    assert (view(three), [(server.status()["term"], server.status()["voted_for"]) for server in three.servers]) == before
    assert three.leader().put("still", b"works").status == 200


def test_a_stranger_is_refused_whichever_known_configuration_it_names(three):
    """The benefit of the doubt (thesis 4.1) is for configurations that have not arrived here yet; the stranger is in none of the others."""
    before = view(three)
    for server in three.servers:
        for index in range(server.status()["commit_index"] + 1):
            vote = RequestVote(before[2] + 5, "stranger", 10**6, before[2] + 5, leadership_transfer=True)
            heard = conversation(server.address, head(introduction(server, Raft_Configuration=str(index))), wire.encode(vote, index))
            assert heard.startswith(b"HTTP/1.1 403"), (index, heard)
    assert view(three) == before


NONSENSE = {
    "text": b"hello, are you there?\r\n\r\n" * 10, "zeros": bytes(1000), "ones": b"\xff" * 1000,
    "cut short": wire.encode(TimeoutNow(1, "n2"), 0)[:9],
    "wrong checksum": wire.encode(TimeoutNow(1, "n2"), 0)[:-1] + b"X", "a reply": wire.encode_refusal("no"),
    "huge": wire.HEADER.pack(1 << 31, 1, 0, 0), "unknown kind": wire._frame(99, 0, b""), "empty append": wire._frame(1, 0, b""),
    "term of 2**63": wire._frame(wire._KINDS[TimeoutNow], 0, b"\xff" * 8 + b"\0\0\0\2n2"),
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_from_a_peer_changes_nothing(three, nonsense):
    """Introduced as a member, then garbage: the connection is closed, and that is all."""
    before, leader = view(three), three.leader()
    sender = three.followers(leader)[0].name
    introduced = head(introduction(leader, Raft_From=sender, Raft_Lane="test", Raft_Configuration="1000"))
    heard = conversation(leader.address, introduced, nonsense)
    assert heard.startswith(b"HTTP/1.1 101")
    assert view(three) == before
    assert leader.put("still", b"works").status == 200


def test_a_term_far_ahead_does_not_brick_the_cluster(three):
    """Even of a member: terms would be used up."""
    before, leader = view(three), three.leader()
    sender = three.followers(leader)[0].name
    for frame in frames_of_a_stranger(1 << 61):
        conversation(leader.address, head(introduction(leader, Raft_From=sender, Raft_Lane="test", Raft_Configuration="1000")),
                     wire.encode(frame, 1000))
    assert view(three) == before
    assert leader.put("still", b"works").status == 200


@pytest.mark.parametrize("protocol", ["raftd/0", "raftd/999", "websocket", "h2c"])
def test_another_version_of_the_protocol_is_refused_by_name(three, protocol):
    leader = three.leader()
    heard = conversation(leader.address, head(introduction(leader, Raft_From="n2"), protocol), bytes(100))
    assert heard.startswith(b"HTTP/1.1 403") and wire.PROTOCOL.encode() in heard


PLAIN = {
    "post": b"POST /raft/append HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", "get": b"GET /raft/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "identity": b"POST /raft/identity HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00" * 20 + b"\r\n\r\n", "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "empty upgrade": b"GET /raft/ HTTP/1.1\r\nUpgrade:\r\n\r\n",
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_plain_http_to_raft_is_refused(three, data):
    before = view(three)
    heard = conversation(three.leader().address, data)
    assert heard == b"" or heard.split()[1].startswith(b"4"), heard
    assert view(three) == before


def test_many_strangers_at_once_do_not_disturb(three):
    """Each costs a refusal, and no peer has to wait for it."""
    before, leader, stopping = view(three), three.leader(), threading.Event()
    introduced = head(introduction(leader))

    def knock(_):
        while not stopping.is_set():
            conversation(leader.address, introduced)
    threads = in_threads(knock, range(8))
    began = time.monotonic()
    with Writers([leader], 2) as writers:
        writers.wait_for_more(100)
    the_fault_lasts.wait(max(0, began + 2 - time.monotonic()))
    stopping.set()
    for thread in threads:
        thread.join()
    assert view(three)[:3] == before[:3]
