"""A fedsdr study as a job of NVIDIA FLARE: its FedAvg combines the R of the sites.

    python job.py study.toml --sites bank clinic --data /data --state-dir /state --simulate OUT

runs it in NVFlare's simulator. `--job DIR` writes the job's folder instead, for a federation that
is deployed. `adapter.py` makes a PEFT adapter of the result. The paths are absolute and those of
the sites; in single quotes they may name variables of a site's environment: --data '$ROWS'.
"""

import argparse
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.client.config import ExchangeFormat
from nvflare.recipe.sim_env import SimEnv

import fedsdr
from fedsdr.config import Config, save_config


def main() -> None:
    """Simulate the job or write its folder."""
    parser = argparse.ArgumentParser(description="A fedsdr study as a job of NVIDIA FLARE.")
    parser.add_argument("config", help="the study")
    parser.add_argument(
        "--sites", nargs="+", required=True, help="their names, as NVFlare has them"
    )
    parser.add_argument("--data", required=True, help="at a site: its file, or a folder of files")
    parser.add_argument("--state-dir", required=True, help="at a site: where S and rewrites stay")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--simulate", metavar="OUT", type=Path)
    what.add_argument("--job", metavar="DIR", type=Path)
    given = parser.parse_args()
    config, out = fedsdr.load_config(given.config), (given.simulate or given.job).absolute()
    # NVFlare puts a script that is named relative to the working directory into the job.
    with TemporaryDirectory() as folder, chdir(Path(__file__).parent):
        recipe = recipe_of(config, given, Path(folder))
        if given.job:
            recipe.export(str(out))
        else:
            recipe.execute(SimEnv(clients=given.sites, workspace_root=str(out)))


def recipe_of(config: Config, given: argparse.Namespace, folder: Path) -> FedAvgRecipe:
    """Return NVFlare's FedAvg over R; what the job carries is written to `folder`."""
    study, start = folder / "study.toml", folder / "start.pt"
    save_config(config, study)
    torch.save(fedsdr.initial_tensors(config), start)
    recipe = FedAvgRecipe(
        name="fedsdr",
        min_clients=len(given.sites),
        num_rounds=config.federation.rounds,
        train_script="client.py",
        train_args=f"--data {given.data} --state-dir {given.state_dir}",
        # Tensors stay tensors, so that fp32 arrives bit for bit; the path is one within the job.
        model_persistor=PTFileModelPersistor(
            source_ckpt_file_full_name=start.name, allow_numpy_conversion=False
        ),
        server_expected_format=ExchangeFormat.PYTORCH,
    )
    recipe.add_server_file(str(start))
    recipe.add_client_file(str(study))
    return recipe


if __name__ == "__main__":
    main()
