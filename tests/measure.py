"""Figures, not tests: what raftd does on this machine. ``python tests/measure.py WHAT [...]``, or ``all``; each takes minutes.

    speed      writes per second of three nodes at 1, 16, 64 and 256 clients (wrk, 100-byte values), alternating with etcd if installed
    failover   kill -9 of the leader of three under 8 writers, 20 times: the gap until the next accepted write; nothing may be lost
    restart    SIGTERM of the leader of three under 8 writers, and its start, 12 times: the longest gap between two accepted writes
    bounded    200,000 writes over 1,000 keys: the size of the files, and the time from a restart to the first answer
    memory     1,000,000 keys of 100 bytes on one node: its memory, and the time from a restart to the first answer
    join       a node joins a cluster with 300 MB of state under load: how long, and the slowest write meanwhile
    idle       three idle nodes for 30 s: their CPU time together, and their calls of fsync

Needs Debian's wrk (and etcd-server, strace) and nothing else on the machine that takes the processor.
"""

import argparse
import http.client
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from itertools import count, pairwise
from pathlib import Path
from statistics import median

from cluster import Client, Cluster, Writers, call, free_port, the_fault_lasts, wait_until

RANDOM_KEYS = """
math.randomseed(os.time())
local value = string.rep("x", 100)
request = function() return wrk.format("POST", "/db/k" .. math.random(1000), nil, value) end
"""
NEW_KEYS = """
local number, value = 0, string.rep("x", 100)
request = function() number = number + 1; return wrk.format("POST", "/db/key" .. number, nil, value) end
"""
ETCD = """
math.randomseed(os.time())
local value = "%s"
local letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"
request = function()
  local a, b = math.random(32), math.random(32)
  local key = letters:sub(a, a) .. letters:sub(b, b) .. "Aa"
  return wrk.format("POST", "/v3/kv/put", {["Content-Type"] = "application/json"}, '{"key":"' .. key .. '","value":"' .. value .. '"}')
end
""" % ("eHh4" * 33 + "eA==")
COUNT_ERRORS = """
done = function(summary) print("failed " .. summary.errors.status + summary.errors.timeout + summary.errors.read) end
"""


def wrk(address, clients, seconds, script):
    """(requests per second, milliseconds at the median, at 99 %, the most, requests that failed)."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script + COUNT_ERRORS)
        file.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "--latency", "-s", file.name, f"http://{address}"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if any(found is None for found in (re.search("Requests/sec", text), re.search(r"failed \d+", text))):
        raise RuntimeError(f"wrk says: {text}")
    milliseconds = [_milliseconds(re.search(pattern, text, re.M)[1]) for pattern in
                    (r"^ +50% +(\S+)", r"^ +99% +(\S+)", r"^ +Latency\s+\S+\s+\S+\s+(\S+)")]
    return float(re.search(r"Requests/sec:\s+(\S+)", text)[1]), *milliseconds, int(re.search(r"failed (\d+)", text)[1])


def _milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}[unit]


def memory_of(server):
    """Resident bytes of the process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1]) * 1024


def files_of(server):
    return sum(file.stat().st_size for file in server.path.iterdir())


def first_answer(server):
    """Seconds from the start of the process to its first answered linearizable read."""
    started = time.monotonic()
    server.start(wait=False)
    wait_until(lambda: server.call("GET", "/db/none", timeout=2).status == 404, "a read is answered")
    return time.monotonic() - started


