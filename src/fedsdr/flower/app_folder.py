"""The Flower app as a folder: a pyproject.toml alone, since its code is the installed package."""

from pathlib import Path

import tomli_w

from fedsdr.files import write_atomically
from fedsdr.flower.run_config import OWN_KEYS, RunConfig

HEAD = "# Made by `python docs/make_reference.py`; docs/reference.md says what each key means.\n"


def write_app(folder: Path, values: RunConfig) -> None:
    """Write an app whose run configuration is `values`; Flower lets a run override these alone."""
    app = {
        "publisher": "fedsdr",
        "components": {
            "serverapp": "fedsdr.flower.server_app:app",
            "clientapp": "fedsdr.flower.client_app:app",
        },
        "config": _nested(OWN_KEYS | values),
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


def _nested(values: RunConfig) -> dict[str, object]:
    table: dict[str, object] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        inner = table.setdefault(section, {}) if section else table
        assert isinstance(inner, dict)
        inner[name] = value
    return table
