"""The arithmetic of ``compare.py``, which says how fast raftd is beside others."""

import json
from statistics import median

import compare
from compare import LINEARIZABLE, WRITES, Figures


def rounds(name, *rates, what=WRITES, failed=0):
    return [(what, 64, name, Figures(rate, 1000 / rate, 5000 / rate, 9000 / rate, failed)) for rate in rates]


SEEN = rounds("raftd", 500, 4000, 1000) + rounds("etcd", 2000, 8000, 1000, failed=1) + rounds("raftd", 30, what=LINEARIZABLE)


def test_medians_are_of_each_figure_but_failures_are_added():
    points = compare.medians(SEEN)
    assert points[WRITES, 64] == {"raftd": Figures(1000, 1.0, 5.0, 9.0, 0), "etcd": Figures(2000, 0.5, 2.5, 4.5, 3)}
    assert list(points[LINEARIZABLE, 64]) == ["raftd"]


def test_the_ratio_is_of_medians_and_stands_beside_the_other_system():
    lines = compare.table(compare.medians(SEEN)).splitlines()
    assert lines[0] == "writes, 64 clients" and "times" not in lines[1]
    assert lines[2].endswith("FAILED 3   raftd is 0.50 times as fast")
    record = json.loads(json.dumps(compare.as_json(SEEN, {"raftd": "1"}, 0.5)))
    assert [(one["system"], one["ratio"]) for one in record["medians"]] == [("raftd", 1), ("etcd", 0.5), ("raftd", 1)]
    assert median(one["per_second"] for one in record["rounds"][:3]) == 1000


def test_every_other_round_has_the_systems_in_reverse_order(monkeypatch, tmp_path):
    order = []
    monkeypatch.setattr(compare, "_once", lambda system, kind, clients, *_: order.append(system.name) or Figures(1, 1, 1, 1, 0))
    monkeypatch.setattr(compare, "CLIENTS", {WRITES: (1,), LINEARIZABLE: (1,)})
    compare.measure([WRITES, LINEARIZABLE], 2, 1, tmp_path, [compare.Raftd, compare.Etcd, compare.PySyncObj])
    assert order == ["raftd", "etcd", "PySyncObj", "raftd", "etcd", "PySyncObj", "etcd", "raftd", "etcd", "raftd"]
