"""What may go wrong in a run, and how often."""

from dataclasses import dataclass


MOST_SKEW = 0.2  # with which a lease is safe: a clock may run faster than another by a quarter


@dataclass
class Faults:
    """How often what happens, each a chance per message, or per server and step; the defaults are peace.

    delay_seconds  the longest way of a message
    crash          a server stops; half of the times with its power, and then what was not synced is lost
    noticed        a follower finds that the leader that has just stopped is dead, soon after
    mistaken       a follower finds so although it lives: a firewall resets connections and refuses new ones
    walled         a leader is cut off, and its followers take it for dead: between them a firewall goes up, and it goes on serving
    cut, heal      links break, in one of the shapes of ``partitions``; all of them work again
    slow_disk      a write takes up to 100 ms
    stall          a write hangs for up to 1.5 s
    skew           how far apart the rates of clocks are
    leases         so many of the reads may rest on a lease; none where clocks are too far apart for that
    patience       election timeouts, and with them leases, are so many times as long
    impatient      a server waits less long for its disk before it answers a peer
    writes, reads  what clients ask for
    """

    loss: float = 0.0
    duplicate: float = 0.0
    delay_seconds: float = 0.02
    crash: float = 0.0
    pause: float = 0.0
    noticed: float = 0.0
    mistaken: float = 0.0
    walled: float = 0.0
    cut: float = 0.0
    heal: float = 1.0
    slow_disk: float = 0.0
    stall: float = 0.0
    membership: float = 0.0
    transfer: float = 0.0
    impatient: float = 0.0
    skew: float = 0.0
    leases: float = 0.5
    patience: float = 1.0
    writes: float = 0.05
    reads: float = 0.05

    @classmethod
    def drawn(cls, rng):
        """Rates anew for each seed, many of them nil: a mild mix of everything finds less than an odd one."""
        def some(most):
            return rng.choice((0, 0, most / 4, most)) * rng.random()
        skew, reads = some(0.9), rng.choice((0.02, 0.1))
        leases = rng.choice((0, 0.5)) if skew <= MOST_SKEW else 0
        if leases and rng.random() < 0.5:  # without much else, or no lease lasts
            return cls(delay_seconds=rng.choice((0.005, 0.1)), crash=some(0.002), walled=0.02, heal=0.02, transfer=some(0.02), skew=skew,
                       leases=leases, patience=4, writes=0.2, reads=0.5)
        return cls(loss=some(0.3), duplicate=some(0.5), delay_seconds=rng.choice((0.005, 0.02, 0.1, 0.3)),
                   crash=some(0.004), pause=some(0.004), noticed=rng.choice((0, 0.5, 1)), mistaken=some(0.02),
                   walled=some(0.02), cut=some(0.02),
                   heal=rng.choice((0.01, 0.05)), slow_disk=rng.choice((0, 0.5, 0.9)), stall=some(0.01), membership=some(0.3),
                   transfer=some(0.02), impatient=some(0.5), skew=skew, leases=leases, patience=rng.choice((1, 4)) if leases else 1,
                   writes=rng.choice((0.05, 0.2)), reads=0.5 if leases else reads)


def partition(names, leader, rng):
    """(what it is called, the directed links that break) for one of the partitions that have broken others.

    Half of the times it is *leader* (a name, or None) that they hit.
    """
    names = rng.sample(names, len(names))
    if leader and rng.random() < 0.5:
        names.remove(leader)
        names.insert(0, leader)
    one, other, *rest = names
    half = set(names[:len(names) // 2])
    bridge = {name for name in names if name != one}
    ends = sorted(bridge)[::2]
    shapes = {
        "one way": {(one, other)},
        "one link": _both({(one, other)}),
        "dangling": _both({(one, name) for name in rest}),  # *one* hears only *other*
        "cut off": _both({(one, name) for name in names}),
        "deaf": {(name, one) for name in names},
        "mute": {(one, name) for name in names},
        "halves": _both({(name, far) for name in half for far in names if far not in half}),
        "bridge": _both({(name, far) for name in ends for far in bridge if far not in ends}),  # only *one* joins the two sides
    }
    kind = rng.choice(list(shapes))
    return kind, shapes[kind]


def _both(links):
    return links | {(receiver, sender) for sender, receiver in links}
