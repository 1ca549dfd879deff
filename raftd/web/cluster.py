"""Membership, leadership and health of the cluster. Must not know how a change of members is made safe."""

import ipaddress
import re

from flask import Blueprint

from raftd.config import is_name
from raftd.errors import BadRequest, NoLeader, NoQuorum
from raftd.web.answers import done_answer, json_answer, text_answer
from raftd.web.current import current_node, current_version
from raftd.web.parameters import json_of_body, query

# A new member is first brought up to date, which takes longer than a write.
CHANGE_TIMEOUT_SECONDS = 30.0

blueprint = Blueprint("raftd_cluster", __name__)


@blueprint.post("/join")
def join():
    """Make the server in the body a member, or give a member its new address."""
    how = _how_to_change()
    asked = json_of_body(name=str, connectionString=str, voter=bool)
    name, address = _name(asked), _address(asked.get("connectionString", ""))
    current_node().join(name, address, asked.get("voter", True), how["timeout"])
    return done_answer()


@blueprint.get("/members")
def members():
    query()
    return json_answer({"members": current_node().members()})


@blueprint.delete("/members/<name>")
def remove(name):
    how = _how_to_change(id=None)
    current_node().remove(name, how["timeout"], how["id"])
    return done_answer()


@blueprint.get("/leader")
def leader():
    query()
    found = current_node().leader()
    if found is None:
        raise NoLeader()
    return json_answer(found)


@blueprint.post("/leader")
def transfer_leadership():
    """Hand leadership to the voter in the body, without one to the most up to date."""
    how = _how_to_change()
    asked = json_of_body(name=str)
    name = _name(asked) if asked else None
    return json_answer(current_node().transfer_leadership(name, how["timeout"]))


@blueprint.get("/status")
def status():
    query()
    return json_answer({**current_node().status(), "version": current_version()})


@blueprint.get("/livez")
def livez():
    return text_answer("ok")


@blueprint.get("/readyz")
def readyz():
    node = current_node()
    reason = node.not_ready()
    if reason is None:
        return text_answer("ok")
    raise (NoQuorum if node.leader() else NoLeader)(reason)


def _how_to_change(**more):
    return query(timeout=CHANGE_TIMEOUT_SECONDS, redirect=False, **more)


def _name(asked):
    name = asked.get("name", "")
    if not is_name(name):
        raise BadRequest('"name" must be 1 to 64 characters of A-Z a-z 0-9 . _ -')
    return name


def _address(url):
    """``HOST:PORT`` of *url*, ``http://HOST:PORT``; a HOST with colons is in brackets."""
    match = re.fullmatch(r"http://(?:([A-Za-z0-9._-]{1,253})|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})/?", url)
    if not match or not 1 <= int(match[3]) <= 65535 or not _is_host(*match.group(1, 2)):
        raise BadRequest('"connectionString" must be http://HOST:PORT')
    return url.removeprefix("http://").rstrip("/")


def _is_host(name, ipv6):
    try:
        return bool(name) or bool(ipaddress.IPv6Address(ipv6))
    except ValueError:
        return False
