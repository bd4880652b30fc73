"""`fedsdr.run` and `fedsdr.load_run`: a run as an object with its tables and models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedsdr.api.arguments import Rows, with_data, with_settings
from fedsdr.api.notebook import progress_here, tables_html
from fedsdr.config import Config, load_config
from fedsdr.errors import UserError
from fedsdr.extras import import_extra

if TYPE_CHECKING:
    from pandas import DataFrame

MODELS: tuple[Literal["base", "global", "client"], ...] = ("base", "global", "client")
FIX = "run it again with resume=True"


@dataclass(frozen=True)
class Run:
    """A finished or stopped run in its folder, which `fedsdr report`, `export`, ... read as well.

    `results`, `rounds` and `answers` are pandas data frames (the extra `pandas`).
    """

    folder: Path

    @property
    def results(self) -> "DataFrame":
        """One row per client and model: score with its 95 % interval, loss, test rows."""
        rows = [
            {
                "client": name,
                "model": model,
                "metric": client["metric"],
                "test_rows": client["num_test"],
                "score": entry["score"],
                "score_low": entry["score_ci"][0],
                "score_high": entry["score_ci"][1],
                "loss": entry["loss"],
                "tokens": entry["tokens"],
            }
            for name, client in self._results()["clients"].items()
            for model, entry in client["models"].items()
        ]
        return _frame(rows, "results")

    @property
    def rounds(self) -> "DataFrame":
        """One row per round and client: what became of its update, and what its training measured.

        Values of the whole round (`round_seconds`, `step_norm`, ...) are repeated for its clients.
        """
        from fedsdr.federation.round_records import read_records

        rows = []
        for record in read_records(self.folder):
            whole = {
                "round": record["round"],
                "round_seconds": record["seconds"],
                **{key: record[key] for key in ("bytes_up", "bytes_down", "step_norm")},
            }
            for status in ("clients", "refused", "left_out"):
                for entry in record.get(status, []):
                    became = "accepted" if status == "clients" else status.replace("_", " ")
                    own = {key: value for key, value in entry.items() if key != "id"}
                    rows.append({**whole, "client": entry["id"], "update": became, **own})
        return _frame(rows, "rounds")

    @property
    def answers(self) -> "DataFrame":
        """One row per test row and model: prompt, gold answer, the model's answer, its score.

        Answers that the run does not have yet are generated, and kept in its folder.
        """
        from fedsdr.data.chat_templates import prompt_of
        from fedsdr.data.clients import load_clients
        from fedsdr.runs.answers import answers_of
        from fedsdr.runs.run_folder import check_data, read_run

        import_extra("pandas", "pandas", "answers")
        scores = {
            (name, example["id"], model): example[model]["score"]
            for name, examples in self._results().get("examples", {}).items()
            for example in examples
            for model in MODELS
        }
        clients = load_clients(read_run(self.folder)[0].data)
        check_data(self.folder, clients)
        tests = {client.client_id: client.test for client in clients if client.test}
        rows = []
        for model in MODELS:
            found = answers_of(self.folder, model, clients, tests, progress_here(quiet=False))
            rows += [
                {
                    "client": name,
                    "id": row.id,
                    "model": model,
                    "prompt": "\n\n".join(turn.content for turn in prompt_of(row)),
                    "gold": row.response,
                    "answer": found[name][row.id],
                    "score": scores.get((name, row.id, model)),
                }
                for name, examples in tests.items()
                for row in examples
            ]
        return _frame(rows, "answers")

    def report(self, out: str | Path | None = None) -> Path:
        """Write the run's page, by default into its folder; return its path."""
        from fedsdr.cli.report import page_of
        from fedsdr.files import write_atomically

        path = Path(out) if out else self.folder / "report.html"
        write_atomically(path, page_of([self.folder]))
        return path

    def chat(
        self, client: str = "", *, max_new_tokens: int = 128, temperature: float = 0.0
    ) -> Callable[[str], dict[str, str]]:
        """Load the models; return a function from a question to the answer of each: base, global,
        and that of `client` (default: the first by name). UserError for an unknown client."""
        from secrets import token_hex

        from fedsdr.cli.chat import answering
        from fedsdr.types import Decoding

        decoding = Decoding(temperature=temperature, max_new_tokens=max_new_tokens)
        ask = answering(self.folder, client or None, decoding)
        return lambda question: dict(ask(question, token_hex(8)))  # each a conversation of its own

    def model(self, client: str = "") -> Any:
        """Return the global model, or that of `client` (R + S), as a PEFT model on the plain base.

        UserError for an unknown client, and where no adapter can hold the model (FedDPA).
        """
        from tempfile import TemporaryDirectory

        from fedsdr.models.plain_peft import load_plain_peft
        from fedsdr.runs.export import export_model

        with TemporaryDirectory() as folder:
            adapter = Path(folder) / "adapter"
            export_model(self.folder, adapter, client_id=client)
            return load_plain_peft(self.config.model, adapter)

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        from fedsdr.models.base_model import load_tokenizer

        return load_tokenizer(self.config.model)

    @property
    def config(self) -> Config:
        """Every value of the run, resolved."""
        from fedsdr.runs.run_folder import load_run_config

        return load_run_config(self.folder / "config.toml")

    def _results(self) -> dict[str, Any]:
        from fedsdr.evaluation.results_file import read_results

        return read_results(self.folder, FIX)

    def _repr_html_(self) -> str:
        """The tables that `fedsdr run` prints."""
        from fedsdr.evaluation.model_tables import tables_of

        return tables_html(tables_of(self._results()))


def load_run(folder: str | Path) -> Run:
    """Return the run in a folder. UserError if there is none."""
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise UserError(f"{folder}: not a run folder (no config.toml)")
    return Run(folder)


def run(
    config: str | Path | None = None,
    *,
    model: str | Path | None = None,
    data: str | Path | Mapping[str, Rows] | None = None,
    method: str | None = None,
    algorithm: str | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> Run:
    """Run everything as `fedsdr run` does: rewrite, train in rounds, evaluate; return the run.

    `config` is a TOML or YAML file; without one, every key has its default. The other arguments
    override it, `settings` any key: {"train.lr": 1e-3}. `data` maps each client's name to its rows:
    a pandas, polars or Arrow table, a `datasets.Dataset`, a list of dicts, a file, or hub:ORG/NAME;
    or it is a folder or `embedded:NAME`. Rows of a mapping are kept in OUT/data. `out` is
    runs/NAME of the file, or runs/METHOD. A run that is there already is continued, and a finished
    one is read, where it has the same values; with resume=False it is an error.
    Raises UserError, with a message of one line, for what the user can fix.
    """
    from fedsdr.cli.report import page_of
    from fedsdr.cli.run import rounds_of
    from fedsdr.files import write_atomically
    from fedsdr.runs.run import run_experiment

    given = {
        "model.name": model,
        "method.name": method,
        "algorithm.name": algorithm,
        "federation.rounds": rounds,
        "seed": seed,
        **(settings or {}),
    }
    chosen = with_settings(load_config(config) if config else Config(), given)
    folder = Path(out or Path("runs") / (Path(config).stem if config else chosen.method.name))
    with with_data(chosen, data, folder) as chosen:
        run_experiment(
            chosen, folder, progress_here(quiet), resume=resume, rounds=rounds_of(chosen)
        )
    write_atomically(folder / "report.html", page_of([folder]))
    return Run(folder)


def _frame(rows: list[dict[str, Any]], what: str) -> "DataFrame":
    return import_extra("pandas", "pandas", what).DataFrame(rows)
