"""raftd beside etcd and PySyncObj on one machine, in alternation: medians, and how many times as fast raftd is.

    .venv/bin/pip install -e '.[compare]'; apt install etcd-server wrk
    .venv/bin/python tests/compare.py

Three nodes on loopback, 100-byte values, 1000 keys, requests to the leader, a new cluster for each figure. A round measures each
system at each number of clients, the neighbours in time being those that are compared; every other round has them in reverse order.

  raftd      a write is on the disks of a majority (SQLite, synchronous=FULL)
  etcd       the same (its write-ahead log), behind its v3 JSON gateway: HTTP and JSON as a client without gRPC has them. wrk is the
             client of both, since it takes least of the processor
  PySyncObj  a library without a server: as many threads as clients, in the process of the leader itself, set a key of a ReplDict
             and wait. No network lies between client and leader, which favours it. Its journal is a mapped file that it never
             syncs: what it acknowledges survives kill -9, but no power cut. It is measured with its own setting for throughput
             (appendEntriesUseBatch, the default) and with that for latency. It has no linearizable read
  waitress   what raftd's web server does by itself, beside a stale read: one process with a WSGI app that only answers 100 bytes

A system that is not installed is left out. Nothing else should want the processor meanwhile: the load average is printed.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

from cluster import Cluster, call, free_port, wait_until

from raftd.bench import percentile

VALUE = "x" * 100
WRITES, LINEARIZABLE, STALE = "writes", "linearizable reads", "stale reads"
CLIENTS = {WRITES: (1, 16, 64, 256), LINEARIZABLE: (1, 64), STALE: (64,)}


# wrk


class Figures(NamedTuple):
    """Requests per second; milliseconds at the median, at 99 %, the most; requests that failed."""

    rate: float
    half: float
    most: float
    slowest: float
    failed: int


RANDOM_KEYS = """
math.randomseed(os.time())
local value = string.rep("x", 100)
request = function() return wrk.format("POST", "/db/k" .. math.random(1000), nil, value) end
"""
RANDOM_READS = """
math.randomseed(os.time())
request = function() return wrk.format("GET", "/db/k" .. math.random(1000) .. "%s") end
"""
ETCD = """
math.randomseed(os.time())
local letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"
request = function()
  local a, b = math.random(32), math.random(32)
  local key = letters:sub(a, a) .. letters:sub(b, b) .. "Aa"
  return wrk.format("POST", "/v3/kv/%s", {["Content-Type"] = "application/json"}, '{"key":"' .. key .. '"%s}')
end
"""
COUNT_ERRORS = """
done = function(summary)
  local errors = summary.errors
  print("failed " .. errors.connect + errors.read + errors.write + errors.status + errors.timeout)
end
"""


def wrk(address, clients, seconds, script):
    """The Figures of wrk."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script + COUNT_ERRORS)
        file.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "--latency", "-s", file.name, f"http://{address}"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if not all(re.search(pattern, text) for pattern in ("Requests/sec", r"failed \d+")):
        raise RuntimeError(f"wrk says: {text}")
    milliseconds = [_milliseconds(re.search(pattern, text, re.M)[1]) for pattern in
                    (r"^ +50% +(\S+)", r"^ +99% +(\S+)", r"^ +Latency\s+\S+\s+\S+\s+(\S+)")]
    return Figures(float(re.search(r"Requests/sec:\s+(\S+)", text)[1]), *milliseconds, int(re.search(r"failed (\d+)", text)[1]))


def _milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}[unit]


# The systems. Each is made with a directory, measures, and closes; ``scripts`` or ``can`` says what it knows.


class OverHttp:
    """A system that wrk can load: ``address()`` is where, ``put(address, number)`` writes one of the keys."""

    scripts = {}

    @classmethod
    def can(cls, what):
        return what in cls.scripts

    def measure(self, what, clients, seconds):
        address = self.address()
        if what != WRITES:
            with ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(lambda number: self.put(address, number), range(1, 1025)))
            assert all(answer.status == 200 for answer in answers), [answer for answer in answers if answer.status != 200][0]
        return wrk(address, clients, seconds, self.scripts[what])


