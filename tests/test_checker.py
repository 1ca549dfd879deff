"""The checker of histories is checked: histories that are known to be good or bad, random ones, their mutations, and every order tried."""

import math
import random
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.checker import DELETE, FAIL, GET, OK, PUT, UNKNOWN, Operation, remains, search, violations

# "put a 0 1" is the value a, put from 0 to 1. Words after that: "ok" (or nothing), "fail", "unknown", "refused", "missing" (a delete of
# no key), "stale", "absent" (If-None-Match: *), match=7 (If-Match), index=8, etag=7, min=6, on=NODE, key=KEY. A get of "-" found nothing.


def operation(text):
    kind, *words = text.split()
    value = None if kind == DELETE else words.pop(0).encode()
    began, ended, *rest = words
    fields = {"outcome": UNKNOWN if "unknown" in rest else FAIL if "fail" in rest else OK, "refused": "refused" in rest,
              "found": "missing" not in rest, "stale": "stale" in rest, "if_absent": "absent" in rest}
    for word in rest:
        name, equals, number = word.partition("=")
        if equals:
            name = {"match": "if_match", "min": "min_index", "on": "node"}.get(name, name)
            fields[name] = number if name in ("node", "key") else int(number)
    ended = math.inf if "unknown" in rest else float(ended)
    return Operation(kind, fields.pop("key", "k"), None if value == b"-" else value, float(began), ended, **fields)


def history_of(text):
    return [operation(line) for line in text.split(", ")]


