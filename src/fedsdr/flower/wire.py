"""Conversion between the values of types.py and Flower records.

    task     ConfigRecord "task", "settings"      ArrayRecord "shared", "control"
    update   ConfigRecord "update"                ArrayRecord "delta", "control-delta"
             MetricRecord "metrics"
    fault    ConfigRecord "fault"
    report   ConfigRecord "report": the reply to joining and to rewriting

Tensors are sent as safetensors bytes, so fp32, bf16 and int8 arrive bit for bit. Parsing is strict:
an unexpected record, key or type is a ValueError, so that nothing else can be sent along.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, cast, get_origin

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedsdr.tensors import Tensors
from fedsdr.types import ClientFault, ClientTask, ClientUpdate, LocalSettings

_FORMAT = "safetensors"


@dataclass(frozen=True)
class JoinReport:
    """A node's client and its number of training rows (0: not reported, under local privacy)."""

    client: str
    rows: int


@dataclass(frozen=True)
class RewriteReport:
    """The number of training answers and of those rewritten (0: not reported)."""

    answers: int
    rewritten: int


Report = TypeVar("Report", JoinReport, RewriteReport)


def tasks_to_records(tasks: Sequence[ClientTask]) -> list[RecordDict]:
    """Return the records of each task.

    Tensors that several tasks share are serialised once, and their messages share the record.
    """
    arrays: dict[int, ArrayRecord] = {}  # id of the tensors -> record

    def record_of(tensors: Tensors) -> ArrayRecord:
        if id(tensors) not in arrays:
            arrays[id(tensors)] = _arrays(tensors)
        return arrays[id(tensors)]

    return [
        RecordDict(
            {
                "task": _scalars_of(task),
                "settings": _scalars_of(task.settings),
                "shared": record_of(task.shared),
                "control": record_of(task.control),
            }
        )
        for task in tasks
    ]


def task_from_records(records: RecordDict) -> ClientTask:
    """Return the task of a message. ValueError if the message is not exactly a task."""
    _check_names(records, {"task", "settings", "shared", "control"})
    return ClientTask(
        **_scalars(records, "task", ClientTask),
        settings=LocalSettings(**_scalars(records, "settings", LocalSettings)),
        shared=_tensors(records, "shared"),
        control=_tensors(records, "control"),
    )


def answer_to_records(answer: ClientUpdate | ClientFault) -> RecordDict:
    """Return the records of an update or a fault."""
    if isinstance(answer, ClientFault):
        return RecordDict({"fault": _scalars_of(answer)})
    return RecordDict(
        {
            "update": _scalars_of(answer),
            "metrics": MetricRecord(dict(answer.metrics)),
            "delta": _arrays(answer.delta),
            "control-delta": _arrays(answer.control_delta),
        }
    )


def answer_from_records(records: RecordDict) -> ClientUpdate | ClientFault:
    """Return the update or fault of a message. ValueError if the message is neither."""
    if "fault" in records:
        _check_names(records, {"fault"})
        return ClientFault(**_scalars(records, "fault", ClientFault))
    _check_names(records, {"update", "metrics", "delta", "control-delta"})
    metrics = records["metrics"]
    if not isinstance(metrics, MetricRecord):
        raise ValueError("'metrics' must be a MetricRecord")
    return ClientUpdate(
        **_scalars(records, "update", ClientUpdate),
        delta=_tensors(records, "delta"),
        control_delta=_tensors(records, "control-delta"),
        metrics=cast(Mapping[str, float], dict(metrics)),  # the round checks names and values
    )


def report_to_records(report: JoinReport | RewriteReport | ClientFault) -> RecordDict:
    """Return the records of a node's reply to a message that is not a task."""
    name = "fault" if isinstance(report, ClientFault) else "report"
    return RecordDict({name: _scalars_of(report)})


def report_from_records(records: RecordDict, kind: type[Report]) -> Report | ClientFault:
    """Return the report or fault of a message. ValueError if the message is neither."""
    if "fault" in records:
        _check_names(records, {"fault"})
        return ClientFault(**_scalars(records, "fault", ClientFault))
    _check_names(records, {"report"})
    return kind(**_scalars(records, "report", kind))


def _scalar_fields(kind: type) -> dict[str, type]:
    """Return name -> type of the fields of a dataclass that are scalars."""
    types = {f.name: str if get_origin(f.type) is Literal else f.type for f in fields(kind)}
    scalars: tuple[type, ...] = (int, float, bool, str)
    return {name: kind for name, kind in types.items() if kind in scalars}


def _scalars_of(value: Any) -> ConfigRecord:
    return ConfigRecord({name: getattr(value, name) for name in _scalar_fields(type(value))})


def _scalars(records: RecordDict, name: str, kind: type) -> dict[str, Any]:
    record, types = records[name], _scalar_fields(kind)
    if not isinstance(record, ConfigRecord) or record.keys() != types.keys():
        raise ValueError(f"'{name}' must have exactly {', '.join(types)}")
    for key, wanted in types.items():
        if type(record[key]) is not wanted:
            raise ValueError(f"'{name}.{key}' must be of type {wanted.__name__}")
    return dict(record)


def _arrays(tensors: Tensors) -> ArrayRecord:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = save(contiguous)
    return ArrayRecord({_FORMAT: Array("uint8", (len(data),), _FORMAT, data)})


def _tensors(records: RecordDict, name: str) -> Tensors:
    record = records[name]
    if not isinstance(record, ArrayRecord) or set(record) != {_FORMAT}:
        raise ValueError(f"'{name}' must be an ArrayRecord with one {_FORMAT} array")
    try:
        return load(record[_FORMAT].data)
    except SafetensorError as error:
        raise ValueError(f"'{name}' cannot be read: {error}") from None


def _check_names(records: RecordDict, wanted: set[str]) -> None:
    for problem, names in (
        ("missing", wanted - set(records)),
        ("unexpected", set(records) - wanted),
    ):
        if names:
            raise ValueError(f"{problem} record: {', '.join(sorted(names))}")
