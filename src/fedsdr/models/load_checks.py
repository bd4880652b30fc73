"""Bound and check what transformers makes of a model's files; it fills missing weights at random
and goes on."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from fedsdr.errors import UserError, one_line
from fedsdr.models.model_files import StoredWeights

MAX_TENSORS = 200_000  # of a model whose files are not known
# Parameters may be registered again: a tied head, or a layer that is replaced by a quantised one.
REPEATED = 4
SPARE_TENSORS, SPARE_ELEMENTS = 500, 1 << 20
# Buffers are not in the files: masks of (positions, positions), tables of angles.
MAX_BUFFERS = 1 << 28
SHOWN = 3  # tensors named in a message


@contextmanager
def library_errors(name: str) -> Iterator[None]:
    """Turn whatever a library raises while it loads `name` into a UserError of one line, and keep
    its own report off the log. UserErrors pass."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # fedsdr shows its own
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries and model code may raise anything
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        reason = kind + (one_line(str(error)) or type(error).__name__)
        raise UserError(
            f"model.name: '{name}' cannot be loaded: {reason.removesuffix('.')}; check its files"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def size_limit(name: str, stored: StoredWeights | None) -> Iterator[None]:
    """UserError while a model is built, on any device, as soon as it has clearly more parameters
    than its files (None: not known), or buffers of over 1 GiB.

    So absurd sizes in a configuration are refused before they take memory.
    """
    tensors, elements = MAX_TENSORS, math.inf
    if stored:
        tensors = REPEATED * stored.tensors + SPARE_TENSORS
        elements = REPEATED * stored.elements + SPARE_ELEMENTS
    count = {"tensors": 0, "parameters": 0, "buffers": 0}

    def count_parameter(module: nn.Module, key: str, value: Tensor | None) -> None:
        count["tensors"] += 1
        count["parameters"] += 0 if value is None else value.numel()
        if count["tensors"] > tensors or count["parameters"] > elements:
            raise UserError(
                f"model.name: '{name}': its configuration describes a much larger model than its "
                "files hold; correct the sizes in its configuration or download it again"
            )

    def count_buffer(module: nn.Module, key: str, value: Tensor | None) -> None:
        count["buffers"] += 0 if value is None else value.numel()
        if count["buffers"] > MAX_BUFFERS:
            raise UserError(
                f"model.name: '{name}': its configuration asks for a buffer '{key}' of over "
                f"{MAX_BUFFERS:,} numbers; correct the sizes in its configuration"
            )

    with ExitStack() as stack:
        stack.callback(register_module_parameter_registration_hook(count_parameter).remove)
        stack.callback(register_module_buffer_registration_hook(count_buffer).remove)
        yield


def check_weights(name: str, model: Any, info: Mapping[str, Any]) -> None:
    """UserError for weights that are missing, unexpected, or of another shape than the model's.

    `info` is transformers' loading info. It leaves out tied weights and what the model's class
    declares as not needed. An unexpected tensor may also be a buffer that the model computes.
    """
    buffers = {key for key, _ in model.named_buffers()}
    unexpected = [key for key in info["unexpected_keys"] if key not in buffers]
    problems = [
        (info["missing_keys"], "missing in its files", "complete the download"),
        (unexpected, "in its files but not in the model", "the file belongs to another model"),
        (
            [f"{k}: {[*a]}, not {[*b]}" for k, a, b in info["mismatched_keys"]],
            "of another shape in its files",
            "the file belongs to another model",
        ),
    ]
    found = [f"{_listed(keys)} {what}" for keys, what, _ in problems if keys]
    if not found and info.get("error_msgs"):
        found = [one_line(" ".join(info["error_msgs"]))]
    if not found:
        return _check_tied(name, model)
    causes = ", or ".join(dict.fromkeys(cause for keys, _, cause in problems if keys))
    head = any("head" in key for key in info["missing_keys"])
    tied = ", or set tie_word_embeddings = true if its head is tied" if head else ""
    raise UserError(
        f"model.name: '{name}': {'; '.join(found)}; {causes or 'download it again'}, or its "
        f"config.json does not fit (num_hidden_layers, sizes){tied}"
    )


def _check_tied(name: str, model: Any) -> None:
    """UserError for a stored head that differs from the embedding to which it should be tied."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    config = model.config.get_text_config(decoder=True)
    declared = getattr(config, "tie_word_embeddings", False) and model._tied_weights_keys
    weight = getattr(head, "weight", embedding.weight)
    apart = weight is not embedding.weight and not weight.is_meta  # whose values are not known
    if declared and apart and weight.shape == embedding.weight.shape:
        raise UserError(
            f"model.name: '{name}': config.json says tie_word_embeddings = true, but the output "
            "head in its files differs from the embedding; set it to false"
        )


def _listed(keys: Collection[str]) -> str:
    """Return the number of tensors and the names of the first."""
    shown = [one_line(key, 120) for key in sorted(keys)[:SHOWN]]
    more = ", ..." if len(keys) > SHOWN else ""
    return f"{len(keys)} tensor{'s' if len(keys) > 1 else ''} ({', '.join(shown)}{more})"