GOOD = {
    "nothing": "get - 0 1",
    "one after the other": "put a 0 1, get a 2 3, put b 4 5, get b 6 7",
    "a read of a write under way": "put a 0 9, get a 1 2, get a 3 4",
    "either order": "put a 0 5, put b 1 6, get b 7 8",
    "the other order": "put a 0 5, put b 1 6, get a 7 8",
    "reads in between": "put a 0 1, put b 2 9, get a 3 4, get b 5 6, get b 7 8",
    "many at once": "put a 0 9, put b 0 9, put c 0 9, get b 1 2, get a 3 4, get c 5 6, get c 10 11",
    "reads at once that disagree": "put a 0 1, put b 2 5, get b 3 9, get a 3 9, get b 10 11",
    "unknown, seen": "put a 0 1, put b 2 3 unknown, get a 3 4, get b 5 6",
    "unknown, never seen": "put a 0 1, put b 2 3 unknown, get a 3 9",
    "unknown, seen very late": "put a 0 1, put b 2 3 unknown, get a 4 5, put c 6 7, get c 8 9, get b 100 101",
    "unknown, overwritten unseen": "put a 0 1, put b 2 3 unknown, put c 4 5, get c 6 7",
    "an unknown delete takes effect": "put a 0 1, delete 2 3 unknown, get a 4 5, get - 6 7",
    "an unknown delete, late and between": "delete 0 1 unknown, put a 2 3, get a 4 5, get - 6 7, put b 8 9, get b 10 11",
    "two unknown deletes, two losses": "delete 0 1 unknown, delete 0 1 unknown, put a 2 3, get - 4 5, put b 6 7, get - 8 9",
    "failed and never seen": "put a 0 1, put b 2 3 fail, get a 4 5",
    "deleted": "put a 0 1, delete 2 3, get - 4 5, delete 6 7 missing, put b 8 9, delete 10 11",
    "a delete at the same time": "put a 0 1, delete 2 9, get a 3 4, get - 5 6",
    "a delete finds what an unknown put has left": "put a 0 1 unknown, delete 2 3, get - 4 5",
    "two deletes find two unknown puts": "put a 0 1 unknown, put b 0 1 unknown, delete 2 3, delete 4 5, get - 6 7",
    "a delete finds the unknown put of an absent key": "put a 0 1 unknown absent, delete 2 3",
    "unknown delete, then unknown put where absent, then found": "put a 0 1, delete 2 3 unknown, put b 2 3 unknown absent, get a 4 5,"
        " delete 6 7, put c 8 9 absent",
    "compare and set": "put a 0 1 index=1 etag=1, put b 2 3 match=1 index=2 etag=2, get b 4 5 etag=2 index=2",
    "compare and set, refused": "put a 0 1 index=1 etag=1, put b 2 3 index=2 etag=2, put c 4 5 match=1 refused etag=2 index=3",
    "compare and set at once": "put a 0 1 index=1 etag=1, put b 2 9 match=1 index=2 etag=2, put c 2 9 match=1 refused etag=2 index=3",
    "absent, and once more": "put a 0 1 absent index=1 etag=1, put b 2 3 absent refused etag=1 index=2",
    "refused because there is none": "put a 0 1 match=7 refused index=1",
    "an unknown compare and set, seen": "put a 0 1 index=1 etag=1, put b 2 3 match=1 unknown, get a 4 5 etag=1 index=1,"
        " get b 6 7 etag=2 index=2",
    "an unknown compare and set, never seen": "put a 0 1 index=1 etag=1, put b 2 3 match=1 unknown, put c 4 5 match=1 index=2 etag=2",
    "refused by the ETag of an unknown put that nobody read": "put a 0 1 index=1 etag=1, put b 2 3 unknown,"
        " put c 4 5 match=1 refused etag=2 index=3, put d 6 7 match=1 refused etag=2 index=4, put e 8 9 match=2 index=5 etag=5",
    "an unknown delete of a version": "put a 0 1 index=1 etag=1, delete 2 3 match=1 unknown, get - 4 5 index=2",
    "an unknown delete of a version that nobody has read": "put a 0 1 unknown, put b 2 3 index=2 etag=2, get b 4 5 index=2 etag=2,"
        " delete 4 5 match=3 unknown, get - 6 7 index=4",
    "the order that needs fewest unknown ones": "put a 0 10, put b 0 11 absent, put c 0 12, get c 13 14, get - 15 16, delete 0 1 unknown",
    "two keys": "put a 0 1 index=1 etag=1, put b 2 3 index=2 etag=2 key=j, get a 4 5 index=2 etag=1",
    "a stale read": "put a 0 1 index=1 etag=1, put b 2 3 index=2 etag=2, get a 4 5 stale index=1 etag=1 on=n1,"
        " get b 6 7 stale index=2 etag=2 on=n1",
    "a stale read of an unknown put": "put a 0 1 unknown, get a 2 3 stale index=1 etag=1 on=n1, get a 4 5 index=1 etag=1",
    "stale reads of two nodes": "put a 0 1 index=1 etag=1, put b 2 3 index=2 etag=2, get b 4 5 stale index=2 etag=2 on=n1,"
        " get a 6 7 stale index=1 etag=1 on=n2",
    "a delete between two unknown ones": "put a 0 1 unknown, put b 0 1 unknown, get a 2 3 index=1 etag=1, delete 4 5 index=2,"
        " get b 6 7 index=3 etag=3",
}
BAD = {
    "stale read": "put a 0 1, put b 2 3, get a 4 5",
    "lost update": "put a 0 1, get - 2 3",
    "lost update of two": "put a 0 1, put b 2 3, delete 4 5, get b 6 7",
    "back and forth": "put a 0 9, put b 0 9, get a 1 2, get b 3 4, get a 5 6",
    "from the future": "get a 0 1, put a 2 3",
    "never written": "get a 0 1",
    "aborted read": "put a 0 1, put b 2 3 fail, get b 4 5",
    "aborted read, stale": "put a 0 1 fail, get a 2 3 stale index=1 etag=1",
    "a retried write applied twice": "put a 0 1, put b 2 3, get b 4 5, get a 6 7",
    "an unknown write twice": "put a 0 1 unknown, get a 2 3, put b 4 5, get b 6 7, get a 8 9",
    "an unknown write seen and gone": "put a 0 1, put b 2 3 unknown, get b 3 4, get a 5 6",
    "an unknown write before it began": "put a 0 1, get b 2 3, put b 4 5 unknown",
    "delete, then the old value": "put a 0 1, delete 2 3, get a 4 5",
    "delete lost": "put a 0 1, delete 2 3, delete 4 5",
    "delete found nothing": "put a 0 1, delete 2 3 missing",
    "delete found what was not there": "put a 0 1 fail, delete 2 3",
    "three losses, two unknown deletes": "delete 0 1 unknown, delete 0 1 unknown, put a 2 3, get - 4 5, put b 6 7, get - 8 9, put c 10 11,"
        " get - 12 13",
    "gone before the unknown delete": "put a 0 1, get - 2 3, delete 4 5 unknown",
    "two deletes find one unknown put": "put a 0 1 unknown, delete 2 3, delete 4 5, get - 6 7",
    "compare and set, both": "put a 0 1 index=1 etag=1, put b 2 9 match=1 index=2 etag=2, put c 2 9 match=1 index=3 etag=3",
    "compare and set, both, without indexes": "put a 0 1 etag=1, put b 2 9 match=1, put c 2 9 match=1",
    "compare and set on an old version": "put a 0 1 index=1 etag=1, put b 2 3 index=2 etag=2, put c 4 5 match=1 index=3 etag=3",
    "refused although it held": "put a 0 1 index=1 etag=1, put b 2 3 match=1 refused etag=1 index=2",
    "refused by an old version": "put a 0 1 index=1 etag=1, put b 2 3 index=2 etag=2, put c 4 5 match=9 refused etag=1 index=3",
    "refused, there is none, but there is": "put a 0 1 index=1 etag=1, put b 2 3 match=9 refused index=2",
    "absent, both": "put a 0 9 absent, put b 0 9 absent, get b 10 11",
    "absent, refused by nothing": "put a 0 1 absent refused index=1",
    "refused by the ETag of nobody": "put a 0 1 index=1 etag=1, put c 4 5 match=7 refused etag=2 index=3",
    "one unknown put under two ETags": "put a 0 1 index=1 etag=1, put b 2 3 unknown, put c 4 5 match=1 refused etag=2 index=3,"
        " put d 6 7 match=1 refused etag=4 index=5",
    "an unknown compare and set after another": "put a 0 1 index=1 etag=1, put b 2 3 match=1 unknown, put c 4 5 match=1 index=2 etag=2,"
        " get b 6 7 index=3 etag=3",
    "an unknown put of an absent key that was never absent": "put a 0 1 index=1 etag=1, put b 2 3 absent unknown,"
        " put c 4 5 match=1 refused etag=2 index=3",
    "ETags that nobody has read go back": "put a 0 1 unknown, put b 0 1 unknown, put c 2 3 match=9 refused etag=5 index=6,"
        " put d 4 5 match=9 refused etag=4 index=7",
    "another key, written later, stands earlier": "put a 0 1 index=2 etag=2, put b 2 3 index=1 etag=1 key=j",
    "another key, read later, shows an earlier state": "put a 0 1 index=1 etag=1, put b 2 3 index=2 etag=2 key=j, get a 4 5 index=1 etag=1",
    "one index for two keys": "put a 0 9 index=1 etag=1, put b 0 9 index=1 etag=1 key=j",
    "ETags go back": "put a 0 1 index=5 etag=5, put b 2 3 index=4 etag=4",
    "one index for two": "put a 0 9 index=5 etag=5, delete 0 9 index=5",
    "one value, two ETags": "put a 0 1 index=1 etag=1, get a 2 3 index=1 etag=1, get a 4 5 index=2 etag=2",
    "one ETag, two values": "put a 0 9 unknown, put b 0 9 unknown, get a 10 11 index=1 etag=1, get b 12 13 index=2 etag=1",
    "a value without an ETag": "put a 0 1 index=1 etag=1, get a 2 3 index=1",
    "a read older than an answer": "put a 0 1 index=4 etag=4, put b 2 3 index=5 etag=5, get b 4 5 index=4 etag=5",
    "a read that reflects more than it shows": "put a 0 1 index=1 etag=1, put b 2 9 index=2 etag=2, get a 3 4 index=3 etag=1",
    "nothing there, but it was written": "put a 0 9 index=1 etag=1, get - 1 2 index=3",
    "a node goes back": "put a 0 1 index=1 etag=1, put b 2 3 index=2 etag=2, get b 4 5 stale index=2 etag=2 on=n1,"
        " get a 6 7 stale index=1 etag=1 on=n1",
    "older than min_index": "put a 0 1 index=1 etag=1, put b 2 3 index=2 etag=2, get a 4 5 stale index=1 etag=1 min=2 on=n1",
    "stale, and wrong where it stands": "put a 0 1 index=1 etag=1, put b 2 3 index=2 etag=2, get a 4 5 stale index=2 etag=1 on=n1",
    "stale, of nothing": "put a 0 1 index=1 etag=1, get - 4 5 stale index=1 on=n1",
    "a put seen stale and overwritten before it": "put a 0 1 unknown, put b 2 3, get b 4 5, get a 6 7 stale, get a 8 9, get b 10 11",
}
# What only the indexes tell: the values alone could be right.
BY_INDEXES_ALONE = {"another key, written later, stands earlier", "another key, read later, shows an earlier state",
                    "one index for two keys",
                    "ETags go back", "one index for two", "one value, two ETags", "one ETag, two values",
                    "a value without an ETag", "a read older than an answer",
                    "a read that reflects more than it shows", "nothing there, but it was written", "a node goes back",
                    "older than min_index", "stale, and wrong where it stands", "stale, of nothing", "aborted read, stale",
                    "refused although it held", "absent, refused by nothing"}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_accepts(text):
    assert violations(history_of(text)) == []


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_refuses(text):
    assert violations(history_of(text))


