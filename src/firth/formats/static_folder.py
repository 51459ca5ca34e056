"""The folder that sentence-transformers (``StaticEmbedding``) and model2vec (``StaticModel``) open.

::

    config.json         model2vec's settings; our metadata under ``firth``
    model.safetensors   embeddings F32 (V + 1, D): the keys' rows, then a row of zeros for unknown words;
                        counts I64 (V,) where there are some, which the others do not look at
    tokenizer.json      a WordLevel model of the tokenizers library: row numbers by token; see ``tokenizer``
    modules.json        one module, StaticEmbedding, in the folder itself
    README.md           the model card

sentence-transformers averages the row of unknown words in, model2vec drops it; zeros leave the direction of
both the same. Read are also what the two write themselves: ``embedding.weight``, a module in a folder of its
own, float16, bfloat16, float64 and int8, ``weights`` (V,) and ``mapping`` (V,), and vocabularies of
WordPiece, BPE and Unigram, whose tokens are the keys as they stand.

Sources: sentence_transformers/models/StaticEmbedding.py, https://github.com/MinishLab/model2vec and
https://huggingface.co/docs/tokenizers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError
from firth.files import replacing_folder, storage_error
from firth.formats import safetensors, static_card
from firth.formats.table import PIECE, SOME, Facts, Format, Head, Options, Rows, Table, floats, names_in, warn
from firth.keys import Keys

NAME = "a sentence-transformers folder"
WEIGHTS, TOKENIZER, MODULES, CONFIG, CARD = (
    "model.safetensors",
    "tokenizer.json",
    "modules.json",
    "config.json",
    "README.md",
)
TENSORS = ("embeddings", "embedding.weight")
LONGEST_JSON = 1 << 30
_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "i1", "BF16": "<u2"}


def recognise(head: Head) -> bool:
    """A folder with weights and a tokenizer, here or in the first module's folder."""
    if head.names is None:
        return False
    if {WEIGHTS, TOKENIZER} <= head.names:
        return True
    return MODULES in head.names and _module(head.path) != head.path


def _module(path: Path) -> Path:
    """The folder of the first module, which is ``path`` itself unless modules.json names one inside."""
    if not (path / MODULES).is_file():
        return path
    modules = _load(path / MODULES)
    first = modules[0] if isinstance(modules, list) and modules else None
    name = first.get("path") if isinstance(first, dict) else None
    if not isinstance(name, str) or name in ("", ".") or "/" in name or name.startswith("."):
        return path
    return path / name if (path / name / WEIGHTS).is_file() else path


def _load(path: Path) -> Any:
    """A JSON file of the folder."""
    try:
        if path.stat().st_size > LONGEST_JSON:
            raise FormatError(f"{path} has over {LONGEST_JSON:,} bytes; it is no file of such a folder")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise storage_error(error, path, "read") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON ({str(error)[:80]}); it is cut or damaged") from error


def read(path: Path, options: Options) -> Table:
    """Read the folder; float32 rows are mapped.

    Raises:
        FormatError: a file is missing or damaged, or they do not fit.
        StorageError: one cannot be read.
    """
    folder = _module(path)
    tensors = _Tensors(folder / WEIGHTS)
    tokens, unknown = _tokens(folder / TOKENIZER, tensors)
    there = np.fromiter(map(bool, tokens), bool, len(tokens))
    if unknown is not None and there[unknown] and there.sum() > 1 and not tensors.row(unknown).any():
        there[unknown] = False  # a row of zeros that stands for words that have none
    kept = np.flatnonzero(there)[: options.limit]
    keys = _keys(folder / TOKENIZER, tokens, kept)
    counts = tensors.counts
    if counts is not None and kept[-1] >= len(counts):
        raise FormatError(f"{folder / WEIGHTS}: 'counts' are {len(counts):,}; one for each token is expected")
    return Table(
        keys,
        tensors.matrix(kept),
        None if counts is None else counts[kept].astype(np.int64),
        metadata=_metadata(path),
    )


def _keys(path: Path, tokens: list[str], kept: NDArray[np.int64]) -> Keys:
    """The tokens of these rows; kept as bytes, which take less than strings."""
    rows = Rows(path, 0, 0, "surrogatepass")
    for start in range(0, len(kept), SOME):
        part = [tokens[row].encode("utf-8", "surrogatepass") for row in kept[start : start + SOME].tolist()]
        rows.add(part, np.empty((len(part), 0), np.float32), lambda row: f"token {row}")
    return rows.keys()


