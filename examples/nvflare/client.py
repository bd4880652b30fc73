"""fedsdr's work at a site of NVIDIA FLARE: every round R comes in, and its change goes out."""

import argparse
import os
from pathlib import Path

import nvflare.client as flare
from nvflare.apis.fl_constant import FLMetaKey

import fedsdr

parser = argparse.ArgumentParser()
parser.add_argument("--data", help="this site's rows, or a folder with the file SITE.jsonl")
parser.add_argument("--state-dir", help="keeps S and the rewrites, private to the site")
arguments = parser.parse_args()
# The job's submitter writes the arguments; a site can have paths of its own in its environment.
data, state = os.path.expandvars(arguments.data), Path(os.path.expandvars(arguments.state_dir))
config = Path(__file__).with_name("study.toml")  # job.py puts it beside this script

flare.init()
name = flare.get_site_name()
with fedsdr.open_site(config, name, data, state / flare.get_job_id() / name) as site:
    while flare.is_running():
        received = flare.receive()
        if received is None:  # the job has ended
            break
        update = site.update(received.current_round + 1, received.params)
        flare.send(
            flare.FLModel(
                params_type=flare.ParamsType.DIFF,
                params=update.delta,
                metrics=dict(update.metrics),
                meta={FLMetaKey.NUM_STEPS_CURRENT_ROUND: update.num_examples},
            )
        )
