"""An OpenAI-compatible endpoint in this process, whose replies a test defines."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

Reply = tuple[int, bytes]


def completion(text: str | None, finish_reason: str = "stop") -> Reply:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 21, "completion_tokens": 4}
    return 200, json.dumps({"choices": [choice], "usage": usage}).encode()


@contextmanager
def server(
    reply: Callable[[int, dict], Reply], location: str = "http://127.0.0.1:9/"
) -> Iterator[SimpleNamespace]:
    """An endpoint that answers its n-th call (from 0) with `reply(n, body)` and records the calls.

    A redirect leads to `location`. Replies have no Content-Type, as those of some small servers.
    """
    seen = SimpleNamespace(calls=[], headers=[], url="")
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen.calls)
                seen.calls.append((self.path, body))
                seen.headers.append(self.headers)  # keys in any case
            status, content = reply(number, body)
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if status in (301, 302, 307, 308):
                    self.send_header("Location", location)
                self.end_headers()
                self.wfile.write(content)
            except BrokenPipeError:
                pass  # the client gave up on a slow reply, as the test wants

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield seen
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
