"""``raftctl bench``: its figures are those of what happened, whatever the servers do meanwhile."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from array import array
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import PATIENCE_SECONDS, Cluster, free_port, wait_until
from raftd import bench, ctl, plot

TOP = Path(__file__).resolve().parent.parent
RAFTCTL = [sys.executable, str(TOP / "bin/raftctl")]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Raft-Node: n1\r\n\r\n"


# Figures


@pytest.mark.parametrize("size", [1, 2, 9, 10, 99, 100, 101, 999, 1000, 1001])
@pytest.mark.parametrize("percent", [50, 90, 99, 99.9, 100])
def test_a_percentile_is_the_smallest_that_so_many_do_not_exceed(size, percent):
    ordered = sorted(random.Random(size).sample(range(10 * size), size))
    enough = [seen for seen in ordered if sum(other <= seen for other in ordered) * 1000 >= round(percent * 10) * size]
    assert bench.percentile(ordered, percent) == enough[0]


def result(latencies=(), **changes):
    """A Result of 10 s in which a write was answered every second."""
    writes = bench.Samples(array("d", range(101, 101 + len(latencies))), array("d", latencies))
    return bench.Result(bench.Load(), **{"began": 100.0, "ended": 110.0, "writes": writes, **changes})


def test_the_summary_has_milliseconds_and_rates():
    summary = result([0.004, 0.001, 0.003, 0.002]).summary()
    assert summary["writes"] == {"count": 4, "per_second": 0.4, "p50_ms": 2.0, "p90_ms": 4.0, "p99_ms": 4.0, "p99_9_ms": 4.0, "max_ms": 4.0}
    assert summary["reads"] == {"count": 0, "per_second": 0.0, "p50_ms": None, "p90_ms": None, "p99_ms": None, "p99_9_ms": None,
                                "max_ms": None, "missing": 0}


@pytest.mark.parametrize("answers, gap", [([], 10), ([104.0], 6), ([101.0, 102.0, 106.5, 109.0], 4.5), ([107.0, 109.0], 7)])
def test_the_longest_gap_counts_from_the_start_and_to_the_end(answers, gap):
    reads = bench.Samples(array("d", answers), array("d", [0.001] * len(answers)))
    assert result(reads=reads).longest_gap_seconds() == pytest.approx(gap)


# Answers


def one_answer(status=b"200 OK", body=b"value", length=b"Content-Length: 5"):
    return b"HTTP/1.1 " + status + b"\r\nX-Raft-Error: no_quorum\r\n" + length + b"\r\nX-Raft-Node: n1\r\n\r\n" + body


@pytest.mark.parametrize("data", [one_answer(), one_answer(length=b"content-length:5"), one_answer(b"503 Service Unavailable"),
                                  one_answer(body=b"", length=b"Content-Length: 0"),
                                  one_answer(body=b"a\r\n\r\nb", length=b"CONTENT-LENGTH: 6")])
def test_an_answer_is_complete_with_its_last_byte_and_not_before(data):
    assert [bench.parse(data[:cut]) for cut in range(len(data))] == [None] * len(data)
    answer = bench.parse(data)
    assert (answer.status, answer.body) == (int(data[9:12]), data[data.index(b"\r\n\r\n") + 4:])
    assert (answer.header("x-raft-error"), answer.header("X-Raft-Node"), answer.header("ETag")) == ("no_quorum", "n1", None)


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\n\r\n", one_answer(length=b"Content-Length: five"),
                                  one_answer(b"OK"), one_answer() + b"x", one_answer(length=b"Transfer-Encoding: chunked"),
                                  b"HTTP/1.1 200 OK\r\n" + b"x" * bench.MAX_HEAD_BYTES])
def test_what_is_no_answer_is_refused(data):
    with pytest.raises(bench.BadAnswer):
        bench.parse(data)


# Plots


def test_an_interval_has_the_percentiles_of_its_answers():
    samples = [(0.05 + n / 1000, 0.001 * (n + 1)) for n in range(40)] + [(0.95, 0.5)]
    assert plot.over_time(samples, 1.0, 0.1) == [(0.0, 0.02, 0.04, 0.04), (pytest.approx(0.9), 0.5, 0.5, 0.5)]


@pytest.mark.parametrize("seconds", [0.001, 1.0, 9.99, 600.0, 86400.0])
@pytest.mark.parametrize("answers", [0, 1, 500])
def test_a_plot_is_an_svg_within_its_borders(seconds, answers):
    chance = random.Random(7)
    samples = [(chance.random() * seconds, 10 ** chance.uniform(-5, 1)) for _ in range(answers)]
    text = plot.latency_svg(samples, [seconds / 2] * 3, seconds, "a <b> & c", [(seconds / 3, "term <2>")])
    svg = ElementTree.fromstring(text)
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert svg.tag.endswith("svg") and "term <2>" in texts and texts[0].startswith("a <b> & c")
    assert "3 failed" in [element.text for element in svg.iter("{http://www.w3.org/2000/svg}title")]
    for line in svg.iter("{http://www.w3.org/2000/svg}polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert plot.LEFT <= x <= plot.WIDTH and plot.TOP - 1 <= y <= plot.HEIGHT - plot.BOTTOM + 1


def test_latencies_are_not_joined_over_a_gap():
    samples = [(when / 10 + 0.05, 0.01) for when in [*range(20), *range(40, 60)]]
    assert plot.latency_svg(samples, [], 6.0, "gap").count("<polyline") == 2 * len(plot.COLOURS)


# The command line


@pytest.mark.parametrize("words, complaint", [
    ("", "the following arguments are required: COMMAND"),
    ("bogus", "argument COMMAND: invalid choice: 'bogus'"),
    ("bench --bogus", "unrecognized arguments: --bogus"),
    ("bench --clients 0", "argument --clients: not a whole number of at least 1: '0'"),
    ("bench --clients many", "argument --clients: not a whole number of at least 1: 'many'"),
    ("bench --read-share 1.1", "argument --read-share: not between 0.0 and 1.0: '1.1'"),
    ("bench --read-share nan", "argument --read-share: not between 0.0 and 1.0: 'nan'"),
    ("bench --rate 0", "argument --rate: not a rate, in requests per second: '0'"),
    ("bench --duration 10", "argument --duration: not a duration: '10'; such as 500ms, 10s, 1.5m, 2h"),
    ("bench --duration 9999999h", "argument --duration: longer than a hundred years: '9999999h'"),
    ("bench --duration 0s", "--duration and --timeout must be positive"),
    ("bench --count 5 --duration 1s", "--count goes with neither --duration nor --warm-up"),
    ("bench --level newest", "argument --level: invalid choice: 'newest'"),
    ("bench --endpoints localhost", "argument --endpoints: not HOST:PORT: 'localhost'"),
    ("bench --endpoints https://a:1", "argument --endpoints: not HOST:PORT: 'https://a:1'"),
    ("bench --endpoints me@a:1", "argument --endpoints: not HOST:PORT: 'me@a:1'"),
    ("bench --endpoints [::1", "argument --endpoints: not HOST:PORT: '[::1'"),
    ("bench --endpoints ,", "argument --endpoints: no HOST:PORT in it"),
    ("bench --dur 1s", "unrecognized arguments: --dur 1s"),
])
def test_a_command_line_that_cannot_be_understood(words, complaint, capsys):
    assert ctl.main(words.split()) == 64
    output, errors = capsys.readouterr()
    assert (output, errors.splitlines()[-1].partition(" (choose")[0]) == ("", f"raftctl: {complaint}")


def test_help_has_examples_and_names_every_field(capsys):
    assert ctl.main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    summary = result([0.001]).summary()
    assert "examples:" in text and "closed loop" in text
    assert not [name for name in [*summary, *summary["writes"]] if not re.search(rf"\b{name}\b", text)]


def test_plain_is_a_figure_a_line():
    summary = result([0.001]).summary()
    lines = dict(line.split(" ", 1) for line in ctl.load.plain(summary).splitlines())
    assert lines["writes.p50_ms"] == "1.0" and lines["level"] == "linearizable" and lines["interrupted"] == "false"
    assert lines["reads.p50_ms"] == "null" and len(lines) == len(summary) - 3 + len(summary["writes"]) + len(summary["reads"])


def test_endpoints_come_from_the_flag_or_the_environment(monkeypatch):
    monkeypatch.delenv("RAFTD_ENDPOINTS", raising=False)
    assert ctl.parse(["bench"]).endpoints == ["localhost:4001"]
    monkeypatch.setenv("RAFTD_ENDPOINTS", "a:1, http://[::1]:2/")
    assert ctl.parse(["bench"]).endpoints == ["a:1", "[::1]:2"]
    assert ctl.parse(["bench", "--endpoints", "b:3"]).endpoints == ["b:3"]


def test_flags_become_the_load():
    words = "bench --clients 3 --value-size 7 --keys 9 --read-share 0.25 --level stale --reads-from any --prefix p/ --rate 50 --timeout 2s"
    load = ctl.load.load_of(ctl.parse([*words.split(), "--duration", "1m"]))
    assert load == bench.Load(clients=3, value_bytes=7, keys=9, read_share=0.25, level="stale", reads_from="any", seconds=60.0,
                              warm_up_seconds=1.0, rate=50.0, prefix="p/", timeout_seconds=2.0)
    load = ctl.load.load_of(ctl.parse(["bench", "--count", "10"]))
    assert (load.seconds, load.count, load.warm_up_seconds) == (None, 10, 0.0)


def test_where_nobody_listens_one_line_says_so(capsys):
    port = free_port()
    assert ctl.main(["bench", "--endpoints", f"127.0.0.1:{port}"]) == 2
    assert capsys.readouterr() == ("", f"raftctl: no raftd answers: 127.0.0.1:{port}: Connection refused\n")


# Servers that do what is asked of them here


@contextmanager
def server(answer, leader="n1"):
    """The address of a server that says *leader* leads, by default itself. It answers each request of the load with
    ``answer(number, request)``, None: hang up; and closes the connection after an answer that says so.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    numbers = iter(range(10 ** 9))

    def serve(connection):
        with connection, connection.makefile("rb") as lines:
            while line := lines.readline():
                head = [line, *iter(lines.readline, b"\r\n")]
                length = next((int(field.split(b":")[1]) for field in head if field.lower().startswith(b"content-length")), 0)
                body = lines.read(length)
                data = known(line) or answer(next(numbers), line + body)
                if data is None:
                    return
                connection.sendall(data)
                if b"Connection: close" in data:
                    return

    def known(line):
        said = {b"/leader": {"name": leader, "address": address}, b"/members": {"members": [{"name": "n1", "address": address}]}}
        path = line.split()[1]
        return with_body(json.dumps(said[path]).encode()) if path in said else None

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield address
        listener.shutdown(socket.SHUT_RDWR)


