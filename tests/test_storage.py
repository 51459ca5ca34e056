"""Table files: what is in them, what is refused, and what a dying process leaves behind."""

import errno
import json
import multiprocessing
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from firth.errors import FormatError, RunError, SettingError, StorageError
from firth.kernels import rows, rows_reference
from firth.nn import storage, tablespec
from firth.nn.recipes import SGD, Adagrad, Adam, RowWiseAdagrad
from firth.nn.storage import accept_table, create_table, open_table, read_table
from firth.nn.tablespec import TableSpec

ADAGRAD = TableSpec(30, 7, torch.float32, "adagrad", {"sum": (30, 7)})
ADAM = TableSpec(30, 7, torch.float32, "adam", {"exp_avg": (30, 7), "exp_avg_sq": (30, 7)})


def train(file, steps, seed=0):
    """Adagrad steps on random rows, drawn by the number of the step."""
    kernels = rows.pick(file.weight)
    for _ in range(steps):
        chance = torch.Generator().manual_seed(seed + file.steps)
        ids = torch.randint(len(file.weight), (64,), generator=chance)
        grads = torch.randn(64, file.weight.shape[1], generator=chance)
        groups = kernels.group(ids, len(file.weight))
        with file.step() as number:
            step = rows_reference.Update("adagrad", lr=0.1, step=number)
            kernels.update(file.weight, file.state, groups, rows_reference.Source(grads), step, False)


# --- what is in the file -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_values_are_those_of_torch(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(tablespec, "CHUNK", 64)
    for rows_, dim in [(30, 7), (1, 3), (64, 2), (65, 2), (129, 1), (0, 5), (5, 0)]:
        torch.manual_seed(3)
        expected = torch.nn.Embedding(rows_, dim, dtype=dtype).weight.detach()
        torch.manual_seed(3)
        path = tmp_path / f"{rows_}x{dim}"
        with create_table(path, TableSpec(rows_, dim, dtype)) as file:
            assert file.weight.dtype == dtype
            assert torch.equal(file.weight, expected)


def test_a_file_keeps_weight_state_and_steps(tmp_path):
    with create_table(tmp_path / "table.bin", ADAGRAD, padding_row=2) as file:
        assert not file.weight[2].any() and file.weight[1].all() and not file.state["sum"].any()
        assert file.steps == file.flushed_steps == 0
        train(file, 3)
        weight, total = file.weight.clone(), file.state["sum"].clone()
        assert file.steps == 3 and file.flushed_steps == 0 and total.any()
        assert file.flush() == 3 == file.flushed_steps
    with open_table(tmp_path / "table.bin", ADAGRAD) as file:
        assert torch.equal(file.weight, weight) and torch.equal(file.state["sum"], total)
        train(file, 2)
        assert file.steps == 5
        assert repr(file) == (
            f"TableFile('{tmp_path}/table.bin', 30 rows of 7 float32 with state of adagrad (sum), steps=5)"
        )
    assert not list(tmp_path.glob(".*"))


def test_parts_begin_at_whole_pages(tmp_path):
    with create_table(tmp_path / "t", ADAM) as file:
        for tensor in (file.weight, *file.state.values()):
            assert tensor.data_ptr() % 4096 == 0
    assert (tmp_path / "t").stat().st_size == ADAM.size == 4 * 65_536
    assert (tmp_path / "t").stat().st_blocks * 512 >= ADAM.size  # reserved, not sparse


def test_values_and_functions_to_begin_with(tmp_path):
    values = torch.randn(7, 30).T  # not contiguous
    with create_table(tmp_path / "a", ADAGRAD, initial=values, padding_row=0) as file:
        assert torch.equal(file.weight, values)
    with create_table(tmp_path / "b", ADAGRAD, initial=lambda chunk: chunk.fill_(2), padding_row=0) as file:
        assert not file.weight[0].any() and (file.weight[1:] == 2).all()
    with pytest.raises(SettingError, match=r"cannot begin with values of shape \(3, 7\)"):
        create_table(tmp_path / "c", ADAGRAD, initial=torch.zeros(3, 7))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_state_begins_as_its_recipe_says(tmp_path, monkeypatch):
    monkeypatch.setattr(tablespec, "CHUNK", 64)
    recipe = Adagrad(initial_accumulator_value=0.5)
    with create_table(tmp_path / "t", TableSpec.of(30, 7, torch.bfloat16, recipe)) as file:
        assert file.state["sum"].dtype == torch.float32 and (file.state["sum"] == 0.5).all()
        assert file.state["sum"].shape == (30, 7)
    for recipe, states in [
        (SGD(), {}),
        (SGD(momentum=0.9), {"momentum_buffer": (30, 7)}),
        (RowWiseAdagrad(), {"sum": (30,)}),
        (Adam(), {"exp_avg": (30, 7), "exp_avg_sq": (30, 7)}),
    ]:
        spec = TableSpec.of(30, 7, torch.float64, recipe)
        assert (spec.kind, dict(spec.states), dict(spec.fills)) == (recipe.kind, states, {})
        with create_table(tmp_path / str(recipe), spec) as file:
            assert {name: tuple(one.shape) for name, one in file.state.items()} == states
            assert all(one.dtype == torch.float64 and not one.any() for one in file.state.values())


