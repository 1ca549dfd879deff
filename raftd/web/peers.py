"""What peers ask over plain HTTP. Their calls themselves are frames on connections of their own: see ``raftd.transport``."""

from flask import Blueprint

from raftd.web.answers import json_answer
from raftd.web.current import current_node

blueprint = Blueprint("raftd_peers", __name__, url_prefix="/raft")


@blueprint.get("/identity")
def identity():
    """Who this server is: a leader asks before it takes a server in."""
    return json_answer(current_node().identity())
