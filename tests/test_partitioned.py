"""Partitioned training: no process holds a whole table, and the result is that of one process."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

import firth
from firth.errors import FormatError, SettingError, StorageError
from firth.formats import adjoining, safetensors_shards
from firth.formats.adjoining import PAGE, Stretch, adjoined
from firth.kernels import cpu, reference
from firth.kernels.cpu import skipgram_shared
from firth.keys import Keys
from firth.training import SkipGram
from firth.training.draws import Sampler
from firth.training.memory import part_bytes, pick_partitioned, replica_bytes, sharers_bytes
from firth.training.partitioned import stretch_tokens, train_partitioned
from firth.training.sampling import initial_inputs
from planted import cluster_score, clusters, learn
from teams import Workers

DIM = 32


@pytest.fixture(scope="module")
def three():
    test_the_kernel_agrees_with_the_reference(1, 0.1, 2e-6)  # compiled once, and not by three at a time
    workers = Workers(3, __name__)
    yield workers
    workers.end()


# --- in worker processes ------------------------------------------------------------------------


def trained(group, output, settings, objective=None):
    """What the first process loads."""
    corpus = clusters()
    vectors = train_partitioned(
        corpus, output, objective, group=group, **{"dim": DIM, "epochs": 10, "threads": 1, **settings}
    )
    return np.array(vectors.vectors), vectors.metadata


def said(group, output, settings, objective):
    try:
        trained(group, output, settings, objective)
    except SettingError as error:
        return str(error)
    return ""


def start_of(group, output):
    """The tables before the first word: what is saved when nothing was trained."""
    vectors = train_partitioned(
        clusters(), output, group=group, dim=DIM, epochs=1, lr=1e-9, threads=1, keep_context=True
    )
    return np.array(vectors.vectors), np.array(vectors.context.vectors)


def in_parts(group, folder, epochs):
    """Training that is stopped by Ctrl-C in one process, and goes on."""
    from firth.training.partitioned import Partitions

    rounds = []
    run_round = Partitions.run_round

    def counted(self, epoch, pos):
        rounds.append(pos)
        if len(rounds) == 4 and self.group.rank == 1:
            self._asked.set()
        return run_round(self, epoch, pos)

    Partitions.run_round = counted
    try:
        given = {"group": group, "dim": DIM, "epochs": epochs, "threads": 1, "run": folder / "run"}
        try:
            train_partitioned(clusters(), folder / "out.safetensors", **given)
        except firth.errors.Interrupted as stopped:
            place = stopped.place
        else:
            place = -1
        vectors = train_partitioned(clusters(), folder / "out.safetensors", resume=True, **given)
    finally:
        Partitions.run_round = run_round
    return np.array(vectors.vectors), place, len(rounds)


def memory_of(group, output, rows, dim):
    """Bytes that numpy and mmap hold at most while large tables start, train a little and are saved."""
    from firth.training import sampling
    from planted import corpus_of, even_sentences

    ids = np.concatenate([np.arange(rows), np.zeros(64, np.int64)])
    corpus = corpus_of(ids, even_sentences(len(ids), 8), block=1 << 30)
    trained(group, output, {"epochs": 1})  # so that what is compiled and imported is there
    made = []
    real = sampling.mmap

    def counted(number, size, **named):
        made.append(size)
        return real.mmap(number, size, **named)

    names = {name: getattr(real, name) for name in dir(real) if name.isupper()}
    sampling.mmap = SimpleNamespace(**names, mmap=counted)
    tracemalloc.start()
    try:
        train_partitioned(corpus, output, SkipGram(sample=0.0), group=group, dim=dim, epochs=1, threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        sampling.mmap = real
    return sum(made), peak


# --- the whole ----------------------------------------------------------------------------------


def test_quality_is_that_of_one_process(three, tmp_path):
    output = tmp_path / "out.safetensors"
    results = three.run(trained, output, {})
    expected = learn(clusters())
    vectors = firth.Vectors.load(tmp_path / "out.safetensors.index.json")
    assert all(np.array_equal(vectors.vectors, one[0]) for one in results)
    assert vectors.index_to_key == expected.index_to_key
    assert np.array_equal(vectors.counts, expected.counts)
    found = cluster_score(vectors)
    assert found.recovered and abs(found.precision - cluster_score(expected).precision) <= 0.01
    assert vectors.metadata["loss"][-1] == pytest.approx(expected.metadata["loss"][-1], rel=0.05)
    assert vectors.metadata["ranks"] == 3 and vectors.metadata["partitioned"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"out-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
        "out.safetensors.index.json",
    ]


def test_tables_start_as_in_one_process(three, tmp_path):
    inputs, outputs = three.run(start_of, tmp_path / "out.safetensors")[0]
    expected = initial_inputs(len(inputs), DIM, SkipGram().init, 1)[:, :DIM]
    assert np.allclose(inputs, expected, atol=1e-7) and not np.allclose(inputs[:-1], expected[1:], atol=1e-3)
    assert np.abs(outputs).max() < 1e-6
    for part in range(3):
        rows = initial_inputs(200, 20, 0.5, 7, part, 3)
        whole = initial_inputs(200, 20, 0.5, 7)
        assert np.array_equal(rows[: len(whole[part::3])], whole[part::3])


def test_stopped_and_resumed_is_never_stopped(three, tmp_path):
    once = three.run(trained, tmp_path / "once.safetensors", {"epochs": 4})[0][0]
    vectors, place, rounds = three.run(in_parts, tmp_path, 4)[0]
    assert 0 < place < 4 * len(clusters()) and rounds > 4
    assert np.array_equal(vectors, once)  # one thread and the same ranks: to the bit
    alone = learn(clusters(), epochs=4, run=tmp_path / "run", resume=True)  # its checkpoints are as all are
    assert np.allclose(alone.vectors, once, atol=1e-6)


def test_no_process_holds_a_table(three, tmp_path):
    rows, dim = 30_000, 256
    table = rows * dim * 4
    for mapped, peak in three.run(memory_of, tmp_path / "out.safetensors", rows, dim):
        assert 0 < mapped <= 3 * rows // 3 * dim * 4 + 3 * (2 << 20)
        assert mapped + peak < 2 * table  # with the words, and the pieces that are saved
    assert len(firth.Vectors.load(tmp_path / "out.safetensors.index.json")) == rows


@pytest.mark.parametrize(
    "settings, objective, expected",
    [
        ({}, SkipGram(share=0), "negatives that are shared by a group"),
        ({"dim": 0}, None, "dim must be at least 1"),
    ],
)
def test_what_it_cannot_do(settings, objective, expected, three, tmp_path):
    for sentence in three.run(said, tmp_path / "out.safetensors", settings, objective):
        assert expected in sentence


# --- the kernel ---------------------------------------------------------------------------------


def _in_parts(tables, size, corpus, step, draws):
    parts = [[table[part::size].copy() for part in range(size)] for table in tables]
    stats = np.zeros(3)
    for input_part in range(size):
        for output_part in range(size):
            skipgram_shared(
                parts[0][input_part],
                parts[1][output_part],
                cpu._read_only(corpus.ids),
                cpu._read_only(corpus.sentence_starts),
                0,
                len(corpus),
                step,
                draws,
                stats,
                0,
                0,
                size,
                input_part,
                output_part,
            )
    whole = [table.copy() for table in tables]
    for table, pieces in zip(whole, parts, strict=True):
        for part, piece in enumerate(pieces):
            table[part::size] = piece
    return whole, stats


@pytest.mark.parametrize("size, rate, tolerance", [(1, 0.1, 2e-6), (3, 1e-4, 2e-6)])
def test_the_kernel_agrees_with_the_reference(size, rate, tolerance):
    corpus = clusters(400)
    objective = SkipGram(sample=1e-2)
    draws = Sampler(corpus.vocab.counts, objective, 1, cpu).epoch(0)
    step = objective.step(rate, 0.0, rate)
    tables = [initial_inputs(len(corpus.vocab), 24, spread, 3) for spread in (12, 8)]
    expected, told = [table.astype(np.float64) for table in tables], np.zeros(3)
    reference.skipgram_shared(
        *expected, corpus.ids, corpus.sentence_starts, 0, len(corpus), step, draws, told
    )
    found, stats = _in_parts(tables, size, corpus, step, draws)
    for ours, theirs, before in zip(found, expected, tables, strict=True):
        assert np.abs(theirs - before).max() > 200 * tolerance
        assert np.abs(ours - theirs).max() < tolerance
    assert stats[1] == told[1] and stats[0] == pytest.approx(told[0], rel=1e-3 if size > 1 else 1e-6)


def test_the_way_is_chosen_by_size():
    whole, parts = replica_bytes(10_000_000, 300), part_bytes(10_000_000, 300, 4)
    assert parts < 13e9 and whole > 45e9
    assert not pick_partitioned(10_000_000, 300, 4, 1, limit=whole)
    assert pick_partitioned(10_000_000, 300, 4, 1, limit=whole - 1)
    with pytest.raises(SettingError, match="processes in all would fit"):
        pick_partitioned(10_000_000, 300, 4, 1, limit=parts - 1)
    together = sharers_bytes(10_000_000, 300, 4, 4)
    assert whole < together < 1.5 * whole
    assert not pick_partitioned(10_000_000, 300, 4, 4, shared=True, limit=together)
    assert pick_partitioned(10_000_000, 300, 8, 4, shared=True, limit=together)  # another machine to tell
    with pytest.raises(SettingError, match="fewer on a machine"):
        pick_partitioned(10_000_000, 300, 4, 4, limit=parts // 4)


def test_stretches():
    assert stretch_tokens(10**9, 1_000_000, 100, 1) == 1_000_000 * 400 // 64
    assert stretch_tokens(10**9, 1_000_000, 100, 4) == 4 * 1_000_000 * 400 // 64
    assert stretch_tokens(10**6, 1_000_000, 100, 2) == 40_000
    assert stretch_tokens(10**9, 10, 10, 2) == 65_536


# --- files --------------------------------------------------------------------------------------


def _sharded(path, rows=3000, dim=7, parts=2, context=True):
    table = np.arange(rows * dim, dtype=np.float32).reshape(rows, dim)
    keys = Keys([f"w{row}" for row in range(rows)])
    bounds = safetensors_shards.bounds(rows, parts)
    for number in range(parts):
        part = table[bounds[number] : bounds[number + 1]]
        for place, name in enumerate(("vectors", "context")[: 1 + context]):
            file = safetensors_shards.shard_path(path, number + 1 + place * parts, parts * (1 + context))
            first = number == place == 0
            pieces = [part[:10], part[10:]] if place == 0 else [-part]
            counts = np.arange(rows) if first else None
            safetensors_shards.write_shard(
                file, name, number + 1, part.shape, pieces, keys if first else None, counts
            )
    index = safetensors_shards.write_index(path, rows, dim, parts, context, True, {"a": 1})
    return index, table


def test_files_are_one_mapped_table(tmp_path, monkeypatch):
    index, table = _sharded(tmp_path / "x.safetensors")
    monkeypatch.setattr(adjoining, "_read", None)  # nothing is copied
    vectors = firth.Vectors.load(index)
    assert np.array_equal(vectors.vectors, table) and np.array_equal(vectors.context.vectors, -table)
    assert vectors.index_to_key[2999] == "w2999" and vectors.counts[5] == 5 and vectors.metadata == {"a": 1}
    assert not vectors.vectors.flags.writeable
    assert np.array_equal(firth.Vectors.load(index, limit=5).vectors, table[:5])


def test_other_readers_open_the_files(tmp_path):
    from safetensors import safe_open

    _, table = _sharded(tmp_path / "x.safetensors", context=False)
    with safe_open(tmp_path / "x-00002-of-00002.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("vectors.00002"), table[2048:])


def test_files_that_do_not_begin_at_pages_are_read(tmp_path):
    for name, text in (("a", b"x" * 10 + b"abc"), ("b", b"defg")):
        (tmp_path / name).write_bytes(text)
    got = adjoined([Stretch(tmp_path / "a", 10, 3), Stretch(tmp_path / "b", 0, 4)])
    assert got.tobytes() == b"abcdefg" and not got.flags.writeable and PAGE >= 4096


def test_damaged_files_are_refused(tmp_path):
    index, _ = _sharded(tmp_path / "x.safetensors")
    shard = tmp_path / "x-00002-of-00004.safetensors"
    whole, text = shard.read_bytes(), index.read_text()
    shard.write_bytes(whole[:-4])
    with pytest.raises(FormatError, match="cut"):
        firth.Vectors.load(index)
    shard.unlink()
    with pytest.raises(StorageError, match="x-00002-of-00004"):
        firth.Vectors.load(index)
    shard.write_bytes(whole)
    for old, new, said_of in [
        ('"rows": 3000', '"rows": 3001', "hold 3,000 rows"),
        ("x-00002-of-00004.safetensors", "../x-00002-of-00004.safetensors", "no file's name"),
        ('"firth"', '"other"', "not of vectors that firth wrote"),
        ('"version": "1"', '"version": "9"', "version 9"),
        ('"weight_map": {', '"weight_map": {{', "no JSON"),
    ]:
        assert old in text
        index.write_text(text.replace(old, new))
        with pytest.raises(FormatError, match=said_of):
            firth.Vectors.load(index)