@pytest.mark.parametrize("text", [text for name, text in BAD.items() if name not in BY_INDEXES_ALONE],
                         ids=[name for name in BAD if name not in BY_INDEXES_ALONE])
def test_the_search_alone_refuses(text):
    """The two methods know nothing of each other, so what both should find each must find."""
    assert search(history_of(text))


def test_a_violation_tells_where_the_order_ends():
    found, = violations(history_of("put a 0 1, delete 2 9 missing, get a 4 5, get - 6 7"))
    assert "2 of 4 operations" in str(found) and "the key is a" in str(found)


def test_a_violation_tells_what_excludes_each_other():
    found, = violations(history_of("put a 0 1, put b 2 3, get a 4 5"))
    assert found.rule == "not linearizable" and "put b" in str(found) and "get a" in str(found)


def test_a_value_that_is_put_twice_is_a_mistake_of_the_test():
    with pytest.raises(ValueError):
        violations(history_of("put a 0 1, put a 2 3"))


def test_giving_up_is_not_accepting():
    assert "undecided" in search(history_of(BAD["three losses, two unknown deletes"]), most_steps=3)


def test_what_may_stand_there_later():
    history = history_of("put a 0 1, put b 0 1 unknown, put c 0 1 unknown, get b 2 3, put d 4 5 fail, get b 6 7")
    assert remains(history, b"b") == {b"b", b"c"}
    assert remains([*history, operation("delete 8 9 unknown")], b"b") == {b"b", b"c", None}


