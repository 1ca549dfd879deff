"""Who belongs to the cluster, who votes, and what a majority is (thesis chapter 4)."""

import json
from dataclasses import dataclass, replace
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Member:
    """A server of the cluster.

    name     its identity in Raft, unique in the cluster
    address  ``HOST:PORT`` under which it is reached; may change
    voter    False for a learner: it receives the log but has no vote (thesis 4.2.1)
    id       drawn at random when its files were made: a wiped server under an old name is another server
    """

    name: str
    address: str
    voter: bool = True
    id: str = ""

    MAX_TEXT = 300  # characters; an address may have 260

    def is_sound(self):
        """True if it is what its fields say: nothing else may get into a log, where it would stay."""
        texts = (self.name, self.address, self.id)
        return all(type(text) is str and text.isprintable() and len(text) <= self.MAX_TEXT for text in texts) \
            and type(self.voter) is bool and bool(self.name) and self.address.isascii()


@dataclass(frozen=True)
class Configuration:
    """The members of the cluster, by name. A value: changes make a new one."""

    members: dict[str, Member]

    @cached_property
    def voters(self):
        return [name for name, member in self.members.items() if member.voter]

    def is_voter(self, name):
        return name in self.members and self.members[name].voter

    def is_majority(self, names):
        """True if the voters among *names* are more than half of all voters."""
        voters = self.voters
        return 2 * sum(name in names for name in voters) > len(voters)

    def with_member(self, member):
        return Configuration({**self.members, member.name: member})

    def without(self, name):
        return Configuration({key: member for key, member in self.members.items() if key != name})

    def differs_by_one_vote_at_most(self, other):
        """One server at a time, so that any two majorities of neighbours share a server (thesis 4.1)."""
        return len(set(self.voters) ^ set(other.voters)) <= 1

    def promoted(self, name):
        return self.with_member(replace(self.members[name], voter=True))

    def encode(self):
        rows = [[m.name, m.address, m.voter, m.id] for m in self.members.values()]
        return json.dumps(rows, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data):
        """What ``encode`` made *data* of. Raises ValueError or TypeError when it was not ``encode``."""
        try:
            rows = json.loads(data)
        except RecursionError as error:
            raise ValueError("no configuration is so deep") from error
        if type(rows) is not list:
            raise ValueError("no list of members")
        members = [Member(*row) for row in rows if type(row) is list]
        configuration = cls({member.name: member for member in members if member.is_sound()})
        if len(configuration.members) != len(rows):
            raise ValueError("a member that cannot be, or twice the same")
        return configuration


NOBODY = Configuration({})


class Configurations:
    """Every configuration that the log still holds, newest last.

    A server uses the newest in its log, committed or not, and goes back to the one before when the entry is removed (thesis 4.1).
    """

    def __init__(self, index, configuration):
        self._history = [(index, configuration)]

    @property
    def latest(self):
        return self._history[-1][1]

    @property
    def latest_index(self):
        return self._history[-1][0]

    def append(self, index, configuration):
        assert index > self.latest_index, (index, self.latest_index)
        self._history.append((index, configuration))

    def truncate(self, first_removed):
        while self._history[-1][0] >= first_removed:
            assert len(self._history) > 1, "the configuration of the snapshot cannot be removed"
            self._history.pop()

    def at(self, index):
        """The configuration in force at *index*, and where it was set."""
        newest = self._history[-1]
        return newest if newest[0] <= index else next(pair for pair in reversed(self._history) if pair[0] <= index)

    def compact(self, index):
        """Forget what came before the one in force at *index*."""
        keep = self.at(index)
        self._history = [keep] + [pair for pair in self._history if pair[0] > index]

    def reset(self, index, configuration):
        self._history = [(index, configuration)]
