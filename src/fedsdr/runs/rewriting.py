"""Make the rewrites of clients with the teacher that the configuration names."""

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from fedsdr.distill.cache import RewriteCache, Teacher
from fedsdr.distill.prompts import load_prompts
from fedsdr.distill.records import Audit, read_distilled, write_distilled
from fedsdr.distill.self_distillation import rewrite_client
from fedsdr.errors import UserError
from fedsdr.extras import import_extra
from fedsdr.files import made_once, write_atomically
from fedsdr.models.base_model import Base, cache_folder
from fedsdr.models.packing import device_of
from fedsdr.progress import Progress
from fedsdr.runs.client_runtime import Site
from fedsdr.teachers.choice import choose_engine
from fedsdr.teachers.openvino import why_unreadable
from fedsdr.teachers.openvino_conversion import export_folder, write_fp16_copy
from fedsdr.types import ClientData, Decoding, Generate, Generation, GenerationRequest, Turn

PROBES = (
    "Name three colours.",
    "Write a Python function that adds two numbers.",
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
)


@dataclass(frozen=True)
class Rewriting:
    """What rewriting needs, checked before anything is written."""

    teacher: Teacher
    generate: Generate
    why: str  # this engine
    prompts: Mapping[str, str]


def distill_clients(
    site: Site, rewriting: Rewriting, clients: Sequence[ClientData], progress: Progress
) -> dict[str, Audit]:
    """Rewrite every client's training answers and write FOLDER/distilled/CLIENT.jsonl.

    What the cache has is not made again. Returns the audit of each client, and keeps it with the
    seconds taken in FOLDER/distilled/audit.json.
    """
    settings, teacher = site.config.teacher, rewriting.teacher
    progress.log(f"rewriting with {teacher.engine} ({rewriting.why}), teacher {teacher.model}")
    cache = RewriteCache(Path(settings.cache) if settings.cache else cache_folder(), teacher)
    audits: dict[str, Audit] = {}
    seconds: dict[str, float] = {}
    for client in clients:
        began = time.perf_counter()
        with progress.bar(f"rewriting {client.client_id}", len(client.raw)) as advance:
            done = 0

            def on_progress(now: int, total: int) -> None:
                nonlocal done
                advance(now - done)
                done = now

            with site.model.using():
                rewritten = rewrite_client(
                    client.raw,
                    generate=rewriting.generate,
                    cache=cache,
                    prompts=rewriting.prompts,
                    filter_name=settings.filter,
                    seed=settings.seed,
                    on_progress=on_progress,
                )
        write_distilled(site.distilled(client.client_id), rewritten.records)
        audits[client.client_id] = rewritten.audit
        seconds[client.client_id] = time.perf_counter() - began
        progress.log(f"  {client.client_id}: {audit_line(rewritten.audit)}")
    facts = {
        "teacher": asdict(teacher) | {"fingerprint": teacher.fingerprint},
        "filter": settings.filter,
        "clients": {name: asdict(a) | {"seconds": seconds[name]} for name, a in audits.items()},
    }
    write_atomically(site.folder / "distilled" / "audit.json", json.dumps(facts, indent=2) + "\n")
    return audits


