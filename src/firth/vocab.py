"""Tokens <-> ids: words, items and graph nodes alike."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

from firth import vocabfile
from firth.counting import Longs, Table, check_counting, check_threads, ranked, tokenised
from firth.errors import FormatError, KeyNotFound, SettingError, ShapeError
from firth.progress import SILENT, Reporter
from firth.sources import SourceLike, Tokenizer, check_tokenizer, find_source
from firth.suggest import close_keys

UNKNOWN_POLICIES = ("drop", "unk", "error")


class Vocab:
    """A table of tokens and ids; id ``i`` is row ``i`` of every array that belongs to it.

    Args:
        tokens: different strings; the place of a token is its id.
        counts: how often each occurs, int64 (V,); zeros if not known.
        unknown: what ``encode`` and ``lookup_indices`` do with a token that is not there: leave it
            out (``"drop"``), give the row of ``unk_token`` (``"unk"``) or raise (``"error"``).
        unk_token: with ``unknown="unk"``, the token of unknown ones; added at the end, with count
            0, where ``tokens`` does not hold it.

    Attributes:
        tokens: list of str, not to be changed. counts: int64 (V,), read-only. unknown, unk_token.
        pruned, count_error: entries forgotten while counting with ``max_size``, and by how much at
            most a count is too low for that; 0 where counts are exact.

    Methods that add return a new vocabulary.

    Raises:
        SettingError: a token twice, empty or no string, an unknown policy, a negative count.
        ShapeError: counts that do not fit the tokens.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        counts: Sequence[int] | npt.ArrayLike | None = None,
        *,
        unknown: str = "error",
        unk_token: str = "<unk>",
    ) -> None:
        if isinstance(tokens, str):
            raise SettingError(
                "Vocab takes a list of tokens, got one string; Vocab.count([text]) counts a text"
            )
        self.tokens: list[str] = list(tokens)
        self.counts = _checked_counts(counts, len(self.tokens))
        self.pruned = self.count_error = 0
        _check_tokens(self.tokens, self._ids)
        self._set_policy(unknown, unk_token, 0)

    @classmethod
    def count(
        cls,
        source: SourceLike | Mapping[str, int],
        *,
        min_count: int = 5,
        max_size: int | None = None,
        tokenizer: Tokenizer = Tokenizer(),
        unknown: str = "error",
        unk_token: str = "<unk>",
        errors: str = "strict",
        field: str = "text",
        threads: int | None = None,
        progress: Reporter = SILENT,
    ) -> Vocab:
        """The vocabulary of a text: ids by falling count, equal counts in code point order.

        Args:
            source: what ``firth.sources`` reads, or a mapping from token to count.
            min_count: rarer tokens are left out.
            max_size: at most so many tokens, the most frequent. Counting then keeps at most about
                ``max(4 * max_size, 1,000,000)`` in memory and forgets the rarer half beyond that;
                ``pruned`` and ``count_error`` of the result say what that cost.
            tokenizer: how text becomes tokens; a mapping is taken as it is.
            unknown, unk_token: as for ``Vocab``; a row added for unknown tokens has the count of all
                that were left out. It comes on top of ``max_size``.
            errors: ``"strict"`` or ``"replace"``, for bytes that are not UTF-8.
            field: field or column of the text in .jsonl, .csv and .parquet files.
            threads: one for each core by default; the result does not depend on it.
            progress: told how much is read.

        Raises:
            SourceError: text that cannot be read, or of which no token is left.
            SettingError: a setting out of its range.
            StorageError: a file that cannot be opened or read.
        """
        check_counting(min_count, max_size)
        check_threads(threads)
        check_tokenizer(tokenizer)
        _check_policy(unknown, unk_token)
        if isinstance(source, Mapping):
            return cls._of_counts(source, min_count, max_size)._set_policy(
                unknown, unk_token, int(sum(source.values()))
            )
        found = find_source(source)
        table = Table(tokenizer, max_size)
        for tokens in tokenised(
            found, tokenizer, errors=errors, field=field, threads=threads, progress=progress, stage="count"
        ):
            table.add(tokens)
            table.prune()
        table.report(progress)
        vocab, _ = cls.of_table(table, min_count, max_size, found.name)
        return vocab._set_policy(unknown, unk_token, table.raw_tokens)

    @classmethod
    def of_table(
        cls, table: Table, min_count: int, max_size: int | None, what: str
    ) -> tuple[Vocab, npt.NDArray[np.intp]]:
        """The vocabulary of a counted table and, for each id, the row of the table it was.

        Known words of the table keep their places at the front; the limits are for the others.

        Raises:
            SourceError: no token of ``what`` is left.
        """
        counts = table.counts.copy()
        counts[: table.n_known] = 0
        if table.n_known and not (counts >= min_count).any():
            rows = np.arange(table.n_known)
        else:
            others = ranked(table.words, counts, min_count, max_size, what)
            rows = np.append(np.arange(table.n_known), others)
        vocab = cls._sure([table.words[row] for row in rows.tolist()], table.counts[rows])
        vocab.pruned, vocab.count_error = table.pruned, table.count_error
        return vocab, rows

    @classmethod
    def _of_counts(cls, source: Mapping[str, int], min_count: int, max_size: int | None) -> Vocab:
        words = list(source)
        counts = _checked_counts(list(source.values()), len(words))
        _check_tokens(words, source)
        rows = ranked(words, counts, min_count, max_size, "the given mapping")
        return cls._sure([words[row] for row in rows.tolist()], counts[rows])

    @classmethod
    def _sure(cls, tokens: list[str], counts: Longs) -> Vocab:
        """A vocabulary of tokens that are known to be different strings: nothing is checked."""
        vocab = cls([])
        vocab.tokens, vocab.counts = tokens, _checked_counts(counts, len(tokens))
        vocab._forget()
        return vocab

    def _forget(self) -> None:
        for name in ("_ids", "fingerprint", "total_count"):
            self.__dict__.pop(name, None)

    def _set_policy(self, unknown: str, unk_token: str, raw_tokens: int) -> Vocab:
        """Set what happens to unknown tokens; an added row has the count of those left out."""
        _check_policy(unknown, unk_token)
        self.unknown, self.unk_token = unknown, unk_token
        self._default_id: int | None = None
        if unknown == "unk":
            if unk_token not in self._ids:
                left_out = max(0, raw_tokens - self.total_count)
                self.tokens.append(unk_token)
                self.counts = _checked_counts(np.append(self.counts, left_out), len(self.tokens))
                self._forget()
            self._default_id = self._ids[unk_token]
        return self

    @cached_property
    def _ids(self) -> dict[str, int]:
        # Made when a token is first looked up: a million entries take a moment.
        return dict(zip(self.tokens, range(len(self.tokens)), strict=True))

    @cached_property
    def total_count(self) -> int:
        """The sum of all counts."""
        return int(self.counts.sum())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of tokens and counts, in hexadecimal: equal vocabularies have equal ones."""
        data = [token.encode("utf-8", "surrogatepass") for token in self.tokens]
        digest = hashlib.sha256(np.array([len(one) for one in data], "<i8").tobytes())
        digest.update(b"".join(data))
        digest.update(self.counts.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def index_to_key(self) -> list[str]:
        """The tokens under the name that gensim gives them."""
        return self.tokens

    @property
    def default_id(self) -> int | None:
        """The id of unknown tokens, ``None`` where they have none."""
        return self._default_id

    def with_unknown(self, unknown: str, unk_token: str = "<unk>") -> Vocab:
        """The same table with another policy for unknown tokens; see ``Vocab``."""
        return self._copy()._set_policy(unknown, unk_token, 0)

    def with_counts(self, counts: npt.ArrayLike) -> Vocab:
        """The same tokens and policy with other counts, int64 (V,)."""
        vocab = self._copy()
        vocab.counts = _checked_counts(counts, len(self))
        vocab._forget()
        return vocab

    def _copy(self) -> Vocab:
        vocab = self._sure(list(self.tokens), self.counts)
        vocab.unknown, vocab.unk_token, vocab._default_id = self.unknown, self.unk_token, self._default_id
        vocab.pruned, vocab.count_error = self.pruned, self.count_error
        return vocab

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tokens)

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and token in self._ids

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocab):
            return NotImplemented
        return self.tokens == other.tokens and bool(np.array_equal(self.counts, other.counts))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        first = ", ".join(map(repr, self.tokens[:3])) + (", ..." if len(self) > 3 else "")
        return f"Vocab({len(self):,} tokens, {self.total_count:,} counted: {first})"

    @overload
    def __getitem__(self, token: str) -> int: ...  # type: ignore[overload-overlap]

    @overload
    def __getitem__(self, token: Iterable[str]) -> list[int]: ...

    def __getitem__(self, token: str | Iterable[str]) -> int | list[int]:
        """The id of a token, or the list of ids of a list of tokens.

        Raises:
            KeyNotFound: a token that is not there, where the policy gives it no row (for a list
                under ``"drop"`` it is left out).
        """
        if not isinstance(token, str):
            return self.encode(token)
        found = self._ids.get(token, self._default_id)
        if found is None:
            raise self._not_found(token)
        return found

    def id_of(self, token: str) -> int:
        """The id of a token that is there, whatever the policy for unknown ones.

        Raises:
            KeyNotFound: it is not there; offers the closest.
        """
        found = self._ids.get(token)
        if found is None:
            raise self._not_found(token)
        return found

    def get(self, token: str, default: int | None = None) -> int | None:
        """The id of a token that is there, else ``default``."""
        return self._ids.get(token, default)

    def encode(self, text: str | Iterable[str], tokenizer: Tokenizer = Tokenizer()) -> list[int]:
        """The ids of a text, cut by ``tokenizer``, or of a list of tokens; unknown ones as the policy says.

        Raises:
            KeyNotFound: an unknown token under the policy ``"error"``.
        """
        tokens = tokenizer.split(text) if isinstance(text, str) else list(text)
        ids, default = self._ids, self._default_id
        if default is not None:
            return [ids.get(token, default) for token in tokens]
        if self.unknown == "drop":
            return [ids[token] for token in tokens if token in ids]
        try:
            return [ids[token] for token in tokens]
        except KeyError as error:
            raise self._not_found(error.args[0]) from None

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The tokens of ids (a list, or an integer array of any number of rows in order).

        Raises:
            KeyNotFound: an id below 0 or not below ``len(vocab)``.
        """
        rows = ids.ravel().tolist() if isinstance(ids, np.ndarray) else list(ids)
        for row in rows:
            if not 0 <= row < len(self.tokens):
                raise KeyNotFound(row, f"vocabulary, whose ids go from 0 to {len(self.tokens) - 1:,}")
        return [self.tokens[row] for row in rows]

    def _not_found(self, token: object) -> KeyNotFound:
        close = close_keys(token, self.tokens) if isinstance(token, str) and token else []
        return KeyNotFound(token, f"vocabulary of {len(self):,} tokens", close)

    def add(self, tokens: Iterable[str], counts: Iterable[int] | None = None) -> Vocab:
        """A vocabulary with ``tokens`` at the end; ids stay, and a token that is there gains the count.

        Args:
            tokens: strings; counts: one for each, 0 by default.

        Raises:
            SettingError, ShapeError: as ``Vocab``.
        """
        if isinstance(tokens, str):
            raise SettingError("Vocab.add takes a list of tokens, got one string")
        added = list(tokens)
        gains = _checked_counts(None if counts is None else list(counts), len(added))
        fresh = list(dict.fromkeys(token for token in added if token not in self))
        _check_tokens(fresh, fresh)
        vocab = self._copy()
        vocab.tokens += fresh
        vocab._forget()
        total = np.concatenate([self.counts, np.zeros(len(fresh), np.int64)])
        np.add.at(total, [vocab._ids[token] for token in added], gains)
        vocab.counts = _checked_counts(total, len(vocab.tokens))
        return vocab

    def merge(self, other: Vocab) -> Vocab:
        """The vocabulary of both texts: counts added, ids by falling count; the policy is this one's.

        Ids change; use ``add`` where rows must stay.
        """
        union = self.add(other.tokens, other.counts.tolist())
        rows = ranked(union.tokens, union.counts, 0, None, "the merged vocabularies")
        vocab = union._sure([union.tokens[row] for row in rows.tolist()], union.counts[rows])
        vocab.pruned = self.pruned + other.pruned
        vocab.count_error = self.count_error + other.count_error
        vocab._set_policy(self.unknown, self.unk_token, 0)
        if self._default_id is not None:
            vocab._default_id = vocab._ids[self.tokens[self._default_id]]
        return vocab

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a readable UTF-8 file, a token a line (see ``firth.vocabfile``), that ``load`` reads exactly.

        Raises:
            StorageError: it cannot be written.
        """
        header = {
            "unknown": self.unknown,
            "unk_token": self.unk_token,
            "default_id": self._default_id,
            "pruned": self.pruned,
            "count_error": self.count_error,
        }
        vocabfile.write(path, self.tokens, self.counts, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocab:
        """Read what ``save`` wrote, or a plain list: a token a line, or ``token count`` on every line.

        Raises:
            StorageError: it cannot be read. SourceError: it is empty or not UTF-8.
            FormatError: it is cut or changed; names the line.
        """
        tokens, counts, header = vocabfile.read(path)
        try:
            vocab = cls(tokens, counts)
            vocab._set_policy(header.get("unknown", "error"), header.get("unk_token", "<unk>"), 0)
            vocab.set_default_index(header.get("default_id"))
            vocab.pruned, vocab.count_error = int(header.get("pruned", 0)), int(header.get("count_error", 0))
        except (SettingError, ShapeError, TypeError, ValueError) as error:
            raise FormatError(f"{os.fspath(path)} is no vocabulary that can be used: {error}") from None
        return vocab

    # The names of torchtext.vocab.Vocab.

    def __call__(self, tokens: Iterable[str]) -> list[int]:
        """``lookup_indices``."""
        return self.lookup_indices(tokens)

    def lookup_indices(self, tokens: Iterable[str]) -> list[int]:
        """The ids of a list of tokens; unknown ones as the policy says.

        Raises:
            SettingError: one string for a list of tokens.
            KeyNotFound: an unknown token under the policy ``"error"``.
        """
        if isinstance(tokens, str):
            raise SettingError("lookup_indices takes a list of tokens, got one string; encode() takes a text")
        return self.encode(tokens)

    def lookup_token(self, index: int) -> str:
        """The token of one id."""
        return self.decode([index])[0]

    def lookup_tokens(self, indices: Iterable[int]) -> list[str]:
        """The tokens of ids."""
        return self.decode(indices)

    def get_stoi(self) -> dict[str, int]:
        """A new dict from token to id."""
        return dict(self._ids)

    def get_itos(self) -> list[str]:
        """A new list of the tokens in the order of ids."""
        return list(self.tokens)

    def get_default_index(self) -> int | None:
        """The id of unknown tokens, ``None`` where they have none."""
        return self._default_id

    def set_default_index(self, index: int | None) -> None:
        """Give unknown tokens the id ``index`` from now on, in place; ``None``: as before without a row.

        Raises:
            SettingError: no id of this vocabulary.
        """
        if index is None:
            self._default_id = None
            self.unknown = "error" if self.unknown == "unk" else self.unknown
            return
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not 0 <= index < len(self):
            raise SettingError(
                f"set_default_index takes an id from 0 to {len(self) - 1:,} or None, got {index!r}"
            )
        self._default_id, self.unknown, self.unk_token = int(index), "unk", self.tokens[int(index)]


def _check_policy(unknown: str, unk_token: str) -> None:
    if unknown not in UNKNOWN_POLICIES:
        allowed = ", ".join(map(repr, UNKNOWN_POLICIES))
        raise SettingError(f"unknown must be one of {allowed}, got {unknown!r}")
    if not isinstance(unk_token, str) or not unk_token:
        raise SettingError(f"unk_token must be a non-empty string, got {unk_token!r}")


def _check_tokens(tokens: Sequence[str], ids: Sequence[str] | Mapping[str, int]) -> None:
    """Refuse what is no token, and (``ids`` is shorter then) one that occurs twice."""
    for row, token in enumerate(tokens):
        if not isinstance(token, str) or not token:
            raise SettingError(f"token {row:,} is {token!r:.60}; tokens are non-empty strings")
    if len(ids) < len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise SettingError(f"token {twice!r:.60} occurs twice; the tokens of a vocabulary differ")


def _checked_counts(counts: Sequence[int] | npt.ArrayLike | None, size: int) -> Longs:
    """Counts as a read-only int64 array of ``size``."""
    if counts is None:
        checked = np.zeros(size, np.int64)
    else:
        given = np.asarray(counts) if size else np.asarray(counts, np.int64)
        if given.shape != (size,):
            raise ShapeError(f"counts have shape {given.shape}, expected ({size:,},): one for each token")
        if not np.issubdtype(given.dtype, np.integer):
            raise ShapeError(f"counts have dtype {given.dtype}, expected integers")
        if size and (given.min() < 0 or int(given.max()) > np.iinfo(np.int64).max):
            raise SettingError("counts must be from 0 to 2**63 - 1")
        checked = given.astype(np.int64)
    checked.flags.writeable = False
    return checked
