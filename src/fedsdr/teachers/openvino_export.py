"""A model folder exported for OpenVINO by optimum-intel's command, wherever that is installed.

optimum-intel holds transformers below the version that we use, so that it lives in an environment
of its own (`pipx install 'optimum-intel[openvino]'`) and is called, not imported.
"""

import shutil
import subprocess
from pathlib import Path

from fedsdr.errors import UserError
from fedsdr.files import write_folder

COMMAND = "optimum-cli"


def export_folder(source: Path, target: Path) -> None:
    """Write `source`, a folder as transformers saves it, as an OpenVINO folder with fp16 weights.

    UserError with the last line that the command printed, when it fails; `target` appears whole
    or not at all.
    """
    command = shutil.which(COMMAND)
    if not command:
        raise UserError(
            f"teacher.engine: 'openvino' reads a model folder by way of {COMMAND}, which is not "
            "on the PATH: pipx install 'optimum-intel[openvino]'"
        )

    def write(folder: Path) -> None:
        done = subprocess.run(
            [command, "export", "openvino", "--model", str(source), "--weight-format", "fp16",
             "--task", "text-generation-with-past", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if done.returncode or not (folder / "openvino_model.xml").is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise UserError(f"{source}: {COMMAND} cannot export it ({said})")

    write_folder(target, write)
