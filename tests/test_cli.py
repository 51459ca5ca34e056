"""The command line as people meet it: right calls, wrong calls, bad input; never a traceback."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import firth
from firth import cli

KEYS = ["king", "queen", "man", "woman", "apple", "東京", "new york", "a\x85b"]


class Done(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> "Call":
    return Call(capsys)


class Call:
    """Runs a command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Done:
        code = cli.run([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return Done(code, out, err)

    def refused(self, code: int, *arguments: object) -> str:
        """The sentence of a command that must be refused with ``code``."""
        done = self(*arguments)
        assert done.code == code, done
        assert not done.out
        last = done.err.splitlines()[-1]
        assert last.startswith("firth: ") and "Traceback" not in done.err
        return last.removeprefix("firth: ")


def process(*arguments: object, cwd: Path, given: str = "", **environment: str) -> Done:
    """Runs a command in a process of its own."""
    paths = {"PYTHONPATH": str(Path(firth.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-m", "firth", *map(str, arguments)],
        input=given,
        cwd=cwd,
        env={**os.environ, **paths, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A file of eight vectors in which king - man + woman is queen."""
    rows = np.random.default_rng(3).normal(size=(len(KEYS), 6)).astype(np.float32)
    rows[1] = rows[0] - rows[2] + rows[3]
    path = tmp_path / "table.safetensors"
    firth.Vectors(KEYS, rows, counts=range(80, 0, -10), metadata={"dim": 6, "scores": {"ws": 0.5}}).save(path)
    return path


class TestWrongCalls:
    """Exit code 2, one sentence that says what is near and where the help is."""

    def test_unknown_verb(self, call: Call) -> None:
        assert "'trian'" in (sentence := call.refused(2, "trian")) and "train" in sentence.split("'trian'")[1]

    def test_unknown_flag(self, call: Call) -> None:
        sentence = call.refused(2, "train", "text.txt", "--dmi", 4)
        assert "has no option --dmi; did you mean '--dim'" in sentence and "firth train --help" in sentence

    def test_missing_argument(self, call: Call) -> None:
        assert "VECTORS" in call.refused(2, "similar")

    def test_missing_output(self, call: Call, text: Path) -> None:
        assert "--output" in call.refused(2, "train", text)

    def test_no_integer(self, call: Call) -> None:
        assert "--dim" in call.refused(2, "train", "x", "-o", "y", "--dim", "many")

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("--dim", -5),
            ("--dim", 0),
            ("--window", 0),
            ("--negatives", -1),
            ("--epochs", 0),
            ("--min-count", 0),
            ("--max-vocab", 0),
            ("--threads", 0),
            ("--sample", -1),
            ("--sample", "nan"),
            ("--lr", 0),
            ("--lr", "inf"),
            ("--seed", -1),
            ("--device", "gpu7"),
            ("--objective", "cbov"),
            ("--preset", "word3vec"),
            ("--pattern", "("),
        ],
    )
    def test_setting_out_of_range(
        self, call: Call, text: Path, tmp_path: Path, flag: str, value: object
    ) -> None:
        output = tmp_path / "vectors.safetensors"
        sentence = call.refused(2, "train", text, "-o", output, flag, value)
        assert str(value) in sentence
        assert not output.exists()

    def test_info_wants_a_file_or_the_cache(self, call: Call, table: Path) -> None:
        assert "either" in call.refused(2, "info")
        assert "either" in call.refused(2, "info", table, "--cache")

    def test_evaluate_wants_a_file_of_questions(self, call: Call, table: Path) -> None:
        assert "--pairs" in call.refused(2, "evaluate", table)

    def test_unknown_format(self, call: Call, table: Path, tmp_path: Path) -> None:
        sentence = call.refused(2, "convert", table, tmp_path / "out", "--format", "word3vec")
        assert "word2vec-binary" in sentence and not (tmp_path / "out").exists()

    def test_standard_input_among_files(self, call: Call, text: Path, tmp_path: Path) -> None:
        assert "alone" in call.refused(2, "train", text, "-", "-o", tmp_path / "out")

    def test_vocab_and_max_vocab(self, call: Call, text: Path, tmp_path: Path) -> None:
        words = tmp_path / "words"
        words.write_text("a\nb\n")
        arguments = ("train", text, "-o", tmp_path / "out", "--vocab", words, "--max-vocab", 5)
        assert "--vocab or --max-vocab" in call.refused(2, *arguments)


class TestDoors:
    """Help, version, pipes, encodings."""

    def test_version(self, call: Call) -> None:
        assert call("--version") == (0, f"firth {firth.__version__}\n", "")

    @pytest.mark.parametrize("verb", ["train", "similar", "analogy", "evaluate", "convert", "info"])
    def test_help_has_an_example(self, call: Call, verb: str) -> None:
        done = call(verb, "--help")
        assert done.code == 0 and not done.err
        assert f"firth {verb} " in done.out and "$ " in done.out

    def test_alone_it_shows_help(self, call: Call) -> None:
        done = call()
        assert done.code == 0 and "train" in done.out and "similar" in done.out

    @pytest.mark.parametrize("unbuffered", ["", "1"])  # the pipe breaks at the end, or at the first line
    def test_a_reader_that_goes_away_is_no_error(self, table: Path, unbuffered: str) -> None:
        words = shlex.join([sys.executable, "-m", "firth", "info", str(table)])
        paths = {"PYTHONPATH": str(Path(firth.__file__).parents[1])}
        environment = {**os.environ, **paths, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(
            ["sh", "-c", f"{words} | true"], env=environment, capture_output=True, text=True, check=True
        )
        assert not done.stderr

    def test_a_terminal_without_unicode(self, table: Path, tmp_path: Path) -> None:
        done = process("similar", table, "king", cwd=tmp_path, PYTHONIOENCODING="ascii")
        assert done.code == 0 and "\\u6771\\u4eac" in done.out

    def test_memory_and_system_errors_are_sentences(
        self, call: Call, table: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for error, word in (
            (MemoryError(), "out of memory"),
            (PermissionError(13, "Denied", "x"), "x: Denied"),
        ):

            def fails(*_: object, error: BaseException = error) -> None:
                raise error

            monkeypatch.setattr(firth.Vectors, "load", fails)
            assert word in call.refused(1, "similar", table, "king")

    def test_ctrl_c(self, call: Call, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(firth.Vectors, "load", interrupted)
        assert call("similar", table, "king").code == 130


class TestQueries:
    """similar, analogy, info, convert on a small file."""

    def test_similar(self, call: Call, table: Path) -> None:
        done = call("similar", table, "king", "man", "-n", 3)
        lines = done.out.splitlines()
        assert done.code == 0 and [lines[0], lines[4]] == ["king", "man"] and len(lines) == 8
        words = [line.rsplit(None, 1)[0].strip() for line in lines[1:4]]
        expected = firth.Vectors.load(table).most_similar("king", topn=3)
        assert [word.replace("\\x85", "\x85") for word in words] == [key for key, _ in expected]
        # Columns are aligned also where characters are two columns wide.
        assert len({len(line) + line.count("東京") * 2 for line in lines[1:4]}) == 1

    def test_similar_as_json(self, call: Call, table: Path) -> None:
        done = call("similar", table, "new york", "--json", "--restrict", 2, "-n", 1)
        answer = json.loads(done.out)
        assert answer["query"] == "new york"
        ((word, score),) = answer["neighbours"]
        assert word in KEYS[:2] and -1 <= score <= 1

    def test_similar_reads_standard_input(self, table: Path, tmp_path: Path) -> None:
        done = process("similar", table, "--json", "-n", 1, cwd=tmp_path, given="king\n\nnew york\r\nqueen")
        assert done.code == 0 and not done.err
        assert [json.loads(line)["query"] for line in done.out.splitlines()] == ["king", "new york", "queen"]

    def test_similar_goes_on_after_an_unknown_line(self, table: Path, tmp_path: Path) -> None:
        done = process("similar", table, "--json", cwd=tmp_path, given="kign\nqueen\n")
        assert done.code == 1 and len(done.out.splitlines()) == 1
        assert "'kign'" in done.err and "'king'" in done.err and len(done.err.splitlines()) == 1

    def test_a_misspelt_word(self, call: Call, table: Path) -> None:
        assert "did you mean 'queen'" in call.refused(1, "similar", table, "queeen")
        assert "did you mean 'queen'" in call.refused(1, "analogy", table, "man", "queeen", "king")

    def test_analogy(self, call: Call, table: Path) -> None:
        assert call("analogy", table, "man", "king", "woman").out.split()[0] == "queen"
        done = call("analogy", table, "man", "king", "woman", "--multiply", "--json", "-n", 2)
        answer = json.loads(done.out)
        assert answer["query"] == ["man", "king", "woman"] and len(answer["answers"]) == 2

    def test_info(self, call: Call, table: Path) -> None:
        shown = call("info", table).out
        for fact in ("safetensors", "8", "scores", "ws", "0.5", "a\\x85b"):
            assert fact in shown
        facts = json.loads(call("info", table, "--json").out)
        assert facts["vectors"] == 8 and facts["dim"] == 6 and facts["scores"] == {"ws": 0.5}

    def test_info_of_the_cache(self, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FIRTH_CACHE", str(tmp_path / "kept"))
        assert str(tmp_path / "kept") in call("info", "--cache").out
        (tmp_path / "text").write_text("a b c\n" * 10)
        firth.Corpus.encode(tmp_path / "text")
        facts = json.loads(call("info", "--cache", "--json").out)
        assert facts["texts"] == 1 and facts["bytes"] > 0

    @pytest.mark.parametrize("form", ["word2vec", "safetensors"])
    def test_convert(self, call: Call, table: Path, tmp_path: Path, form: str) -> None:
        output = tmp_path / "with a space.out"
        assert call("convert", table, output, "--format", form).code == 0
        assert list(firth.Vectors.load(output).index_to_key) == KEYS

    def test_convert_refuses_what_a_format_cannot_hold(self, call: Call, table: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.bin"
        output.write_text("what was there")
        assert "new york" in call.refused(1, "convert", table, output)
        assert output.read_text() == "what was there"


CONTENTS: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "rubbish": bytes(range(256)) * 8,
    "text": b"hello\n",
}


class TestEvaluate:
    """Scores of small files, as text and JSON."""

    def test_pairs_and_analogies(self, call: Call, table: Path, tmp_path: Path) -> None:
        pairs, questions = tmp_path / "pairs.tsv", tmp_path / "questions.txt"
        pairs.write_text("king\tqueen\t9\nman\twoman\t8\napple\tking\t1\nnobody\tking\t1\n")
        questions.write_text(": family\nman king woman queen\nman king woman nobody\n")
        arguments = ("evaluate", table, "--pairs", pairs, "--analogies", questions)
        shown = call(*arguments)
        assert shown.code == 0 and "pairs.tsv" in shown.out and "family" in shown.out
        scores = json.loads(call(*arguments, "--json", "--restrict", 5).out)
        assert scores["pairs"][0]["found"] == 3 and scores["analogies"][0]["overall"]["correct"] == 1
        assert call(*arguments, "--multiply", "--convention", "word2vec").code == 0

    def test_bad_files(self, call: Call, table: Path, tmp_path: Path) -> None:
        pairs = tmp_path / "pairs.tsv"
        assert "no such file" in call.refused(1, "evaluate", table, "--pairs", pairs)
        pairs.write_text("king queen\n")
        assert "line 1" in call.refused(1, "evaluate", table, "--pairs", pairs)


class TestBadFiles:
    """A file that is missing, empty, cut or rubbish: exit code 1 and nothing written."""

    @pytest.mark.parametrize("kind", CONTENTS)
    @pytest.mark.parametrize("verb", [["similar", "king"], ["info"], ["convert", "out.txt"]])
    def test_no_vectors(
        self, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, verb: Sequence[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        content = CONTENTS[kind]
        if content is not None:
            Path("file").write_bytes(content)
        assert "file" in call.refused(1, verb[0], "file", *verb[1:])
        assert not Path("out.txt").exists()


SUBJECTS = ("cat dog horse mouse", "red green blue yellow", "one two three four")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of three subjects whose words stand together."""
    chance = np.random.default_rng(1)
    lines = [" ".join(chance.choice(SUBJECTS[chance.integers(3)].split(), 12)) for _ in range(400)]
    path = tmp_path / "a text.txt"
    path.write_text("\n".join(lines))
    return path


FAST = ("--dim", 16, "--epochs", 3, "--threads", 1, "--min-count", 1, "--quiet")


class TestTrain:
    """Text in, vectors out; what cannot be trained on is refused, and nothing is overwritten."""

    def test_text_in_vectors_out(self, call: Call, text: Path, tmp_path: Path) -> None:
        output = tmp_path / "out put.safetensors"
        done = call("train", text, "-o", output, *FAST)
        assert done.code == 0 and not done.err, done
        assert "12 vectors of 16" in done.out and "firth similar" in done.out
        vectors = firth.Vectors.load(output)
        assert {word for word, _ in vectors.most_similar("cat", topn=3)} == {"dog", "horse", "mouse"}
        assert vectors.context is None
        # The run folder is gone, and nothing else was left where the output is.
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a text.txt", "out put.safetensors"]

    def test_as_json(self, call: Call, text: Path, tmp_path: Path) -> None:
        output = tmp_path / "out"
        facts = json.loads(call("train", text, "-o", output, *FAST, "--json").out)
        assert facts["vectors"] == 12 and facts["dim"] == 16 and facts["tokens"] == 4800
        assert facts["output"] == str(output) and np.isfinite(facts["loss"]).all()

    def test_progress_goes_to_standard_error(self, text: Path, tmp_path: Path) -> None:
        done = process("train", text, "-o", "out", *FAST[:-1], cwd=tmp_path)
        assert done.code == 0, done.err
        assert "train" in done.err and "loss" in done.err
        assert "\x1b" not in done.err + done.out and len(done.out.splitlines()) == 2

    def test_standard_input_and_lower(self, text: Path, tmp_path: Path) -> None:
        arguments = ("train", "-", "-o", "out", *FAST, "--lower")
        done = process(*arguments, cwd=tmp_path, given=text.read_text().upper())
        assert done.code == 0, done.err
        assert "cat" in firth.Vectors.load(tmp_path / "out")

    def test_options_of_the_text(self, call: Call, tmp_path: Path) -> None:
        rows = "".join(json.dumps({"body": "Cat, dog; Cat-dog bird!"}) + "\n" for _ in range(20))
        (tmp_path / "rows.jsonl").write_text(rows)
        output = tmp_path / "out"
        options = (
            "--field",
            "body",
            "--pattern",
            "[a-z]+",
            "--lower",
            "--nfc",
            "--max-vocab",
            2,
            "--sample",
            0,
        )
        done = call("train", tmp_path / "rows.jsonl", "-o", output, *FAST, *options)
        assert done.code == 0, done
        assert list(firth.Vectors.load(output).index_to_key) == ["cat", "dog"]

    def test_fixed_vocabulary_and_context(self, call: Call, text: Path, tmp_path: Path) -> None:
        words, output = tmp_path / "words", tmp_path / "out"
        words.write_text("dog\ncat\nred\n")
        done = call("train", text, "-o", output, *FAST, "--vocab", words, "--context")
        assert done.code == 0, done
        vectors = firth.Vectors.load(output)
        assert list(vectors.index_to_key) == ["dog", "cat", "red"] and vectors.context is not None

    def test_scores_after_each_epoch(self, call: Call, text: Path, tmp_path: Path) -> None:
        pairs = tmp_path / "pairs.tsv"
        pairs.write_text("cat\tdog\t9\nred\tgreen\t9\ncat\tred\t1\none\tdog\t1\n")
        output = tmp_path / "out"
        done = call("train", text, "-o", output, *FAST, "--pairs", pairs)
        assert done.code == 0, done
        assert sum("pairs.tsv" in line for line in done.err.splitlines()) == 3
        assert "scores" in firth.Vectors.load(output).metadata

    def test_pairs_are_checked_before_training(
        self, call: Call, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr("firth.training.loop.Trainer")
        arguments = ("train", text, "-o", tmp_path / "out", *FAST, "--pairs", tmp_path / "pairs")
        assert "no such file" in call.refused(1, *arguments)
        (tmp_path / "pairs").write_text("nobody knows 7\n")
        assert "none of its 1 pairs" in call.refused(1, *arguments)

    def test_cache_folder(self, call: Call, text: Path, tmp_path: Path) -> None:
        cache = tmp_path / "kept"
        for _ in range(2):
            assert call("train", text, "-o", tmp_path / "out", *FAST, "--cache", cache).code == 0
        assert len(list((cache / "corpora").iterdir())) == 1

    @pytest.mark.parametrize("preset", ["word2vec", "gensim"])
    def test_presets(self, call: Call, text: Path, tmp_path: Path, preset: str) -> None:
        done = call("train", text, "-o", tmp_path / "out", *FAST, "--preset", preset, "--window", 2)
        assert done.code == 0, done

    def test_too_little_memory(
        self, call: Call, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("firth.training.memory.available_memory", lambda: 260 << 20)
        arguments = ("train", text, "-o", tmp_path / "out", *FAST, "--dim", 60_000)
        sentence = call.refused(2, *arguments)
        assert "would fit" in sentence and "--dim " in sentence

    def test_several_files_and_a_folder(self, call: Call, text: Path, tmp_path: Path) -> None:
        folder = tmp_path / "texts"
        folder.mkdir()
        (folder / "b.txt").write_text("zebra cat " * 50)
        done = call("train", text, folder, "-o", tmp_path / "out", *FAST, "--json")
        assert json.loads(done.out)["tokens"] == 4900

    BAD = (
        ("missing", None, (), "a txet"),
        ("empty", b"", (), "empty"),
        ("white space", b" \n\n  ", (), "no tokens"),
        ("one word", b"word", (), "one"),
        ("one word often", b"word " * 50, (), "one"),
        ("all rare", b"a b c d e f", ("--min-count", 5), "min_count"),
        ("rubbish", bytes(range(128, 256)) * 20, (), "byte"),
        ("no field", b'{"body": "a b"}\n', (), "text"),
    )

    @pytest.mark.parametrize(("kind", "content", "options", "word"), BAD, ids=[row[0] for row in BAD])
    def test_bad_text(
        self,
        call: Call,
        tmp_path: Path,
        kind: str,
        content: bytes | None,
        options: tuple[object, ...],
        word: str,
    ) -> None:
        source, output = tmp_path / ("a txet.jsonl" if kind == "no field" else "a txet"), tmp_path / "out"
        if content is not None:
            source.write_bytes(content)
        output.write_bytes(b"what was there")
        assert word in call.refused(1, "train", source, "-o", output, *FAST, *options)
        assert output.read_bytes() == b"what was there"
        assert not list(tmp_path.glob("*.run"))

    def test_a_misspelt_file(self, call: Call, text: Path, tmp_path: Path) -> None:
        assert "a text.txt" in call.refused(1, "train", tmp_path / "a txet.txt", "-o", tmp_path / "out")

    def test_no_such_output_folder(self, call: Call, text: Path, tmp_path: Path) -> None:
        sentence = call.refused(1, "train", text, "-o", tmp_path / "no" / "out", *FAST)
        assert "does not exist" in sentence and not (tmp_path / "no").exists()

    def test_output_is_a_folder(self, call: Call, text: Path, tmp_path: Path) -> None:
        assert "folder" in call.refused(1, "train", text, "-o", tmp_path, *FAST)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_output_folder_is_read_only(self, call: Call, text: Path, tmp_path: Path) -> None:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o500)
        assert "not writable" in call.refused(1, "train", text, "-o", folder / "out", *FAST)

    def test_two_runs_in_one_folder(self, text: Path, tmp_path: Path) -> None:
        with running(text, tmp_path):
            second = process("train", text, "-o", "other", *FAST, "--run", "run", cwd=tmp_path)
        assert second.code == 1 and "Traceback" not in second.err
        assert second.err.startswith("firth: ") and "run" in second.err
        assert not (tmp_path / "other").exists()

    def test_ctrl_c_and_resume(self, text: Path, tmp_path: Path) -> None:
        with running(text, tmp_path) as first:
            first.send_signal(signal.SIGINT)
            _, err = first.communicate(timeout=60)
        assert first.returncode == 130 and "Traceback" not in err
        assert "--resume" in err.splitlines()[-1]
        assert not (tmp_path / "out").exists() and list((tmp_path / "run").iterdir())
        # Other settings than those of the folder are refused, and named.
        other = process(*LONG[:-1], LONG[-1] + 1, "--resume", text, cwd=tmp_path)
        assert other.code == 1 and "seed" in other.err


LONG = ("train", "-o", "out", "--run", "run", *FAST, "--epochs", 1_000_000, "--seed", 1)


@contextlib.contextmanager
def running(text: Path, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A training that would go on for hours, once it has begun; ended at the end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(firth.__file__).parents[1])}
    (folder / "pairs").write_text("cat dog 9\ncat red 1\n")  # a line after each epoch shows that it trains
    child = subprocess.Popen(
        [sys.executable, "-m", "firth", *map(str, LONG), "--pairs", "pairs", str(text)],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stderr is not None
        while not (line := child.stderr.readline()).startswith("epoch"):
            assert line, "training has ended"
        yield child
    finally:
        child.kill()
        child.communicate()


class TestFullDisk:
    """A disk that fills up: one sentence, the old file whole, nothing left behind."""

    def run_full(self, folder: Path, *arguments: object) -> Done:
        """Runs a command in ``folder/disk``, a file system of 256 kB."""
        (folder / "disk").mkdir()
        words = " ".join(shlex.quote(str(word)) for word in (sys.executable, "-m", "firth", *arguments))
        script = (
            "mount -t tmpfs -o size=256k none disk && cd disk && echo old > out || exit 77\n"
            f"{words}\ncode=$?\nls -A; cat out; exit $code"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(firth.__file__).parents[1])}
        try:
            done = subprocess.run(
                ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            pytest.skip("there is no unshare here to make a small disk with")
        if done.returncode == 77 or done.stderr.startswith("unshare"):
            pytest.skip("this system lets no test make a small disk")
        return Done(done.returncode, done.stdout, done.stderr)

    def test_convert(self, tmp_path: Path) -> None:
        keys = [f"word{row}" for row in range(2000)]
        firth.Vectors(keys, np.ones((2000, 64), np.float32)).save(tmp_path / "big")
        done = self.run_full(tmp_path, "convert", tmp_path / "big", "out", "--format", "safetensors")
        assert done.code == 1 and done.err.startswith("firth: cannot write out: no space left"), done
        assert done.out == "out\nold\n"

    def test_train(self, text: Path, tmp_path: Path) -> None:
        words = [f"word{row} word{row + 1}" for row in range(3000)]
        text.write_text("\n".join(words * 2))
        done = self.run_full(tmp_path, "train", text, "-o", "out", *FAST, "--dim", 100)
        assert done.code == 1 and "no space left" in done.err and "Traceback" not in done.err, done
        assert done.out.endswith("\nold\n") or done.out == "out\nold\n"

    def test_the_cache(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("one two three four five\n" * 40_000)
        done = self.run_full(tmp_path, "train", tmp_path / "text", "-o", "out", *FAST, "--cache", "cache")
        assert done.code == 1 and "no space left" in done.err and "Traceback" not in done.err, done
        assert "old\n" in done.out