# A register that is one, with random overlap


class Register:
    """Executes operations one after another, each at a moment between its beginning and its end."""

    def __init__(self, seed, operations, clients=6, unknown=0.1, conditional=0.3, indexes=True, deletes=2):
        self._random, self.history, self._weights = random.Random(seed), [], (5, 7, deletes)
        self._value = self._etag = None
        self._index, self._indexes = 0, indexes
        moments = sorted(self._random.uniform(0, operations / clients) for _ in range(operations))
        for number, moment in enumerate(moments):
            self._execute(number, moment, unknown, conditional)
        self._random.shuffle(self.history)

    def _execute(self, number, moment, unknown, conditional):
        rng = self._random
        began, ended = moment - rng.expovariate(2), moment + rng.expovariate(2)
        kind = rng.choices((PUT, GET, DELETE), self._weights)[0]
        made = Operation(kind, "k", str(number).encode() if kind == PUT else None, began, ended)
        is_unknown = kind != GET and rng.random() < unknown
        if kind == GET:
            made = replace(made, value=self._value, etag=self._etag, index=self._index)
        elif is_unknown and rng.random() < 0.4:
            pass  # never done
        elif rng.random() < conditional and (kind == PUT or self._etag):
            made = self._conditional(made)
        else:
            made = self._write(made)
        if is_unknown:  # the client learns nothing of what it was told
            made = Operation(kind, "k", made.value, began - rng.expovariate(0.2) if rng.random() < 0.5 else began, math.inf, UNKNOWN,
                             if_match=made.if_match, if_absent=made.if_absent)
        elif not self._indexes:
            made = replace(made, index=None, etag=None)
        self.history.append(made)

    def _conditional(self, made):
        wants_absent = made.kind == PUT and self._random.random() < 0.3
        match = None if wants_absent else self._random.choice((self._etag, self._etag, 1)) or 1
        if (self._etag is None) if wants_absent else match == self._etag:
            return replace(self._write(made), if_match=match, if_absent=wants_absent)
        self._index += 1
        return replace(made, refused=True, if_match=match, if_absent=wants_absent, etag=self._etag, index=self._index)

    def _write(self, made):
        self._index += 1
        found = made.kind == PUT or self._value is not None
        self._value = made.value
        self._etag = self._index if made.kind == PUT else None
        return replace(made, index=self._index, etag=self._etag, found=found)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("indexes", [True, False], ids=["with indexes", "values alone"])