def test_a_snapshot_is_a_file_of_its_own(tmp_path):
    with create_table(tmp_path / "t", ADAGRAD) as file:
        train(file, 2)
        weight = file.weight.clone()
        file.snapshot(tmp_path / "copy")
        train(file, 1)
    with open_table(tmp_path / "copy", ADAGRAD) as file:
        assert file.steps == 2 and torch.equal(file.weight, weight)


def test_changes_that_are_no_steps(tmp_path):
    with create_table(tmp_path / "t", ADAGRAD) as file:
        with file.writing():
            file.weight.zero_()
            with file.writing():  # one in another ends with the outer one
                pass
            assert file._cut
        assert file.steps == 0 and not file._cut
    assert not read_table(tmp_path / "t").weight.any()


def test_what_cannot_be_a_table(tmp_path):
    for size in (-1, 2.0, True, "7"):
        with pytest.raises(SettingError, match="whole numbers >= 0 as rows and dim"):
            TableSpec(size, 7)
    with pytest.raises(SettingError, match="whole numbers >= 0 as shapes"):
        TableSpec(3, 7, states={"sum": (-1, 7)})
    with pytest.raises(SettingError, match="no file's size"):
        TableSpec(1 << 60, 7)
    with pytest.raises(TypeError, match=r"not torch\.int8; give one"):
        TableSpec(3, 7, torch.int8)
    with create_table(tmp_path / "t", ADAGRAD) as file, pytest.raises(TypeError, match="cannot be pickled"):
        file.__reduce__()


# --- who may open it -----------------------------------------------------------------------------


def test_reading_beside_training(tmp_path):
    with create_table(tmp_path / "t", ADAGRAD) as file:
        train(file, 1)
        with file.step():  # an odd mark beside a living writer is no damage
            reader = read_table(tmp_path / "t", TableSpec(30, 7))
        before = reader.weight.clone()
        reader.weight.zero_()  # in the reader's memory only
        assert torch.equal(file.weight, before) and not reader.weight.any()
        with file.writing():
            file.weight[3] = 5
        assert (read_table(tmp_path / "t").weight[3] == 5).all()
        for change in (reader.flush, reader.step().__enter__, reader.writing().__enter__):
            with pytest.raises(RunError, match="was opened read-only; open it for training"):
                change()


def test_one_trains_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_LOCK_WAIT", 0.0)
    file = create_table(tmp_path / "t", ADAGRAD)
    with pytest.raises(RunError, match="open for training in another process or layer; close that"):
        open_table(tmp_path / "t", ADAGRAD)
    code = "import sys, torch\nfrom firth.nn import storage, tablespec\n" + (
        "spec = tablespec.TableSpec(30, 7, torch.float32, 'adagrad', {'sum': (30, 7)})\n"
        "try: storage.open_table(sys.argv[1], spec)\nexcept RuntimeError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "is open for training in another process" in done.stdout, done.stderr
    file.close()
    file.close()
    with pytest.raises(RunError, match="is closed; open it again"), file.step():
        pass
    open_table(tmp_path / "t", ADAGRAD).close()


def test_the_lock_goes_with_the_last_layer(tmp_path):
    file = create_table(tmp_path / "t", ADAGRAD)
    train(file, 1)
    del file
    with open_table(tmp_path / "t", ADAGRAD) as file:
        assert file.steps == 1


def _child(file, reached, leave):
    try:
        with file.step():
            pass
    except RunError as error:
        reached.put(str(error))
    leave.wait(60)


def test_a_forked_child_neither_trains_nor_holds_the_lock(tmp_path):
    fork = multiprocessing.get_context("fork")
    reached, leave = fork.Queue(), fork.Event()
    file = create_table(tmp_path / "t", ADAGRAD)
    child = fork.Process(target=_child, args=(file, reached, leave), daemon=True)
    child.start()
    try:
        assert "was opened by the process that forked this one" in reached.get(timeout=60)
        train(file, 1)
        file.close()
        with open_table(tmp_path / "t", ADAGRAD) as file:  # while the child still lives
            assert file.steps == 1
    finally:
        leave.set()
        child.join(60)


# --- files that are wrong ------------------------------------------------------------------------


def other(**named):
    return TableSpec(**({"rows": 30, "dim": 7, "kind": "adagrad", "states": {"sum": (30, 7)}} | named))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (other(rows=31, states={"sum": (31, 7)}), "holds 30 rows of 7 float32 .* asked was 31 rows of 7"),
        (other(dim=8, states={"sum": (30, 8)}), "asked was 30 rows of 8 float32"),
        (other(dtype=torch.float64), "asked was 30 rows of 7 float64"),
        (ADAM, "keeps state of adagrad, asked was state of adam; train it as before, or make a new"),
        (TableSpec(30, 7), "keeps state of adagrad, asked was no state"),
        (other(states={}), r"with state of adagrad \(sum\), asked was .* with state of adagrad:"),
        (other(identity="b"), "stand for other words than the vocabulary given"),
    ],
)
def test_another_table_than_asked(tmp_path, asked, sentence):
    create_table(tmp_path / "t", other(identity="a")).close()
    with pytest.raises(SettingError, match=sentence):
        open_table(tmp_path / "t", asked)
    open_table(tmp_path / "t", other()).close()


