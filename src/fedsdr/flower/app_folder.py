"""The Flower app as a folder: only a pyproject.toml, since its code is the installed package."""

from pathlib import Path

import tomli_w

from fedsdr.files import write_atomically
from fedsdr.flower.run_config import OWN_KEYS, RunConfig, nested

HEAD = "# Made by `python docs/make_reference.py`; docs/reference.md explains every key.\n"


def write_app(folder: Path, values: RunConfig) -> None:
    """Write an app with this run configuration. Flower lets a run override only the keys in it."""
    app = {
        "publisher": "fedsdr",
        "components": {
            "serverapp": "fedsdr.flower.server_app:app",
            "clientapp": "fedsdr.flower.client_app:app",
        },
        "config": nested(OWN_KEYS | values),
    }
    project = {
        "name": "fedsdr-app",
        "version": "0.1.0",
        "description": "FedSDR over Flower",
        "license": "Apache-2.0",
        "dependencies": ["fedsdr[flower]"],
    }
    tables = {"project": project, "tool": {"flwr": {"app": app}}}
    write_atomically(folder / "pyproject.toml", HEAD + tomli_w.dumps(tables))
