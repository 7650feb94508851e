"""Split a model file into shards, with gguf-py's own writer."""

from pathlib import Path

import gguf


def write_shards(whole: Path, folder: Path, tensors_max: int, name: str = "m") -> list[Path]:
    """Write the shards of a model, and return them in order; the first one has no tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(whole)
    fields = [field for key, field in reader.fields.items() if not key.startswith("GGUF.")]
    architecture = next(f.contents() for f in fields if f.name == gguf.Keys.General.ARCHITECTURE)
    out = gguf.GGUFWriter(
        folder / f"{name}.gguf",
        architecture,
        split_max_tensors=tensors_max,
        small_first_shard=True,
    )
    for field in fields:
        if field.name != gguf.Keys.General.ARCHITECTURE:
            kind = field.types[0]
            item = field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
            out.add_key_value(field.name, field.contents(), kind, item)
    for tensor in reader.tensors:
        out.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return sorted(folder.glob(f"{name}-*.gguf"))