def damaged(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def lie(path, **named):
    header = path.read_bytes()[:65_536]
    length = int.from_bytes(header[12:16], sys.byteorder)
    text = json.dumps(json.loads(header[256 : 256 + length]) | named).encode()
    damaged(path, 12, len(text).to_bytes(4, sys.byteorder) + header[16:256] + text)


def test_a_file_that_is_cut_or_lies(tmp_path):
    path = tmp_path / "t"
    create_table(path, ADAGRAD).close()
    whole = path.read_bytes()
    for size in [0, 7, 8, 300, 65_535, 65_536, 131_072, len(whole) - 1, len(whole) + 1]:
        path.write_bytes(whole[:size].ljust(size, b"\0"))
        with pytest.raises(FormatError, match=r"is cut|is not a table file"):
            open_table(path, ADAGRAD)
    huge = 1 << 40
    parts = json.loads(ADAGRAD.to_json())["parts"]
    lies = [
        ({"rows": huge}, "its parts do not fit"),
        ({"rows": huge, "parts": json.loads(TableSpec(huge, 7).to_json())["parts"]}, "promises 30,786,"),
        ({"rows": -1}, "SettingError"),
        ({"rows": 30.0}, "SettingError"),
        ({"rows": 10**20}, "no file's size"),
        ({"dtype": "int8"}, "KeyError"),
        ({"byteorder": "middle"}, "middle-endian"),
        ({"parts": parts[:1]}, "holds 196,608 bytes"),
        ({"parts": [parts[0], ["sum", "float32", [30, 7], 65_536]]}, "its parts do not fit"),
        ({"parts": 3}, "TypeError"),
        ({"parts": [parts[0], ["sum", "float32", ["x"], 131_072]]}, "damaged header"),
        ({"parts": [parts[0], ["sum", "float32", [-5, -9], 131_072]]}, "damaged header"),
        ({"extra": 1}, "its parts do not fit"),
    ]
    for named, sentence in lies:
        path.write_bytes(whole)
        lie(path, **named)
        with pytest.raises(FormatError, match=sentence):
            open_table(path, ADAGRAD)
        with pytest.raises(FormatError, match=sentence):
            read_table(path)
    for at, data, sentence in [
        (8, b"\x09", "has version 9; this firth reads 1"),
        (12, b"\xff\xff\xff\xff", "damaged header .*4,294,967,295 bytes long"),
        (256, b"[" * 2000, "damaged header"),
        (260, b"\xff\xfe", "damaged header"),
    ]:
        path.write_bytes(whole)
        damaged(path, at, data)
        with pytest.raises(FormatError, match=sentence) as caught:
            open_table(path, ADAGRAD)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob(".*"))


def test_random_damage_of_the_header_never_passes_unseen(tmp_path):
    path = tmp_path / "t"
    create_table(path, ADAGRAD, initial=torch.ones(30, 7)).close()
    whole = path.read_bytes()
    chance = random.Random(5)
    for _ in range(300):
        path.write_bytes(whole)
        damaged(path, chance.choice([*range(16), *range(256, 500)]), bytes([chance.randrange(256)]))
        try:
            with open_table(path, ADAGRAD) as file:
                assert (file.weight == 1).all()
        except (FormatError, SettingError):
            pass


