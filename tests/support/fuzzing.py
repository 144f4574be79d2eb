"""What no well-behaved client sends: random messages, damaged bytes, broken HTTP/2 and HTTP/1. All of it from a seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_F = FieldDescriptor
_INTEGERS = (0, 1, -1, 2, 7, 100, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1.5, -1e308, 5e-324, float("inf"), float("-inf"), float("nan"))
_UNSIGNED = (_F.TYPE_UINT32, _F.TYPE_UINT64, _F.TYPE_FIXED32, _F.TYPE_FIXED64)
_NARROW = (_F.TYPE_INT32, _F.TYPE_SINT32, _F.TYPE_SFIXED32, _F.TYPE_UINT32, _F.TYPE_FIXED32, _F.TYPE_ENUM)


class Messages:
    """Random messages that parse, near enough to sensible ones that they get past the first check.

    Args:
        generator: Where chance comes from.
        words: Texts that mean something to the daemon.

    Attributes:
        sensible: By field name, what a client would write there. Most fields are given that.
    """

    def __init__(self, generator: random.Random, words: Sequence[str]) -> None:
        self._generator = generator
        self._words = words
        self.sensible: dict[str, Sequence[Any]] = {}

    def message(self, descriptor: Descriptor, depth: int = 4) -> Message:
        """Returns a message of a type."""
        made = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._generator.random() < 0.7:
                self._fill(made, field, depth)
        return made

    def _fill(self, made: Message, field: FieldDescriptor, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return
        if field.message_type is not None:
            if depth == 0:
                return
            if field.is_repeated:
                for _ in range(self._generator.choice((0, 1, 1, 2, 5))):
                    getattr(made, field.name).append(self.message(field.message_type, depth - 1))
            else:
                getattr(made, field.name).CopyFrom(self.message(field.message_type, depth - 1))
        elif field.is_repeated:
            count = self._generator.choice((0, 1, 1, 2, 5))
            getattr(made, field.name).extend(self._scalar(field) for _ in range(count))
        else:
            setattr(made, field.name, self._scalar(field))

    def _scalar(self, field: FieldDescriptor) -> object:
        generator = self._generator
        if field.name in self.sensible and generator.random() < 0.7:
            return generator.choice(self.sensible[field.name])
        if field.cpp_type == _F.CPPTYPE_STRING:
            return generator.randbytes(generator.randrange(20)) if field.type == _F.TYPE_BYTES else self._text()
        if field.cpp_type == _F.CPPTYPE_BOOL:
            return generator.random() < 0.5
        if field.cpp_type in (_F.CPPTYPE_DOUBLE, _F.CPPTYPE_FLOAT):
            return generator.choice(_FLOATS) if generator.random() < 0.5 else generator.uniform(-10, 10)
        value = generator.choice(_INTEGERS) if generator.random() < 0.7 else generator.randrange(200)
        if field.type in _UNSIGNED:
            value = abs(value)
        if field.type in _NARROW:
            value = max(-(2**31), min(value, 2**31 - 1))
        return value

    def _text(self) -> str:
        generator = self._generator
        kind = generator.random()
        if kind < 0.7:
            return generator.choice(self._words)
        if kind < 0.9:
            return "".join(chr(generator.choice((0, 10, 47, 65, 233, 0x1F600))) for _ in range(generator.randrange(12)))
        return generator.choice("ax/.") * generator.choice((64, 201, 5_000, 70_000))


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Returns bytes that are damaged in one of several ways, sometimes not at all."""
    changed = bytearray(data)
    kind = generator.randrange(11) - 4
    if kind <= 0 or not data:
        return data
    if kind == 1:
        for _ in range(generator.randint(1, 4)):
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    elif kind == 2:
        del changed[generator.randrange(len(changed)) :]
    elif kind == 3:
        position = generator.randrange(len(changed) + 1)
        changed[position:position] = generator.randbytes(generator.randint(1, 20))
    elif kind == 4:
        position = generator.randrange(len(changed))
        changed[position : position + 4] = generator.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\x80\x80\x80"))
    elif kind == 5:
        changed.extend(bytes(changed))
    else:
        return generator.randbytes(generator.randrange(200))
    return bytes(changed)


