"""Checks of a site before it joins: disk, connection, data and model."""

import contextlib
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

from fedsdr.config import Config
from fedsdr.data.chat_templates import render_for
from fedsdr.data.clients import load_one_client
from fedsdr.errors import UserError
from fedsdr.files import disk_errors_named
from fedsdr.models.base_model import load_shape, load_tokenizer
from fedsdr.models.model_limits import limits_of
from fedsdr.runs.client_runtime import check_rows

CONNECT_SECONDS = 10.0
Check = tuple[str, Callable[[], str]]  # what is checked; its result, or a UserError


def site_checks(
    config: Config, client: str, data: str, state_dir: Path, superlink: str, ca: Path | None
) -> Iterator[Check]:
    """Yield the checks of one site, the fastest first. Nothing is sent but a TLS handshake."""
    yield "disk", lambda: _disk(state_dir)
    yield "connection", lambda: _connection(superlink, ca)
    yield "data", lambda: _data(config, client, data)
    yield "model", lambda: _model(config)


def _disk(folder: Path) -> str:
    with disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".fedsdr-check"
        probe.write_bytes(b"x")
        probe.unlink()
    return f"{folder} is writable, {shutil.disk_usage(folder).free / 2**30:.1f} GiB free"


def _connection(address: str, ca: Path | None) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--superlink: '{address}' is not HOST:PORT")
    try:
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(
                socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS)
            )
            if ca is None:
                return f"{address} answers; not encrypted (see --root-certificates)"
            context = ssl.create_default_context(cafile=str(ca))
            secure = stack.enter_context(context.wrap_socket(plain, server_hostname=host))
            return f"{address} answers with a certificate of {ca.name}, {secure.version()}"
    except FileNotFoundError:
        raise UserError(f"--root-certificates: no such file: {ca}") from None
    except OSError as error:  # including ssl.SSLError
        raise UserError(f"--superlink: {address} cannot be reached: {error}") from None


def _data(config: Config, name: str, path: str) -> str:
    client = load_one_client(config.data, path, name)
    tokenizer = load_tokenizer(config.model)
    renderer = render_for(tokenizer, config.model.template)
    rows = [renderer.encode(example, config.data.max_length) for example in client.raw]
    check_rows(limits_of(load_shape(config.model), tokenizer), name, "training", rows)
    cut = sum(row.cut > 0 for row in rows)
    return f"{len(rows)} training rows ({cut} truncated), {len(client.test)} test rows"


def _model(config: Config) -> str:
    size = sum(p.numel() for p in load_shape(config.model).parameters())
    return f"{config.model.name}, {size / 1e6:.0f} million parameters"