def with_body(body, status=b"200 OK", more=b""):
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nX-Raft-Node: n1\r\n%s\r\n%s" % (status, len(body), more, body)


@pytest.fixture
def clock(monkeypatch):
    """That of a load: the real one, and so many seconds *ahead*."""
    clock = SimpleNamespace(ahead=0.0)
    clock.monotonic = lambda: time.monotonic() + clock.ahead
    monkeypatch.setattr(bench, "time", clock)
    return clock


def run(address, **load):
    return bench.Run(bench.Load(**{"seconds": None, **load}), [address]).run()


def test_every_failure_is_counted_by_its_name_and_the_load_goes_on(clock):
    """Of ten requests one each: an error with a name, one without, a broken connection, no HTTP, no answer; the others succeed."""
    def answer(number, _):
        clock.ahead += 25 if number % 10 == 5 else 0
        return {1: with_body(b"", b"503 Service Unavailable", b"X-Raft-Error: no_quorum\r\n"), 2: with_body(b"", b"500 Oops"),
                3: None, 4: b"nonsense\r\n\r\n", 5: b"HTTP/1.1 200 OK\r\n"}.get(number % 10, OK)
    with server(answer) as address:
        seen = run(address, clients=1, count=20, timeout_seconds=20)
    assert seen.failures == {"no_quorum": 2, "http_500": 2, "connection": 2, "bad_answer": 2, "timeout": 2}
    assert (seen.succeeded, len(seen.failed_at)) == (10, 10)
    assert seen.longest_gap_seconds() > 20


