"""The global model of a job as a PEFT adapter.

python adapter.py study.toml FL_global_model.pt DIR
"""

import sys
from pathlib import Path

import torch

import fedsdr
from fedsdr.models.adapters import save_adapter
from fedsdr.training.methods import METHODS

study, saved, folder = sys.argv[1:]
config = fedsdr.load_config(study)
shared = torch.load(saved, map_location="cpu", weights_only=True)["model"]
branches = METHODS[config.method.name].global_model
save_adapter(Path(folder), shared, branches, lora=config.lora, base_name=config.model.name)