# -- HTTP/2 (RFC 9113), as much of it as a gRPC call needs --

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns an HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _field(name: bytes, value: bytes) -> bytes:
    # A literal without indexing and without Huffman coding (RFC 7541, 6.2.2): what is sent is what is written here.
    return b"\0" + bytes([len(name)]) + name + bytes([min(len(value), 126)]) + value[:126]


def plain_call(method: str, body: bytes) -> bytes:
    """Returns what a client sends for one gRPC call after the preface. The method may hold any bytes, as Latin-1."""
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode("latin-1")),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    return b"".join(
        (
            frame(_SETTINGS, 0, 0, b""),
            frame(_HEADERS, _END_HEADERS, 1, b"".join(_field(*header) for header in headers)),
            frame(_DATA, _END_STREAM, 1, struct.pack(">BI", 0, len(body)) + body),
        )
    )


def call(method: str, body: bytes, generator: random.Random) -> bytes:
    """Returns what a client sends for one gRPC call, with some of it wrong."""
    headers = [
        (b":method", generator.choice((b"POST", b"POST", b"POST", b"GET", b"\xff"))),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", generator.choice((b"localhost", b"", b"\0"))),
        (b"content-type", generator.choice((b"application/grpc",) * 4 + (b"text/html", b"application/grpc+json"))),
        (b"te", generator.choice((b"trailers", b"gzip"))),
        (b"grpc-timeout", generator.choice((b"1S", b"99999999H", b"-1S", b"x"))),
        (b"grpc-encoding", generator.choice((b"identity", b"gzip", b"nonsense"))),
        (b"livetune-actor", generator.choice((b"ann", b"\x01", b"a" * 126))),
    ]
    if generator.random() < 0.2:
        headers.pop(generator.randrange(len(headers)))
    length = len(body) if generator.random() < 0.7 else generator.choice((0, 1, 2**31, 2**32 - 1))
    prefixed = struct.pack(">BI", generator.choice((0, 0, 0, 1, 255)), length) + body
    stream = generator.choice((1, 1, 1, 3, 2, 0, 2**31 - 1))
    block = b"".join(_field(*header) for header in headers)
    frames = [
        frame(_SETTINGS, 0, 0, b""),
        frame(_HEADERS, _END_HEADERS, stream, block),
        frame(_DATA, _END_STREAM, stream, prefixed),
    ]
    if generator.random() < 0.3:
        unknown = frame(generator.randrange(256), generator.randrange(256), stream, generator.randbytes(20))
        frames.insert(generator.randrange(len(frames) + 1), unknown)
    return b"".join(frames)


def http_request(generator: random.Random) -> bytes:
    """Returns something like an HTTP/1 request."""
    method = generator.choice((b"GET", b"POST", b"HEAD", b"TRACE", b"\x16\x03\x01", b"G" * 20_000))
    path = generator.choice((b"/metrics", b"/healthz", b"/", b"*", b"/../etc/passwd", b"/%00", b"/" + b"a" * 9_000))
    version = generator.choice((b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b""))
    headers = [generator.choice((b"Host: localhost", b"Host: example.org", b"Host: [::1]:80", b"Host:"))]
    headers += [
        generator.choice(
            (
                b"Content-Length: 5",
                b"Content-Length: -1",
                b"Transfer-Encoding: chunked",
                b"X: \0",
                b"no colon",
                b"\xff: \xfe",
            )
        )
        for _ in range(generator.randrange(4))
    ]
    return b"\r\n".join(
        [b" ".join((method, path, version)), *headers, b"", generator.randbytes(generator.randrange(30))]
    )