class _Tensors:
    """The weights, mapped: a table, and by token a factor and a row where model2vec has them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            data = np.memmap(path, np.uint8, "r")
        except OSError as error:
            raise storage_error(error, path, "read") from error
        except ValueError as error:
            raise FormatError(f"{path} is empty: there are no vectors in it") from error
        entries, _, begin = safetensors.read_header(path, data)
        name = next((name for name in TENSORS if name in entries), None)
        if name is None:
            there = ", ".join(sorted(entries)[:5]) or "nothing"
            raise FormatError(f"{path} holds {there}; a tensor called {TENSORS[0]!r} is expected")
        entry = entries[name]
        if entry.dtype not in _NUMPY or len(entry.shape) != 2 or 0 in entry.shape:
            raise FormatError(
                f"{path}: {name!r} is {entry.dtype} {list(entry.shape)}; rows of floats are expected"
            )
        self.dtype = {"BF16": "bfloat16", "I8": "int8"}.get(entry.dtype) or np.dtype(_NUMPY[entry.dtype]).name
        part = np.asarray(data[begin + entry.begin : begin + entry.end])
        self._table = part.view(_NUMPY[entry.dtype]).reshape(entry.shape)
        self.dim = int(entry.shape[1])
        self._mapping = self._column("mapping", entries, data, begin)
        self._weights = self._column("weights", entries, data, begin)
        self.counts = self._column("counts", entries, data, begin)
        rows = len(self._table)
        if self._mapping is not None and not ((self._mapping >= 0) & (self._mapping < rows)).all():
            raise FormatError(f"{path}: 'mapping' names rows that the table does not have")
        self.tokens = rows if self._mapping is None else len(self._mapping)
        if self._weights is not None and len(self._weights) != self.tokens:
            raise FormatError(f"{path}: 'weights' are {len(self._weights)}; {self.tokens} are expected")

    def _column(
        self, name: str, entries: dict[str, safetensors.Entry], data: NDArray[np.uint8], begin: int
    ) -> NDArray[Any] | None:
        if name not in entries:
            return None
        entry = entries[name]
        floating = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
        kinds = floating if name == "weights" else {"I64": "<i8", "I32": "<i4"}
        if entry.dtype not in kinds or len(entry.shape) != 1:
            raise FormatError(
                f"{self._path}: {name!r} is {entry.dtype} {list(entry.shape)}, which it cannot be"
            )
        return np.asarray(data[begin + entry.begin : begin + entry.end]).view(kinds[entry.dtype]).copy()

    def row(self, token: int) -> NDArray[Any]:
        """The numbers of one token as they are stored."""
        numbers: NDArray[Any] = self._table[token if self._mapping is None else int(self._mapping[token])]
        return numbers

    def matrix(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of rising tokens as float32; mapped where they are the first rows as they stand."""
        plain = self._mapping is None and self._weights is None
        first = len(tokens) and int(tokens[-1]) == len(tokens) - 1
        if plain and first and self._table.dtype == np.dtype("<f4"):
            return self._table[: len(tokens)]
        result = np.empty((len(tokens), self.dim), np.float32)
        step = max(1, PIECE // self.dim)
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            rows = self._table[part if self._mapping is None else self._mapping[part]]
            if self._table.dtype == np.dtype("<u2"):  # bfloat16 is the upper half of float32
                rows = (rows.astype(np.uint32) << 16).view(np.float32)
            if self._weights is not None:
                rows = rows * self._weights[part, None]
            result[start : start + len(part)] = floats(self._path, rows, len(part))
        return result


def _tokens(path: Path, tensors: _Tensors) -> tuple[list[str], int | None]:
    """The token of each row (``""`` where there is none), and the row of unknown words."""
    data = _load(path)
    model = data.get("model") if isinstance(data, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(vocab, list):  # Unigram: [token, score] by number
        pairs = ((one[0] if isinstance(one, list) and one else None, row) for row, one in enumerate(vocab))
    elif isinstance(vocab, dict):
        pairs = vocab.items()
    else:
        raise FormatError(f"{path} has no vocabulary; a tokenizer of the tokenizers library is expected")
    added = data.get("added_tokens")
    listed = [one for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    more = ((one.get("content"), one.get("id")) for one in listed)
    tokens = [""] * tensors.tokens
    for token, row in chain(pairs, more):
        if not isinstance(token, str) or type(row) is not int or not 0 <= row < tensors.tokens:
            raise FormatError(
                f"{path}: the token {token!r} has the number {row!r}; "
                f"0 to {tensors.tokens - 1:,} are the rows"
            )
        if tokens[row] not in ("", token):
            raise FormatError(f"{path}: {tokens[row]!r} and {token!r} have the same number {row:,}")
        tokens[row] = token
    nameless = tokens.count("")
    if nameless == len(tokens):
        raise FormatError(f"{path} holds no tokens")
    if nameless:
        warn(f"{path}: {nameless:,} rows have no token; they are left out")
    assert isinstance(model, dict)
    name = model.get("unk_token")
    unknown = model.get("unk_id") if name is None else (tokens.index(name) if name in tokens else None)
    return tokens, unknown if type(unknown) is int and 0 <= unknown < len(tokens) else None


def _metadata(path: Path) -> dict[str, Any]:
    config = _load(path / CONFIG) if (path / CONFIG).is_file() else {}
    found = config.get("firth") if isinstance(config, dict) else None
    return found if isinstance(found, dict) else {}


def inspect(path: Path, options: Options) -> Facts:
    """Shape and dtype from the header of the weights, keys from the tokenizer; numbers are not read."""
    folder = _module(path)
    tensors = _Tensors(folder / WEIGHTS)
    tokens, unknown = _tokens(folder / TOKENIZER, tensors)
    if unknown is not None and len(tokens) > 1 and not tensors.row(unknown).any():
        tokens[unknown] = ""
    keys = [token for token in tokens if token]
    metadata = _metadata(path)
    extras = (("counts", tensors.counts is not None), ("metadata", bool(metadata)))
    inside = ("tokenizer", *(name for name, there in extras if there))
    return Facts(len(keys), tensors.dim, tensors.dtype, tuple(keys[:10]), inside, metadata)


def write(path: Path, table: Table) -> None:
    """Write the folder.

    Raises:
        FormatError: a key has no form in UTF-8.
        StorageError: the folder cannot be written, or is somebody else's.
    """
    check(path, table.keys)
    names = table.keys.to_list()
    reading = static_card.Reading.of(names)
    rows, dim = table.matrix.shape
    config = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "normalize": False,
        "hidden_dim": dim,
        "embedding_dtype": "float32",
        "firth": table.metadata,
    }
    modules = [{"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}]
    with replacing_folder(path, ours) as folder:
        with open(folder / WEIGHTS, "xb") as file:
            file.write(_header(rows, dim, table.counts is not None))
            if table.counts is not None:
                file.write(np.ascontiguousarray(table.counts, "<i8").data)
            file.write(np.ascontiguousarray(table.matrix, "<f4").data)
            file.write(bytes(4 * dim))
        for name, value in (
            (CONFIG, config),
            (MODULES, modules),
            (TOKENIZER, static_card.tokenizer(names, reading)),
        ):
            (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
        (folder / CARD).write_text(static_card.card(path.name, table, reading), encoding="utf-8")
    if reading.never:
        warn(
            f"{path}: {reading.never:,} keys (as {reading.example!r}) are split by the folder's tokenizer "
            "and will not be found in running text"
        )


def _header(rows: int, dim: int, counts: bool) -> bytes:
    """Of the weights: perhaps counts, then the table; the data at a multiple of 64."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 8 * rows if counts else 0  # counts first, so that they lie at a multiple of 8
    if counts:
        entries["counts"] = {"dtype": "I64", "shape": [rows], "data_offsets": [0, begin]}
    end = begin + 4 * (rows + 1) * dim
    entries[TENSORS[0]] = {"dtype": "F32", "shape": [rows + 1, dim], "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % safetensors.ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def ours(path: Path) -> bool:
    """Whether the folder holds these five files and no other, and firth wrote them."""
    if set(names_in(path)) != {WEIGHTS, TOKENIZER, MODULES, CONFIG, CARD}:
        return False
    with open(path / CARD, "rb") as file:
        return file.read(1 << 20).endswith(static_card.MARK.encode() + b"\n")


def check(path: Path, keys: Iterable[str]) -> None:
    """Refuse keys that are no Unicode text (lone surrogates) by ``FormatError``."""
    for key in keys:
        try:
            key.encode()
        except UnicodeEncodeError:
            raise FormatError(
                f"cannot write {path}: the key {key!r} has no form in UTF-8; use safetensors"
            ) from None


FORMAT = Format(
    "static-folder",
    (),
    recognise,
    read,
    write,
    check,
    holds=("counts", "metadata"),
    inspect=inspect,
    folder=ours,
)
