"""Saving a sharded table, and loading it with another number of processes.

::

    FOLDER/table.json                           what it is, and which files belong to it; written last
    FOLDER/NUMBER-rows-FIRST-LAST.safetensors   weight and state of rows FIRST to before LAST

``NUMBER`` is new for each save, so that files of two saves never mix.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from firth.errors import FirthError, FormatError, SettingError
from firth.files import replacing, storage_error, write_text

if TYPE_CHECKING:
    from firth.nn.sharded import ShardedEmbedding

INDEX = "table.json"
_FORMAT = 1
_CODES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Facts:
    """What a folder holds."""

    rows: int
    dim: int
    dtype: str
    recipe: str
    steps: int
    shards: list[tuple[int, int, str]]  # first row, the row after the last, file name


@dataclass(frozen=True)
class _Piece:
    """Rows ``begin`` to before ``end``, in a file that holds those from ``first`` to before ``last``."""

    path: Path
    first: int
    last: int
    begin: int
    end: int


def save(layer: ShardedEmbedding, folder: str | os.PathLike[str]) -> None:
    """See :meth:`ShardedEmbedding.save`."""
    path = Path(folder)
    number = layer.said_by_first(secrets.randbits(62))
    shards = [
        (first, last, f"{number:016x}-rows-{first}-{last}.safetensors")
        for first, last in zip(layer._bounds, layer._bounds[1:], strict=False)
    ]
    own = path / shards[layer.rank][2]
    layer.agree(_error_of(lambda: _write_shard(layer, path, own)))
    facts = Facts(
        layer.num_embeddings,
        layer.embedding_dim,
        str(layer.weight.dtype).removeprefix("torch."),
        "" if layer.fused is None else layer.fused.kind,
        0 if layer.optimizer is None else layer.optimizer.steps,
        shards,
    )
    # In every process: without a common file system each folder needs its own.
    layer.agree(_error_of(lambda: _write_index(path, facts)))
    for old in path.glob("*-rows-*.safetensors"):
        if not old.name.startswith(f"{number:016x}-"):
            old.unlink(missing_ok=True)


def load(layer: ShardedEmbedding, folder: str | os.PathLike[str]) -> None:
    """See :meth:`ShardedEmbedding.load`."""
    path = Path(folder)
    facts: list[Facts] = []
    layer.agree(_error_of(lambda: facts.append(_checked(layer, path))))
    layer.agree(_error_of(lambda: _load(layer, path, facts[0])))


def _error_of(work: Callable[[], None]) -> FirthError | None:
    try:
        work()
    except FirthError as error:
        return error
    return None


def _tensors(layer: ShardedEmbedding) -> dict[str, Tensor]:
    """Weight and state of this process, the ones in use."""
    found = {"weight": layer.weight.detach()}
    if layer.optimizer is not None and layer.fused is not None:
        found |= layer.optimizer.state_of(layer.weight, layer.optimizer.recipe_of(_settings(layer)))
    return found


def _settings(layer: ShardedEmbedding) -> dict[str, Any]:
    assert layer.optimizer is not None
    group: dict[str, Any] = layer.optimizer.param_groups[0]
    return group


def _write_shard(layer: ShardedEmbedding, folder: Path, own: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder, "make the folder") from error
    tensors = {name: tensor.cpu().contiguous() for name, tensor in _tensors(layer).items()}
    header, at = {}, 0
    for name, tensor in tensors.items():
        kind = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**kind, "data_offsets": [at, at := at + tensor.nbytes]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(own) as file:  # the library's writer would copy the table first
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _write_index(folder: Path, facts: Facts) -> None:
    text = json.dumps({"format": _FORMAT, **facts.__dict__}, indent=1)
    write_text(folder / INDEX, text + "\n")


def _needed(layer: ShardedEmbedding, folder: Path, facts: Facts) -> Iterator[_Piece]:
    """The rows of this process, by the files that hold them."""
    for first, last, name in facts.shards:
        begin, end = max(first, layer.first_row), min(last, layer.last_row)
        if begin < end:
            yield _Piece(folder / name, first, last, begin, end)


def _checked(layer: ShardedEmbedding, folder: Path) -> Facts:
    """What the folder holds, once all that this process needs of it was found to fit; nothing is changed."""
    facts = _read_index(folder)
    _check_fits(layer, folder, facts)
    tensors = _tensors(layer)
    for piece in _needed(layer, folder, facts):
        with _opened(piece.path) as file:
            for name, tensor in tensors.items():
                there = file.get_slice(name)
                expected = [piece.last - piece.first, *tensor.shape[1:]]
                if there.get_shape() != expected or there.get_dtype() != _CODES[tensor.dtype]:
                    raise FormatError(
                        f"{name} in {piece.path} is {there.get_dtype()} {there.get_shape()}, "
                        f"{_CODES[tensor.dtype]} {expected} was expected"
                    )
    return facts


def _load(layer: ShardedEmbedding, folder: Path, facts: Facts) -> None:
    tensors = _tensors(layer)
    for piece in _needed(layer, folder, facts):
        with _opened(piece.path) as file:
            for name, tensor in tensors.items():
                rows = file.get_slice(name)[piece.begin - piece.first : piece.end - piece.first]
                tensor[piece.begin - layer.first_row : piece.end - layer.first_row].copy_(rows)
    if layer.optimizer is not None:
        del tensors["weight"]
        layer.optimizer.keep(layer.weight, tensors, facts.steps)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except OSError as error:
        raise storage_error(error, path, "read") from error
    except SafetensorError as error:
        raise FormatError(f"{path} is cut, damaged or lacks a tensor ({error})") from error


def _read_index(folder: Path) -> Facts:
    path = folder / INDEX
    try:
        text = path.read_bytes()
    except OSError as error:
        raise storage_error(error, path, "read") from error
    try:
        read = json.loads(text)
        if read.pop("format") != _FORMAT:
            raise ValueError("another format")
        facts = Facts(**read)
        shards = [(int(first), int(last), str(name)) for first, last, name in facts.shards]
        at = 0
        for first, last, name in shards:
            if first != at or last < first or Path(name).name != name:
                raise ValueError(f"rows {first} to {last} in {name!r} do not follow on row {at}")
            at = last
        if at != facts.rows:
            raise ValueError(f"the files hold {at} rows")
        return Facts(**{**read, "steps": int(facts.steps), "shards": shards})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise FormatError(f"{path} is no index of a sharded table, or damaged ({what})") from error


def _check_fits(layer: ShardedEmbedding, folder: Path, facts: Facts) -> None:
    kind = "" if layer.fused is None else layer.fused.kind
    here = (layer.num_embeddings, layer.embedding_dim, str(layer.weight.dtype).removeprefix("torch."), kind)
    there = (facts.rows, facts.dim, facts.dtype, facts.recipe)
    if here != there:
        said = [f"{n} x {d} {dtype} ({recipe or 'no recipe'})" for n, d, dtype, recipe in (there, here)]
        raise SettingError(
            f"the sharded table in {folder} is {said[0]}, this layer {said[1]}; make the layer with the same"
        )
