"""Every state of the disk that a power cut may leave, at every point of what the server asks of it; see ``crashes``.

What is looked for is told by the bugs that are planted here: each must be found.
"""

import os
import random
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed

import pytest

from cluster import needs_strace
from crashes import enumeration
from crashes.calls import UnknownCall, events
from crashes.filesystem import File, FileSystem, Truncate, Write
from crashes.knowledge import EVENTS, PromiseBroken
from crashes.plants import PLANTS

SEEDS, STATES = 2, 3
MOST_SEEDS_FOR_A_PLANT = 10  # chance says in which one: a run of threads is never quite the same
FIRST_SEED = {"promised_log_not_taken_back": 5}  # with which it is soon found


@needs_strace
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whatever_a_power_cut_leaves_holds_what_was_promised(tmp_path):
    """First starts, appends, conflicts, votes, compaction, checkpoints, copies, installs, restarts: a thousand cut points and more.

    Every entry, term and vote that was promised is there, nothing that was never written; the index of the state and its data agree; the
    log and the state fit together; nothing is refused (faults 43 to 46). ``bin/crashes`` goes on for as long as one wants.
    """
    counts = Counter()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for future in as_completed([pool.submit(enumeration.run, seed, STATES, None, tmp_path / f"state-{seed}") for seed in range(SEEDS)]):
            counts += future.result()
    assert counts["cuts"] >= 1000 and counts["distinct states"] >= 2000, counts
    assert [event for event in EVENTS if not counts[event]] == [], counts
    assert counts["lives after a power cut"], counts


@needs_strace
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(plant, tmp_path):
    for seed in range(first := FIRST_SEED.get(plant, 0), first + MOST_SEEDS_FOR_A_PLANT):
        try:
            enumeration.run(seed, STATES, plant, tmp_path / "state")
        except PromiseBroken:
            return
    pytest.fail(f"{plant} was not found")


# The model of a disk


def file(durable, *pending):
    made = File(durable)
    for change in pending:
        if isinstance(change, Truncate):
            made.truncate(change.size)
        else:
            made.write(change.offset, change.data, change.token)
            made.written(change.token)
    return made


def left_by(made, how, times=300):
    rng = random.Random(1)
    return {made.after_cut(how, rng) for _ in range(times)}


def test_of_what_is_not_synced_anything_may_be_left():
    made = file(b"old...", Write(0, b"NEW"), Write(6, b"and"), Write(9, b"more"))
    assert made.now == b"NEW...andmore"
    assert left_by(made, "dropped") == {b"old..."}
    assert left_by(made, "kept") == {b"NEW...andmore"}
    assert left_by(made, "size") == {b"old..." + bytes(7)}
    assert {b"old...", b"NEW...", b"old...and", b"NEW...\0\0\0more", b"NEW...andmore"} <= left_by(made, "some")


def test_a_write_may_be_torn_anywhere_beyond_what_was_synced():
    appended = left_by(file(b"ab", Write(2, b"cdef")), "torn")
    assert {b"abc", b"abcd", b"abcde", b"ab\0def", b"ab\0\0ef", b"ab\0\0\0f"} == appended


def test_a_sector_that_was_synced_is_not_torn():
    old, new = bytes(1536), b"x" * 1400
    for left in left_by(file(old, Write(100, new)), "torn") | left_by(file(old, Write(100, new)), "sectors"):
        parts = left[100:512], left[512:1024], left[1024:1500]
        assert all(len(set(part)) == 1 for part in parts) and len(left) == 1536


def test_what_is_synced_stays():
    made = file(b"", Write(0, b"first", 1))
    made.write(5, b"second", 2)  # under way while the sync begins: not covered
    made.sync(3)
    made.written(2)
    made.synced(3)
    assert left_by(made, "dropped") == {b"first"}
    made.sync(4)
    made.truncate(3)
    assert made.durable == b"first", "a sync holds once it has ended"
    made.synced(4)
    assert left_by(made, "dropped") == {b"firstsecond"} and made.now == b"fir"


def replay(tmp_path, lines, contents=()):
    """The FileSystem after these lines of a recording; ROOT in them is its root. Returns also what was told."""
    def hexadecimal(text):
        return "".join(f"\\x{byte:02x}" for byte in text.encode())
    root = str(tmp_path / "root")
    parts = [line.replace("ROOT", root) for line in lines]
    for quoted in ('"', "<"):
        parts = [_coded(line, quoted, hexadecimal) for line in parts]
    (tmp_path / "trace").write_text("\n".join(parts) + "\n")
    disk, told = FileSystem(root, contents), []
    for event in events(tmp_path / "trace", root):
        if event.kind == "told":
            told.append(event.data)
        else:
            disk.apply(event)
    return disk, told


