"""Real clusters under fire: every kind of fault, and whatever clients saw must be right. Needs root. ``bin/chaos`` goes on for longer."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.faults import FAULTS
from chaos.run import CAREFUL, EVENTS, OUTCOMES, Options, longest_gap, run, summary
from cluster import needs_cgroups, needs_network, needs_strace

BIN_CHAOS = Path(__file__).resolve().parent.parent / "bin/chaos"
NOT_IN_EVERY_RUN = {"states that could not be written", "stalled disks", "slow disks", "removals"}  # depends on who is struck, and when

pytestmark = [pytest.mark.cluster, pytest.mark.root, pytest.mark.slow, needs_network, needs_strace]


def test_gaps():
    times = [1.0, 2.0, 5.0, 5.5]
    assert longest_gap(times, 2.5, 3.0) == (2.0, 5.0)
    assert longest_gap(times, 1.5, 9.0) == (2.0, 5.0)
    assert longest_gap(times, 5.2, 5.3) == (5.0, 5.5)
    assert longest_gap([], 5.2, 5.3) == (5.2, 5.3)


@pytest.mark.timeout(600)
@needs_cgroups
def test_a_minute_under_fire():
    report = run(Options(minutes=1, servers=3, seed=11, every_fault=True))
    print(summary(report))
    assert report.violations == [], report.directory
    assert [name for name in FAULTS if not report.faults[name]] == [], "a fault did not happen"
    assert [name for name in EVENTS if not report.events[name] and name not in NOT_IN_EVERY_RUN] == []
    assert [name for name in CAREFUL if not report.careful[name]] == []
    assert all(sum(count for (_, name), count in report.operations.items() if name == outcome) > 50 for outcome in OUTCOMES)


@pytest.mark.timeout(300)
@needs_cgroups
def test_five_servers_under_fire():
    report = run(Options(minutes=0.4, servers=5, seed=12))
    print(summary(report))
    assert report.violations == [], report.directory
    assert sum(report.faults.values()) >= 5
    assert all(sum(count for (_, name), count in report.operations.items() if name == outcome) > 20 for outcome in OUTCOMES)


def test_the_command():
    """What it shows when all is well, and its status."""
    words = ["--minutes", "0.1", "--seed", "7", "--faults", "kill leader,one link", "--at-once", "1"]
    done = subprocess.run([sys.executable, BIN_CHAOS, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 violations" in done.stdout and "kill leader" in done.stdout and "pause all" not in done.stdout


LIAR = """
import random, sys
from raftd.kv import KeyValueStore
import chaos.server

honest, seen = KeyValueStore.read, {}

def read(self, query):
    found = honest(self, query)
    if not hasattr(query, "key") or not hasattr(found, "value"):
        return found
    old = seen.setdefault(query.key, found)
    return old._replace(applied_index=found.applied_index) if random.random() < 0.1 else found

KeyValueStore.read = read
sys.exit(chaos.server.main(sys.argv[1:]))
"""


def test_a_violation_is_found_told_and_kept(tmp_path, monkeypatch, capsys):
    """Servers that answer old values, now and then: the run ends with status 1, and its history and logs are where it says."""
    (tmp_path / "liar.py").write_text(LIAR)
    monkeypatch.setattr("chaos.world.SERVER", [sys.executable, str(tmp_path / "liar.py")])
    monkeypatch.setenv("PYTHONPATH", f"{BIN_CHAOS.parent.parent}:{BIN_CHAOS.parent.parent / 'tests'}")
    main, kept = runpy.run_path(str(BIN_CHAOS))["main"], tmp_path / "kept"
    assert main(["--minutes", "1", "--faults", "kill leader", "--epoch", "5", "--keep", str(kept)]) == 1
    said = capsys.readouterr()
    assert "VIOLATION: " in said.err and f"history and logs: {kept}" in said.out
    assert {"history.jsonl", "faults.txt", "violations.txt", "n1.log"} <= {file.name for file in kept.iterdir()}


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--servers", "4"], ["--faults", "rain"], ["--at-once", "0"]], ids=" ".join)
def test_a_wrong_command_line_is_refused(words):
    done = subprocess.run([sys.executable, BIN_CHAOS, *words], capture_output=True, text=True)
    assert done.returncode == 2 and "error: " in done.stderr
