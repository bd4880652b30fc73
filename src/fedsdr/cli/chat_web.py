"""fedsdr chat --web: the same chat in a browser on this machine.

Other programs and web pages cannot use it: the server listens on loopback alone, the address holds
a random token, and a request must name this host and come from this page (against DNS rebinding
and cross-site requests).
"""

import contextlib
import hmac
import json
import secrets
import sys
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# question, name of its conversation -> (model, answer), one by one
Ask = Callable[[str, str], Iterable[tuple[str, str]]]
MOST_BYTES = 100_000  # of a question
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
HEADERS = {
    "Content-Security-Policy": POLICY + "connect-src 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def serve_chat(title: str, ask: Ask) -> None:
    """Serve the chat until Ctrl-C; print its address."""
    with ChatServer(title, ask) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"{server.address}\nopen it in a browser on this machine; Ctrl-C ends the chat")
        sys.stdout.flush()
        server.serve_forever()


class ChatServer(ThreadingHTTPServer):
    """The server, bound to loopback; `address` is that of its page, which holds a random token.

    GET /TOKEN is the page. POST /TOKEN takes {"question": text, "conversation": name} and answers
    with a JSON line {"model": name, "answer": text} as soon as each model is done. Questions of one
    conversation are its turns; without a name a question is asked on its own.
    """

    daemon_threads = True

    def __init__(self, title: str, ask: Ask) -> None:
        from fedsdr.report.page import read, render

        super().__init__(("127.0.0.1", 0), Handler)  # a free port
        self.ask, self.one_at_a_time = ask, threading.Lock()
        self.page = render("chat.html", {"title": title, "style": read("page.css")}).encode()
        self.token = secrets.token_urlsafe(24)
        self.address = f"http://127.0.0.1:{self.server_port}/{self.token}"


class Handler(BaseHTTPRequestHandler):
    """One request of the page."""

    server: ChatServer

    def do_GET(self) -> None:
        if self._is_ours():
            self._begin(HTTPStatus.OK, "text/html; charset=utf-8")
            self.wfile.write(self.server.page)

    def do_POST(self) -> None:
        if self._is_ours() and (asked := self._question()):
            self._begin(HTTPStatus.OK, "application/x-ndjson")
            with self.server.one_at_a_time:
                for model, answer in self.server.ask(*asked):
                    line = json.dumps({"model": model, "answer": answer})
                    self.wfile.write(line.encode() + b"\n")
                    self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Print nothing: the address of a request holds the token."""

    def _is_ours(self) -> bool:
        """Whether host, origin and token are those of the page; refuses the request if not."""
        port = self.server.server_port
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        known = self.headers.get("Host") in hosts
        same = origin is None or origin.removeprefix("http://") in hosts
        given = self.path.removeprefix("/").encode("utf-8", "replace")
        ours = known and same and hmac.compare_digest(given, self.server.token.encode())
        if not ours:
            self.send_error(HTTPStatus.FORBIDDEN)
        return ours

    def _question(self) -> tuple[str, str] | None:
        """Return the question of a POST and its conversation; None after a refusal."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() == "application/json" and length.isdecimal():
            if int(length) > MOST_BYTES:
                self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                return None
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                sent = json.loads(self.rfile.read(int(length)))
                if question := sent["question"].strip():
                    return question, str(sent.get("conversation") or secrets.token_hex(8))
        self.send_error(HTTPStatus.BAD_REQUEST)
        return None

    def _begin(self, status: HTTPStatus, kind: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
