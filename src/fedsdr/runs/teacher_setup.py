"""The teacher of the configuration: its engine, and whether it computes the loaded model."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch

import fedsdr
from fedsdr.config import TeacherConfig, without_password
from fedsdr.data.chat_templates import Renderer, render_for
from fedsdr.distill.cache import Teacher
from fedsdr.distill.prompts import load_prompts
from fedsdr.errors import UserError
from fedsdr.extras import import_extra
from fedsdr.files import kept_json, made_once
from fedsdr.models.base_model import Base, cache_folder, load_base, source_of
from fedsdr.models.generation import transformers_generate
from fedsdr.models.packing import device_of
from fedsdr.runs.client_runtime import ClientRuntime
from fedsdr.teachers.choice import ENGINES, choose_engine
from fedsdr.teachers.openvino import why_unreadable
from fedsdr.teachers.openvino_conversion import export_folder, write_fp16_copy
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn

PROBES = (
    "Name three colours.",
    "Write a Python function that adds two numbers.",
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
)


@dataclass(frozen=True)
class Rewriting:
    """A teacher that is ready to rewrite; `why` says why its engine was chosen."""

    teacher: Teacher
    generate: Generate
    why: str
    prompts: Mapping[str, str]


def prepare_rewriting(runtime: ClientRuntime) -> Rewriting:
    """Choose the teacher's engine and read the prompts; UserError for what the user can fix.

    The engine is loaded for the first rewrite that the cache does not have.
    """
    settings = runtime.config.teacher
    base = runtime.base
    _check_teacher(settings)
    if settings.model and settings.engine != "openai":
        return _other_model(runtime)
    engine, why = choose_engine(
        settings.engine,
        model_path=_model_path(base),
        device=str(device_of(base.model)),
        quantize=runtime.config.model.quantize,
    )
    import_extra(ENGINES[engine][0], engine)
    variant = ""
    built: Callable[[], Generate] = functools.cache(lambda: _BUILD[engine](runtime))
    if engine in _SOURCES:
        sources = _SOURCES[engine](runtime)
        wrong = ""
        for source in sources:
            if not (wrong := _wrong_with(runtime, engine, source)):
                break
        if wrong and settings.engine == "auto":
            why, engine = f"not {engine}: {wrong}", "transformers"
        else:
            source = sources[0] if wrong else source
            variant, why = source.variant, f"{why}, though {wrong}" if wrong else why + source.note
            built = source.build
            if wrong:
                built()  # loads it: errors of the engine must come before the run
    if engine == "openai":
        built()  # checks the address and loads nothing
    teacher = _teacher(runtime, base, runtime.renderer, engine, variant)
    if engine == "openai":
        weights = without_password(settings.url)
        teacher = dataclasses.replace(teacher, model=settings.model, weights=weights)

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        yield from built()(requests, decoding)

    return Rewriting(teacher, generate, why, load_prompts(settings.prompts or None))


def live_teacher(runtime: ClientRuntime, branches: str) -> Rewriting:
    """Return the loaded model as teacher, with the branches that are in its forward.

    `branches` is a digest of their values: rewrites of other values are other rewrites.
    """
    teacher = _teacher(runtime, runtime.base, runtime.renderer, "transformers")
    teacher = dataclasses.replace(teacher, weights=f"{teacher.weights} {branches}")
    prompts = load_prompts(runtime.config.teacher.prompts or None)
    return Rewriting(teacher, _transformers(runtime), "the global model", prompts)


def _check_teacher(settings: TeacherConfig) -> None:
    """UserError for settings that do not fit together."""
    of_endpoint = settings.engine == "openai"
    if bool(settings.url) != of_endpoint or (of_endpoint and not settings.model):
        raise UserError(
            "teacher: 'url' and 'model' name an endpoint and its model; set both with "
            "engine = 'openai', and no url with another engine"
        )
    if settings.model and settings.engine not in ("auto", "transformers", "openai"):
        raise UserError(
            f"teacher.model: another model rewrites with engine 'transformers', not "
            f"'{settings.engine}'; set teacher.engine = 'transformers'"
        )
    if settings.refresh and (settings.model or settings.engine not in ("auto", "transformers")):
        raise UserError(
            "teacher.refresh: the global model rewrites, with engine 'transformers'; set "
            "teacher.model = '' and teacher.engine = 'auto', or teacher.refresh = 0"
        )


def _other_model(runtime: ClientRuntime) -> Rewriting:
    """Return another local model as teacher, loaded at once: its files' hash is its identity."""
    settings = runtime.config.teacher
    model = dataclasses.replace(runtime.config.model, name=settings.model, revision="")
    try:
        base = load_base(model)
    except UserError as error:
        raise UserError(f"teacher.model: {str(error).removeprefix('model.name: ')}") from None
    renderer = render_for(base.tokenizer, "auto")
    generate = transformers_generate(
        base.model, base.tokenizer, renderer.prompt, renderer.stop_token_ids, settings.batch_size
    )
    teacher = _teacher(runtime, base, renderer, "transformers")
    prompts = load_prompts(settings.prompts or None)
    return Rewriting(teacher, generate, "teacher.model is another model", prompts)


