"""What crosses Flower's wire: the values of types.py as records, and back.

    task     config "task", "settings"    arrays "shared", "control"
    update   config "update", metrics "metrics"    arrays "delta", "control-delta"
    fault    config "fault"

Tensors cross as safetensors bytes, so that fp32, bf16 and int8 arrive bit by bit. Reading is
strict: a record or key too many or of another type is a ValueError, so nothing rides along.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, cast, get_origin

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedsdr.tensors import Tensors
from fedsdr.types import ClientFault, ClientTask, ClientUpdate, LocalSettings

_FORMAT = "safetensors"


def task_to_records(task: ClientTask) -> RecordDict:
    """Return a task as it goes down."""
    return RecordDict(
        {
            "task": _scalars_of(task),
            "settings": _scalars_of(task.settings),
            "shared": _arrays(task.shared),
            "control": _arrays(task.control),
        }
    )


def task_from_records(records: RecordDict) -> ClientTask:
    """Return the task of a message; ValueError when it is anything else."""
    _check_names(records, {"task", "settings", "shared", "control"})
    return ClientTask(
        **_scalars(records, "task", ClientTask),
        settings=LocalSettings(**_scalars(records, "settings", LocalSettings)),
        shared=_tensors(records, "shared"),
        control=_tensors(records, "control"),
    )


def answer_to_records(answer: ClientUpdate | ClientFault) -> RecordDict:
    """Return an update or a fault as it goes up."""
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
    """Return the update or fault of a message; ValueError when it is anything else."""
    if "fault" in records:
        _check_names(records, {"fault"})
        return ClientFault(**_scalars(records, "fault", ClientFault))
    _check_names(records, {"update", "metrics", "delta", "control-delta"})
    metrics = records["metrics"]
    if not isinstance(metrics, MetricRecord):
        raise ValueError("'metrics' is no record of numbers")
    for name, value in metrics.items():
        if isinstance(value, list):
            raise ValueError(f"metric '{name}' is a list")
    return ClientUpdate(
        **_scalars(records, "update", ClientUpdate),
        delta=_tensors(records, "delta"),
        control_delta=_tensors(records, "control-delta"),
        metrics=cast(Mapping[str, float], dict(metrics)),
    )


def _scalar_fields(kind: type) -> dict[str, Any]:
    """Return name -> type of the fields that are one word or number."""
    types = {f.name: str if get_origin(f.type) is Literal else f.type for f in fields(kind)}
    return {name: t for name, t in types.items() if t in (int, float, bool, str)}


def _scalars_of(value: Any) -> ConfigRecord:
    names = _scalar_fields(type(value))
    return ConfigRecord({name: getattr(value, name) for name in names})


def _scalars(records: RecordDict, name: str, kind: type) -> dict[str, Any]:
    record, types = records[name], _scalar_fields(kind)
    if not isinstance(record, ConfigRecord) or record.keys() != types.keys():
        raise ValueError(f"'{name}' has not the keys {', '.join(types)}")
    for key, wanted in types.items():
        if type(record[key]) is not wanted:
            raise ValueError(f"'{name}.{key}' is no {wanted.__name__}")
    return dict(record)


def _arrays(tensors: Tensors) -> ArrayRecord:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = save(contiguous)
    return ArrayRecord({_FORMAT: Array("uint8", (len(data),), _FORMAT, data)})


def _tensors(records: RecordDict, name: str) -> Tensors:
    record = records[name]
    if not isinstance(record, ArrayRecord) or set(record) != {_FORMAT}:
        raise ValueError(f"'{name}' is not one array of {_FORMAT}")
    try:
        return load(record[_FORMAT].data)
    except SafetensorError as error:
        raise ValueError(f"'{name}' cannot be read: {error}") from None


def _check_names(records: RecordDict, wanted: set[str]) -> None:
    if set(records) != wanted:
        odd = sorted(set(records) ^ wanted)
        raise ValueError(f"a record is missing or one too many: {', '.join(odd)}")
