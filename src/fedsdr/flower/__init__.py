"""The federated round over Flower: start with server_app.py and client_app.py."""

from fedsdr.errors import UserError
from fedsdr.extras import is_installed


def check_installed() -> None:
    """UserError if Flower is not installed."""
    if not is_installed("flwr"):
        raise UserError(
            "engine.name: 'flower' needs the package flwr, which is not installed: "
            "pip install 'fedsdr[flower]'"
        )
