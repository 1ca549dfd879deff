"""Scenarios that a person can read, and that are replayed exactly: the files beside this one.

A file is blocks with empty lines between them. A block is comments (``#``), commands, a line ``----``, and what the commands gave.
All commands are here, and the docstring of each says what it is for; how things are written is in words.py.
"""

from transcripts.servers import Cluster, Server
from transcripts.words import listed, members_of, role_of, state_of, written

from raftd.config import Settings
from raftd.errors import RaftdError
from raftd.raft.configuration import NOBODY, Configuration, Member
from raftd.raft.roles import Candidate


def replay(text):
    """*text* with the output that its commands give now. Raises ValueError, naming the line, if it is no transcript."""
    c, blocks = Cluster(), []
    for block in text.strip("\n").split("\n\n"):
        told = block.partition("\n----")[0].splitlines()
        if commands := [line for line in told if not line.startswith("#")]:
            c.output = []
            for line in commands:
                run(c, line)
            told += ["----", *(c.output or ["ok"])]
        blocks.append("\n".join(told))
    return "\n\n".join(blocks) + "\n"


def run(c, line):
    name, *words = line.split()
    try:
        COMMANDS[name](c, *words)
    except RaftdError as error:
        c.tell(f"{type(error).__name__}: {error}")
    except (LookupError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{line}: {error!r}") from error


# Servers


def cluster(c, *names):
    """``cluster s1 s2 s3``: a new world, with these servers in one new cluster, all of them voters."""
    configuration = Configuration({name: Member(name, f"{name}:1") for name in names})
    c.cut_links.clear()
    c.unanswered.clear()
    c.servers = {name: Server(name, c.settings, configuration) for name in names}
    for server in c.servers.values():
        c.settle(server)


def single_entries(c):
    """``single_entries``: in the clusters that follow, a request carries one command."""
    c.settings = Settings(max_append_bytes=1)


def start(c, name):
    """``start s4``: a server that belongs to no cluster yet."""
    c.servers[name] = Server(name, c.settings, NOBODY)
    c.settle(c.servers[name])


def log(c, name, *words):
    """``log s1 1 1 2 in 3``: the server comes up with entries of these terms, in term 3 itself (else in that of its last entry)."""
    terms = [int(word) for word in words if word != "in"]
    term = terms.pop() if "in" in words else terms[-1]
    c.servers[name] = Server(name, c.settings, c.servers[name].raft.configuration, terms, term)
    c.settle(c.servers[name])


def crash(c, name):
    """``crash s1``: it is gone, with all that is not on its disk."""
    c.servers[name].up = False
    c.unanswered = {link for link in c.unanswered if name not in link}


def restart(c, name):
    """``restart s1``: it comes up with what is on its disk."""
    c.servers[name].start()
    c.tell(name, "comes up:", state_of(c.servers[name].raft))
    c.settle(c.servers[name])


def slow(c, name):
    """``slow s1``: from now on its disk is done with a write only when ``save`` says so."""
    c.servers[name].slow = True


def save(c, name):
    """``save s1``: its slow disk is done with the write that is under way."""
    if c.servers[name].writing is None:
        raise ValueError("nothing is being written")
    c.tell(name, "has saved", written(c.servers[name].end_write()))
    c.settle(c.servers[name])


def compact(c, name, index):
    """``compact s1 3``: it forgets its log up to there, for which its state machine stands."""
    c.servers[name].raft.compact(int(index), 0, 0)
    c.settle(c.servers[name])


def state(c, *names):
    """``state s1``: what it is, and its log; without names, of all."""
    for name in names or c.servers:
        c.tell(name, state_of(c.servers[name].raft) if c.servers[name].up else "is down")


def members(c, name):
    """``members s1``: who belongs to the cluster, as this server knows it."""
    c.tell(name, members_of(c.servers[name].raft))


# Time and elections


def timeout(c, name):
    """``timeout s1``: at this server, an election timeout passes in which it hears nobody."""
    raft = c.servers[name].raft
    if raft.is_leader:
        raise ValueError(f"{name} leads")
    raft.tick(raft.next_tick)
    c.settle(c.servers[name])


def wait(c, milliseconds, *names):
    """``wait 100 s1``: so much time passes at these servers."""
    for server in [c.servers[name] for name in names]:
        for _ in range(int(milliseconds) // 10):
            server.raft.tick(round(server.raft.now + 0.01, 3))
            c.settle(server)


def gone(c, name, leader):
    """``gone s2 s1``: the connection of its leader has ended, and that leader's host refuses another one: it is found dead."""
    raft = c.servers[name].raft
    raft.leader_is_gone(leader, raft.term)
    c.settle(c.servers[name])


def elect(c, name, *voters):
    """``elect s1``: a timeout, and an election in which it asks all others, or these; only how that ends is told."""
    server, told, c.quiet = c.servers[name], len(c.output), True
    timeout(c, name)
    for voter in 2 * (voters or server.raft.peers):  # the pre-votes, and the votes
        if isinstance(server.raft.role, Candidate) and (message := c.send(name, voter)):
            c.exchange(message)
    c.quiet, c.output[told:] = False, [f"{name} {role_of(server.raft)}"]


# Messages


def cut(c, name, *others):
    """``cut s1 s2``: nothing passes between them any more; without other names, between it and anybody."""
    for other in others or c.servers:
        c.cut_links |= {(name, other), (other, name)}


def heal(c):
    """``heal``: everything passes again."""
    c.cut_links.clear()


def rpc(c, sender, *receivers, entries=True):
    """``rpc s1 s2``: the one sends the other the next of what it has for it, and gets the reply."""
    for receiver in receivers:
        if message := c.send(sender, receiver, entries):
            c.exchange(message)
        else:
            c.tell(sender, "has nothing for", receiver)


def heartbeat(c, sender, *receivers):
    """``heartbeat s1 s2``: like rpc, but neither entries nor snapshots."""
    rpc(c, sender, *receivers, entries=False)


def replicate(c, name, *peers):
    """``replicate s1``: it says all that it has to say, and then what is committed, to all, or to these; what comes of it is told."""
    c.talk(name, peers or c.servers)
    wait(c, 100, name)
    c.talk(name, peers or c.servers)


def send(c, sender, receiver, name):
    """``send s1 s2 old``: like rpc, but the request is only under way, under this name."""
    if (message := c.send(sender, receiver)) is None:
        raise ValueError(f"{sender} has nothing for {receiver}")
    message.name, c.messages[name] = name, message
    c.tell_message(message, "->", message.request)


def arrive(c, name):
    """``arrive old``: the request gets there, perhaps a second time; its reply, when there is one, is under way."""
    c.tell(f"{name}: {c.messages[name].receiver.name} gets it")
    c.arrive(c.messages[name])


def answer(c, name):
    """``answer old``: the reply gets back, or there is none in time."""
    message = c.messages[name]
    c.tell(f"{name}: {message.sender.name} gets {'the' if message.reply else 'no'} reply")
    c.get_back(message)


# What a client, or an operator, asks of a server


def propose(c, name, command):
    """``propose s1 x=1``: a client sends it a command."""
    c.tell(name, "appends", listed([c.servers[name].raft.propose(command.encode())]))
    c.settle(c.servers[name])


def read(c, name, key):
    """``read s1 x``: a client asks for the value of a key, never older than what was answered before."""
    c.reads += 1
    c.servers[name].raft.read_index((c.reads, key))
    c.tell(f"read {c.reads} of {name} begins")
    c.settle(c.servers[name])


def transfer(c, name, successor):
    """``transfer s1 s2``: the leader is to hand over to another."""
    c.servers[name].raft.transfer_leadership(successor)
    c.settle(c.servers[name])


def change(c, name, how, member):
    """``change s1 learner s4``, or ``voter``, or ``remove``: the leader adds a member, makes it a voter, or removes it."""
    raft = c.servers[name].raft
    if how == "remove":
        changed = raft.configuration.without(member)
    else:
        changed = raft.configuration.with_member(Member(member, f"{member}:1", voter={"learner": False, "voter": True}[how]))
    c.tell(name, "appends", listed([raft.propose_configuration(changed)]), members_of(raft))
    c.settle(c.servers[name])


def snapshot(c, name, peer):
    """``snapshot s1 s3``: the leader makes a snapshot of its state, to be sent to a follower, instead of one that it may be sending."""
    server, checksum = c.servers[name], f"snapshot {len(c.snapshots)}"
    data = c.snapshots[checksum] = server.snapshot()
    server.raft.snapshot_withdrawn(peer)
    server.raft.snapshot_offered(peer, server.position.index, server.position.term, len(data), checksum)
    c.tell(name, f"has a snapshot for {peer}: last_included={server.position.index}/{server.position.term}, {len(data)} bytes")


COMMANDS = {function.__name__: function for function in (
    cluster, single_entries, start, log, crash, restart, slow, save, compact, state, members, timeout, wait, gone, elect,
    cut, heal, rpc, heartbeat, replicate, send, arrive, answer, propose, read, transfer, change, snapshot)}
