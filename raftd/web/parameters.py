"""Reads what a request says: parameters, keys, conditions, bodies. Refuses with BadRequest or TooLarge; must not answer.

Whatever is not understood is refused, never skipped: a misspelt ``level=stael`` must not become another kind of read.
"""

import json
import re
from collections import Counter
from urllib.parse import parse_qs, unquote_to_bytes

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge

from raftd.config import MAX_KEY_BYTES, duration
from raftd.errors import BadRequest, TooLarge
from raftd.kv import Conditions, Fence
from raftd.web.current import current_node

LEVELS = ("linearizable", "leader", "stale")
MAX_TIMEOUT_SECONDS = 60.0
MAX_WAIT_SECONDS = 600.0
MAX_ENTITY_TAGS = 100
MAX_JSON_BYTES = 64 * 1024
MAX_TTL_SECONDS = 10 * 366 * 86400.0
MAX_ITEMS, ITEMS = 1000, 100  # of a list: at most, and when the request does not say
MAX_IDEMPOTENCY_KEY = 255  # characters

# RFC 9110, section 8.8.3: an entity tag is opaque; ours are the canonical decimal form of a log index.
_ENTITY_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_ENTITY_TAGS = re.compile(rf"[ \t,]*{_ENTITY_TAG.pattern}(?:[ \t]*,[ \t,]*{_ENTITY_TAG.pattern})*[ \t,]*")
_OUR_TAG = re.compile(r"[1-9][0-9]{0,17}")

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def key_of(key):
    """*key* as it came out of the path, if it is one; the path is percent-decoded already."""
    check_target()
    return checked_key(key)


def check_target():
    """Refuse a path that has been read as another than was sent."""
    path = request.environ["PATH_INFO"]
    if not path.isascii():
        _require_utf8(path)  # Flask has put U+FFFD in place of what is not UTF-8
    # Before it decodes, waitress cuts the path at a bare # and drops bare tabs: what is left names another key.
    target = request.environ.get("REQUEST_URI", "")
    if "#" in target or "\t" in target:
        raise BadRequest("a # in the path must be sent as %23, and a tab as %09")
    if "%" in target and _BAD_ESCAPE.search(target):
        raise BadRequest("a % in the path must be sent as %25")


def checked_key(key):
    """*key*, a string, if it may be one."""
    if not key:
        raise BadRequest("a key must not be empty")
    if len(key) > MAX_KEY_BYTES or len(_utf8(key)) > MAX_KEY_BYTES:
        raise TooLarge(f"a key is at most {MAX_KEY_BYTES} bytes long")
    return key


def _utf8(text):
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can say that
        raise BadRequest("a key must be UTF-8") from None


def _require_utf8(path):
    try:
        path.encode("latin-1").decode()
    except UnicodeError:
        raise BadRequest("a key must be UTF-8") from None


def value_of_body():
    """The bytes of the request, whatever its Content-Type says."""
    return body(current_node().settings.max_value_bytes, "a value")


def json_of_body(**types):
    """The JSON object in the body, which may have the members of *types*, each of that type; ``{}`` for an empty body."""
    members = json_object(body(MAX_JSON_BYTES, "a JSON body"))
    for name, member in members.items():
        if name not in types:
            raise BadRequest(f"there is no member {shown(name)} here; known: {', '.join(types)}")
        if type(member) is not types[name]:
            raise BadRequest(f'"{name}" must be {_JSON_TYPES[types[name]]}')
    return members


def _object(members):
    found = dict(members)
    if len(found) < len(members):
        [(twice, _)] = Counter(name for name, _ in members).most_common(1)
        raise BadRequest(f"the member {shown(twice)} is given more than once")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def json_object(data):
    """The JSON object in *data*; ``{}`` for no bytes at all."""
    try:
        members = _JSON.decode(data.decode()) if data.strip() else {}
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(members, dict):
        raise BadRequest("the body must be a JSON object")
    return members


_JSON_TYPES = {str: "a string", bool: "true or false"}


def body(limit, what):
    """The bytes of the request, at most *limit*; *what* it is, for who sends more."""
    # One byte more than the limit: a body of unknown length is cut off there, and must not pass for a whole one.
    request.max_content_length = limit + 1
    try:
        data = request.get_data(cache=False)
    except RequestEntityTooLarge:
        data = None
    if data is None or len(data) > limit:
        raise TooLarge(f"{what} is at most {limit} bytes long")
    if len(data) != (request.content_length or len(data)):
        raise BadRequest("the body is shorter than its Content-Length")
    return data


def query(**defaults):
    """The parameters of the URL. *defaults* are those this request may have; any other, or one given twice, is refused."""
    if not request.query_string:
        return defaults
    for name, texts in request.args.lists():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise BadRequest(f"there is no parameter {shown(name)} here; known: {known}")
        if len(texts) > 1:
            raise BadRequest(f"the parameter {name} is given {len(texts)} times")
        defaults[name] = _PARSERS[name](texts[0])
    return defaults


def _level(text):
    if text not in LEVELS:
        raise BadRequest(f"level is linearizable, leader or stale, not {shown(text)}")
    return text


def _index(name):
    def parse(text):
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise BadRequest(f"{name} is a log index, not {shown(text)}")
        return int(text)
    return parse


def _seconds(name, examples, text):
    try:
        return duration(text)
    except ValueError:
        raise BadRequest(f"{name} is a duration such as {examples}, not {shown(text)}") from None


def _timeout(text):
    seconds = _seconds("timeout", "500ms or 5s", text)
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise BadRequest(f"timeout is more than 0s and at most {MAX_TIMEOUT_SECONDS:.0f}s, not {shown(text)}")
    return seconds