def test_requests_are_as_asked():
    requests = []

    def answer(number, request):
        requests.append(request)
        return with_body(b"", b"404 Not Found") if number % 2 else OK
    with server(answer) as address:
        seen = run(address, clients=2, count=300, keys=3, read_share=0.5, value_bytes=5, prefix="a b/", level="stale")
    assert set(requests) == {b"%s /db/a%%20b/%d%s HTTP/1.1\r\n%s" % (*kind[:1], key, *kind[1:]) for key in range(3)
                             for kind in ((b"POST", b"", b"xxxxx"), (b"GET", b"?level=stale", b""))}
    writes, reads = (sum(request.startswith(verb) for request in requests) for verb in (b"POST", b"GET"))
    assert 100 < reads < 200 and len(seen.reads.answered) == reads and 0 < seen.missing < reads
    assert len(seen.writes.answered) + seen.failures["http_404"] == writes  # a write that is not found has failed


def test_large_values_are_sent_and_received_in_pieces():
    with server(lambda _, request: with_body(b"y" * 3_000_000) if request.startswith(b"GET") else OK) as address:
        seen = run(address, clients=2, count=10, value_bytes=20_000_000, read_share=0.5, timeout_seconds=PATIENCE_SECONDS)
    assert seen.succeeded == 10 and not seen.failures


