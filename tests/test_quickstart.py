"""bin/quickstart, for real: three nodes, a write, Ctrl-C, and the same data after the next start."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import free_port

QUICKSTART = Path(__file__).resolve().parent.parent / "bin/quickstart"


def three_free_ports():
    """The first of three ports in a row that nobody listens on."""
    while True:
        first = free_port()
        if [free_port(), free_port()] == [first + 1, first + 2]:
            return first


def ask(port, method, path, body=None):
    """(status, body); (None, b"") when nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()


def wait_until(truth, what, seconds=40):
    deadline = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def quickstart(*args, **more):
    return subprocess.Popen([sys.executable, QUICKSTART, "--python", sys.executable, *args], text=True, **more)


def refusal(*args):
    """(exit status, what it says on stderr) of a quickstart that should not start."""
    process = quickstart(*args, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    return process.wait(20), process.communicate()[1]


@contextmanager
def running(data, *args):
    """A quickstart whose three nodes are ready, and its output, as a function; killed at the end if it still runs."""
    output = data.with_suffix(".out")
    with output.open("a") as file:
        process = quickstart("--data", data, *args, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_until(lambda: process.poll() is not None or "Three nodes are ready" in output.read_text(), "three nodes are ready")
        assert process.poll() is None, output.read_text()
        yield process, output.read_text
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
        output.unlink()


@pytest.mark.cluster
def test_cluster_runs_loses_a_node_stops_and_starts_again(tmp_path):
    first, data = three_free_ports(), tmp_path / "data"
    with running(data, "--port", str(first)) as (process, output):
        ports = range(first, first + 3)
        leader = leader_port(output())
        wait_until(lambda: any(ask(port, "POST", "/db/foo", b"bar") == (200, b"") for port in ports), "a write")
        wait_until(lambda: [ask(port, "GET", "/db/foo") for port in ports] == [(200, b"bar")] * 3, "all have it")

        os.kill(leader_pid(output()), signal.SIGKILL)
        wait_until(lambda: "has ended: signal 9 (SIGKILL)" in output(), "the lost node is reported")
        others = [port for port in ports if port != leader]
        wait_until(lambda: any(ask(port, "POST", "/db/foo", b"two")[0] == 200 for port in others), "another leader")

        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, output()
        assert [ask(port, "GET", "/livez")[0] for port in others] == [None, None]

    with running(data) as (process, output):  # the ports are noted with the data
        wait_until(lambda: ask(leader_port(output()), "GET", "/db/foo") == (200, b"two"), "it has kept it")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, output()


def leader_port(output):
    return int(output.split("curl -XPOST localhost:")[1].split("/")[0])


def leader_pid(output):
    return int(output.split("kill -9 ")[1].split()[0])


def test_busy_port_is_named_and_nothing_written(tmp_path):
    first = three_free_ports()
    with socket.create_server(("127.0.0.1", first + 1)):
        status, stderr = refusal("--data", tmp_path / "data", "--port", str(first))
    assert status == 1
    assert stderr.startswith(f"quickstart: port {first + 1} is in use") and stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_data_of_other_ports_is_refused(tmp_path):
    (tmp_path / "first-port").write_text("7001\n")
    status, stderr = refusal("--data", tmp_path, "--port", "8001")
    assert status == 1
    assert "ports 7001 to 7003" in stderr and stderr.count("\n") == 1


def test_node_that_cannot_start_ends_it(tmp_path):
    """Here because node.1 is a file."""
    (tmp_path / "node.1").write_text("in the way")
    status, stderr = refusal("--data", tmp_path, "--port", str(three_free_ports()))
    assert status == 1
    assert "quickstart: node.1 could not start: exit status 1" in stderr and "Traceback" not in stderr
