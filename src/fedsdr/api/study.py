"""`fedsdr.compare`: several runs in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsdr.api.arguments import Rows, with_data, with_settings
from fedsdr.api.federated_run import Run
from fedsdr.api.notebook import progress_here, tables_html
from fedsdr.config import CompareConfig, Config, load_study
from fedsdr.errors import UserError
from fedsdr.extras import import_extra

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Comparison:
    """A comparison in its folder; `content` is what compare.json holds, `failed` run -> reason."""

    folder: Path
    content: Mapping[str, Any]
    failed: Mapping[str, str]

    @property
    def table(self) -> "DataFrame":
        """One row per variant and kind of model, unrounded: the rows of compare.csv."""
        return import_extra("pandas", "pandas", "table").DataFrame(self.content["rows"])

    @property
    def runs(self) -> list[Run]:
        """The finished runs."""
        cells = [cell["folder"] for cell in self.content["cells"] if cell["finished"]]
        return [Run(self.folder / cell) for cell in cells]

    def report(self, out: str | Path | None = None) -> Path:
        """Write the comparison's page, by default into its folder; return its path."""
        from fedsdr.cli.report import page_of
        from fedsdr.files import write_atomically

        path = Path(out) if out else self.folder / "report.html"
        write_atomically(path, page_of([self.folder]))
        return path

    def _repr_html_(self) -> str:
        from fedsdr.research.compare.comparison_table import tables_of

        return tables_html(tables_of(self.content))


def compare(
    config: str | Path | None = None,
    *,
    model: str | Path | None = None,
    data: str | Path | Mapping[str, Rows] | None = None,
    methods: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    draws: int | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    baseline: str | None = None,
    rounds: int | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Comparison:
    """Run every method with every algorithm, draw and seed, as `fedsdr compare` does.

    Arguments are those of `fedsdr.run` and the keys of [compare]. `out` is runs/NAME of the file,
    or runs/compare. Finished runs are not run again. Raises UserError, with a message of one line,
    for what the user can fix, and where no run finished.
    """
    from fedsdr.research.compare.compare_runs import run_study, write_comparison
    from fedsdr.research.compare.grid import with_given

    settings_, study = load_study(config) if config else (Config(), CompareConfig())
    study = with_given(
        study,
        methods=methods and list(methods),
        sweep=sweep or {},
        algorithms=algorithms and list(algorithms),
        seeds=seeds and list(seeds),
        draws=draws,
        baseline=baseline,
    )
    own = {"model.name": model, "federation.rounds": rounds, **(settings or {})}
    chosen = with_settings(settings_, own)
    folder = Path(out or Path("runs") / (Path(config).stem if config else "compare"))
    where = Path(config).parent if config else Path.cwd()
    with with_data(chosen, data, folder) as chosen:
        content, failures = run_study(chosen, study, where, folder, progress_here(quiet), run=True)
    failed = {name: failure.reason for name, failure in failures.items()}
    if content is None:
        raise UserError(f"no run finished; the first failed: {next(iter(failed.values()))}")
    write_comparison(content, folder)
    return Comparison(folder, content, failed)
