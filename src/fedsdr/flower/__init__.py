"""Flower carries the same round over machines: records.py, client_app.py, server_app.py."""

from fedsdr.errors import UserError
from fedsdr.extras import is_installed


def check_installed() -> None:
    """UserError when Flower is not there."""
    if not is_installed("flwr"):
        raise UserError(
            "engine.name: 'flower' needs the package flwr, which is not installed: "
            "pip install -e '.[flower]'"
        )
