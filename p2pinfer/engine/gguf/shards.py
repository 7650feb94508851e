"""A model's files: one, or the shards that ``llama-gguf-split`` makes of one.

The first shard has all of the metadata, every shard some of the tensors, and the keys ``split.*``
say which shard of how many it is. Put together they are the model that was split, tensor for tensor
and key for key; what a merge leaves of ``split.*`` in the whole file is left out too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from p2pinfer.core.errors import BadModelFile
from p2pinfer.engine.gguf.reader import TENSORS_MAX, GgufHeader, Tensor, read_header
from p2pinfer.engine.gguf.writer import Extent

SHARDS_MAX = 1024
"""Published models have up to about 100; names have five digits."""

_SPLIT_KEYS = "split."
_SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A whole model: its header, and where its tensors' bytes lie."""

    header: GgufHeader
    """The offsets of its tensors count within their own files."""
    extents: Mapping[str, Extent]
    paths: tuple[Path, ...]
    """In order."""


def read_model(path: Path) -> ModelFiles:
    """Read the header of the model that a file, or any of its shards, belongs to.

    Raises:
        BadModelFile: a file cannot be read, or makes no sense, or a shard is missing.
    """
    header = read_header(path)
    paths = shard_paths(path, header.integer("split.count") or 0)
    if len(paths) == 1:
        return _joined(paths, [header])
    if missing := [each.name for each in paths if not each.is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadModelFile(
            f"{path.name} is a shard of a model of {len(paths)}, and {missing[0]}{more} is not in"
            f" {path.parent}: put all of them into one folder"
        )
    headers = [header if each == path else read_header(each) for each in paths]
    for number, each in enumerate(headers):
        told = each.integer("split.no"), each.integer("split.count")
        if told != (number, len(paths)):
            raise BadModelFile(
                f"{each.name} says that it is shard {told[0]} of {told[1]}, counted from 0, and its"
                " name says otherwise: was it renamed?"
            )
    return _joined(paths, headers)


def shard_paths(path: Path, count: int) -> tuple[Path, ...]:
    """Return the files of a model of ``count`` shards, one of which is given; raises BadModelFile.

    The names are those of ``llama_split_path`` in llama.cpp.
    """
    if count <= 1:
        return (path,)
    name = _SHARD_NAME.fullmatch(path.name)
    if name is None or int(name[3]) != count:
        raise BadModelFile(
            f"{path.name} is one of {count} shards, which are found by their names: give it back"
            f" its own, such as MODEL-00001-of-{count:05}.gguf"
        )
    if count > SHARDS_MAX:
        raise BadModelFile(f"{path.name} claims {count:,} shards; {SHARDS_MAX:,} is the limit")
    return tuple(
        path.with_name(f"{name[1]}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    )


def named_shards(path: Path) -> tuple[Path, ...]:
    """Return the files that belong to one: all shards if it is named as one, or itself."""
    name = _SHARD_NAME.fullmatch(path.name)
    if name is None or not 1 <= int(name[2]) <= int(name[3]) <= SHARDS_MAX:
        return (path,)
    return shard_paths(path, int(name[3]))


def _joined(paths: tuple[Path, ...], headers: list[GgufHeader]) -> ModelFiles:
    """Put the headers of a model's files together."""
    first = headers[0]
    tensors: dict[str, Tensor] = {}
    extents: dict[str, Extent] = {}
    for path, header in zip(paths, headers, strict=True):
        for tensor in header.tensors.values():
            if tensor.name in tensors:
                raise BadModelFile(f"{path.name} has a tensor {tensor.name!r} of another shard")
            tensors[tensor.name] = tensor
            extents[tensor.name] = Extent(path, tensor.offset, tensor.nbytes)
    claimed = first.integer("split.tensors.count")
    if (len(paths) > 1 and claimed not in (None, len(tensors))) or len(tensors) > TENSORS_MAX:
        raise BadModelFile(
            f"{first.name} is damaged: its shards have {len(tensors)} tensors, not {claimed}"
        )
    metadata = {k: v for k, v in first.metadata.items() if not k.startswith(_SPLIT_KEYS)}
    return ModelFiles(GgufHeader(first.name, metadata, tensors), extents, paths)