def test_what_is_no_file(tmp_path):
    with pytest.raises(StorageError, match="there is one; open it, or remove it first"):
        create_table(tmp_path, ADAGRAD)
    with pytest.raises(StorageError, match="cannot open the table file"):
        open_table(tmp_path, ADAGRAD)
    with pytest.raises(
        StorageError, match=r"there is no table file .*/none to look rows up in; a layer with a"
    ):
        read_table(tmp_path / "none")
    with pytest.raises(StorageError, match=r"the folder .* does not exist"):
        open_table(tmp_path / "none" / "t", ADAGRAD)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="it is not a regular file"):
        open_table(tmp_path / "pipe", ADAGRAD)
    (tmp_path / "text").write_text("hey there, this is a text\n")
    with pytest.raises(FormatError, match=r"is not a table file \(it does not begin with 'firthtab'\)"):
        open_table(tmp_path / "text", ADAGRAD)


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        StorageError, match=r"cannot reserve 196,608 bytes for the table file .*no space left"
    ):
        create_table(tmp_path / "t", ADAGRAD)
    assert not list(tmp_path.iterdir())


def test_more_than_the_disk_has(tmp_path):
    disk = os.statvfs(tmp_path)
    spec = TableSpec(2 * disk.f_blocks * disk.f_frsize // 512 + 1, 128)
    if spec.size > 1 << 43:  # file systems end somewhere, with another error
        pytest.skip("a disk too large to be exceeded")
    with pytest.raises(StorageError, match=r"no space left|file too large"):
        create_table(tmp_path / "t", spec)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_reserve(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with create_table(tmp_path / "t", ADAGRAD) as file:
        train(file, 1)
    disk = os.statvfs(tmp_path)
    with pytest.raises(StorageError, match=r"cannot reserve .*no space left"):
        create_table(tmp_path / "u", TableSpec(2 * disk.f_blocks * disk.f_frsize // 512 + 1, 128))
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def failing(descriptor, data, at):
        calls.append(at)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return len(data) if calls else 0

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(StorageError, match=r"cannot make the table file .*input/output error"):
        create_table(tmp_path / "t", ADAGRAD)
    assert not list(tmp_path.iterdir())


# --- steps that are cut ---------------------------------------------------------------------------


def test_an_error_within_a_step(tmp_path):
    with create_table(tmp_path / "t", ADAGRAD) as file:
        with pytest.raises(FloatingPointError), file.step():
            raise FloatingPointError("refused")
        assert file.steps == 0
        train(file, 1)  # a refusal changed nothing
        with pytest.raises(KeyboardInterrupt), file.step():
            raise KeyboardInterrupt
        with pytest.raises(RunError, match="holds half of step 2, which an error cut; go back to a snapshot"):
            train(file, 1)
        with pytest.raises(RunError, match="holds half of step 2"):
            file.flush()
    with pytest.raises(RunError, match="holds half of step 2: the process"):
        open_table(tmp_path / "t", ADAGRAD)
    accept_table(tmp_path / "t")
    with open_table(tmp_path / "t", ADAGRAD) as file:
        train(file, 1)


def test_a_machine_that_went_down(tmp_path, monkeypatch):
    """As far as a test can: the file is seen from a machine that was started again."""
    path = tmp_path / "t"
    file = create_table(path, ADAGRAD)
    train(file, 2)
    file.flush()
    flushed = path.read_bytes()
    train(file, 1)
    unflushed = path.read_bytes()
    file.close()
    monkeypatch.setattr(tablespec, "boot_id", lambda: b"2" * 36)
    path.write_bytes(flushed)
    open_table(path, ADAGRAD).close()
    path.write_bytes(unflushed)
    with pytest.raises(
        RunError, match=r"went down, and may hold any part of what came after step 2, the last"
    ):
        open_table(path, ADAGRAD)
    assert accept_table(path) == 3
    open_table(path, ADAGRAD).close()


def test_numbers_of_the_header_stay_where_they_are(tmp_path):
    """The format on disk: files of today must open tomorrow."""
    with create_table(tmp_path / "t", ADAGRAD) as file:
        train(file, 3)
        file.flush()
        train(file, 1)
    header = (tmp_path / "t").read_bytes()[:65_536]
    assert header[:8] == b"firthtab" and np.frombuffer(header, np.uint32, 1, 8) == 1
    assert np.frombuffer(header, np.uint64, 3, 64).tolist() == [8, 1, 4]
    length = int(np.frombuffer(header, np.uint32, 1, 12)[0])
    assert json.loads(header[256 : 256 + length]) == {
        "rows": 30,
        "dim": 7,
        "dtype": "float32",
        "recipe": "adagrad",
        "byteorder": sys.byteorder,
        "identity": "",
        "parts": [["weight", "float32", [30, 7], 65_536], ["sum", "float32", [30, 7], 131_072]],
    }
