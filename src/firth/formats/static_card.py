"""The tokenizer and the model card of a sentence-transformers folder (see ``static_folder``).

``tokenizer.json`` is plain JSON, and is written without the tokenizers library. How text is cut is guessed
from the keys, since vectors do not say: where a key is punctuation alone the text was cut at punctuation,
otherwise at white space; where no key has a capital letter the text was in lower case.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from firth.formats.table import Table

_WORD = re.compile(r"\w+|[^\w\s]+")  # what the pre-tokenizer Whitespace makes
_MARKS = re.compile(r"[^\w\s]+")
ADDED = 20_000  # keys that are matched before the text is cut; more would make the tokenizer slow to load

MARK = "<!-- Written by firth -->"  # the last line of our cards


@dataclass(frozen=True)
class Reading:
    """How the tokenizer is to read text.

    Attributes:
        lower: whether text is put in lower case.
        marks: whether punctuation is cut off words; else text is cut at white space only.
        added: rows of keys that the cut would break, to be matched before it.
        never: how many keys are broken and not among ``added``; ``example`` is one.
    """

    lower: bool
    marks: bool
    added: tuple[int, ...]
    never: int = 0
    example: str = ""

    @classmethod
    def of(cls, keys: list[str]) -> Reading:
        """What the keys tell."""
        lower = not any(key != key.lower() for key in keys)
        marks = any(_MARKS.fullmatch(key) for key in keys)
        spaced = [row for row, key in enumerate(keys) if any(char.isspace() for char in key)]
        broken = [
            row
            for row, key in enumerate(keys)
            if marks and not _WORD.fullmatch(key) and not any(char.isspace() for char in key)
        ]
        added = [row for row in spaced if keys[row].strip()]
        room = max(0, ADDED - len(added))
        never = [row for row in spaced if not keys[row].strip()] + broken[room:]
        example = keys[never[0]] if never else ""
        return cls(lower, marks, tuple(sorted(added + broken[:room])), len(never), example)


def unknown_name(keys: list[str]) -> str:
    """A name for the row of unknown words that is no key."""
    name, there = "[UNK]", set(keys)
    while name in there:
        name = f"[{name}]"
    return name


def tokenizer(keys: list[str], reading: Reading) -> dict[str, Any]:
    """The content of tokenizer.json; the last number is that of unknown words."""
    unknown = unknown_name(keys)
    vocab = {key: row for row, key in enumerate(keys)}
    vocab[unknown] = len(keys)
    added = [
        {
            "id": row,
            "content": keys[row],
            "single_word": True,
            "lstrip": False,
            "rstrip": False,
            "normalized": True,
            "special": False,
        }
        for row in reading.added
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Lowercase"} if reading.lower else None,
        "pre_tokenizer": {"type": "Whitespace" if reading.marks else "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": unknown},
    }


def card(name: str, table: Table, reading: Reading) -> str:
    """README.md: what the hub reads at its head, then what there is to know."""
    rows, dim = table.matrix.shape
    cut = "at white space and punctuation" if reading.marks else "at white space"
    lower = "put in lower case and " if reading.lower else ""
    lines = [
        "---",
        "library_name: model2vec",
        "pipeline_tag: feature-extraction",
        "tags:",
        *(
            f"- {tag}"
            for tag in ("sentence-transformers", "model2vec", "static-embeddings", "word-vectors", "firth")
        ),
        "---",
        "",
        f"# {name}",
        "",
        f"Static word vectors: {rows:,} tokens, {dim} numbers each, float32.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        'SentenceTransformer("path/of/this/folder").encode(["some text"])',
        "```",
        "",
        f"A text is {lower}cut {cut}; its vector is the mean of its tokens' vectors. An unknown word has a",
        "row of zeros: sentence-transformers counts it in the mean, model2vec leaves it out; the direction",
        "is the same.",
    ]
    if reading.never:
        lines.append(
            f"{reading.never:,} tokens, such as `{reading.example}`, are split by this and never found."
        )
    facts = {key: value for key, value in table.metadata.items() if isinstance(value, (str, int, float))}
    if facts:
        lines += ["", "| setting | value |", "| --- | --- |"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in facts.items()]
    return "\n".join((*lines, "", MARK)) + "\n"


def _cell(value: object) -> str:
    return str(value)[:200].replace("|", "\\|").replace("\n", " ")