def test_what_a_register_does_is_accepted(seed, indexes):
    rng = random.Random(seed)
    history = Register(seed, rng.choice((10, 100, 400)), rng.choice((2, 6, 20)), rng.choice((0, 0.05, 0.3)),
                       rng.choice((0, 0.5)) if indexes else 0, indexes).history
    assert violations(history) == []


def older_value(history, rng):
    """*history* with one read that shows a value which was overwritten before the read began; None if there is no such."""
    reads = [read for read in history if read.kind == GET]
    rng.shuffle(reads)
    for read in reads:
        ended = [put for put in history if put.kind == PUT and put.is_effective and put.returned < read.invoked]
        old = [put for put in ended if any(put.returned < later.invoked for later in ended)]
        if old:
            chosen = rng.choice(old)
            return [operation for operation in history if operation is not read] + [
                replace(read, value=chosen.value, etag=chosen.etag)]
    return None


def lost_write(history, rng):
    """*history*, which has no deletes, in which all later reads of one value say that they found nothing."""
    puts = {put.value: put for put in history if put.kind == PUT and put.is_effective}
    seers = [read for read in history if read.kind == GET and read.value in puts and read.invoked > puts[read.value].returned]
    if not seers:
        return None
    lost = rng.choice(seers).value
    return [replace(read, value=None, etag=None) if read in seers and read.value == lost else read for read in history]


def twice_won(history, rng):
    """*history* in which a compare-and-set that was refused, and whose version had been overwritten, says that it won."""
    refused = [write for write in history if write.refused and write.if_match and write.etag and write.kind == PUT and any(
        other.is_effective and other.kind == PUT and other.index and other.returned < write.invoked and other.etag == write.etag
        for other in history)]
    return [replace(write, refused=False, etag=write.index) if write is refused[0] else write for write in history] if refused else None


@pytest.mark.parametrize("mutate", [older_value, lost_write, twice_won], ids=lambda mutate: mutate.__name__)
@pytest.mark.parametrize("indexes", [True, False], ids=["with indexes", "values alone"])
def test_what_no_register_does_is_refused(mutate, indexes):
    mutated = 0
    for seed in range(60):
        history = Register(seed, 60, 4, 0.1 if seed % 2 else 0, 0.4 if indexes else 0, indexes, deletes=mutate is not lost_write).history
        if (changed := mutate(history, random.Random(seed))) is not None:
            mutated += 1
            assert search(changed), changed
    assert mutated >= 15 or (mutate is twice_won and not indexes)


@pytest.mark.parametrize("indexes", [True, False], ids=["with indexes", "values alone"])
def test_thousands_of_operations_with_dozens_unknown(indexes):
    """Both answers in reasonable time: the good history, and the same with an error near its end."""
    history = Register(7, 5000, 12, 0.02, 0.2 if indexes else 0, indexes).history
    assert sum(operation.outcome == UNKNOWN for operation in history) > 40
    assert violations(history) == []
    history.sort(key=lambda operation: operation.invoked)
    put = next(operation for operation in history[4000:] if operation.kind == PUT and operation.is_effective)
    late = next(operation for operation in history[4500:] if operation.kind == GET)
    changed = [replace(operation, value=put.value, etag=put.etag) if operation is late else operation for operation in history]
    assert search(changed)


# Every order, tried


