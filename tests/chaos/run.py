"""One run: a cluster, clients, faults; then peace, and a verdict. A long run does so again and again, so that its memory stays bounded."""

import json
import logging
import re
import shutil
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chaos.checker import OK, UNKNOWN, remains, violations
from chaos.careful import CAREFUL_PREFIX, Careful
from chaos.clients import Clients, unknown
from chaos.faults import FAULTS, MOST_AT_ONCE, Nemesis
from chaos.world import World
from cluster import ELECTION_SECONDS, FAULTS_OF_OURS, wait_until

log = logging.getLogger(__name__)

EPOCH_SECONDS = 45.0  # of faults, before there is peace and a verdict
WRITES_AGAIN_SECONDS = 10 * ELECTION_SECONDS  # from the moment when nothing is broken any more and all processes listen
PEACE_SECONDS = 90.0  # for what must become true, but has no promise of a time: members restored, all logs equal
TERMS_PER_FAULT = 2  # and thrice that for a transfer, which is up to three; more would be elections without end
LONGEST_SHOWN = 6


@dataclass
class Options:
    minutes: float = 1.0
    servers: int = 3
    seed: int = 0
    clients: int = 12
    faults: list = field(default_factory=lambda: list(FAULTS))
    at_once: int = MOST_AT_ONCE  # in the first epoch; then one less in each, down to one, and again
    epoch_seconds: float = EPOCH_SECONDS
    every_fault: bool = False  # the first epoch goes on, at most so long again, until each fault has happened
    keep: str = ""  # where to put what a failed run leaves; "" is a new directory


@dataclass
class Report:
    """What a run was. It was good if there are no ``violations``; ``directory`` holds its history and logs if it was not."""

    options: Options
    violations: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    operations: Counter = field(default_factory=Counter)
    careful: Counter = field(default_factory=Counter)  # requests, attempts, replayed, expired, streams, events
    faults: Counter = field(default_factory=Counter)
    fault_seconds: Counter = field(default_factory=Counter)
    gaps: dict = field(default_factory=dict)  # fault -> the longest time without an acknowledged write that it had a part in
    longest_gap: tuple = (0.0, "")  # and what happened meanwhile
    recoveries: list = field(default_factory=list)  # seconds from peace to the first write
    events: Counter = field(default_factory=Counter)  # elections and the like, from the logs
    most_unknown: int = 0
    epochs: int = 0
    seconds: float = 0.0
    directory: Path | None = None


def run(options, say=print):
    """A Report. *say* is told how it goes, a line at a time."""
    directory = Path(tempfile.mkdtemp(prefix="raftd-chaos-"))
    report = Report(options)
    began = time.monotonic()
    try:
        with World(directory, options.servers) as world:
            try:
                _Run(world, options, report, say).run()
            finally:
                report.events = count_events(world)
                report.seconds = time.monotonic() - began
    except Exception as error:  # of the run, not of the servers; but a run that fails has shown nothing
        log.exception("the run has failed")
        report.violations.append(f"the run itself has failed: {error!r}")
    finally:
        if report.violations:
            report.directory = _keep(directory, options)
        shutil.rmtree(directory, ignore_errors=True)
    return report


def _keep(directory, options):
    target = Path(options.keep or tempfile.mkdtemp(prefix=f"raftd-chaos-failed-{options.seed}-"))
    target.mkdir(parents=True, exist_ok=True)
    for file in [*directory.glob("*.log"), *directory.glob("*.jsonl"), *directory.glob("*.txt")]:
        shutil.copy(file, target)
    return target


