"""``firth train``: text in, vectors out."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firth.cli.options import JSON, QUIET, default, number, option, settings
from firth.cli.output import print_json
from firth.cli.places import check_apart, ctrl_c_told, run_kept
from firth.errors import SettingError, did_you_mean
from firth.files import check_writable
from firth.progress import pick

if TYPE_CHECKING:
    from firth.corpus import Corpus
    from firth.training import SkipGram
    from firth.training.initial import Pretrained
    from firth.vectors import Vectors
    from firth.vocab import Vocab

_TEXT, _MODEL, _RUN = "What is read", "What is learned", "How it runs"


def train(
    text: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT",
            help="Text files (plain, .gz, .bz2, .xz, .zst, .jsonl, .csv, .parquet), folders, or - for stdin.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file of vectors to write.")
    ],
    lower: Annotated[
        bool, typer.Option("--lower", help="Turn the text to lower case.", rich_help_panel=_TEXT)
    ] = False,
    nfc: Annotated[
        bool, typer.Option("--nfc", help="Turn the text to Unicode normal form C.", rich_help_panel=_TEXT)
    ] = False,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            metavar="REGEX",
            help="Tokens are the matches of this regular expression; else they end at white space.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    field: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Field of .jsonl, column of .csv and .parquet.", rich_help_panel=_TEXT
        ),
    ] = "text",
    replace: Annotated[
        bool,
        typer.Option(
            "--replace-bad-bytes", help="Read bytes that are not UTF-8 as U+FFFD.", rich_help_panel=_TEXT
        ),
    ] = False,
    min_count: Annotated[
        int,
        number(
            "--min-count",
            low=1,
            help="Leave out words that occur fewer times (without --vocab).",
            panel=_TEXT,
        ),
    ] = 5,
    max_vocab: Annotated[
        int | None,
        number("--max-vocab", low=2, help="Keep at most so many words, the most frequent.", panel=_TEXT),
    ] = None,
    vocab: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A fixed vocabulary (a word a line, or saved by Vocab.save); other words are left out.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where encoded text is kept for the next run (see firth info --cache).",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    objective: Annotated[
        str, typer.Option(metavar="NAME", help="The training objective.", rich_help_panel=_MODEL)
    ] = "skipgram",
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Settle details in which the published codes disagree as this one does: word2vec, gensim.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    dim: Annotated[
        int | None, option("dim", panel=_MODEL, shown=f"{default('dim')}; with --init, what it has")
    ] = None,
    window: Annotated[int | None, option("window", panel=_MODEL, shown=default("window"))] = None,
    negatives: Annotated[int | None, option("negatives", panel=_MODEL, shown=default("negatives"))] = None,
    sample: Annotated[float | None, option("sample", panel=_MODEL, shown=default("sample"))] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train on from these vectors (any format), or from the run folder of an earlier run.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    freeze: Annotated[str, option("freeze", panel=_MODEL)] = default("freeze"),
    context: Annotated[
        bool,
        typer.Option("--context", help="Save the table of context vectors too.", rich_help_panel=_MODEL),
    ] = False,
    epochs: Annotated[int, option("epochs", panel=_RUN)] = default("epochs"),
    lr: Annotated[
        float | None, option("lr", panel=_RUN, shown="as the objective or preset has it")
    ] = default("lr"),
    lr_last: Annotated[float | None, option("lr_last", panel=_RUN)] = default("lr_last"),
    threads: Annotated[int | None, option("threads", panel=_RUN)] = default("threads"),
    seed: Annotated[int, option("seed", panel=_RUN)] = default("seed"),
    device: Annotated[str, option("device", panel=_RUN)] = default("device"),
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help=settings()["deterministic"].metadata["help"], rich_help_panel=_RUN
        ),
    ] = False,
    table_dtype: Annotated[str, option("table_dtype", panel=_RUN)] = default("table_dtype"),
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of checkpoints, kept at the end; else OUT.run, removed at the end.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the last checkpoint, if there is one.", rich_help_panel=_RUN
        ),
    ] = False,
    partitioned: Annotated[
        bool,
        typer.Option(
            "--partitioned",
            help="Under torchrun, split the tables over the processes; unasked where they would not fit.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Word pairs with scores: print a score after each epoch.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    quiet: Annotated[bool, QUIET] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Learn a vector for every word of a text.

    $ firth train corpus.txt -o vectors.safetensors
    $ firth train wiki/ --lower --dim 300 --epochs 3 -o wiki.safetensors
    $ zcat reviews.gz | firth train - -o reviews.safetensors
    $ firth train more.txt --init glove.txt --lr 0.01 -o tuned.safetensors
    $ torchrun --nproc-per-node 4 -m firth train wiki/ -o wiki.safetensors

    Ctrl-C saves the state of the run; the same command with --resume goes on.
    """
    from firth.cli.pairs import PairScores
    from firth.corpus import Corpus
    from firth.formats import format_for_writing
    from firth.kernels import pick as pick_kernels
    from firth.processes import joined
    from firth.sources import Tokenizer
    from firth.training import train as train_vectors
    from firth.training.config import TrainConfig
    from firth.training.initial import Pretrained, pick_dim
    from firth.training.memory import check_fits, pick_partitioned
    from firth.training.partitioned import check_partitioned, train_partitioned
    from firth.training.shared_tables import can_share

    with joined(device) as group:
        # All that can be wrong with the call is told before any text is read.
        leads = group is None or group.rank == 0
        if leads:
            check_writable(output)
        form = format_for_writing(output, None)
        if context and not form.complete:
            raise SettingError(
                f"--context needs a file that holds a second table: -o {output} would be {form.name}, "
                "which holds one; name it .safetensors"
            )
        if vocab is not None and max_vocab is not None:
            raise SettingError("firth train takes --vocab or --max-vocab, got both; leave one out")
        if init is None and freeze != default("freeze"):
            raise SettingError(
                f"--freeze {freeze} needs --init FILE, the vectors that are to stay as they are"
            )
        if partitioned and group is None:
            raise SettingError("--partitioned splits the tables over processes: start them by torchrun")
        given = {"window": window, "negatives": negatives, "sample": sample, "lr_last": lr_last}
        goal = _objective(objective, preset, given)
        tokenizer = Tokenizer(lower=lower, nfc=nfc, pattern=pattern)
        folder = output.with_name(output.name + ".run") if run is None else run
        _check_places(text, [vocab, pairs, init], output, folder, cache)
        scores = None if pairs is None else PairScores(pairs)
        start = None if init is None else Pretrained(init)
        config = TrainConfig(dim=pick_dim(dim, default("dim"), start), freeze=freeze, table_dtype=table_dtype)
        kernels = pick_kernels(device, deterministic, config.table_dtype)
        with contextlib.closing(pick(quiet or not leads)) as progress, ctrl_c_told(folder, progress, leads):
            corpus = Corpus.encode(
                _source(text),
                None if vocab is None else _vocab(vocab, start),
                known=None if start is None or vocab is not None else start.vectors,
                min_count=min_count,
                max_size=max_vocab,
                tokenizer=tokenizer,
                errors="replace" if replace else "strict",
                field=field,
                cache=cache,
                threads=threads,
                progress=progress,
                group=group,
            )
            rows = len(corpus.vocab)
            if group is None:
                check_fits(rows, config.dim, keep_context=context)
            else:
                own = partitioned or pick_partitioned(
                    rows,
                    config.dim,
                    group.size,
                    group.place.local_size,
                    keep_context=context,
                    shared=can_share(kernels, deterministic),
                )
                partitioned = any(group.gather(own))
            form.check(output, corpus.vocab.tokens)
            if scores is not None:
                scores.check(corpus.vocab.tokens)
            with run_kept(folder, own=run is None and leads):
                if partitioned and group is not None:
                    check_partitioned(output, form.name, scores is not None, start is not None, table_dtype)
                    vectors = train_partitioned(
                        corpus,
                        output,
                        goal,
                        group=group,
                        dim=config.dim,
                        epochs=epochs,
                        lr=lr,
                        threads=threads,
                        seed=seed,
                        device="cpu" if device == "auto" else device,
                        run=folder,
                        resume=resume,
                        keep_context=context,
                        progress=progress,
                    )
                    if leads:
                        _print_summary(corpus, vectors, vectors.source or output, as_json)
                    return
                vectors = train_vectors(
                    corpus,
                    goal,
                    dim=config.dim,
                    init=None if start is None else start.vectors,
                    freeze=freeze,
                    epochs=epochs,
                    lr=lr,
                    threads=threads,
                    seed=seed,
                    device=device,
                    deterministic=deterministic,
                    table_dtype=table_dtype,
                    run=folder,
                    resume=resume,
                    keep_context=context,
                    callbacks=[] if scores is None else [scores],
                    progress=progress,
                    group=group,
                )
                if scores is not None and leads:
                    vectors = scores.added_to(vectors)
                if leads:
                    vectors.save(output)
        if leads:
            _print_summary(corpus, vectors, output, as_json)