def test_who_names_another_leader_is_not_taken_for_it():
    with server(lambda *_: OK, leader="n2") as address:
        seen = run(address, clients=2, seconds=0.3)
    assert (seen.succeeded, seen.failures) == (0, {})


def test_a_connection_that_the_server_closes_after_an_answer_is_no_failure():
    with server(lambda *_: with_body(b"", more=b"Connection: close\r\n")) as address:
        assert run(address, clients=2, count=20).failures == {}


def test_a_run_with_a_rate_counts_latencies_from_the_time_that_was_intended():
    """One answer of 200 comes half a second late. Who sends on schedule notices for all that should have been sent meanwhile."""
    late = threading.Event()

    def answer(number, _):
        if number % 200 == 50:  # of each run
            late.wait(0.5)
        return OK
    with server(answer) as address:
        closed = run(address, clients=1, count=200)
        opened = run(address, clients=1, count=200, rate=200)
    assert sum(latency > 0.1 for latency in closed.writes.latencies) < 50
    assert sum(latency > 0.1 for latency in opened.writes.latencies) > 50
    assert opened.seconds > 0.9


def test_what_a_rate_asks_for_and_gets_not_is_told():
    never = threading.Event()
    with server(lambda *_: never.wait(0.05) or OK) as address:
        seen = run(address, clients=1, seconds=0.5, rate=1000)
    assert 400 < seen.unsent < 500 and seen.succeeded + seen.unsent in (499, 500), "each whose time had come"


def test_the_warm_up_is_not_counted(clock):
    def answer(number, _):
        clock.ahead += 0.5
        return OK if number else with_body(b"", b"500 Oops")
    with server(answer) as address:
        seen = run(address, clients=1, seconds=20, warm_up_seconds=20)
    assert not seen.failures and 15 < seen.seconds < 30 and min(seen.writes.answered) >= seen.began


def test_a_cluster_where_nothing_succeeds_is_one_line(capsys):
    with server(lambda *_: with_body(b"", b"413 Too Large", b"X-Raft-Error: too_large\r\n")) as address:
        assert ctl.main(["bench", "--endpoints", address, "--clients", "2", "--count", "4"]) == 2
    assert capsys.readouterr() == ("", "raftctl: no request succeeded: too_large 4\n")


