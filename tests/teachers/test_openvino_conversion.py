import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from fedsdr.teachers.openvino_conversion import write_fp16_copy


def test_a_copy_has_the_names_metadata_and_dequantised_weights_of_the_file(tmp_path):
    rng = np.random.default_rng(0)
    matrix, vector = rng.normal(size=(8, 64)).astype(np.float32), np.ones(64, np.float32)
    packed = quants.quantize(matrix, GGMLQuantizationType.Q4_1)
    writer = GGUFWriter(tmp_path / "packed.gguf", "llama")
    writer.add_block_count(3)
    writer.add_rope_freq_base(1234.5)
    writer.add_token_list(["a", "b", "ü"])
    writer.add_token_types([1, 3, 1])
    writer.add_file_type(3)
    writer.add_tensor("w.weight", packed, raw_dtype=GGMLQuantizationType.Q4_1)
    writer.add_tensor("norm.weight", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    write_fp16_copy(tmp_path / "packed.gguf", tmp_path / "new" / "plain.gguf")

    before, after = (GGUFReader(tmp_path / n) for n in ("packed.gguf", "new/plain.gguf"))
    told = [
        {k: (f.types, f.contents()) for k, f in reader.fields.items() if "file_type" not in k}
        for reader in (before, after)
    ]
    assert told[0] == told[1]
    assert after.fields["general.file_type"].contents() == 1
    weights = {tensor.name: tensor for tensor in after.tensors}
    assert weights.keys() == {"w.weight", "norm.weight"}
    assert weights["w.weight"].tensor_type == GGMLQuantizationType.F16
    unpacked = quants.dequantize(packed, GGMLQuantizationType.Q4_1)
    np.testing.assert_array_equal(weights["w.weight"].data, unpacked.astype(np.float16))
    np.testing.assert_array_equal(weights["norm.weight"].data, vector)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["plain.gguf"]
