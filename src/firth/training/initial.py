"""What a run starts from: nothing, or vectors that somebody has trained before.

The rules, all in one place:

* The words of the given vectors come first, in their order, whether the text has them or not; the
  words that only the text has come after. So no row that was there ever moves.
* Word vectors of known words start as they were given. Those of new words start at the mean of what
  their n-grams have where the given vectors have subwords, else as in a run from nothing.
* Context vectors start as they were given; where the file holds none, at zero, as in a run from
  nothing: the first scores are then 0 for all pairs, and no word vector moves before the context
  vectors have learned what to make of it. Measured against other starts in ``docs/fine-tuning.md``.
* What is drawn (words left out, negatives) goes by the counts of the text that is trained on. Words
  that do not occur in it are not drawn, so neither of their rows moves.
* Epochs are numbered on from those that the vectors have seen, so that the same text again is not
  drawn the same again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firth.corpus import Corpus
from firth.errors import FirthError, RunError, SettingError, ShapeError
from firth.files import storage_error
from firth.subwords import blocks
from firth.training.checkpoint import VOCAB, State, checkpoints_in, read_state
from firth.training.sampling import initial_inputs, zeros
from firth.vectors import Vectors
from firth.vocab import Vocab

_BLOCK = 1 << 16  # rows looked at together


def load_start(path: str | os.PathLike[str]) -> Vectors:
    """Vectors to train on from: a file that ``Vectors.load`` reads, or the run folder of ``firth.train``.

    A run folder gives both tables of its last checkpoint to the bit, the counts, and in the metadata the
    settings and the learning rate that was reached.

    Raises:
        RunError: a folder that holds no checkpoint, whose checkpoint is damaged, or where a process trains.
        FirthError: as ``Vectors.load``.
    """
    place = Path(path)
    return _load_run(place) if (place / "settings.json").is_file() else Vectors.load(place)


def _load_run(folder: Path) -> Vectors:
    import fcntl

    lock = folder / "lock"
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return _read_run(folder)
    except BlockingIOError as error:
        raise RunError(
            f"another process is training in the run folder {folder}; wait for it, or stop it by Ctrl-C"
        ) from error
    except OSError as error:
        if isinstance(error, FirthError):
            raise
        raise storage_error(error, folder, "read the run folder") from error


def _read_run(folder: Path) -> Vectors:
    checkpoints = checkpoints_in(folder)
    if not checkpoints:
        raise RunError(f"the run folder {folder} holds no checkpoint to start from")
    if not (folder / VOCAB).is_file():
        raise RunError(
            f"the run folder {folder} holds no {VOCAB}, it was made by an older firth: finish the run with "
            "--resume and start from its vectors"
        )
    vocab = Vocab.load(folder / VOCAB)
    way_out = "remove it to start from the one before" if len(checkpoints) > 1 else "train anew"
    state = read_state(checkpoints[-1], way_out)
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        dim, epochs, lr = int(settings["dim"]), int(settings["epochs"]), float(settings["lr"])
        lr_last = settings.get("lr_last", settings["objective"].get("lr_last"))
        lr_last = lr * 1e-4 if lr_last is None else min(float(lr_last), lr)
        before = int(settings.get("epochs_before", 0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"the run folder {folder} has no readable settings.json") from error
    if not (state.inputs.shape == state.outputs.shape and dim <= state.inputs.shape[1]):
        raise RunError(f"the checkpoint {checkpoints[-1]} has tables that do not fit its settings")
    if len(vocab) != len(state.inputs):
        raise RunError(
            f"the run folder {folder} has {len(vocab):,} words in {VOCAB} and tables of "
            f"{len(state.inputs):,} rows"
        )
    share = state.place / (state.tokens * epochs) if state.tokens else 1.0
    metadata: dict[str, Any] = {
        **settings,
        "epochs": -(-state.place // state.tokens) if state.tokens else epochs,
        "epochs_before": before,
        "loss": list(state.losses),
    }
    if share < 1:
        metadata["lr_reached"] = max(lr_last, lr - (lr - lr_last) * share)
        metadata["lr_last"] = lr_last
    return Vectors(
        vocab.tokens,
        np.array(state.inputs[:, :dim], np.float32),
        counts=vocab.counts,
        context=np.array(state.outputs[:, :dim], np.float32),
        metadata=metadata,
    )


class Pretrained:
    """Vectors as the start of a run.

    Args:
        vectors: what ``train(init=)`` takes: vectors, or the path of a file or run folder.

    Attributes:
        vectors: the vectors.
        lr, lr_last: where an unfinished run stood and would have ended; ``None`` otherwise.
        epochs: how many epochs the vectors have seen, as far as their metadata tell.

    Raises:
        SettingError: neither vectors nor a path.
        ShapeError: a number that is not finite.
        FirthError: as ``load_start``.
    """

    def __init__(self, vectors: Vectors | str | os.PathLike[str]) -> None:
        if isinstance(vectors, (str, os.PathLike)):
            vectors = load_start(vectors)
        if not isinstance(vectors, Vectors):
            raise SettingError(
                f"train(): init must be Vectors or the path of a file, got {type(vectors).__name__}"
            )
        self.vectors = vectors
        context = vectors.context
        self._context = None if context is None else context.vectors
        for table, what in ((vectors.vectors, "vectors"), (self._context, "context vectors")):
            if table is not None:
                _check_finite(table, vectors, what)
        metadata = vectors.metadata
        self.lr, self.lr_last = (_number(metadata.get(name)) for name in ("lr_reached", "lr_last"))
        if self.lr is None:
            self.lr_last = None
        epochs = [metadata.get(name) for name in ("epochs", "epochs_before")]
        self.epochs = sum(number for number in epochs if type(number) is int and 0 < number < 1 << 31)

    @property
    def name(self) -> str:
        """The file that the vectors come from, for people."""
        return "vectors" if self.vectors.source is None else self.vectors.source.name

    @property
    def has_context(self) -> bool:
        """Whether there is a second table."""
        return self._context is not None

    def __len__(self) -> int:
        return len(self.vectors)

    def encoded(self, corpus: Corpus) -> Corpus:
        """``corpus`` under ids that begin with the rows of the vectors; itself if it was made so."""
        tokens = corpus.vocab.tokens
        if self.vectors.index_to_key == tokens[: len(self)]:
            return corpus
        vocab = Vocab(list(self.vectors)).add(tokens, corpus.vocab.counts.tolist())
        return corpus.renumbered(vocab)

    def check_use(self, counts: npt.NDArray[np.int64], freeze: str, keep_context: bool) -> None:
        """Warn where no known word occurs in the text, refuse where nothing could be learned.

        Args:
            counts: (V,) int64, of the text; known words first.
            freeze: ``"none"`` or ``"known"``. keep_context: whether the context table is asked for.

        Raises:
            SettingError: all is frozen.
        """
        n_known, n_new = len(self), len(counts) - len(self)
        if n_known and not counts[:n_known].any():
            warnings.warn(
                f"train(): none of the {n_known:,} words of init ({self.name}) is among the {n_new:,} of the "
                "text, so that they stay as they are; is it the case of the letters "
                "(Tokenizer(lower=True), --lower)?",
                UserWarning,
                stacklevel=3,
            )
        if freeze == "known" and not n_new and (self.has_context or not keep_context):
            raise SettingError(
                f"train(): freeze='known' leaves nothing to learn, init ({self.name}) has every word of "
                "the text; leave freeze out, or lower min_count for more words"
            )

    def state(self, vocab: Vocab, spread: float, seed: int) -> State:
        """The tables at the start.

        Args:
            vocab: known words first.
            spread, seed: of the word vectors that start at random, see ``initial_inputs``.
        """
        dim, n_known = self.vectors.vector_size, len(self)
        inputs, outputs = initial_inputs(len(vocab), dim, spread, seed), zeros(len(vocab), dim)
        inputs[:n_known, :dim] = self.vectors.vectors
        if self.vectors.subwords is not None and len(vocab) > n_known:
            made = self.vectors.subwords.vectors(vocab.tokens[n_known:])
            # A word without n-grams has a row of zeros there.
            rows = np.flatnonzero(np.isfinite(made).all(axis=1) & made.any(axis=1))
            inputs[n_known + rows, :dim] = made[rows]
        if self._context is not None:
            outputs[:n_known, :dim] = self._context
        return State(inputs=inputs, outputs=outputs)

    def merged_counts(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Counts of the text, with those that the vectors came with added; int64 (V,)."""
        if self.vectors.counts is None:
            return counts
        merged = counts.copy()
        merged[: len(self)] += self.vectors.counts
        return merged

    def facts(self, counts: npt.NDArray[np.int64]) -> dict[str, Any]:
        """What the metadata of the result say about the start."""
        n_known = len(self)
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "known": n_known,
            "known_in_text": int(np.count_nonzero(counts[:n_known])),
            "new": len(counts) - n_known,
            "context": self.has_context,
        }

    @cached_property
    def fingerprint(self) -> str:
        """BLAKE2 of keys, both tables, counts, epochs and learning rates, in hexadecimal."""
        digest = hashlib.blake2b(digest_size=16)
        data, offsets = self.vectors.index_to_key.to_bytes()
        parts: list[npt.NDArray[Any] | None] = [data, offsets, self.vectors.vectors]
        parts += [self._context, self.vectors.counts]
        for part in parts:
            shape = None if part is None else part.shape
            digest.update(repr(shape).encode())
            if part is not None and part.size:
                digest.update(np.ascontiguousarray(part).data.cast("B"))
        if self.vectors.subwords is not None:
            digest.update(json.dumps(self.vectors.subwords.settings(), sort_keys=True).encode())
            for block in blocks(self.vectors.subwords.table):
                digest.update(np.ascontiguousarray(block).data.cast("B"))
        digest.update(repr((self.epochs, self.lr, self.lr_last)).encode())
        return digest.hexdigest()


def pick_dim(dim: int | None, default: int, start: Pretrained | None) -> int:
    """The dim of a run: as given, else that of the start, else the default.

    Raises:
        ShapeError: the start has another.
    """
    if start is None:
        return default if dim is None else dim
    if dim is not None and dim != start.vectors.vector_size:
        raise ShapeError(
            f"train(): init ({start.name}) has {start.vectors.vector_size} numbers a vector, dim={dim} was "
            "asked; leave dim out, or train on from vectors of that dim"
        )
    return start.vectors.vector_size


def _check_finite(table: npt.NDArray[np.float32], vectors: Vectors, what: str) -> None:
    for first in range(0, len(table), _BLOCK):
        finite = np.isfinite(table[first : first + _BLOCK]).all(axis=1)
        if not finite.all():
            row = first + int(np.argmin(finite))
            where = "" if vectors.source is None else f" ({vectors.source})"
            raise ShapeError(
                f"train(): row {row:,} ({vectors.index_to_key[row]!r:.60}) of the {what} of init{where} "
                "holds NaN or infinity; leave that word out or repair its vector"
            )


def _number(value: object) -> float | None:
    """A positive finite number out of metadata, else ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value < float("inf") else None