def _wait(text):
    seconds = _seconds("wait", "500ms or 30s", text)
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise BadRequest(f"wait is at most {MAX_WAIT_SECONDS:.0f}s, not {shown(text)}")
    return seconds


def ttl(text):
    """Milliseconds of a time to live."""
    seconds = _seconds("ttl", "500ms, 30s or 24h", text)
    if not 0.001 <= seconds <= MAX_TTL_SECONDS:
        raise BadRequest(f"ttl is at least 1ms and at most {MAX_TTL_SECONDS / 3600:.0f}h, not {shown(text)}")
    return round(seconds * 1000)


def _limit(text):
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_ITEMS:
        raise BadRequest(f"limit is 1 to {MAX_ITEMS}, not {shown(text)}")
    return int(text)


def _text(name):
    def parse(text):
        _require_utf8_in_query()
        if len(text.encode()) > MAX_KEY_BYTES:
            raise TooLarge(f"{name} is at most {MAX_KEY_BYTES} bytes long, like a key")
        return text
    return parse


def _require_utf8_in_query():
    """Flask has put U+FFFD in place of what is not."""
    try:
        unquote_to_bytes(request.query_string).decode()
    except UnicodeError:
        raise BadRequest("the query must be UTF-8") from None


def _flag(name):
    def parse(text):
        if text not in ("", "1", "true", "0", "false"):
            raise BadRequest(f"{name} is true or false, not {shown(text)}")
        return text not in ("0", "false")
    return parse


def _id(text):
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise BadRequest(f"id is that of the files of a server, 32 of 0-9 a-f, not {shown(text)}")
    return text


_PARSERS = {"level": _level, "wait": _wait, "since": str, "timeout": _timeout, "ttl": ttl, "limit": _limit, "id": _id,
            **{name: _index(name) for name in ("min_index", "index")},
            **{name: _text(name) for name in ("prefix", "after")},
            **{name: _flag(name) for name in ("redirect", "keys_only", "all", "touch")}}


_OF_A_READ = {"level", "min_index", "timeout", "wait", "index"}


def wait_of(path, query):
    """(key, index, seconds) that a read waits for, as they stand in a request that no view has seen; None if a view should look at it."""
    try:
        key = path.removeprefix("/db/").encode("latin-1").decode()
        asked = parse_qs(query, keep_blank_values=True, strict_parsing=True, errors="strict")
        if key != path and key and asked.keys() <= _OF_A_READ and all(len(texts) == 1 for texts in asked.values()):
            said = {name: _PARSERS[name](*texts) for name, texts in asked.items()}
            return key, said.get("index", 0), said["wait"]
    except (ValueError, KeyError, BadRequest):
        pass  # it will be refused
    return None


def wants_redirect():
    """Whether the request asks to be sent on to the leader."""
    return "redirect" in request.args and _PARSERS["redirect"](request.args["redirect"])


# Of the header fields of a write, which are anything with ``get``


def conditions(fields):
    """What If-Match and If-None-Match ask for."""
    return Conditions(_entity_tags(fields, "If-Match", weak_too=False), _entity_tags(fields, "If-None-Match", weak_too=True))


def _entity_tags(fields, header, weak_too):
    """None, ``"*"``, or the log indexes named; a tag that cannot be one of ours matches nothing.

    A proxy that compresses makes tags weak: such a one still says which version the client has, but not that it has its bytes
    (RFC 9110, sections 13.1.1 and 13.1.2).
    """
    text = fields.get(header)
    if text is None or text.strip() == "*":
        return text and "*"
    if not _ENTITY_TAGS.fullmatch(text):
        raise BadRequest(f'{header} is * or entity tags such as "42", with the quotes')
    tags = _ENTITY_TAG.findall(text)
    if len(tags) > MAX_ENTITY_TAGS:
        raise BadRequest(f"{header} has more than {MAX_ENTITY_TAGS} entity tags")
    return tuple(int(tag) for weak, tag in tags if (weak_too or not weak) and _OUR_TAG.fullmatch(tag))


def no_conditions(fields):
    """For a request that cannot have any."""
    for header in ("If-Match", "If-None-Match"):
        if fields.get(header) is not None:
            raise BadRequest(f"{header} is for a single key")


def idempotency_key(fields):
    """The key under which this request may be sent again; "" if it has none."""
    key = fields.get("Idempotency-Key")
    if key is None:
        return ""
    key = key.strip(" \t")  # of HTTP; more of what Python takes for a space may be a part of a letter in UTF-8
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY:
        raise BadRequest(f"Idempotency-Key is 1 to {MAX_IDEMPOTENCY_KEY} characters")
    return key


_FENCE = re.compile(r"([\x21-\x7e]+)=([1-9][0-9]{0,17})")


def fence(fields):
    """What X-Raft-Fence asks for, or None."""
    text = fields.get("X-Raft-Fence")
    if text is None:
        return None
    match = _FENCE.fullmatch(text)
    if not match or _BAD_ESCAPE.search(match[1]):
        raise BadRequest("X-Raft-Fence is KEY=TOKEN, the key percent-encoded as in a path")
    try:
        return Fence(checked_key(unquote_to_bytes(match[1]).decode()), int(match[2]))
    except UnicodeDecodeError:
        raise BadRequest("the key in X-Raft-Fence must be UTF-8") from None


def shown(text):
    """*text* for an error: one line, of bounded length."""
    return repr(text if len(text) <= 60 else text[:60] + "...")
