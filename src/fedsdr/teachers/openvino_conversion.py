"""Convert a model for OpenVINO: an fp16 copy of a .gguf file, or an export of a model folder."""

import shutil
import subprocess
from pathlib import Path

import numpy as np

from fedsdr.errors import UserError
from fedsdr.files import write_file, write_folder

# optimum-intel requires an older transformers than fedsdr, so it is installed in an environment of
# its own and run as a command.
COMMAND = "optimum-cli"


def write_fp16_copy(source: Path, target: Path) -> None:
    """Write the .gguf file `source` with fp16 matrices and fp32 vectors; names and metadata stay.

    On CPUs without AVX-512, OpenVINO 2026.4 computes a different model from 4-bit weights. Rounding
    the dequantised weights to fp16 (relative error at most 2^-11) is negligible beside it.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, quants

    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    # Written by GGUFWriter itself, or replaced below.
    skipped = ("general.architecture", "general.file_type")

    def write(temporary: Path) -> None:
        writer = GGUFWriter(temporary, architecture)
        for name, entry in reader.fields.items():
            if not name.startswith("GGUF.") and name not in skipped:
                kind = entry.types[0]
                inner = entry.types[-1] if kind == GGUFValueType.ARRAY else None
                writer.add_key_value(name, entry.contents(), kind, inner)
        writer.add_file_type(LlamaFileType.MOSTLY_F16)
        for tensor in reader.tensors:
            weights = quants.dequantize(tensor.data, tensor.tensor_type)
            dtype = np.float32 if weights.ndim == 1 else np.float16
            writer.add_tensor(tensor.name, weights.astype(dtype))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_file(target, write)


def export_folder(source: Path, target: Path) -> None:
    """Export `source`, a transformers model folder, as an OpenVINO folder with fp16 weights.

    `target` is written atomically. UserError with the last line of the command's output if it
    fails.
    """
    command = shutil.which(COMMAND)
    if not command:
        raise UserError(
            f"teacher.engine: 'openvino' needs {COMMAND} to export a model folder, and it is not "
            "on the PATH; run: pipx install 'optimum-intel[openvino]'"
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
            output = done.stderr.strip() or done.stdout.strip() or "no output"
            raise UserError(f"{source}: {COMMAND} cannot export it ({output.splitlines()[-1]})")

    write_folder(target, write)
