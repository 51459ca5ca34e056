"""``train()``: the loop over runs of blocks, and nothing that belongs into a kernel."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from firth import kernels
from firth.corpus import Corpus
from firth.errors import Interrupted, SettingError, SourceError
from firth.progress import SILENT, Reporter
from firth.training.callbacks import Callback, Moment
from firth.training.config import TrainConfig
from firth.training.initial import Pretrained, pick_dim
from firth.training.objectives import SkipGram
from firth.training.trainer import Folder, Trainer
from firth.vectors import Vectors

if TYPE_CHECKING:
    from firth.processes import Processes


def train(
    corpus: Corpus,
    objective: SkipGram | None = None,
    *,
    dim: int | None = None,
    epochs: int = 5,
    lr: float | None = None,
    threads: int | None = None,
    seed: int = 1,
    device: str = "auto",
    deterministic: bool = False,
    table_dtype: str = "float32",
    init: Vectors | str | os.PathLike[str] | None = None,
    freeze: str = "none",
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    keep_context: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: Reporter = SILENT,
    group: Processes | None = None,
) -> Vectors:
    """Learn a vector for each token of ``corpus.vocab`` from the company it keeps.

    Args:
        corpus: the encoded text.
        objective: what is learned; ``SkipGram()`` by default.
        dim: numbers in a vector; 100 by default, or what ``init`` has.
        epochs: passes over the text.
        lr: learning rate at the start, the objective's by default; it falls in a straight line.
        threads: all cores of this process by default. One thread twice gives bit-equal vectors;
            several update the same tables without locks, so that only the draws are the same.
        seed: of every draw.
        device: ``"auto"`` (a CUDA card if there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``,
            or ``"reference"`` (the float64 definition, very slow).
        deterministic: the same seed gives the same bits again on the same kind of device: one thread, or on
            a card one program, which takes away most of its speed.
        table_dtype: of the tables while they are trained on a card: ``"float32"``, or ``"bfloat16"``, which
            takes half the memory and half the traffic, every update rounded up or down by chance so that
            the mean is right. The vectors are float32 either way.
        init: vectors to train on from, or the path of a file or of a run folder; how the tables start is
            said in ``firth.training.initial``. The result begins with its rows, whether the text has
            their words or not. ``Corpus.encode(text, known=init)`` keeps its rare words in the text;
            another corpus is renumbered in memory.
        freeze: ``"known"``: what ``init`` gave stays to the bit, the words that it lacks are learned
            into its space; ``"none"``: everything moves.
        run: a folder for checkpoints, written by time (at most 2 % of it), at Ctrl-C and at the
            end; made if need be. Without it nothing is kept of a run that stops.
        resume: go on from the last checkpoint in ``run``, or start afresh if there is none. With
            one thread the result is bit-equal to that of a run that never stopped.
        keep_context: also return the output table, as ``vectors.context``.
        callbacks: see :class:`firth.training.Callback`.
        progress: told share done, words/s, learning rate, loss and time left.
        group: the processes that share the work (``firth.processes.joined`` gives them under torchrun); all
            call this alike. Those of one machine share its tables, where the device is the CPU. Only the
            first one's ``callbacks`` and ``progress`` are told and only it writes; see
            ``firth.training.distributed``.

    Returns:
        Vectors, float32 (V, dim), with counts (those of ``init`` added) and with the settings and losses
        as metadata.

    Raises:
        SettingError: a setting outside its limits, ``resume`` without ``run``, ``freeze`` without ``init``
            or with nothing left to learn.
        ShapeError: ``init`` has another dim, or numbers that are not finite.
        SourceError: a corpus with nothing to learn from.
        RunError: the run folder is in use or was made by other settings, or its checkpoint is damaged; a card
            whose memory is full.
        StorageError: the run folder cannot be made or written; older checkpoints stay.
        Diverged: a table left the finite numbers; the last good checkpoint is kept.
        Interrupted: Ctrl-C; the state is saved where ``run`` was given.
        PeerFailed: another process of ``group`` has ended.
    """
    objective = SkipGram() if objective is None else objective
    if not isinstance(objective, SkipGram):
        raise SettingError(f"train(): objective must be a SkipGram(...), got {objective!r:.60}")
    if resume and run is None:
        raise SettingError("train(): resume=True needs run=, the folder to resume from")
    if init is None and freeze == "known":
        raise SettingError("train(): freeze='known' needs init=, the vectors that are to stay as they are")
    start = None if init is None else Pretrained(init)
    dim = pick_dim(dim, TrainConfig.dim, start)
    config = TrainConfig(
        dim=dim,
        freeze=freeze,
        epochs=epochs,
        lr=lr,
        threads=threads,
        seed=seed,
        device=device,
        deterministic=deterministic,
        table_dtype=table_dtype,
    )
    check_corpus(corpus)
    trainer = _trainer(
        group, corpus, objective, config, kernels.pick(device, deterministic, table_dtype), start
    )
    callbacks = tuple(callbacks) if trainer.writes else ()
    if start is not None:
        start.check_use(trainer.counts, freeze, keep_context)
    moment = carry_out(trainer, run, resume, callbacks, progress)
    vectors = trainer.vectors(keep_context, moment)
    for callback in callbacks:
        callback.on_end(moment, vectors)
    return vectors


def carry_out(
    trainer: Trainer,
    run: str | os.PathLike[str] | None,
    resume: bool,
    callbacks: Sequence[Callback],
    progress: Reporter,
) -> Moment:
    """Train to the end, from the last checkpoint in the run folder if there is one; where it stands then."""
    with contextlib.ExitStack() as stack:
        folder = None
        if run is not None:
            folder = stack.enter_context(trainer.folder(run, resume))
            if folder.load(trainer.state):
                trainer.check_place(folder.path)
        stop = trainer.listen(stack.enter_context(_interrupts()))
        return _loop(trainer, folder, stop, callbacks, progress if trainer.writes else SILENT)


def _trainer(group: Processes | None, *given: Any) -> Trainer:
    """A trainer, alone or as one of a group."""
    if group is None:
        return Trainer(*given)
    from firth.training.distributed import Replicas

    return Replicas(group, *given)


def check_corpus(corpus: Corpus) -> None:
    """Refuse what nothing can be learned from.

    Raises:
        SettingError: no Corpus. SourceError: too few tokens, types or neighbours.
    """
    if not isinstance(corpus, Corpus):
        raise SettingError(
            f"train(): corpus must be a Corpus, got {type(corpus).__name__}; Corpus.encode(text) makes one"
        )
    if len(corpus) < 2 or len(corpus.vocab) < 2:
        raise SourceError(
            f"train(): nothing to learn from {len(corpus):,} tokens of {len(corpus.vocab):,} types; "
            "at least 2 of each are needed (lower min_count?)"
        )
    if len(corpus.sentence_starts) > len(corpus):
        raise SourceError(
            f"train(): nothing to learn from {len(corpus):,} sentences of one token each, "
            "a token's context is its sentence"
        )


def _loop(
    trainer: Trainer,
    folder: Folder | None,
    stop: threading.Event,
    callbacks: Sequence[Callback],
    progress: Reporter,
) -> Moment:
    """Run after run until all tokens are done; what must happen between runs happens here."""
    state = trainer.state
    if state.place < trainer.total:
        progress.start("compile", None, "kernels")  # the first time on a machine; some ten seconds
        trainer.compile()
        progress.close()
    progress.start("train", trainer.total, "words")
    moment = trainer.moment()
    for callback in callbacks:
        callback.on_begin(moment)
    while state.place < trainer.total:
        finished_epoch = trainer.run(stop)
        moment = trainer.moment()
        progress.update(state.place, str(moment))
        for callback in callbacks:
            callback.on_progress(moment)
        if finished_epoch:
            ended = dataclasses.replace(moment, epoch=len(moment.epoch_losses) - 1)
            for callback in callbacks:
                callback.on_epoch_end(ended, trainer.vectors)
        done = state.place == trainer.total
        if done:
            trainer.check_learned()
        if folder is not None and (done or stop.is_set() or folder.due(state)):
            trainer.check_tables()
            path = folder.save(state)
            for callback in callbacks:
                callback.on_checkpoint(moment, path)
        if stop.is_set() and not done:
            raise Interrupted(state.place, trainer.total, None if folder is None else folder.path)
    trainer.check_tables()
    progress.finish(str(moment))
    return moment


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts as usual.

    Outside the main thread, where Python takes no signals, the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # None: a handler that Python cannot put back, so there is nothing better than the default.
    before: Callable[[int, FrameType | None], Any] | int = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
