"""``/openapi.json`` is true: it has the routes, parameters and errors that there are, and a live cluster answers as it says."""

import re

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from test_web import StubNode

from cluster import Cluster, wait_until
from raftd import errors, web
from raftd.web.openapi import document

load_all_checks()
DOCUMENT = document("1.2.3")
OPERATIONS = [(path, method, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()]


@pytest.fixture
def app():
    return web.create_app(StubNode(), "1.2.3")


def test_the_document_is_one():
    validate(DOCUMENT)


def test_it_is_served(app):
    answer = app.test_client().get("/openapi.json")
    assert (answer.status_code, answer.content_type, answer.json) == (200, "application/json", DOCUMENT)


def test_it_has_the_routes_that_there_are(app):
    routes = {(re.sub(r"<(?:[a-z_]+:)?([a-z_]+)>", r"{\1}", rule.rule), method) for rule in app.url_map.iter_rules()
              for method in rule.methods - {"HEAD", "OPTIONS"}}
    described = {(path, method.upper()) for path, method, _ in OPERATIONS}
    assert described - {("/db/", "GET"), ("/db/", "DELETE")} == routes, "of /db/ it is the view of a key that answers"


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=[f"{method} {path}" for path, method, _ in OPERATIONS])
def test_it_has_the_parameters_that_there_are(app, path, method, operation):
    """Who asks for one that there is not is told those that there are."""
    answer = app.test_client().open(path.format(key="k", name="n1"), method=method, query_string={"nonsense": "1"})
    known = re.fullmatch(r"there is no parameter 'nonsense' here; known: (.*)\n", answer.text)
    names = {reference["$ref"].rpartition("/")[2] for reference in operation["parameters"]}
    described = {DOCUMENT["components"]["parameters"][name]["name"] for name in names
                 if DOCUMENT["components"]["parameters"][name]["in"] == "query"}
    if path in ("/livez", "/readyz", "/raft/identity"):
        assert described == set()
    else:
        assert known and described == set(known[1].split(", ")) - {"none"}, answer.text


def test_it_has_every_error():
    texts = {status.removeprefix("Error"): response["description"] for status, response in DOCUMENT["components"]["responses"].items()}
    for error in vars(errors).values():
        if not isinstance(error, type) or not issubclass(error, errors.RaftdError):
            continue
        assert error.code in texts[str(error.status)].split(", ")


# What chance finds too seldom.
SENSIBLE = (
    ("/db/{key}", "PUT", {"path_parameters": {"key": "a"}, "body": b"1", "media_type": "application/octet-stream", "query": {"ttl": "1h"}}),
    ("/db/{key}", "GET", {"path_parameters": {"key": "a"}}),
    ("/txn", "POST", {"media_type": "application/json", "body": {
        "if": [{"key": "a", "value": "1"}, {"key": "b", "exists": False}, {"key": "b", "index": 0}],
        "then": [{"set": "b", "value_base64": "/w=="}, {"get": "b"}, {"delete": "b"}, {"get": "a"}, {"get": "none"}]}}),
)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_live_cluster_answers_as_it_says(tmp_path):
    """Requests of all kinds that the document allows, and such as it does not, at the leader and at a follower."""
    counts = {}
    with Cluster(tmp_path) as cluster:
        schema = schemathesis.openapi.from_url(f"http://{cluster.servers[0].address}/openapi.json").exclude(path="/watch")
        for path, method, members in SENSIBLE:
            case = schema[path][method].Case(**members)
            _ask(case, f"http://{cluster.leader().address}", counts)
        for number, server in enumerate((cluster.leader, lambda: cluster.followers()[0])):
            for result in schema.get_all_operations():
                operation = result.ok()
                few = operation.path == "/join" or number > 0  # whoever is to join is dialled, which takes seconds
                url = f"http://{server().address}"  # leadership moves, if it is asked to
                _attack(operation, url, counts, examples=4 if few else 12, seed=number)
        wait_until(lambda: all(server.ready for server in cluster.servers), "all are ready")
    assert {label for label, _ in counts} == {f"{method.upper()} {path}" for path, method, _ in OPERATIONS
                                                  if path not in ("/watch", "/openapi.json")}
    done = {label for label, status in counts if status == 200}
    assert {label for label, _ in counts} - done == {"POST /join", "DELETE /members/{name}"}, "who joins or leaves is no word of chance"


def _attack(operation, url, counts, examples, seed):
    @hypothesis.seed(seed)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    def sensible(case):
        _ask(case, url, counts)

    @hypothesis.seed(seed)
    @settings(max_examples=examples // 2, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def senseless(case):
        _ask(case, url, counts)

    sensible()
    if operation.definition.raw.get("parameters") or operation.body:
        senseless()


def _ask(case, url, counts):
    for name in {"wait", "timeout"} & (case.query or {}).keys():  # the document allows minutes
        if isinstance(case.query[name], str) and re.fullmatch(r"[0-9.]+(ms|s|m|h)", case.query[name]):
            case.query[name] = "50ms"
    answer = case.call(base_url=url, timeout=30, allow_redirects=False)
    label = case.operation.label
    counts[label, answer.status_code] = counts.get((label, answer.status_code), 0) + 1
    case.validate_response(answer, checks=[not_broken, status_code_conformance, content_type_conformance, response_schema_conformance])


def not_broken(context, answer, case):
    """An error that a fault of the cluster explains may be 500 or above; a fault of ours may not."""
    assert answer.headers.get("x-raft-error", [""])[0] != "internal", answer.text