def _teacher(
    runtime: ClientRuntime, base: Base, renderer: Renderer, engine: str, variant: str = ""
) -> Teacher:
    """Return what the rewrites of a model in an engine depend on."""
    settings = runtime.config.teacher
    # Samples of the plain engine depend on the dtype of the base and on our own code.
    dtype, quantize = next(base.model.parameters()).dtype, runtime.config.model.quantize
    own = f" {dtype} {quantize} fedsdr {version('fedsdr')}" if engine == "transformers" else ""
    return Teacher(
        model=base.name,
        weights=base.fingerprint,
        template=renderer.fingerprint,
        engine=f"{engine} {version(ENGINES[engine][1])}{variant}{own}",
        decoding=Decoding(
            settings.temperature, settings.top_p, settings.top_k, settings.max_new_tokens
        ),
    )


@dataclass(frozen=True)
class _Source:
    """Weights that OpenVINO or vLLM can load; `build` loads them once."""

    variant: str
    note: str  # why it is not the model's own file or folder
    build: Callable[[], Generate]


def _openvino_sources(runtime: ClientRuntime) -> list[_Source]:
    """Return the sources to try in order, the model's own file or folder first."""
    base = runtime.base
    own = _model_path(base) or Path(base.name)
    copies = cache_folder() / "models"
    name = f"{own.stem}-{base.fingerprint[:12]}"

    def source(variant: str, note: str, path: Callable[[], Path]) -> _Source:
        return _Source(variant, note, functools.cache(lambda: _openvino(runtime, path())))

    as_it_is = source("", "", lambda: own)
    if base.gguf:
        note = ", from an fp16 copy: the file itself gives other answers"
        written, write = copies / f"{name}-fp16.gguf", functools.partial(write_fp16_copy, own)
        copy = functools.partial(made_once, written, write)
        return [as_it_is, source(" fp16 copy", note, copy)]
    if own.is_dir() and why_unreadable(own):
        written, write = copies / f"{name}-openvino", functools.partial(export_folder, own)
        export = functools.partial(made_once, written, write)
        return [source(" export", ", from an export of the folder", export)]
    return [as_it_is]


def _vllm_sources(runtime: ClientRuntime) -> list[_Source]:
    """Return the loaded model's weights in its dtype."""
    dtype = next(runtime.base.model.parameters()).dtype
    return [_Source(f" {dtype}", "", functools.cache(lambda: _vllm(runtime, dtype)))]


def _wrong_with(runtime: ClientRuntime, engine: str, source: _Source) -> str:
    """Return '' when the engine's greedy answers to most probes are those of the loaded model.

    The finding is kept in the cache, so that an engine whose rewrites are all there is not loaded.

    FedSD needs the seed model's own words, and an engine may compute another model from the same
    file: on a CPU with AVX2 alone, OpenVINO 2026.4 gave other greedy answers to 13 of 14 prompts
    from a Q4_1 file, and 1 of 35 of its rewrites passed the filter, against 13 of 35 of the loaded
    model. From an fp16 copy of that file its answers were those of the loaded model.
    """
    base, model = runtime.base, runtime.config.model
    about = (
        *(base.fingerprint, runtime.renderer.fingerprint, source.variant, model.dtype, PROBES),
        *(version(ENGINES[engine][1]), fedsdr.__version__, torch.backends.cpu.get_cpu_capability()),
    )
    name = sha256(repr(about).encode()).hexdigest()[:16]
    try:
        path = runtime.cache / "teacher_checks" / f"{name}.json"
        agree = kept_json(path, lambda: _answers_agree(runtime, source.build))
    except UserError as error:  # it cannot be loaded
        return str(error)
    return "" if agree else "its answers differ from those of the loaded model"


def _answers_agree(runtime: ClientRuntime, build: Callable[[], Generate]) -> bool:
    requests = [GenerationRequest(text, (Turn("user", text),)) for text in PROBES]
    decoding = Decoding(temperature=0.0, max_new_tokens=16)
    theirs = {g.id: g.text.strip() for g in build()(requests, decoding)}
    ours = {g.id: g.text.strip() for g in runtime.generate(len(PROBES))(requests, decoding)}
    return sum(ours[text] == theirs[text] for text in PROBES) > len(PROBES) / 2


def _model_path(base: Base) -> Path | None:
    """Return the file or folder of the base; None for a model from the hub."""
    folder = Path(base.name)
    return base.gguf or (folder if folder.is_absolute() else None)


def _transformers(runtime: ClientRuntime) -> Generate:
    return runtime.generate(runtime.config.teacher.batch_size)


def _openvino(runtime: ClientRuntime, path: Path) -> Generate:
    from fedsdr.teachers.openvino import openvino_generate

    return openvino_generate(
        path,
        runtime.renderer.prompt,
        batch_size=runtime.config.teacher.batch_size,
        stop_ids=runtime.renderer.stop_token_ids,
    )


def _vllm(runtime: ClientRuntime, dtype: torch.dtype) -> Generate:
    from fedsdr.teachers.vllm import vllm_generate

    model = runtime.config.model
    return vllm_generate(
        source_of(model)[0],
        runtime.renderer.prompt,
        dtype=dtype,
        revision=model.revision or None,
        trust_remote_code=model.trust_remote_code,
        stop_ids=runtime.renderer.stop_token_ids,
    )


def _openai(runtime: ClientRuntime) -> Generate:
    from fedsdr.teachers.openai_endpoint import openai_generate

    teacher = runtime.config.teacher
    return openai_generate(
        teacher.url,
        teacher.model,
        api_key_env=teacher.api_key_env,
        allow_remote=teacher.allow_remote,
    )


_BUILD = {"transformers": _transformers, "openai": _openai}
_SOURCES = {"openvino": _openvino_sources, "vllm": _vllm_sources}
