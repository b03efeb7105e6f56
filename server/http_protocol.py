"""uvicorn's HTTP protocol with a bound on what comes before and between bodies.

The parser keeps a request line, headers and trailers until they are whole, however long they are: one client that never
ends a header would fill the memory of the process, and needs no token for it. Bodies are bounded where they are read.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Of a request line with all headers, of trailers, or of the line before a part of a body. Proxies allow 8 to 32 KiB.
MAX_HEAD_BYTES = 64 << 10

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Ends a connection that sends more than `MAX_HEAD_BYTES`, and one read, without a whole head or a body."""

    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.logger.warning("A request's head is larger than %d bytes: the connection is closed.", MAX_HEAD_BYTES)
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()
