"""Hugging Face Hub data sets by name: `hub:ORG/NAME[:config][@split]`, split `train` if none."""

import re
from collections.abc import Iterator
from typing import Any

from fedsdr.data.readers import arrow_rows
from fedsdr.errors import UserError

_NAME = re.compile(
    r"hub:(?P<org>[\w.-]+)/(?P<name>[\w.-]+)(:(?P<config>[^:@]+))?(@(?P<split>[^:@]\S*))?"
)


def hub_name(spec: str) -> str:
    """Return NAME of `hub:ORG/NAME[:config][@split]`; UserError if `spec` is not of that form."""
    return _parts(spec)["name"]


def read_hub_rows(spec: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number, from 1, and the columns of each row of one split.

    UserError when the package `datasets` is missing, and when the Hub cannot be reached or does
    not have that data set, configuration or split.
    """
    parts = _parts(spec)
    try:
        import datasets
    except ImportError:
        raise UserError(f"{spec}: needs datasets: pip install 'fedsdr[hub]'") from None
    try:
        loaded = datasets.load_dataset(
            f"{parts['org']}/{parts['name']}", parts["config"], split=parts["split"] or "train"
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{spec}: cannot be loaded: {reason}") from error
    number = 0
    for table in loaded.with_format("arrow").iter(batch_size=1000):
        for row in arrow_rows(table, spec):
            number += 1
            yield number, row


def _parts(spec: str) -> dict[str, Any]:
    match = _NAME.fullmatch(spec)
    if not match:
        raise UserError(f"'{spec}': expected hub:ORG/NAME[:config][@split]")
    return match.groupdict()
