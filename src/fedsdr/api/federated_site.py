"""`fedsdr.open_site`: a client's work of a round, for a federation that another program runs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedsdr.algorithms.server_optimizers import ALGORITHMS, fedavg
from fedsdr.api.arguments import with_settings
from fedsdr.config import Config, load_config, value_of
from fedsdr.data.clients import load_one_client
from fedsdr.errors import Refusal, UserError
from fedsdr.federation.update_checks import decoded
from fedsdr.files import alone
from fedsdr.progress import SILENT
from fedsdr.runs.client_runtime import ClientRuntime, open_runtime, train_at
from fedsdr.runs.config_schema import check_names
from fedsdr.runs.refresh import refresh_rewrites
from fedsdr.runs.rewriting import distill_clients, has_rewrites
from fedsdr.runs.rounds import initial_shared
from fedsdr.runs.row_checks import check_clients
from fedsdr.runs.run_folder import check_data, checked_config, start_folder
from fedsdr.runs.run_plan import client_settings
from fedsdr.runs.teacher_setup import prepare_rewriting
from fedsdr.seeds import seed_for
from fedsdr.tensors import Tensors, difference_in_spec
from fedsdr.training.methods import METHODS
from fedsdr.types import ClientData, ClientFault, ClientTask, ClientUpdate

logger = logging.getLogger(__name__)

# What any server can carry out with a weighted mean: the choices of other keys need ours.
_CHOICES = {
    "algorithm.name": [
        name
        for name, algorithm in ALGORITHMS.items()
        if algorithm.server_optimizer is fedavg and algorithm.correction != "scaffold"
    ],
    "algorithm.aggregation": ["mean"],
    "privacy.mode": ["none", "local"],
    "method.name": [name for name, m in METHODS.items() if m.sent and not m.afterwards],
}


@dataclass(frozen=True)
class Site:
    """One client: its rows, the loaded base with both branches, and its private folder."""

    client: ClientData
    runtime: ClientRuntime

    def update(self, round: int, shared: Tensors) -> ClientUpdate:
        """Train in a round (1, 2, ...) from the shared tensors; return their change, in fp32.

        `num_examples` of the result is its weight in the mean. S stays in the folder: it starts as
        it was after the last earlier round of this site. Raises UserError when the tensors are not
        those of this configuration, for a round after `federation.rounds`, for one before a round
        that the folder has, and when training diverges.
        """
        config, model, name = self.runtime.config, self.runtime.model, self.client.client_id
        expected = initial_shared(model, self.runtime.method, config.seed)
        if difference := difference_in_spec(shared, expected):
            raise UserError(f"shared tensors: {difference}; start from fedsdr.initial_tensors")
        store, rounds = self.runtime.store(name), config.federation.rounds
        if not max(1, store.newest()) <= round <= rounds:
            raise Refusal(
                f"client '{name}': round {round} is asked for after round {store.newest()} of "
                f"{rounds} (federation.rounds); give another job another folder"
            )
        task = ClientTask(
            round=round,
            client_id=name,
            seed=seed_for(config.seed, "client"),
            shared=shared,
            control={},
            settings=client_settings(config),
            accepted_round=store.newest(before=round),
        )
        refresh_rewrites(self.runtime, self.client, task, logger.info)
        update = decoded(train_at(self.runtime, self.client, task), task)
        if isinstance(update, ClientFault):
            raise UserError(f"client '{name}': {update.reason}")
        return update


@contextmanager
def open_site(
    config: Config | str | Path, client: str, data: str | Path, folder: str | Path
) -> Iterator[Site]:
    """Yield a client of another program's federation; its answers are rewritten where due.

    `data` is the client's file, or a folder with the file CLIENT.jsonl; `folder` is its run folder,
    which holds S and the rewrites and is locked meanwhile. The server starts from
    `fedsdr.initial_tensors(config)` and adds the mean of the updates. UserError for what the user
    can fix, and for settings that need a server of fedsdr.
    """
    config = config if isinstance(config, Config) else load_config(config)
    config = with_settings(config, {"data.clients": data, "data.source": ""})
    check_names(config)
    for key, choices in _CHOICES.items():
        if (value := value_of(config, key)) not in choices:
            raise UserError(
                f"{key}: '{value}' needs a server of fedsdr; use one of {', '.join(choices)}"
            )
    rows, folder = load_one_client(config.data, str(data), client), Path(folder)
    with alone(folder):
        config = checked_config(config, folder, resume=True)
        check_data(folder, [rows])
        runtime = open_runtime(config, folder)
        check_clients(runtime, [rows], logger.info, rewrites=runtime.method.rewrites)
        start_folder(runtime, [rows])
        if runtime.method.rewrites and not has_rewrites(runtime, [rows]):
            progress = replace(SILENT, log=logger.info)
            distill_clients(runtime, prepare_rewriting(runtime), [rows], progress)
        yield Site(rows, runtime)
