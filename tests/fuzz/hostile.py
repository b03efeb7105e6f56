"""Bodies that are no data: each must be refused with a 4xx, whatever endpoint they reach."""

from __future__ import annotations

from collections.abc import Iterator


def hostile_bodies(max_body_bytes: int) -> Iterator[tuple[str, bytes]]:
    """(name, body) of JSON that is none, is too deep, too large, or holds what JSON has no word for."""
    yield "empty", b""
    yield "a NUL", b"\x00"
    yield "no UTF-8", b'{"a": "\xff\xfe"}'
    yield "UTF-16", '{"a": 1}'.encode("utf-16")
    yield "a byte order mark", b"\xef\xbb\xbf{}"
    yield "cut off", b'{"a": [1, 2'
    yield "two documents", b"{} {}"
    yield "a number", b"1"
    yield "null", b"null"
    yield "NaN", b"NaN"
    yield "NaN in it", b'{"lifetime_s": NaN, "max_leases": NaN, "attempt": NaN, "name": NaN}'
    yield "infinity", b'{"lifetime_s": Infinity, "wait_s": -Infinity, "attempt": Infinity}'
    yield "a number beyond any", b'{"lifetime_s": 1e999, "attempt": 1e999, "wait_s": 1e999}'
    yield "digits without end", b'{"attempt": ' + b"9" * 5000 + b', "max_leases": ' + b"9" * 5000 + b"}"
    yield "a large integer", b'{"attempt": 99999999999999999999999, "max_uses": 99999999999999999999999}'
    yield "deep lists", b"[" * 100_000 + b"]" * 100_000
    yield "deep objects", b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    yield "deep in a field", b'{"name": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    yield "a key twice", b'{"attempt": 1, "attempt": 2, "name": "a", "name": "b"}'
    yield "a NUL in a text", b'{"name": "a\\u0000b", "code": "\\u0000", "device_id": "\\u0000"}'
    yield "half a surrogate pair", b'{"name": "\\ud800", "code": "\\udfff"}'
    yield "a million keys", b"{" + b",".join(b'"%d":0' % i for i in range(60_000)) + b"}"
    yield "too large", b'{"name": "' + b"a" * max_body_bytes + b'"}'
    yield "a pickle", b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93."