def _check_places(
    text: list[str],
    others: Sequence[Path | None],
    output: Path,
    folder: Path,
    cache: Path | None,
) -> None:
    """Refuse to write over what is read, or into it."""
    from firth.cache import cache_folder
    from firth.sources import find_source

    read = [*(find_source(_source(text)).files or []), *filter(None, others)]
    written = [("-o", output), ("the run folder", folder), ("the cache folder", cache_folder(cache))]
    check_apart(text, read, written)


def _source(text: list[str]) -> str | list[Path]:
    """What was named on the command line, as a source: one string, or paths."""
    if len(text) == 1:
        return text[0]
    if "-" in text:
        raise SettingError("firth train reads standard input (-) alone, not among files")
    return [Path(name) for name in text]


def _vocab(path: Path, start: Pretrained | None) -> Vocab:
    """The vocabulary of a file; after the words of ``start``, where there is one."""
    from firth.vocab import Vocab

    given = Vocab.load(path)
    if start is None:
        return given
    # Without counts, so that those of the text are taken.
    both = Vocab(list(start.vectors)).add(given.tokens)
    return both.with_unknown(given.unknown, given.unk_token)


def _objective(name: str, preset: str | None, given: dict[str, Any]) -> SkipGram:
    """The objective with the options that were given; the others are the preset's or the defaults."""
    from firth.training.objectives import OBJECTIVES

    if name not in OBJECTIVES:
        close = did_you_mean(difflib.get_close_matches(name, OBJECTIVES))
        raise SettingError(f"--objective must be {' or '.join(OBJECTIVES)}, got {name!r}{close}")
    kind = OBJECTIVES[name]
    start = kind() if preset is None else kind.preset(preset)
    return dataclasses.replace(start, **{key: value for key, value in given.items() if value is not None})


def _print_summary(corpus: Corpus, vectors: Vectors, output: Path, as_json: bool) -> None:
    facts = {
        "output": str(output),
        "vectors": len(vectors),
        "dim": vectors.vector_size,
        "tokens": len(corpus),
        "raw_tokens": corpus.raw_tokens,
        "loss": vectors.metadata.get("loss"),
        "scores": vectors.metadata.get("scores"),
        "init": vectors.metadata.get("init"),
    }
    if as_json:
        print_json(facts)
        return
    print(f"{len(vectors):,} vectors of {vectors.vector_size} in {output}")
    if start := vectors.metadata.get("init"):
        print(
            f"{start['known']:,} words from {start['name']}, {start['known_in_text']:,} of them in the text; "
            f"{start['new']:,} new"
        )
    word = next((key for key in vectors.index_to_key[:1000] if len(key) > 4 and key.isalpha()), None)
    print(f"try: {shlex.join(['firth', 'similar', str(output), word or vectors.index_to_key[0]])}")
