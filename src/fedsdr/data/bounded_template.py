"""A chat template that cannot take the program's time and memory: see `template_worker.py`."""

import contextlib
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("template_worker.py")


class TemplateBoundError(Exception):
    """A rendering took too much time or memory."""


class BoundedTemplate:
    """A chat template that is rendered in a process of its own, which ends with this object.

    The process is started by the first rendering, and again after one that exceeded a bound.
    """

    def __init__(
        self, source: str, values: Mapping[str, Any], *, seconds: int = 10, memory: int = 1 << 30
    ):
        """`values` are given to every rendering; it may take this many seconds and bytes, and more
        for long texts."""
        head = {"source": source, "values": values, "seconds": seconds, "memory": memory}
        self._head = _line(head)
        self._bounds = f"{seconds} seconds or {memory >> 20:,} MiB of memory"
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, **values: Any) -> str:
        """Return the text. ValueError with the reason when the template refuses;
        TemplateBoundError over a bound."""
        line = _line(values)
        with self._lock:
            answer = self._answer_to(line)
        if not answer.endswith(b"\n"):
            raise TemplateBoundError(f"it takes over {self._bounds}")
        found: dict[str, str] = json.loads(answer)
        if "error" in found:
            raise ValueError(found["error"])
        return found["text"]

    def _answer_to(self, line: bytes) -> bytes:
        """Return the worker's line, which is incomplete when it ended."""
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        answer = b""
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            pass
        finally:  # also after Ctrl-C, so that the next rendering does not read this answer
            if not answer.endswith(b"\n"):
                _end(process)
                self._process = None
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the folder of the script, whose files have common names, is not searched for modules.
        process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        weakref.finalize(self, _end, process)
        self._process = process
        assert process.stdin
        process.stdin.write(self._head)
        return process


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the worker and wait for it."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(BrokenPipeError):  # of what the worker did not read
                pipe.close()