def is_linearizable(history):
    """By the definition: some order of some of the operations, all those that are known among them, that a register could have executed."""
    must = [operation for operation in history if operation.outcome == OK and not operation.stale]
    may = [operation for operation in history if operation.outcome == UNKNOWN and operation.kind != GET]
    etags = {operation.value: operation.etag for operation in must if operation.etag and not operation.refused}
    for chosen in range(1 << len(may)):
        some = must + [operation for number, operation in enumerate(may) if chosen >> number & 1]
        if any(_executes(order, etags) for order in permutations(some) if _keeps_time(order)):
            return True
    return False


def _keeps_time(order):
    return not any(later.returned < earlier.invoked for number, earlier in enumerate(order) for later in order[number + 1:])


def _executes(order, etags):
    """True if a register could have executed *order*. *etags*: {value: ETag}, as far as they are known; they must rise."""
    value = etag = None  # of an existing key, an ETag of None is any
    highest = 0
    for operation in order:
        if operation.refused or operation.if_match is not None:
            wanted = operation.etag if operation.refused else operation.if_match
            if (wanted is None) != (value is None) or etag not in (None, wanted):
                return False
            if etag is None and wanted is not None:
                if wanted <= highest or etags.get(value, wanted) != wanted or wanted in etags.values():
                    return False
                etag = highest = wanted
            if operation.refused:
                if operation.if_match is not None and operation.if_match == etag or operation.if_absent and value is None:
                    return False
                continue
        if operation.kind == GET:
            if operation.value != value:
                return False
            continue
        if operation.if_absent and value is not None:
            return False
        found, index = value is not None, operation.index if operation.outcome == OK else None
        if operation.kind == PUT:
            value, etag = operation.value, etags.get(operation.value)
            index = etag
        else:
            if operation.outcome == OK and operation.found != found:
                return False
            value, etag, index = None, None, index if operation.found else None
        if index is not None:
            if index <= highest:
                return False
            highest = index
    return True


CHANGES = ("value", "etag", "found", "refused", "times", "if_absent", "outcome")


def changed_somehow(history, rng):
    """*history* with one thing changed in one operation, in a way that may or may not be linearizable."""
    history, what = list(history), rng.choice(CHANGES)
    at = rng.randrange(len(history))
    operation, other = history[at], rng.choice(history)
    if what == "value" and operation.kind == GET:
        operation = replace(operation, value=other.value, etag=other.etag if other.value and not other.refused else None)
    elif what == "etag" and operation.refused:
        operation = replace(operation, etag=other.etag)
    elif what == "found" and operation.kind == DELETE and operation.outcome == OK and not operation.refused and not operation.if_match:
        operation = replace(operation, found=not operation.found)
    elif what == "refused" and operation.refused and (operation.if_match or operation.if_absent):
        operation = replace(operation, refused=False, etag=operation.index if operation.kind == PUT else None)
    elif what == "times":
        shift = rng.uniform(-2, 2)
        operation = replace(operation, invoked=operation.invoked + shift, returned=operation.returned + shift)
    elif what == "if_absent" and operation.kind == PUT and not operation.if_match and not operation.refused:
        operation = replace(operation, if_absent=not operation.if_absent)
    elif what == "outcome" and operation.kind != GET:
        operation = Operation(operation.kind, "k", operation.value, operation.invoked, math.inf, UNKNOWN, if_match=operation.if_match,
                              if_absent=operation.if_absent)
    history[at] = operation
    return history


def _is_told_apart(history):
    """What the search is for: who reads a value tells its ETag, always the same, and a refused write names another than it asked for."""
    return not any(complaint.rule in ("condition", "order of the log", "never written") for complaint in violations(history))


@settings(max_examples=3000, deadline=None)
@given(st.integers(0, 1 << 32), st.booleans(), st.integers(0, 5))
def test_the_search_agrees_with_trying_every_order(seed, indexes, changes):
    rng = random.Random(seed)
    history = Register(seed, rng.randint(2, 6), rng.choice((3, 6)), 0.3, 0.4 if indexes else 0, indexes).history
    for _ in range(changes):
        history = changed_somehow(history, rng)
    if not indexes or _is_told_apart(history):
        assert (search(history) is None) == is_linearizable(history), "\n".join(map(str, history))
