"""Makes up what a client may say on a connection: requests that are nearly right, and bytes that are not.

A conversation is a list of pieces, which are sent one after the other; and whether the client then closes (``"close"``), says that it has
no more to say (``"end"``), or just waits (``"wait"``).
"""

import json
from typing import NamedTuple
from urllib.parse import quote

from fuzzing import number, rarely, some, spoiled
from raftd import wire

KEYS = ("a", "b", "dir/c", "x.y~z_-", "%C3%A9", "%00", "%ff", "%c0%af", "a%2Fb", "a%2fb", "..", "%2e%2e", "../../etc", "a//b", "/a", "a b",
        "a%20b", "%", "%zz", "%E2%98%83", "a%0d%0aX: y", "#", "a#b", "a?b", "%25", "x" * 4096, "x" * 4097, "%41" * 4096, "é", "")
METHODS = ("GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "POst", "FOO", "PRI", "")
HOSTS = ("localhost:4001", "é", "a b", "[::1]", "[::1", "x" * 1000, "localhost:99999", "h:x", "")
VERSIONS = ("HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "http/1.1", "HTTP/1.1 ", "")
USUAL = {"GET": ("level=stale", "level=linearizable", "min_index=1", "timeout=5s"), "POST": ("timeout=5s", "redirect"),
         "DELETE": ("redirect=1",)}
PATHS = ("/", "*", "/db", "/db/", "/dbx", "//db/a", "/DB/a", "/status", "/members", "/leader", "/livez", "/readyz", "/join", "/raft/",
         "/raft/identity", "/raft/append", "/metrics", "/members/n1", "/members/", "/members/a/b", "/members/%2e", "/db/../status",
         "/%64b/a", "http://h/db/a", "http://h:99999/db/a", "http://[::1/db/a", "ftp://x@y/db/a", "db/a", "?", "/db/a;b", "/status/",
         "/livez?x=1", "/txn", "/txn/", "/watch", "/watch/")
PARAMETERS = ("level", "min_index", "timeout", "redirect", "prefix", "after", "limit", "keys_only", "all", "ttl", "touch", "wait",
              "index", "since", "LEVEL", "level ", "", "x", "min_index[]", "%6Cevel", "é", "\u0665")
VALUES = ("linearizable", "stale", "stael", "", "1", "0", "true", "false", "yes", "5s", "500ms", "2m", "61s", "0s", "-1s", "1e3s", "1.5s",
          "1_0s", "5", "s", "٣", "²", "１s", "18446744073709551616", "999999999999999999", "1000000000000000000", "-1", "+1", " 1", "1 ",
          "0x10", "NaN", "inf", "9" * 5000, "%00", "%ff", "%F0%9F%98%80", "%", "a%26b", "a;b", "'\"><")
TAGS = ('"1"', '"41"', 'W/"41"', "*", '"0"', '"00"', '"-1"', '"99999999999999999999"', '""', '"a"', "1", '"1', '"1","2"', '"1" , W/"2",,',
        ",", "", '"é"', "*, \"1\"", *(", ".join(f'"{number}"' for number in range(count)) for count in (100, 101)))
ACCEPTS = ("*/*", "application/json", "application/problem+json;q=0.5", "text/plain, application/json;q=0.9", "application/json;q=NaN",
           "application/json;q=1e999", "application/json;q=-1", ";q=1", "a/b/c", "application/json; q=\"1", ",,,", "/", "é/é", "")
LENGTHS = ("0", "1", "3", "5", "1000", "1048576", "1048577", "2097153", "4294967296", "18446744073709551616", "9" * 5000, "-1", "+3", "3 ",
           "3, 3", "3,5", "0x3", "3.0", "", "٣", "³", "abc", "00000000000000000003")
CODINGS = ("chunked", "Chunked", " chunked", "chunked ", "gzip", "identity", "gzip, chunked", "chunked, gzip", "chunked, chunked", "", ",",
           "chunked,", "x" * 300, "\x0bchunked", "chunked\x00")
CONNECTIONS = ("close", "keep-alive", "Upgrade", "close, keep-alive", "TE", "", "Keep-Alive, Upgrade", "x" * 1000)
UPGRADES = (wire.PROTOCOL, "raftd/0", "raftd/999", "websocket", "h2c", "TLS/1.0", "")
WHOLE = (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
         b"\0" * 100, b"\r\n" * 100, b"\n\n\n", b" ", b"GET\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/0.9\r\n\r\n",
         b"GET / HTTP/9.9\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\n\n", b"GET / HTTP/1.1\r\r\n\r\n",
         b"HTTP/1.1 200 OK\r\n\r\n", b"\x80\x2e\x01\x00\x02", b"SSH-2.0-x\r\n", b"\x04\x01\x00P\x7f\0\0\1\0")
TOKENS = (b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b",", b"%", b"%00", b"/", b"..", b"?", b"#", b"&", b"=", b";", b'"', b"\xff",
          b"\xc3\xa9", b"\r\n\r\n", b" HTTP/1.1\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
          b"Expect: 100-continue\r\n", b"0\r\n\r\n", b"-1", b"18446744073709551616", b"://", b"chunked", b"Host: ")
EXTENSIONS = (b";a", b";a=b", b';a="b\\"c"', b";", b";a=" + b"x" * 5000)
LAST_CHUNKS = (b"0\r\nTrailer: x\r\n\r\n", b"0\r\n", b"-1\r\n", b"zz\r\n", b"ffffffffffffffff\r\n", b"0x0\r\n\r\n", b"1\r\nab\r\n0\r\n\r\n",
               b"0\r\n" + b"T: x\r\n" * 2000 + b"\r\n")
MAX_INPUT = 300_000  # bytes of a conversation


class Conversation(NamedTuple):
    pieces: list
    end: str

    @property
    def sent(self):
        return b"".join(self.pieces)


def conversation(rng):
    """A few requests on one connection, some of them spoiled, perhaps cut off."""
    data = b"".join(any_request(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 5))))
    if rarely(rng, 0.3):
        data = spoiled(rng, data, TOKENS)
    if rarely(rng, 0.02):
        data = rng.randbytes(rng.randint(1, 3000))
    if rarely(rng, 0.1):
        data = data[:rng.randint(0, len(data))]
    return Conversation(pieces(rng, data[:MAX_INPUT]), rng.choice(("end", "end", "wait", "close")))


