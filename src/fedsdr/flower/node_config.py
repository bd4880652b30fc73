"""What a node's configuration means: its settings, its folder, and what it never takes from others.

A site names itself in its node configuration and never takes a path from the server:

    --node-config 'client="bank" data="/data/bank.jsonl" state-dir="/var/lib/fedsdr"'

Any configuration key may be set there too and overrides the server's. S and the rewrites stay under
STATE_DIR/EXPERIMENT/CLIENT/, laid out like a run folder. A node of a simulation has a partition
number instead, and the state of all clients is in the run folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsdr.config import Config
from fedsdr.errors import UserError
from fedsdr.flower.run_config import SITE_KEYS, Scalar, from_run_config, is_name, with_scalars

_NODE_KEYS = ("client", "data", "state-dir")
_PRIVACY = ("privacy.mode", "privacy.clip_norm", "privacy.noise_multiplier")  # all of them, or none


@dataclass(frozen=True)
class NodeConfig:
    """The configuration as this node sees it, and the folder of its state.

    `client` and `data` are empty in a simulation, where `partition` is the client's number.
    """

    config: Config
    folder: Path
    client: str = ""
    data: str = ""
    partition: int = -1

    @property
    def is_site(self) -> bool:
        """Whether this node is a deployed site rather than part of a simulation."""
        return bool(self.client)


def node_config_of(run: Mapping[str, Scalar], node: Mapping[str, Scalar]) -> NodeConfig:
    """Return what a run configuration and a node configuration mean for this node.

    UserError if a site's keys are missing, name no folder, or pin privacy in part.
    """
    if "client" not in node:
        folder = Path(str(run["out"]))
        return NodeConfig(from_run_config(run), folder, partition=int(node["partition-id"]))
    for key in _NODE_KEYS:
        if not node.get(key):
            raise UserError(
                f"--node-config: '{key}' is not set; a site sets {', '.join(_NODE_KEYS)}"
            )
    experiment, client = str(run["experiment"]), str(node["client"])
    for name in (experiment, client):
        if not is_name(name):
            raise UserError(f"the name {name!r} of the experiment or client cannot name a folder")
    if node.get("experiment", experiment) != experiment:
        raise UserError(f"--node-config: takes part in '{node['experiment']}', not '{experiment}'")
    own = {key: value for key, value in node.items() if key not in _NODE_KEYS}
    pinned = [key for key in _PRIVACY if key in own]
    if pinned and len(pinned) < len(_PRIVACY):
        missing = next(key for key in _PRIVACY if key not in own)
        raise UserError(
            f"--node-config: {pinned[0]} is set, so set {missing} too; otherwise whoever starts a "
            "run chooses it"
        )
    own["data.clients"] = str(node["data"])
    config = with_scalars(from_run_config(run, without=SITE_KEYS), own, "--node-config")
    folder = Path(str(node["state-dir"])).expanduser() / experiment / client
    return NodeConfig(config, folder, client, str(node["data"]))