class _Run:
    def __init__(self, world, options, report, say):
        self._world, self._options, self._report, self._say = world, options, report, say
        self._clients = Clients(world.nodes, options.clients, options.seed)
        self._careful = Careful(world.nodes, options.seed)
        self._nemesis = Nemesis(world, options.seed, options.faults)
        self._may_remain = {}  # key -> values that it may have in the end, of the epochs that are over
        self._refused, self._counted = set(), 0
        self._first_term = self._term()

    def run(self):
        ends = time.monotonic() + 60 * self._options.minutes
        while not self._report.violations and time.monotonic() < ends:
            self._epoch(min(ends, time.monotonic() + self._options.epoch_seconds))
        self._finish()

    def _epoch(self, ends):
        self._report.epochs += 1
        self._clients.start()
        self._careful.start()
        self._nemesis.start(self._options.at_once - (self._report.epochs - 1) % self._options.at_once)
        last = ends + (ends - time.monotonic() if self._options.every_fault and self._report.epochs == 1 else 0)
        try:
            while (time.monotonic() < ends or time.monotonic() < last and self._nemesis.lacks) and not self._world.problems:
                time.sleep(0.5)
                self._world.check_processes()
        finally:
            self._nemesis.stop()
        self._say(f"epoch {self._report.epochs}: {len(self._nemesis.happened)} faults, {len(self._clients.history)} operations; peace")
        try:
            self._make_peace()
        except AssertionError as error:
            self._violated(f"no peace: {error}")
        self._clients.stop()
        self._careful.stop()
        self._last_reads()
        self._judge()

    def _make_peace(self):
        world = self._world
        world.network.heal()
        down = [server for server in world.servers if not server.running]
        world.check_processes()
        world.bring_up(down)
        self._note_recovery()
        world.restore_members(PEACE_SECONDS)

    def _note_recovery(self):
        peace, acknowledged = time.monotonic(), self._clients.acknowledged
        try:
            wait_until(lambda: acknowledged and acknowledged[-1] > peace, "a write is acknowledged again", WRITES_AGAIN_SECONDS)
        except AssertionError as error:
            self._violated(f"no write is acknowledged {WRITES_AGAIN_SECONDS:g} s after all was healed: {error}")
        self._report.recoveries.append(time.monotonic() - peace)

    def _last_reads(self):
        """Each key at each server, before the verdict: so an acknowledged write that is gone shows as a read of what was before."""
        world = self._world
        try:
            world.cluster.wait_converged(PEACE_SECONDS)
            finals = wait_until(self._what_all_have, "all servers have the same data", PEACE_SECONDS)
        except AssertionError as error:
            self._violated(str(error))
            return
        for key, operations in _by_key(self._clients.history).items():
            self._may_remain[key] = remains(operations, finals[key])

    def _what_all_have(self):
        """{key: value} if a linearizable and a stale read at each server agree; None if a late write has come between them, or worse."""
        found = defaultdict(set)
        for stale in (False, True):
            for operation in self._clients.read_all(self._world.nodes(), stale):
                found[operation.key].add(operation.value if operation.outcome == OK else operation)
        return {key: value for key, (value,) in found.items()} if all(len(values) == 1 for values in found.values()) else None

    def _judge(self):
        report, clients, world = self._report, self._clients, self._world
        history = clients.history
        for name, operation_counts in Counter(clients.counts).items():
            report.operations[name] += operation_counts
        clients.counts.clear()
        report.most_unknown = max(report.most_unknown, unknown(history))
        began = time.monotonic()
        for violation in violations(history):
            self._violated(str(violation))
        self._judge_careful()
        for text in clients.strange:
            self._violated(f"an answer that no fault explains: {text}")
        for text in world.problems:
            self._violated(text)
        self._refused |= {operation.value for operation in history if operation.kind == "put" and operation.outcome == "fail"}
        self._check_logs()
        self._count_faults()
        again = f"written again {report.recoveries[-1]:.2f} s after peace" if report.recoveries else "not written again"
        self._say(f"epoch {report.epochs}: {len(history)} operations judged in {time.monotonic() - began:.1f} s, "
                  f"{len(report.violations)} violations; {again}")
        if report.violations:
            self._save(history)

    def _judge_careful(self):
        try:
            self._careful.judge()
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._violated(f"what the careful have done cannot be read: {error!r}")
        for text in self._careful.violations:
            self._violated(text)
        self._report.careful += self._careful.counts
        self._careful.counts.clear()

    def _save(self, history):
        with open(self._world.directory / "history.jsonl", "w") as file:
            for operation in sorted(history, key=lambda operation: operation.invoked):
                value = operation.value[:40].decode(errors="replace") if operation.value is not None else None
                file.write(json.dumps({**asdict(operation), "value": value}) + "\n")
        lines = [f"{fault.began:.4f}..{fault.ended:.4f} {fault.name}" for fault in self._nemesis.happened]
        (self._world.directory / "faults.txt").write_text("\n".join(lines) + "\n")
        (self._world.directory / "violations.txt").write_text("\n\n".join(self._report.violations) + "\n")

    def _check_logs(self):
        """No fault of raftd's own, and no elections without end."""
        for server in self._world.servers + self._world.ended:
            for line in server.log().splitlines():
                if any(text in line for text in FAULTS_OF_OURS):
                    self._violated(f"{server} has failed: {line}")
        terms, faults = self._term() - self._first_term, [3 if "transfer" in fault.name else 1 for fault in self._nemesis.happened]
        if terms > TERMS_PER_FAULT * (sum(faults) + 10):
            self._violated(f"{terms} terms for {len(faults)} faults")

    def _term(self):
        return max((status["term"] for server in self._world.servers if server.running
                    and (status := self._world.status_of(server, 5))), default=0)

    def _count_faults(self):
        report, times = self._report, self._clients.acknowledged
        times.sort()
        done = self._nemesis.happened
        report.faults = Counter(fault.name for fault in done)
        report.fault_seconds = Counter()
        for fault in done:
            report.fault_seconds[fault.name] += fault.ended - fault.began
        for fault in done[self._counted:]:
            began, ended = longest_gap(times, fault.began, fault.ended)
            report.gaps[fault.name] = max(report.gaps.get(fault.name, 0.0), ended - began)
            if ended - began > report.longest_gap[0]:
                during = [f"{other.name} ({other.began - began:+.1f}..{other.ended - began:+.1f})" for other in done
                          if other.began < ended and other.ended > began]
                report.longest_gap = (ended - began, ", ".join(during))
        self._counted = len(done)

    def _violated(self, text):
        if text not in self._report.violations:
            self._report.violations.append(text)

    def _finish(self):
        """The data in the files of each, when all have stopped in order."""
        world, report = self._world, self._report
        report.notes = world.notes
        if report.violations:
            return
        world.cluster.wait_converged(PEACE_SECONDS)
        for server in world.servers:
            world.terminate(server)
        data = {server.name: server.data() for server in world.servers}
        (first, expected), *others = data.items()
        for name, found in others:
            if found != expected:
                keys = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
                self._violated(f"{name} and {first} hold different data: {keys[:LONGEST_SHOWN]}")
        for key, values in self._may_remain.items():
            if expected.get(key) not in values:
                self._violated(f"in the end {key} has {_short(expected.get(key))}, which no history allows")
        for key in expected.keys() - self._may_remain.keys():
            if not key.startswith(CAREFUL_PREFIX):
                self._violated(f"nobody wrote the key {key}")
        if present := self._refused & set(expected.values()):
            self._violated(f"refused, and there in the end: {[_short(value) for value in present]}")
        for text in world.problems:
            self._violated(text)
        if report.violations:
            self._save([])