def pieces(rng, data):
    """*data* in a few pieces, or in many, or as it is."""
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.choice((0, 0, 1, 2, 5, 30))))
    return [piece for piece in (data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)) if piece]


def any_request(rng):
    match rng.randrange(30):
        case 28:
            return rng.choice(WHOLE)
        case 29:
            return "\r\n".join(["GET /raft/ HTTP/1.1", field_of_an_upgrade(rng), "", ""]).encode()
    return request(rng)


def request(rng):
    """One request. Mostly one thing about it is odd: two at a time hide each other."""
    chance = rng.choice((0, 0.1, 0.1, 0.1, 0.5))

    def odd(usual, unusual):
        return rng.choice(unusual if rarely(rng, chance) else usual)

    method = odd(("GET", "HEAD", "POST", "PUT", "DELETE"), METHODS)
    target = odd((path_of_a_key, path_of_a_key, path_of_many, path_of_the_cluster), (any_target,))(rng)
    parameters = [rng.choice(USUAL[method])] if method in USUAL and rarely(rng, 0.2) else []
    if rarely(rng, chance):
        parameters = some(rng, 5, parameter)
    target += ("&" if "?" in target else "?") + rng.choice("&&&;").join(parameters) if parameters else ""
    fields = ["Host: " + odd(("localhost",), HOSTS), *(some(rng, 6, field) if rarely(rng, chance) else ())]
    body = b""
    if method in ("POST", "PUT", "PATCH") or rarely(rng, chance):
        body, framing = framed(rng, body_for(rng, target), chance)
        fields += framing
    if rarely(rng, chance):
        rng.shuffle(fields)
    head = "\r\n".join([f"{method} {target} {odd(('HTTP/1.1',) * 9 + ('HTTP/1.0',), VERSIONS)}", *fields, "", ""])
    return head.encode("utf-8", "surrogatepass") + body


def path_of_many(rng):
    return rng.choice(("/db/", "/db/?prefix=a", "/db/?prefix=a&limit=7&keys_only", "/db/?prefix=&all=true", "/txn", "/watch",
                       "/watch?since=2000", "/watch?since=3", "/db/a?wait=1s&index=5", "/db/a?touch&ttl=1s", "/db/a?ttl=24h"))