class Raftd(OverHttp):
    name, scripts = "raftd", {WRITES: RANDOM_KEYS, LINEARIZABLE: RANDOM_READS % "", STALE: RANDOM_READS % "?level=stale"}

    @staticmethod
    def version():
        return importlib.metadata.version("raftd")

    def __init__(self, directory):
        self._cluster = Cluster(directory)

    def address(self):
        return self._cluster.leader().address

    def put(self, address, number):
        return call(address, "POST", f"/db/k{number}", VALUE)

    def close(self):
        self._cluster.close()


class Etcd(OverHttp):
    """Three nodes of etcd on loopback."""

    name = "etcd"
    _LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"
    _VALUE = "eHh4" * 33 + "eA=="  # VALUE in base64
    scripts = {WRITES: ETCD % ("put", f',"value":"{_VALUE}"'), LINEARIZABLE: ETCD % ("range", ""),
               STALE: ETCD % ("range", ',"serializable":true')}

    @staticmethod
    def version():
        if not shutil.which("etcd"):
            return None
        return re.search(r"Version: (\S+)", subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True).stdout)[1]

    def __init__(self, directory):
        ports = [(free_port(), free_port()) for _ in range(3)]
        members = ",".join(f"e{n}=http://127.0.0.1:{peer}" for n, (_, peer) in enumerate(ports))
        self._processes = [subprocess.Popen(
            ["etcd", "--name", f"e{n}", "--data-dir", f"{directory}/e{n}", "--listen-client-urls", f"http://127.0.0.1:{client}",
             "--advertise-client-urls", f"http://127.0.0.1:{client}", "--listen-peer-urls", f"http://127.0.0.1:{peer}",
             "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster", members],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for n, (client, peer) in enumerate(ports)]
        self._addresses = [f"127.0.0.1:{client}" for client, _ in ports]

    def address(self):
        """That of the leader; waits for one."""
        def find():
            for address in self._addresses:
                answer = call(address, "POST", "/v3/maintenance/status", "{}")
                if answer.status == 200:
                    member, leader = (re.search(rb'"%s":"(\d+)"' % name, answer.body) for name in (b"member_id", b"leader"))
                    if member and leader and member[1] == leader[1]:
                        return address
            return None
        return wait_until(find, "etcd has a leader")

    def put(self, address, number):
        first, second = divmod(number - 1, 32)
        key = f"{self._LETTERS[first]}{self._LETTERS[second]}Aa"
        return call(address, "POST", "/v3/kv/put", json.dumps({"key": key, "value": self._VALUE}), {"Content-Type": "application/json"})

    def close(self):
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


class Waitress(OverHttp):
    """One process that only answers, with the settings that waitress comes with."""

    name, scripts = "waitress", {STALE: 'request = function() return wrk.format("GET", "/") end\n'}
    _PROGRAM = """
import sys, waitress
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", "100")])
    return [b"x" * 100]
waitress.serve(app, listen=sys.argv[1], _quiet=True)
"""

    @staticmethod
    def version():
        return importlib.metadata.version("waitress")

    def __init__(self, _):
        self._address = f"127.0.0.1:{free_port()}"
        self._process = subprocess.Popen([sys.executable, "-c", self._PROGRAM, self._address], stderr=subprocess.DEVNULL)

    def address(self):
        wait_until(lambda: call(self._address, "GET", "/").status == 200, "waitress answers")
        return self._address

    def put(self, address, _):
        return call(address, "GET", "/")  # there is nothing to write

    def close(self):
        self._process.terminate()
        self._process.wait()


class PySyncObj:
    """Three processes of ``pysyncobj_node.py``."""

    name, _batches = "PySyncObj", "batches"

    @staticmethod
    def version():
        return importlib.metadata.version("pysyncobj") if importlib.util.find_spec("pysyncobj") else None

    @staticmethod
    def can(what):
        return what == WRITES

    def __init__(self, directory):
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        self._nodes = [subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("pysyncobj_node.py")), self._batches, f"{directory}/journal{number}",
             address, *(other for other in addresses if other != address)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for number, address in enumerate(addresses)]

    def measure(self, what, clients, seconds):
        leader = wait_until(lambda: next((node for node in self._nodes if self._ask(node, "leader")), None), "PySyncObj has a leader")
        seen = self._ask(leader, f"load {clients} {seconds}")
        ordered = sorted(latency * 1000 for latency in seen["latencies"])
        assert ordered, f"PySyncObj has answered nothing: {seen['error']}"
        return Figures(len(ordered) / seen["seconds"], *(percentile(ordered, share) for share in (50, 99, 100)), seen["failed"])

    @staticmethod
    def _ask(node, question):
        node.stdin.write(f"{question}\n")
        node.stdin.flush()
        return json.loads(node.stdout.readline())

    def close(self):
        for node in self._nodes:
            node.stdin.close()
        for node in self._nodes:
            node.wait()


