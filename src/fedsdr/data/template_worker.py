"""Render one chat template, in a process of its own that is bounded in time and memory.

`bounded_template.py` runs this file as a script. It reads JSON objects, one a line: first the
template's source, its bounds and what every rendering is given, then the values of each rendering.
To each of those it answers {"text": ...} or {"error": ...}; over a bound it ends.

The environment is that of transformers' `apply_chat_template` (5.x), without its import of over a
second.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Long texts get more: a second for as many bytes, and memory for as many copies.
BYTES_A_SECOND, COPIES = 1 << 20, 32


class Generation(Extension):
    """Renders what stands in {% generation %} ... {% endgeneration %}, which marks answers."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class PublicNamespace(Namespace):
    """jinja2's namespace() without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def refuse(message: str) -> None:
    raise TemplateError(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    env.filters["tojson"] = to_json
    env.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "namespace": PublicNamespace,
    }
    return env


def _limit_memory(size: int) -> None:
    """Bound the memory of this process, where the system can: Windows has no such limit and macOS
    refuses it, so there a rendering is bounded in time alone."""
    with contextlib.suppress(ImportError, ValueError):
        _set_limit(size)


def _set_limit(size: int) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def serve() -> None:
    """Answer until standard input ends. faulthandler's thread, which Python code cannot delay, ends
    the process when a rendering takes too long."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    given = json.loads(sys.stdin.buffer.readline())
    template: jinja2.Template | None = None
    nowhere = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    for line in sys.stdin.buffer:
        seconds = given["seconds"] + len(line) // BYTES_A_SECOND
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        _limit_memory(given["memory"] + COPIES * len(line))
        try:
            template = template or environment().from_string(given["source"])
            answer = {"text": template.render(**given["values"], **json.loads(line))}
        except MemoryError:
            return
        except Exception as error:  # a template is a program by the model's author
            answer = {"error": str(error) or type(error).__name__}
        text = json.dumps(answer, ensure_ascii=False)
        sys.stdout.buffer.write(text.encode("utf-8", "surrogatepass") + b"\n")
        sys.stdout.buffer.flush()
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    serve()