def path_of_a_key(rng):
    return "/db/" + rng.choice(("a", "b", "dir/c", "%C3%A9"))


def path_of_the_cluster(rng):
    return rng.choice(("/join", "/leader", "/members", "/members/n2", "/status", "/livez", "/readyz", "/raft/identity", "/raft/"))


def any_target(rng):
    if rarely(rng, 0.05):
        return "/db/" + rng.choice("a%/é?&=") * rng.choice((5000, 60_000, 100_000))
    return "/db/" + rng.choice(KEYS) if not rarely(rng, 0.4) else rng.choice(PATHS)


def parameter(rng):
    name, text = rng.choice(PARAMETERS), rng.choice(VALUES) if not rarely(rng, 0.2) else str(number(rng))
    text = quote(text, safe="%") if rarely(rng, 0.5) else text.replace(" ", "+")
    return rng.choice((f"{name}={text}", f"{name}={text}", f"{name}={text}", name, f"{name}=={text}"))


def field(rng):
    """A line of the head."""
    match rng.randrange(16):
        case 13:
            return "Expect: 100-continue"
        case 14:
            return "X-Raft-Fence: " + rng.choice(("a=7", "a", "a=", "=7", "a=0", "a=b=7", "%zz=7", "%ff=7", "é=7", "x" * 5000 + "=7",
                                                     "a=" + "9" * 30))
        case 15:
            return "Last-Event-ID: " + rng.choice(("7", "7.999999", "7.9", "", "x", "-1", "9" * 30, "٣"))
        case 0:
            return "Connection: " + rng.choice(CONNECTIONS)
        case 1:
            return "Expect: " + rng.choice(("100-Continue", "200-ok", "100-continue, x", ""))
        case 2 | 3:
            return rng.choice(("If-Match: ", "If-None-Match: ")) + rng.choice(TAGS)
        case 4:
            return "Accept: " + rng.choice(ACCEPTS)
        case 5:
            return "Idempotency-Key: " + rng.choice(("k", "", "x" * 256, "é", "a, b"))
        case 6:
            return "Content-Type: " + rng.choice(("application/json", "application/x-www-form-urlencoded",
                                                  "multipart/form-data; boundary=x", "text/x", "é"))
        case 7:
            return field_of_an_upgrade(rng)
        case 8:
            return "Content-Length: " + rng.choice(LENGTHS)
        case 9:
            return "Transfer-Encoding: " + rng.choice(CODINGS)
        case 10:
            return rng.choice(("X-Forwarded-For", "X_Raft_Fence", "Content_Length", "Cookie", "Range", "TE", "Trailer", "Origin",
                               "Forwarded")) + ": 5"
        case 11:
            return rng.choice(("no colon", ": no name", " folded: x", "\tfolded", "a b: c", "X :y", "X:", "X: \x00", "X: \x7f", "X: a\rb",
                               "é: é", "X:" + " " * 999))
        case 12:  # what is long, and what makes a regular expression slow
            text = rng.choice(("x", " ", ",", '"1",', "a/b,", ";q=", "\t ", "=;"))
            long = text * (rng.choice((3000, 30_000, 60_000)) // len(text))
            return rng.choice(("X: ", "Accept: ", "If-Match: ", "Cookie: ", "X:")) + long + rng.choice(("", "x"))
    return f"X-{rng.randint(0, 9)}: " + rng.choice(("x", "", "é", "a, b", "x" * 100))


def field_of_an_upgrade(rng):
    """With those in which a peer says who it is."""
    protocol = rng.choice(UPGRADES) if rarely(rng, 0.2) else wire.PROTOCOL
    right = {"Raft-Cluster": "c1", "Raft-From": "n2", "Raft-To": "n1", "Raft-To-Id": "id1", "Raft-Configuration": "3", "Raft-Lane": "small"}
    odd = ("n1", "n2", "", "x" * 300, "é", "n2\x01", "..", "data", *LENGTHS)
    said = [f"{name}: {rng.choice(odd) if rarely(rng, 0.1) else text}" for name, text in right.items() if not rarely(rng, 0.03)]
    return "\r\n".join([f"Upgrade: {protocol}", *said])


def value(rng):
    return rng.choice((b"", b"bar", b"a=1&b=2", bytes(range(256)), b"x" * 1000, b"x" * 1001, b"x" * 70_000, b"\r\n\r\n",
                       b"POST /db/b HTTP/1.1\r\n\r\n", b"0\r\n\r\n"))


def framed(rng, body, chance):
    """(*body* as it is sent, the fields that say how long it is); now and then they do not agree."""
    if rarely(rng, 0.3):
        return chunked(rng, body, chance), ["Transfer-Encoding: chunked"]
    if not rarely(rng, chance):
        return body, [f"Content-Length: {len(body)}"]
    return body, [f"Content-Length: {max(0, len(body) + rng.choice((0, -1, 1, -100, 100, 10**6)))}"] * rng.choice((0, 1, 1, 2))


def chunked(rng, body, chance):
    sent, position = b"", 0
    while position < len(body):
        size = rng.choice((1, 10, 1000, len(body)))
        chunk = body[position:position + size]
        extension = rng.choice(EXTENSIONS) if rarely(rng, chance) else b""
        sent += b"%x" % len(chunk) + extension + b"\r\n" + chunk + b"\r\n"
        position += size
    return sent + (rng.choice(LAST_CHUNKS) if rarely(rng, chance) else b"0\r\n\r\n")


def body_for(rng, target):
    if "txn" in target:
        return transaction_body(rng)
    return json_body(rng) if "join" in target or "leader" in target else value(rng)


TXN_NAMES = ("key", "index", "exists", "value", "value_base64", "set", "delete", "get", "ttl", "x")


def transaction_body(rng):
    """The body of a /txn, nearly."""
    def part():
        if rarely(rng, 0.6):
            return rng.choice(({"set": "a", "value": "1"}, {"set": "a", "value_base64": "AAE=", "ttl": "1s"}, {"delete": "a"}, {"get": "a"},
                               {"key": "a", "exists": True}, {"key": "a", "index": 7}, {"key": "a", "value": "1"}))
        members = {rng.choice(TXN_NAMES): rng.choice(JSON_VALUES) for _ in range(rng.randint(0, 3))}
        return members if not rarely(rng, 0.1) else rng.choice(JSON_VALUES)
    lists = {rng.choice(("if", "then", "else", "then", "x")): [part() for _ in range(rng.choice((0, 1, 1, 2, 129)))] for _ in range(2)}
    if rarely(rng, 0.3):
        lists = {"if": [{"key": "a", "exists": True}], "then": [{"set": "a", "value": "1"}, {"get": "a"}], "else": [{"delete": "a"}]}
    if rarely(rng, 0.1):
        return json_body(rng)
    return json.dumps(lists, ensure_ascii=rarely(rng, 0.5)).encode("utf-8", "surrogatepass")


JSON_VALUES = ("n1", "n2", "", "..", "x" * 65, "é", "a\nb", "\ud800", "http://127.0.0.1:1", "http://127.0.0.1:1/", "http://[::1]:1",
               "http://[::1", "http://h:0", "http://h:65536", "http://h:٣", "https://h:1", "http://a b:1", "http://h:1/x", "http://@h:1",
               "h:1", 1, 1.5, -1, True, False, None, [], {}, ["n1"], {"name": "n1"}, 10**400)
JSON_NAMES = ("name", "connectionString", "voter", "Name", "x", "", "\ud800", "__proto__")


def json_body(rng):
    """The body of a /join or /leader, nearly."""
    if rarely(rng, 0.1):
        return rng.choice((b"{", b"[]", b"null", b"1", b'"x"', b"\xff", b"{}{}", b"NaN", b"[" * 30_000, b'{"a":' * 30_000, b"9" * 5000,
                           b" ", b"\xef\xbb\xbf{}",
                           b'{"name":"n2","name":"n3"}', b'{"name": "n2"', '{"name":"n2"}'.encode("utf-16"), b'{"name":"\\ud800"}',
                           b"{" + b" " * 70_000 + b"}"))
    members = {rng.choice(JSON_NAMES): rng.choice(JSON_VALUES) for _ in range(rng.randint(0, 4))}
    if rarely(rng, 0.5):
        members |= {"name": "n2", "connectionString": "http://127.0.0.1:1"}
    return json.dumps(members, ensure_ascii=rarely(rng, 0.5)).encode("utf-8", "surrogatepass")