def _coded(line, quoted, code):
    """With the texts between quotes, or the paths between < and >, as strace writes them."""
    if quoted == '"':
        pieces = line.split('"')
        return '"'.join(code(piece) if number % 2 else piece for number, piece in enumerate(pieces))
    before, *rest = line.split("<")
    return before + "".join(f"<{code(piece.split('>')[0])}>{piece.split('>', 1)[1]}" if ">" in piece and "/" in piece else f"<{piece}"
                            for piece in rest)


def names_left(disk, names):
    return set(disk.cut(names, "kept", random.Random(1)))


def test_names_are_as_synced_or_as_some_of_what_came_later_says(tmp_path):
    lines = ['7 mkdir("ROOT/d", 0777) = 0',
             '7 fsync(4<ROOT>) = 0',
             '7 openat(AT_FDCWD, "ROOT/d/a", O_RDWR|O_CREAT, 0644) = 3<ROOT/d/a>',
             '7 pwrite64(3<ROOT/d/a>, "data", 4, 0) = 4',
             '7 fdatasync(3<ROOT/d/a>) = 0',
             '7 rename("ROOT/d/a", "ROOT/d/b") = 0',
             '7 openat(AT_FDCWD, "ROOT/d/c", O_RDWR|O_CREAT, 0644) = 5<ROOT/d/c>']
    disk, _ = replay(tmp_path, lines)
    assert names_left(disk, "dropped") == {"d"}, "a sync of the file is none of its name"
    assert names_left(disk, "kept") == {"d", "d/b", "d/c"}
    rng = random.Random(2)
    first = [{"d"}, {"d", "d/a"}, {"d", "d/b"}, {"d", "d/b", "d/c"}]
    assert {frozenset(disk.cut("first", "kept", rng)) for _ in range(50)} == set(map(frozenset, first))
    assert frozenset({"d", "d/a", "d/c"}) in {frozenset(disk.cut("some", "kept", rng)) for _ in range(50)}
    assert {frozenset(disk.cut(way, "kept", rng)) for way in disk.ways_of_names()} >= {*map(frozenset, first), frozenset({"d", "d/c"})}
    disk, _ = replay(tmp_path, [*lines, '7 fsync(6<ROOT/d>) = 0', '7 unlink("ROOT/d/b") = 0'])
    assert names_left(disk, "dropped") == {"d", "d/b", "d/c"} and names_left(disk, "kept") == {"d", "d/c"}
    assert disk.cut("dropped", "dropped", rng)["d/b"] == b"data"


def test_calls_that_overlap_are_put_together(tmp_path):
    disk, told = replay(tmp_path, ['7 pwrite64(3<ROOT/a>, "new", 3, 0 <unfinished ...>',
                                   '8 fdatasync(3<ROOT/a> <unfinished ...>',
                                   '8 <... fdatasync resumed>) = 0',
                                   '8 write(1<pipe:/1>, "said", 4) = 4',
                                   '7 <... pwrite64 resumed>) = 3',
                                   '7 +++ exited with 0 +++'], {"a": b"old"})
    assert told == [b"said"]
    assert disk.cut("kept", "kept", random.Random(1)) == {"a": b"new"}
    assert disk.cut("kept", "dropped", random.Random(1)) == {"a": b"old"}


@pytest.mark.parametrize("line", ['7 write(3<ROOT/a>, "x", 1) = 1', '7 link("ROOT/a", "ROOT/b") = 0',
                                  '7 pwrite64(3<ROOT/a>, "xy", 2, 0) = 1',
                                  '7 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3<ROOT/a>, 0) = 0x7f00'])
def test_what_the_model_does_not_know_is_no_silent_gap(tmp_path, line):
    with pytest.raises(UnknownCall):
        replay(tmp_path, [line], {"a": b"old"})
    replay(tmp_path, [line.replace("ROOT", "/elsewhere")])


def test_calls_that_failed_have_done_nothing(tmp_path):
    disk, _ = replay(tmp_path, ['7 unlink("ROOT/a") = -1 ENOENT (No such file or directory)',
                                '7 fsync(3<ROOT/a>) = -1 EIO (Input/output error)',
                                '7 pwrite64(3<ROOT/b>(deleted), "x", 1, 0) = 1'], {"a": b"old"})
    assert disk.contents() == {"a": b"old"}
