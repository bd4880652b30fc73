"""A copy of a .gguf file whose weights are plain numbers, for engines that misread packed ones."""

from pathlib import Path

import numpy as np

from fedsdr.files import write_file


def write_fp16_copy(source: Path, target: Path) -> None:
    """Write `source` with every matrix as fp16 numbers; names and metadata stay.

    fp16 rounds a dequantised weight by 1 in 2048 at most, far less than its 4 bits did. Vectors
    (norms and biases) are written as fp32.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, quants

    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()

    def write(temporary: Path) -> None:
        writer = GGUFWriter(temporary, architecture)
        for name, entry in reader.fields.items():
            # The writer adds the first two itself; the third is another one now.
            if not name.startswith("GGUF.") and name not in (
                "general.architecture",
                "general.file_type",
            ):
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
