"""How members come and go: the steps of chapter 4 of the thesis that take more than one entry of the log. Runs on the leader."""

import logging
import time
from dataclasses import replace
from functools import partial

from raftd.errors import BadRequest, CommitTimeout, LeadershipLost, NoQuorum, NotFound, NotLeader, PeerUnreachable, RaftdError
from raftd.raft.configuration import Member

log = logging.getLogger(__name__)

SILENCE_SECONDS = 5.0  # a new learner that has never answered, for so long, has failed to join


def join(node, identify, name, address, voter, deadline):
    """Make the server *name* at ``HOST:PORT`` a member of the cluster, a learner first (thesis 4.2.1). May be repeated.

    ``identify(address)`` asks who answers there, before anything changes. Raises BadRequest when that is not *name*, or not a
    server of this cluster, or never answers as a learner; CommitTimeout while it catches up; NotLeader; and what
    ``Node.propose`` raises.
    """
    _check_leads(node)
    identity = _identity_at(node, identify, name, address)
    newcomer = Member(name, address, False, identity["id"])
    if not newcomer.is_sound():
        raise BadRequest(f"the server at {address} has an id that no raftd has")
    node.change_configuration(partial(_with_address, newcomer=newcomer, voter=voter), deadline)
    if voter and node.look(lambda raft: raft.configuration.members.get(name)) != replace(newcomer, voter=True):
        try:
            _wait_until_caught_up(node, newcomer, deadline)
            node.change_configuration(partial(_promoted, newcomer=newcomer), deadline)
        except RaftdError as error:
            if error.retry != "safe":
                raise
            raise LeadershipLost(f"{name} is a learner, and may be more by now: {error}", error.leader) from error
        log.info("joined peer=%s address=%s", name, address)


def _check_leads(node):
    if not node.look(lambda raft: raft.is_leader):
        leader = node.leader()
        raise NotLeader(leader=leader and f"http://{leader['address']}")


def _identity_at(node, identify, name, address):
    try:
        identity = identify(address)
    except PeerUnreachable as error:
        raise BadRequest(str(error)) from error
    if identity["name"] != name:
        raise BadRequest(f"the server at {address} is {identity['name']}, not {name}")
    if identity["cluster"] != node.cluster:
        raise BadRequest(f"the server at {address} belongs to another cluster")
    return identity


def _with_address(configuration, newcomer, voter):
    """*configuration* with *newcomer* as a learner, or with its new address; None if nothing changes."""
    known = configuration.members.get(newcomer.name)
    if known and known.id != newcomer.id:
        raise BadRequest(f"{known.name} is a member with other files, which are lost if this is the same machine; remove it first "
                         f"(DELETE /members/{known.name})")
    if known and known.voter and not voter:
        raise BadRequest(f"{known.name} votes already; remove it first to make it a learner")
    for member in configuration.members.values():
        if member.address == newcomer.address and member.name != newcomer.name:
            raise BadRequest(f"{newcomer.address} is the address of {member.name}")
    if known and known.address == newcomer.address:
        return None
    return configuration.with_member(replace(newcomer, voter=bool(known and known.voter)))


def _promoted(configuration, newcomer):
    known = configuration.members.get(newcomer.name)
    if known is None or known.id != newcomer.id:
        raise BadRequest(f"{newcomer.name} was removed while it joined")
    return None if known.voter else configuration.promoted(newcomer.name)


def _wait_until_caught_up(node, newcomer, deadline):
    """Rounds (thesis 4.2.1): each sends what the log had at its start. One shorter than an election timeout means it keeps up."""
    name = newcomer.name
    while True:
        began, target = time.monotonic(), node.look(lambda raft: raft.log.last_index)
        while not node.wait_until(partial(_has_or_nobody_asks, name, target), min(deadline, time.monotonic() + 1)):
            _remove_if_it_never_answered(node, newcomer)
            if time.monotonic() >= deadline:
                raise CommitTimeout(f"{name} is a learner and still catching up; ask again")
        _check_leads(node)
        if time.monotonic() - began < node.settings.election_timeout_seconds:
            return


def _has_or_nobody_asks(name, target, raft):
    return not raft.is_leader or name not in raft.configuration.members or raft.match_index(name) >= target


def _remove_if_it_never_answered(node, newcomer):
    """A join that fails must not leave a member behind."""
    if node.look(lambda raft: raft.match_index(newcomer.name) > 0 or raft.silent_for(newcomer.name) < SILENCE_SECONDS):
        return
    log.warning("a new learner does not answer and is removed peer=%s", newcomer.name)
    node.change_configuration(partial(_without_learner, newcomer=newcomer), time.monotonic() + SILENCE_SECONDS)
    raise BadRequest(f"{newcomer.name} has not answered for {SILENCE_SECONDS:g} s; it did not join")


def _without_learner(configuration, newcomer):
    known = configuration.members.get(newcomer.name)
    return configuration.without(newcomer.name) if known and known.id == newcomer.id and not known.voter else None


def remove(node, name, id, deadline):
    """Remove the member *name*, if *id* is None or that of its files; a leader that removes itself hands leadership over once that is
    committed (thesis 4.2.2).

    Raises NotFound, NotLeader, BadRequest for the last voter, and what ``Node.propose`` raises.
    """
    _check_leads(node)

    def without(configuration):
        if name not in configuration.members:
            raise NotFound(f"no member is named {name}")
        if id not in (None, configuration.members[name].id):
            raise NotFound(f"{name} is a member with other files than those of {id}")
        if configuration.voters == [name]:
            raise BadRequest(f"{name} is the last voter")
        return configuration.without(name)

    node.change_configuration(without, deadline)
    log.info("removed peer=%s", name)


def transfer_leadership(node, target, deadline):
    """Hand leadership to the voter *target*, or to the one that lacks least of the log (thesis 3.10).

    Raises BadRequest, NotFound, and NoQuorum when it did not take over; then the leader is the same as before.
    """
    _check_leads(node)
    target = target or node.look(lambda raft: raft.best_successor if raft.is_leader else None)
    if target is None:
        raise BadRequest("there is no other voter to lead")
    if not node.look(lambda raft: raft.configuration.is_voter(target)):
        raise NotFound(f"no voter is named {target}")
    if target == node.name:
        return
    node.begin_transfer(target)
    node.wait_until(lambda raft: raft.leader_id not in (None, node.name) or (raft.is_leader and not raft.role.transfer), deadline, 0.1)
    if node.look(lambda raft: raft.is_leader):
        raise NoQuorum(f"{target} did not take over in time; {node.name} still leads")