def test_a_plot_that_cannot_be_written_is_told_before_the_load(tmp_path, capsys):
    begun = threading.Event()
    with server(lambda *_: begun.set() or OK) as address:
        assert ctl.main(["bench", "--endpoints", address, "--plot", str(tmp_path / "none/plot.svg")]) == 2
    output, errors = capsys.readouterr()
    assert (output, errors.startswith("raftctl: "), errors.count("\n")) == ("", True, 1) and not begun.is_set()


def test_ctrl_c_ends_early_with_the_figures_so_far():
    begun = threading.Event()
    with server(lambda *_: begun.set() or OK) as address:
        process = subprocess.Popen([*RAFTCTL, "bench", "--endpoints", address, "--duration", "5m", "--json", "--warm-up", "0s"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert begun.wait(PATIENCE_SECONDS)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, errors) == (0, "")
    summary = json.loads(output)
    assert summary["interrupted"] and summary["writes"]["count"] > 0 and summary["seconds"] < 300


def test_a_terminal_is_shown_how_far_it_is():
    with server(lambda *_: OK) as address:
        ours, theirs = os.openpty()
        done = subprocess.run([*RAFTCTL, "bench", "--endpoints", address, "--count", "500"], stdout=subprocess.PIPE, stderr=theirs,
                              text=True, timeout=PATIENCE_SECONDS)
        os.close(theirs)
        shown = os.read(ours, 1 << 16).decode()
        os.close(ours)
    assert done.returncode == 0 and re.search(r"^writes +500 ", done.stdout, re.M)
    assert re.search(r"load \[#* *\] +\d+%  [\d,]+ answered, 0 failed", shown) and shown.endswith("\r\x1b[K")


# Real clusters


@pytest.mark.cluster
def test_as_many_entries_are_in_the_log_as_writes_were_answered(tmp_path, capsys):
    with Cluster(tmp_path, flags=("-election-timeout", "20s")) as cluster:  # an election would add an entry
        follower = cluster.followers()[0]
        before = cluster.leader().status()["last_log_index"]
        words = ["bench", "--endpoints", follower.address, "--clients", "16", "--keys", "50", "--json"]
        assert ctl.main([*words, "--count", "700", "--plot", str(tmp_path / "plot.svg")]) == 0
        assert json.loads(capsys.readouterr().out)["writes"]["count"] == 700
        assert cluster.leader().status()["last_log_index"] == before + 700
        assert ctl.main([*words, "--count", "400", "--read-share", "0.75", "--reads-from", "any"]) == 0
        mixed = json.loads(capsys.readouterr().out)
        assert (mixed["writes"]["count"] + mixed["reads"]["count"], mixed["reads"]["missing"], mixed["failed"]) == (400, 0, 0)
        assert cluster.leader().status()["last_log_index"] == before + 700 + 50 + mixed["writes"]["count"]  # 50: every key once
        assert cluster.leader().get("bench/49").body == b"x" * 100
    ElementTree.parse(tmp_path / "plot.svg")


@pytest.mark.cluster
def test_a_run_outlives_the_leader(tmp_path):
    with Cluster(tmp_path) as cluster:
        leader, load = cluster.leader(), bench.Load(clients=8, seconds=300.0, with_events=True)
        done = []
        running = bench.Run(load, bench.members([cluster.followers(leader)[0].address]), watch=done.append)
        thread = threading.Thread(target=lambda: done.append(running.run()), daemon=True)
        thread.start()
        wait_until(lambda: done and done[-1].succeeded > 100 and running._status.get("term"), "the load runs, and in which term is known")
        before = done[-1].succeeded
        leader.kill()
        wait_until(lambda: done[-1].failures.total() and done[-1].succeeded > before + 200, "the load goes on with another leader")
        wait_until(lambda: any(text.startswith("term ") for _, text in done[-1].events), "its term is seen")
        entries = cluster.leader().status()["last_log_index"]
        running.stop()
        thread.join(PATIENCE_SECONDS)
        seen = done[-1]
        assert seen.interrupted and seen.failures["connection"] >= 1 and entries > before
        assert seen.longest_gap_seconds() > bench.TICK_SECONDS / 2