class PySyncObjSingly(PySyncObj):
    name, _batches = "PySyncObj, no batches", "singly"


SYSTEMS = (Raftd, Etcd, PySyncObj, PySyncObjSingly, Waitress)


# The rounds


def measure(what, rounds, seconds, directory, systems):
    """[(what, clients, name of the system, Figures)] of each round, as it was seen; says so on stderr meanwhile."""
    seen = []
    for round_number in range(rounds):
        for kind in what:
            for clients in CLIENTS[kind]:
                able = [system for system in systems if system.can(kind)]
                for system in able if round_number % 2 == 0 else reversed(able):
                    seen.append((kind, clients, system.name, _once(system, kind, clients, seconds, directory)))
                    print(f"round {round_number + 1}: {kind}, {clients} clients, {_line(*seen[-1][2:])}", file=sys.stderr, flush=True)
    return seen


def _once(system, kind, clients, seconds, directory):
    with tempfile.TemporaryDirectory(dir=directory) as place:
        running = system(Path(place))
        try:
            return running.measure(kind, clients, seconds)
        finally:
            running.close()


def medians(seen):
    """{(what, clients): {name of the system: Figures}}: of each figure the median of the rounds, but all failures."""
    points = {}
    for what, clients, name, figures in seen:
        points.setdefault((what, clients), {}).setdefault(name, []).append(figures)
    return {point: {name: Figures(*map(median, list(zip(*rounds, strict=True))[:4]), sum(figures.failed for figures in rounds))
                    for name, rounds in systems.items()} for point, systems in points.items()}


def table(points):
    """*points* as ``medians`` gives them, for a person."""
    lines = []
    for (what, clients), systems in points.items():
        lines.append(f"\n{what}, {clients} client{'s' if clients > 1 else ''}")
        for name, figures in systems.items():
            ratio = f"   raftd is {systems[Raftd.name].rate / figures.rate:.2f} times as fast" if name != Raftd.name else ""
            lines.append(f"  {_line(name, figures)}{ratio}")
    return "\n".join(lines).removeprefix("\n")


def _line(name, figures):
    failed = f"  FAILED {figures.failed}" if figures.failed else ""
    return f"{name:22}{figures.rate:9,.0f}/s   median {figures.half:7.2f} ms   99 % {figures.most:7.2f} ms{failed}"


def as_json(seen, versions, load_average):
    """The names are: versions, load_average_before, rounds (as seen), medians with ratio (of rates: raftd / the system)."""
    def record(what, clients, name, figures, **more):
        return {"what": what, "clients": clients, "system": name, "per_second": figures.rate, "p50_ms": figures.half,
                "p99_ms": figures.most, "max_ms": figures.slowest, "failed": figures.failed, **more}
    points = medians(seen)
    return {"versions": versions, "load_average_before": load_average, "rounds": [record(*one) for one in seen],
            "medians": [record(what, clients, name, figures, ratio=round(systems[Raftd.name].rate / figures.rate, 3))
                        for (what, clients), systems in points.items() for name, figures in systems.items()]}


def main():
    short = {"writes": WRITES, "linearizable": LINEARIZABLE, "stale": STALE}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[[], *short], metavar="WHAT",
                        help=f"of {', '.join(short)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--seconds", type=int, default=6, help="of load for one figure (default 6)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("compare.py: needs wrk (Debian: apt install wrk)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    versions = {system.name: system.version() for system in SYSTEMS}
    load_average = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load average {load_average:.1f} before; {options.rounds} rounds of {options.seconds} s; "
          + ", ".join(f"{name} {version or 'is not installed'}" for name, version in versions.items()), file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="raftd-compare-") as directory:
        seen = measure([short[word] for word in options.what or short], options.rounds, options.seconds, directory,
                       [system for system in SYSTEMS if versions[system.name]])
    print(json.dumps(as_json(seen, versions, load_average), indent=2) if options.json else table(medians(seen)))


if __name__ == "__main__":
    sys.exit(main())