class Etcd:
    """Three nodes of etcd on loopback."""

    def __init__(self, directory):
        ports = [(free_port(), free_port()) for _ in range(3)]
        members = ",".join(f"e{n}=http://127.0.0.1:{peer}" for n, (_, peer) in enumerate(ports))
        self.processes = [subprocess.Popen(
            ["etcd", "--name", f"e{n}", "--data-dir", f"{directory}/e{n}", "--listen-client-urls", f"http://127.0.0.1:{client}",
             "--advertise-client-urls", f"http://127.0.0.1:{client}", "--listen-peer-urls", f"http://127.0.0.1:{peer}",
             "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster", members],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for n, (client, peer) in enumerate(ports)]
        self.addresses = [f"127.0.0.1:{client}" for client, _ in ports]

    def leader(self):
        def find():
            for address in self.addresses:
                answer = call(address, "POST", "/v3/maintenance/status", "{}")
                if answer.status == 200:
                    member, leader = (re.search(rb'"%s":"(\d+)"' % name, answer.body) for name in (b"member_id", b"leader"))
                    if member and leader and member[1] == leader[1]:
                        return address
            return None
        return wait_until(find, "etcd has a leader")

    def close(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


def speed(directory):
    for clients in (1, 16, 64, 256):
        for round_number in range(3):
            place = directory / f"{clients}-{round_number}"
            place.mkdir()
            with Cluster(place) as cluster:
                _show("raftd", clients, wrk(cluster.leader().address, clients, 6, RANDOM_KEYS))
            if shutil.which("etcd"):
                etcd = Etcd(place)
                try:
                    _show("etcd", clients, wrk(etcd.leader(), clients, 6, ETCD))
                finally:
                    etcd.close()


def _show(name, clients, figures):
    rate, half, most, slowest, failed = figures
    print(f"{name:6} {clients:4} clients  {rate:8.0f} writes/s  median {half:7.2f} ms  99% {most:7.2f} ms  "
          f"slowest {slowest:7.1f} ms  failed {failed}", flush=True)


def first_accepted(servers):
    """The moment at which one of *servers* had accepted a write: each is asked in turn, with no pause that anybody would notice."""
    clients = [Client(server.address) for server in servers]
    for attempt in count():
        if clients[attempt % len(clients)].call("POST", "/db/probe", b"x", timeout=2).status == 200:
            break
        the_fault_lasts.wait(0.001)
    for client in clients:
        client.close()
    return time.monotonic()


def failover(directory):
    gaps, acknowledged = [], 0
    with Cluster(directory) as cluster:
        for _ in range(20):
            leader = cluster.leader()
            followers = cluster.followers(leader)
            with Writers(cluster.servers, count=8) as writers:
                writers.wait_for_more(200)
                killed = time.monotonic()
                leader.kill()
                gaps.append(first_accepted(followers) - killed)
                writers.wait_for_more(50)
            cluster.restart(leader)
            cluster.wait_converged()
            lost = [w for w in writers.acknowledged if cluster.leader().get(w.key).body != w.value]
            assert not lost, f"lost: {lost}"
            acknowledged += len(writers.acknowledged)
    print(f"20 kills: next accepted write after {median(gaps):.3f} s (median), {max(gaps):.3f} s (slowest); "
          f"{acknowledged} acknowledged, 0 missing")


def restart(directory):
    gaps = []
    with Cluster(directory) as cluster:
        for _ in range(12):
            leader = cluster.leader()
            with Writers(cluster.servers, count=8) as writers:
                writers.wait_for_more(200)
                ended = time.monotonic()
                assert leader.terminate() == 0
                seconds = time.monotonic() - ended
                cluster.restart(leader)
                writers.wait_for_more(200)
            answered = sorted(write.answered for write in writers.acknowledged)
            gaps.append(max(later - earlier for earlier, later in pairwise(answered) if later > ended))
            print(f"stopped in {seconds:.3f} s, longest gap {gaps[-1]:.3f} s, refused {dict(writers.refused)}", flush=True)
            cluster.wait_converged()
    print(f"12 restarts of the leader: longest gap {median(gaps):.3f} s (median), {max(gaps):.3f} s (most)")


def bounded(directory):
    with Cluster(directory, size=1) as cluster:
        server = cluster[1]
        while (done := server.status()["last_applied"]) < 200_000:
            wrk(server.address, 64, 10, RANDOM_KEYS)
            print(f"{server.status()['last_applied']:8} writes over 1,000 keys: files {files_of(server) / 1e6:.1f} MB, "
                  f"memory {memory_of(server) / 1e6:.0f} MB", flush=True)
        assert server.terminate() == 0
        print(f"{done} writes: restart to the first answered read in {first_answer(server):.2f} s")
        server.kill()
        print(f"after kill -9: {first_answer(server):.2f} s")


def memory(directory):
    with Cluster(directory, size=1) as cluster:
        server = cluster[1]
        _load(server, 1_000_000)
        print(f"1,000,000 keys of 100 bytes: memory {memory_of(server) / 1e6:.0f} MB, files {files_of(server) / 1e6:.0f} MB")
        server.kill()
        print(f"after kill -9: first answered read in {first_answer(server):.2f} s, memory {memory_of(server) / 1e6:.0f} MB")


def _load(server, count):
    """Write key1 to key*count*."""
    done = 0
    while done < count:
        start = f"local number, value = {done}, string.rep"
        wrk(server.address, 64, 20, NEW_KEYS.replace("local number, value = 0, string.rep", start))
        done = server.status()["last_applied"] - 100  # every write is an entry; a few more are not
        print(f"{done:8} keys, memory {memory_of(server) / 1e6:.0f} MB", flush=True)


def join(directory):
    with Cluster(directory) as cluster:
        leader = cluster.leader()
        for number in range(300):
            answer = leader.put(f"large{number}", os.urandom(1 << 20))
            assert answer.status == 200, answer
        for _ in range(2):  # more entries than the log keeps, so that a new node needs a snapshot
            wrk(leader.address, 64, 5, RANDOM_KEYS)
        slowest, stop = [], threading.Event()
        thread = threading.Thread(target=_write_until, args=(leader.address, stop, slowest))
        load = threading.Thread(target=wrk, args=(leader.address, 16, 60, RANDOM_KEYS))
        thread.start(), load.start()
        started = time.monotonic()
        cluster.new().start(join=leader, wait=False).wait_listening(300)
        seconds = time.monotonic() - started
        stop.set(), thread.join(), load.join()
        print(f"joined a cluster with {files_of(leader) / 1e6:.0f} MB of files in {seconds:.1f} s; {len(slowest)} writes of another "
              f"client meanwhile, the slowest took {max(slowest):.3f} s; memory of the leader {memory_of(leader) / 1e6:.0f} MB, "
              f"of the new node {memory_of(cluster.servers[-1]) / 1e6:.0f} MB")


def _write_until(address, stop, seconds):
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    while not stop.is_set():
        started = time.monotonic()
        connection.request("POST", "/db/probe", b"x" * 100)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        seconds.append(time.monotonic() - started)


def idle(directory):
    with Cluster(directory) as cluster:
        cluster.wait_converged()
        the_fault_lasts.wait(2)
        before = [_cpu_seconds(server) for server in cluster.servers]
        the_fault_lasts.wait(30)
        used = sum(_cpu_seconds(server) for server in cluster.servers) - sum(before)
        print(f"three idle nodes: {used / 30:.1%} of a core")
        if shutil.which("strace"):
            calls = subprocess.run(["timeout", "-s", "INT", "10", "strace", "-f", "-c", "-e", "trace=fsync,fdatasync",
                                    *(word for server in cluster.servers for word in ("-p", str(server.process.pid)))],
                                   capture_output=True, text=True).stderr
            print(f"calls of fsync in 10 s: {len(re.findall(r' f(?:data)?sync$', calls, re.M))} kinds\n")


def _cpu_seconds(server):
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


MEASURES = {measure.__name__: measure for measure in (speed, failover, restart, bounded, memory, join, idle)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=[*MEASURES, "all"])
    what = parser.parse_args().what
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    for name in MEASURES if "all" in what else what:
        print(f"-- {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"raftd-{name}-") as directory:
            MEASURES[name](Path(directory))


if __name__ == "__main__":
    sys.exit(main())