def audit_line(audit: Audit) -> str:
    """Return one client's audit in words."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(audit.kept_raw.items()))
    kept = f", kept raw: {reasons}" if reasons else ""
    return (
        f"{audit.rewritten} of {audit.answers} answers rewritten{kept}; "
        f"length x{audit.length_ratio:.2f}; {audit.new_tokens} new tokens, "
        f"{audit.from_cache} from the cache"
    )


def has_rewrites(site: Site, clients: Sequence[ClientData]) -> bool:
    """Whether FOLDER/distilled has a rewrite of every answer, as a resumed run does.

    They are kept then, so that a new version of an engine cannot change the data half way.
    """
    if not (site.folder / "distilled" / "audit.json").exists():
        return False
    for client in clients:
        read_distilled(site.distilled(client.client_id), client.raw)
    return True


def prepare_rewriting(site: Site) -> Rewriting:
    """Choose the teacher's engine and read the prompts; UserError for what the user can mend.

    The engine is loaded when the first rewrite is asked for: often the cache has them all.
    """
    settings = site.config.teacher
    base = site.base
    given = (bool(settings.url), bool(settings.model))
    if given != (settings.engine == "openai",) * 2:
        raise UserError(
            "teacher: 'url' and 'model' name an endpoint and its model; set both with "
            "engine = 'openai', and neither with another engine"
        )
    engine, why = choose_engine(
        settings.engine, model_path=_model_path(base), cuda=device_of(base.model).type == "cuda"
    )
    import_extra(ENGINES[engine][0], engine)
    variant = ""
    built: Callable[[], Generate] = functools.cache(lambda: _BUILD[engine](site))
    if engine == "openvino":
        sources = _openvino_sources(site)
        wrong = ""
        for source in sources:
            if not (wrong := _wrong_with(site, source.build)):
                break
        if wrong and settings.engine == "auto":
            engine, why = "transformers", f"not openvino: {wrong}"
        else:
            source = sources[0] if wrong else source
            variant, why = source.variant, f"{why}, though {wrong}" if wrong else why + source.note
            built = source.build
            built()  # an engine that was named says now what is wrong with it
    if engine == "openai":
        built()  # loads nothing, and says now what is wrong with the address
    # What the plain engine samples depends on the dtype of the base, and on our own code.
    dtype, quantize = next(base.model.parameters()).dtype, site.config.model.quantize
    precision = (
        f" {dtype} {quantize} fedsdr {version('fedsdr')}" if engine == "transformers" else ""
    )
    teacher = Teacher(
        model=settings.model or base.name,
        weights=_address(settings.url) if engine == "openai" else base.fingerprint,
        template=site.renderer.fingerprint,
        engine=f"{engine} {version(ENGINES[engine][1])}{variant}{precision}",
        decoding=Decoding(
            settings.temperature, settings.top_p, settings.top_k, settings.max_new_tokens
        ),
    )

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        yield from built()(requests, decoding)

    return Rewriting(teacher, generate, why, load_prompts(settings.prompts or None))


@dataclass(frozen=True)
class _Source:
    """Something that OpenVINO can read the model from; `build` loads it, once."""

    variant: str
    note: str  # why it is not the model's own file
    build: Callable[[], Generate]


def _openvino_sources(site: Site) -> list[_Source]:
    """Return them, the model's own file or folder first."""
    base = site.base
    own = _model_path(base) or Path(base.name)
    copies = cache_folder() / "models"
    name = f"{own.stem}-{base.fingerprint[:12]}"

    def source(variant: str, note: str, path: Callable[[], Path]) -> _Source:
        return _Source(variant, note, functools.cache(lambda: _openvino(site, path())))

    as_it_is = source("", "", lambda: own)
    if base.gguf:
        told = ", from an fp16 copy: from the file itself it answers otherwise"
        written, write = copies / f"{name}-fp16.gguf", functools.partial(write_fp16_copy, own)
        copy = functools.partial(made_once, written, write)
        return [as_it_is, source(" fp16 copy", told, copy)]
    if own.is_dir() and why_unreadable(own):
        written, write = copies / f"{name}-openvino", functools.partial(export_folder, own)
        export = functools.partial(made_once, written, write)
        return [source(" export", ", from an export of the folder", export)]
    return [as_it_is]


def _wrong_with(site: Site, build: Callable[[], Generate]) -> str:
    """Return "" when OpenVINO's greedy answers to most probes are those of the loaded model.

    FedSD needs the seed model's own words. An engine that reads the same file may still compute
    another model: on a CPU with AVX2 alone, OpenVINO 2026.4 gave other greedy answers to 13 of 14
    prompts from a Q4_1 file, and 1 of 35 of its rewrites passed the filter, where 13 of 35 of the
    loaded model's did. From an fp16 copy of that file its answers were the loaded model's.
    """
    requests = [GenerationRequest(text, (Turn("user", text),)) for text in PROBES]
    decoding = Decoding(temperature=0.0, max_new_tokens=16)
    try:
        theirs = {g.id: g.text.strip() for g in build()(requests, decoding)}
    except UserError as error:  # it cannot read the file after all
        return str(error)
    ours = {g.id: g.text.strip() for g in site.generate(len(PROBES))(requests, decoding)}
    agree = sum(ours[text] == theirs[text] for text in PROBES) > len(PROBES) / 2
    return "" if agree else "it answers otherwise than the loaded model does"


def _address(url: str) -> str:
    """Return a URL without the user name and password that it may carry."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _model_path(base: Base) -> Path | None:
    """The file or folder of the base on this disk, None for a model that came from the hub."""
    folder = Path(base.name)
    return base.gguf or (folder if folder.is_absolute() else None)


def _transformers(site: Site) -> Generate:
    return site.generate(site.config.teacher.batch_size)


def _openvino(site: Site, path: Path) -> Generate:
    from fedsdr.teachers.openvino import openvino_generate

    return openvino_generate(
        path,
        site.renderer.prompt,
        batch_size=site.config.teacher.batch_size,
        stop_ids=site.renderer.stop_token_ids,
    )


def _vllm(site: Site) -> Generate:
    from fedsdr.teachers.vllm import vllm_generate

    model = site.config.model
    return vllm_generate(
        str(site.base.gguf or site.base.name),
        site.renderer.prompt,
        revision=model.revision or None,
        trust_remote_code=model.trust_remote_code,
        stop_ids=site.renderer.stop_token_ids,
    )


def _openai(site: Site) -> Generate:
    from fedsdr.teachers.openai_endpoint import openai_generate

    teacher = site.config.teacher
    return openai_generate(
        teacher.url,
        teacher.model,
        api_key_env=teacher.api_key_env,
        allow_remote=teacher.allow_remote,
    )


# engine -> (module that it needs, package whose version identifies it)
ENGINES = {
    "transformers": ("transformers", "transformers"),
    "openvino": ("openvino_genai", "openvino-genai"),
    "vllm": ("vllm", "vllm"),
    "openai": ("openai", "fedsdr"),
}
_BUILD = {"transformers": _transformers, "vllm": _vllm, "openai": _openai}
