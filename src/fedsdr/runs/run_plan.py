"""From the configuration to the plan of the rounds and the settings of the clients."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedsdr.algorithms import ALGORITHMS, server_optimizer
from fedsdr.algorithms.aggregation import AGGREGATIONS, Aggregation
from fedsdr.algorithms.combining import noisy_mean
from fedsdr.config import Config
from fedsdr.errors import UserError, choose, nearest
from fedsdr.federation.plan import Plan
from fedsdr.federation.privacy_accounting import NO_PRIVACY, Privacy, check_accountant
from fedsdr.seeds import seed_for
from fedsdr.training.methods import METHODS
from fedsdr.types import ClientData, LocalSettings


def client_settings(config: Config) -> LocalSettings:
    """Return what the clients must know of the configuration."""
    algorithm = choose(config.algorithm.name, ALGORITHMS, "algorithm.name")
    train, method, privacy = config.train, config.method, config.privacy
    noise = privacy.noise_multiplier * privacy.clip_norm
    return LocalSettings(
        method=method.name,
        aggregation=config.algorithm.aggregation,
        start_seed=seed_for(config.seed, "start"),
        correction=algorithm.correction,
        mu=config.algorithm.mu,
        local_epochs=train.local_epochs,
        smooth_epochs=train.smooth_epochs,
        batch_size=train.batch_size,
        optimizer=train.optimizer,
        lr=train.lr,
        schedule=train.schedule,
        warmup_rounds=train.warmup_rounds,
        rounds=config.federation.rounds,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        pack_tokens=train.pack_tokens,
        s_reset=method.s_reset,
        s_dropout=method.s_dropout,
        mixture=method.mixture,
        lora_dropout=config.lora.dropout,
        anchor_beta=train.anchor_beta,
        mask_perplexity=train.mask_perplexity,
        distill_weight=train.distill_weight,
        update_dtype=config.federation.update_dtype,
        clip_norm=privacy.clip_norm if privacy.mode != "none" else 0.0,
        local_noise=noise if privacy.mode == "local" else 0.0,
    )


def plan_of(config: Config, announced: Mapping[str, int]) -> Plan:
    """Return what stays the same in every round.

    `announced` is the number of training examples of each client; without clients only the names
    and values of the configuration are checked. UserError for those that do not fit together.
    """
    algorithm, federation = config.algorithm, config.federation
    _check_measuring(config)
    choose(config.method.name, METHODS, "method.name")
    in_a_round = federation.clients_per_round or len(announced)
    if announced and federation.min_updates > in_a_round:
        raise UserError(
            f"federation.min_updates: is {federation.min_updates}, but a round has {in_a_round} "
            "clients; lower it"
        )
    if config.engine.clients_at_once != 1 and config.engine.name != "in-process":
        raise UserError(
            f"engine.clients_at_once: '{config.engine.name}' trains each client alone; set it to "
            "1, or engine.name = 'in-process'"
        )
    given = {key: getattr(algorithm, key) for key in ("lr", "beta", "b1", "b2", "tau")}
    hyperparameters = {key: value for key, value in given.items() if value is not None}
    return Plan(
        seed=config.seed,
        clients=tuple(sorted(announced)),
        clients_per_round=federation.clients_per_round,
        min_updates=federation.min_updates,
        server_optimizer=server_optimizer(algorithm.name, **hyperparameters),
        settings=client_settings(config),
        privacy=_privacy_of(config),
        max_update_norm=federation.max_update_norm,
        max_norm_ratio=federation.max_norm_ratio,
        max_weight_ratio=federation.max_weight_ratio,
        aggregation=_aggregation_of(config),
        malicious_share=algorithm.malicious_share,
        announced=announced,
        ranks=_ranks_of(config, announced),
    )


def announced_by(clients: Sequence[ClientData]) -> dict[str, int]:
    """Return client -> number of training examples."""
    return {client.client_id: len(client.raw) for client in clients}


def _aggregation_of(config: Config) -> Aggregation:
    """Return the aggregation; UserError where another key needs the mean of all updates.

    Noise that the clients add is covered by any aggregation, which only reads what was sent.
    """
    name, privacy = config.algorithm.aggregation, config.privacy
    aggregation = choose(name, AGGREGATIONS, "algorithm.aggregation")
    refused = f"algorithm.aggregation: '{name}' cannot go with"
    if aggregation.kept and config.teacher.refresh and METHODS[config.method.name].rewrites:
        raise UserError(
            f"{refused} teacher.refresh: a part of R stays at the clients, so no global model can "
            "rewrite; set it to 0"
        )
    if not aggregation.is_mean:
        means = ", ".join(f"'{key}'" for key, value in AGGREGATIONS.items() if value.is_mean)
        if privacy.mode == "central":
            raise UserError(
                f"{refused} privacy.mode = 'central', whose noise is made for the mean; use one "
                f"of {means}"
            )
        if config.algorithm.name == "scaffold":
            raise UserError(
                f"{refused} algorithm.name = 'scaffold', whose control variates are means over "
                f"all clients; use one of {means}"
            )
        if not METHODS[config.method.name].sent:
            raise UserError(f"{refused} method.name = '{config.method.name}', which sends nothing")
    if privacy.mode == "central":
        combine = noisy_mean(privacy.clip_norm, privacy.noise_multiplier)
        return replace(aggregation, combine=combine)
    return aggregation


def _ranks_of(config: Config, announced: Mapping[str, int]) -> dict[str, int]:
    """Return the ranks of the clients that have one; UserError where they cannot be."""
    ranks = {name: client.rank for name, client in config.clients.items() if client.rank}
    for name, rank in ranks.items():
        key = f"clients.{name}.rank"
        if rank > config.lora.rank:
            raise UserError(f"{key}: is {rank}, above lora.rank = {config.lora.rank}; lower it")
        if not AGGREGATIONS[config.algorithm.aggregation].ranks:
            raise UserError(
                f"{key}: cannot go with algorithm.aggregation = '{config.algorithm.aggregation}'; "
                "use 'product'"
            )
        if config.lora.rank_pattern:
            raise UserError(f"{key}: cannot go with lora.rank_pattern; drop one of them")
        if announced and name not in announced:
            known = ", ".join(sorted(announced))
            raise UserError(
                f"{key}: no client '{name}' (there are: {known}){nearest(name, announced)}"
            )
    return ranks


def _privacy_of(config: Config) -> Privacy:
    """Return the differential privacy of the run; UserError where noise would not cover what is
    sent."""
    given = config.privacy
    if given.mode == "none":
        return NO_PRIVACY
    check_accountant()
    if config.federation.update_dtype != "fp32":
        raise UserError(
            "privacy.mode: error feedback would send more than the clipping norm allows; set "
            'federation.update_dtype = "fp32"'
        )
    if config.algorithm.name == "scaffold":
        raise UserError(
            "privacy.mode: scaffold sends control variates, which no noise covers; choose another "
            "algorithm.name"
        )
    if not METHODS[config.method.name].sent:
        raise UserError(f"privacy.mode: '{config.method.name}' sends nothing; set it to none")
    return Privacy(given.mode, given.clip_norm, given.noise_multiplier, given.delta)


def _check_measuring(config: Config) -> None:
    """UserError for settings of [evaluation] that do not fit together or to the engine."""
    evaluation = config.evaluation
    if evaluation.every and config.engine.name == "flower":
        raise UserError(
            "evaluation.every: a Flower server holds no rows to measure on; set it to 0, or use "
            "engine.name = 'in-process'"
        )
    if evaluation.keep == "last":
        return
    if not (evaluation.every and config.data.validation_fraction):
        raise UserError(
            "evaluation.keep: 'best' is chosen on validation rows; set evaluation.every and "
            "data.validation_fraction"
        )
    if METHODS[config.method.name].afterwards:
        raise UserError(
            f"evaluation.keep: '{config.method.name}' trains after the last round, so only that "
            "one can be served; use 'last'"
        )
