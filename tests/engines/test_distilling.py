import json
from dataclasses import replace

import pytest

from fedsdr.engines import distilling
from fedsdr.engines.distilling import distill_clients, prepare_rewriting
from fedsdr.engines.experiment import clients_of, run_experiment
from fedsdr.engines.progress import SILENT
from fedsdr.engines.site import open_site
from fedsdr.errors import UserError
from fedsdr.types import Generation


@pytest.fixture
def auto_site(write_config, tmp_path, monkeypatch):
    """A site whose "auto" engine is OpenVINO, with an engine that the test gives."""
    site = open_site(write_config("teacher.engine=auto"), tmp_path / "run")

    def with_engine(build, gguf=None):
        monkeypatch.setattr(distilling, "choose_engine", lambda *a, **k: ("openvino", "fastest"))
        monkeypatch.setattr(distilling, "import_extra", lambda *a: None)
        monkeypatch.setattr(distilling, "version", lambda package: "1")
        entry = ("openvino_genai", "openvino-genai", build)
        monkeypatch.setitem(distilling.ENGINES, "openvino", entry)
        return prepare_rewriting(replace(site, base=replace(site.base, gguf=gguf)))

    return site, with_engine


def test_auto_takes_the_fast_engine_where_it_answers_as_the_loaded_model_does(auto_site):
    _, with_engine = auto_site
    rewriting = with_engine(lambda site: site.generate(3))
    assert rewriting.teacher.engine.startswith("openvino")
    assert rewriting.why == "fastest"


def test_auto_leaves_an_engine_that_computes_another_model(auto_site):
    _, with_engine = auto_site

    def other(requests, decoding):
        return (Generation(r.id, "something else", True, 1, 1) for r in requests)

    rewriting = with_engine(lambda site: other)
    assert rewriting.teacher.engine.startswith("transformers")
    assert "otherwise" in rewriting.why


def test_auto_takes_a_copy_of_the_file_where_the_engine_misreads_the_file_itself(
    auto_site, monkeypatch, tmp_path
):
    site, with_engine = auto_site
    read = []

    def openvino(site, path=None):
        read.append(path)
        return site.generate(3)

    def misread(site):
        return lambda asked, _: (Generation(r.id, "something else", True, 1, 1) for r in asked)

    monkeypatch.setattr(distilling, "_openvino", openvino)
    monkeypatch.setattr(distilling, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(distilling, "write_fp16_copy", lambda source, to: read.append(source))
    rewriting = with_engine(misread, gguf=tmp_path / "model.gguf")
    assert rewriting.teacher.engine == "openvino 1 fp16 copy"
    assert "fp16 copy" in rewriting.why
    copy = tmp_path / "models" / f"model-{site.base.fingerprint[:12]}-fp16.gguf"
    assert read == [tmp_path / "model.gguf", copy]


def test_auto_leaves_an_engine_that_cannot_read_the_model(auto_site):
    _, with_engine = auto_site

    def broken(site):
        raise UserError("no such architecture")

    assert with_engine(broken).teacher.engine.startswith("transformers")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["teacher.engine=openai"], "'url' and 'model'"),
        (["teacher.model=gpt"], "'url' and 'model'"),
        (
            ["teacher.engine=openai", "teacher.model=m", "teacher.url=http://example.org/v1"],
            "allow_remote",
        ),
        (["teacher.prompts=none.toml"], "none.toml: no such file"),
    ],
)
def test_what_is_wrong_with_the_teacher_is_said_before_anything_is_written(
    overrides, words, write_config, tmp_path
):
    with pytest.raises(UserError, match=words):
        run_experiment(write_config(*overrides), tmp_path / "run", SILENT)
    assert not (tmp_path / "run").exists()


def test_a_run_follows_distill_in_the_same_folder(write_config, tmp_path):
    config = write_config("federation.rounds=1")
    site, clients = open_site(config, tmp_path / "run"), clients_of(config)
    audits = distill_clients(site, prepare_rewriting(site), clients, SILENT)
    assert {a.generated for a in audits.values()} == {9}
    results = run_experiment(config, tmp_path / "run", SILENT)
    assert results["cost"]["tokens"]["rewrite, this run"] == 0
    assert results["cost"]["tokens"]["rewrite"] == sum(a.new_tokens for a in audits.values())
    facts = json.loads((tmp_path / "run/distilled/audit.json").read_text())
    assert facts["clients"].keys() == {"bank", "clinic", "school"}


def test_test_rows_are_never_rewritten(write_config, tmp_path):
    config = write_config("federation.rounds=1")
    run_experiment(config, tmp_path / "run", SILENT)
    for client in clients_of(config):
        lines = (tmp_path / "run/distilled" / f"{client.client_id}.jsonl").read_text()
        ids = {json.loads(line)["id"] for line in lines.splitlines()}
        assert ids == {example.id for example in client.raw}
        assert not any(example.response in lines for example in client.test)


def test_data_that_changed_are_not_gone_on_with(write_config, tmp_path, data_folder):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in data_folder.iterdir():
        (copy / file.name).write_text(file.read_text())
    overrides = (f"data.clients={copy}", "method.name=plain")
    run_experiment(write_config("federation.rounds=1", *overrides), tmp_path / "run", SILENT)
    with (copy / "bank.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "new", "input": "", "output": "row"}) + "\n")
    with pytest.raises(UserError, match="data of client 'bank' are not those"):
        run_experiment(write_config(*overrides), tmp_path / "run", SILENT, resume=True)
