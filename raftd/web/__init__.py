"""The HTTP surface of a node, as a Flask app. Must not know Raft, threads or files: a view makes one call on the node.

``create_app`` makes an app of its own; ``mount`` puts the same answers into an app that exists. Either works while the node
is still joining: nothing is asked of the node before the first request.
"""

from flask import Flask
from werkzeug.exceptions import HTTPException

from raftd.errors import RaftdError
from raftd.web import cluster, db, openapi, peers, txn, watch
from raftd.web.answers import add_raft_headers, error_answer, http_error_answer, unexpected_error_answer
from raftd.web.current import Mounted


def create_app(node, version):
    """A Flask app that answers for *node*; *version* is what ``/status`` says."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # the slashes of a path are the client's
    mount(app, node, version)
    # What no view is responsible for: unknown paths, wrong methods, a request that Flask itself cannot read.
    app.register_error_handler(HTTPException, lambda error: add_raft_headers(http_error_answer(error)))
    return app


def mount(app, node, version, url_prefix=""):
    """Answer for *node* in *app*, below *url_prefix*; the rest of *app*, also its error pages, stays as it is."""
    app.extensions["raftd"] = Mounted(node, version)
    for blueprint in (db.blueprint, txn.blueprint, watch.blueprint, cluster.blueprint, peers.blueprint, openapi.blueprint):
        app.register_blueprint(blueprint, url_prefix=url_prefix + (blueprint.url_prefix or "") or None)


for _blueprint in (db.blueprint, txn.blueprint, watch.blueprint, cluster.blueprint, peers.blueprint, openapi.blueprint):
    _blueprint.after_request(add_raft_headers)
    _blueprint.register_error_handler(RaftdError, error_answer)
    _blueprint.register_error_handler(HTTPException, http_error_answer)
    _blueprint.register_error_handler(Exception, unexpected_error_answer)