def longest_gap(times, began, ended):
    """(from, to) of the longest time without one of *times* (sorted) that has a part in the time from *began* to *ended*."""
    first, last = max(0, bisect_right(times, began) - 1), bisect_left(times, ended)
    around = times[first:last + 1]
    if not around:
        return began, ended
    return max(zip(around, around[1:], strict=False), key=lambda gap: gap[1] - gap[0], default=(began, began))


def _by_key(history):
    keys = defaultdict(list)
    for operation in history:
        keys[operation.key].append(operation)
    return keys


def _short(value):
    return value if value is None else value[:24]


EVENTS = {"elections won": r"became leader", "leaderships lost": r"no leader any more", "snapshots installed": r"installed a snapshot",
          "restarts": r"Recovered from log", "logs that could not be written": r"the log cannot be written",
          "states that could not be written": r"the state cannot be written", "stalled disks": r"disk has not answered",
          "slow disks": r"slow disk", "joins": r"Attempting to join", "removals": r"removed peer="}


def count_events(world):
    counts = Counter()
    for server in (world.servers if world.cluster else []) + world.ended:
        log = server.log()
        for name, pattern in EVENTS.items():
            counts[name] += len(re.findall(pattern, log))
    return counts


def summary(report):
    """The lines that tell a person what the run was."""
    options = report.options
    lines = [f"{options.servers} servers, seed {options.seed}, {report.seconds / 60:.1f} minutes, {report.epochs} epochs, "
             f"{options.clients} clients", "", f"{'operation':18}" + "".join(f"{name:>10}" for name in OUTCOMES)]
    for what in sorted({what for what, _ in report.operations}):
        lines.append(f"{what:18}" + "".join(f"{report.operations[what, outcome]:10,}" for outcome in OUTCOMES))
    total = [sum(count for (_, name), count in report.operations.items() if name == outcome) for outcome in OUTCOMES]
    lines += [f"{'all':18}" + "".join(f"{count:10,}" for count in total),
              f"at most {report.most_unknown} of unknown outcome on one key in one epoch",
              "sent until answered, and watched: " + ", ".join(f"{name} {report.careful[name]:,}" for name in CAREFUL), "",
              f"{'fault':26}{'times':>7}{'seconds':>9}  longest without an acknowledged write"]
    for name in options.faults:
        lines.append(f"{name:26}{report.faults[name]:7}{report.fault_seconds[name]:9.1f}  {report.gaps.get(name, 0):8.2f} s")
    lines += [f"{'all':26}{sum(report.faults.values()):7}{sum(report.fault_seconds.values()):9.1f}  {report.longest_gap[0]:8.2f} s"]
    lines += [f"during the longest, in seconds from its beginning: {report.longest_gap[1]}", ""]
    lines += [f"{report.events[name]:8,}  {name}" for name in EVENTS]
    lines.append(f"{len(report.notes):8,}  starts refused because the disk was full or failed, or the join found no leader")
    if report.recoveries:
        ordered = sorted(report.recoveries)
        lines.append(f"{ordered[len(ordered) // 2]:8.2f}  seconds from peace to the first write (median), {ordered[-1]:.2f} at most; "
                     f"allowed are {WRITES_AGAIN_SECONDS:g}")
    lines += ["", f"{len(report.violations)} violations"]
    if report.directory:
        lines.append(f"history and logs: {report.directory}")
    return "\n".join(lines)


CAREFUL = ("requests", "attempts", "replayed", "expired", "streams", "events")
OUTCOMES = (OK, "refused", "fail", UNKNOWN)
