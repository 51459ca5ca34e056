"""One model in the space of another: ``firth.align`` and ``firth align``."""

import json
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import firth
from firth import cli
from firth.comparison import read_anchors
from firth.comparison.alignment import procrustes
from firth.errors import FormatError, KeyNotFound, SettingError, SourceError, StorageError
from twins import latent, model, rotation, words

COUNT, DIM = 300, 10


def turned(dim: int, noise: float = 0.0) -> tuple[firth.Vectors, firth.Vectors]:
    """Points, and the same points turned into ``dim`` numbers in another order."""
    points = latent(COUNT, DIM)
    keys = words(COUNT)
    order = np.random.default_rng(3).permutation(COUNT)
    other = (points @ rotation(DIM, dim, seed=7))[order]
    return model(points, keys, counts=True), model(other, [keys[row] for row in order], noise)


class TestProcrustes:
    def test_finds_a_rotation(self) -> None:
        x = latent(50, 6).astype(np.float32)
        turn = rotation(6, 6, seed=2)
        np.testing.assert_allclose(procrustes(x, (x @ turn).astype(np.float32)), turn, atol=1e-5)

    @pytest.mark.parametrize(("rows", "columns"), [(4, 7), (7, 4), (5, 5)])
    def test_no_other_map_is_nearer(self, rows: int, columns: int) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(40, rows)).astype(np.float32)
        y = rng.normal(size=(40, columns)).astype(np.float32)
        turn = procrustes(x, y)
        product = turn @ turn.T if rows <= columns else turn.T @ turn
        np.testing.assert_allclose(product, np.eye(min(rows, columns)), atol=1e-6)
        # The longer side is filled up with zeros; a full orthogonal map then has the same part.
        size = max(rows, columns)
        best = np.einsum("nd,nd->", x @ turn, y)
        for seed in range(50):
            other = rotation(size, size, seed)[:rows, :columns]
            assert np.einsum("nd,nd->", x @ other, y) <= best

    def test_is_the_solution_for_vectors_filled_with_zeros(self) -> None:
        rng = np.random.default_rng(1)
        x, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 7))
        filled = np.hstack([x, np.zeros((40, 3))])
        left, _, right = np.linalg.svd(filled.T @ y)
        expected = (left @ right)[:4]
        found = procrustes(x.astype(np.float32), y.astype(np.float32))
        np.testing.assert_allclose(found, expected, atol=1e-5)


class TestFunction:
    @pytest.mark.parametrize("dim", [10, 16])
    def test_turns_a_model_onto_its_twin(self, dim: int) -> None:
        one, two = turned(dim)
        found = firth.align(one, two)
        assert found.after is not None and found.before is not None
        assert found.after.cosine > 0.9999 and found.after.precision_at_1 == 1
        assert abs(found.before.cosine) < 0.5 and found.before.precision_at_1 < 0.2
        assert found.n_anchors == 270 and found.after.n_anchors == found.before.n_anchors == 30
        np.testing.assert_allclose(found.vectors.vectors, two.subset(one.index_to_key).vectors, atol=1e-4)
        # What the model says of itself is untouched.
        own = found.vectors.vectors @ found.vectors.vectors.T
        np.testing.assert_allclose(own, one.vectors @ one.vectors.T, atol=1e-3)
        assert found.vectors.index_to_key == one.index_to_key and found.vectors.counts is not None
        assert found.vectors.metadata["changes"][-1].startswith("align: turned into the space of 300 vectors")

    def test_a_longer_model_is_projected(self) -> None:
        two, one = turned(16)
        found = firth.align(one, two)
        assert found.map.shape == (16, 10) and found.after is not None
        assert found.after.cosine > 0.9999  # here the points need no more than 10 numbers
        np.testing.assert_allclose(found.map.T @ found.map, np.eye(10), atol=1e-6)

    def test_the_fit_is_of_words_that_were_not_learned(self) -> None:
        """Two models with nothing in common: learned words would fit, held-out ones do not."""
        keys = words(40)
        rng = np.random.default_rng(0)
        one, two = (model(rng.normal(size=(40, 30)), keys) for _ in range(2))
        found = firth.align(one, two, held_out=0.25)
        assert found.after is not None and found.after.n_anchors == 10
        assert found.after.cosine < 0.5
        learned = firth.align(one, two, held_out=0).vectors.vectors
        cosines = (learned * two.vectors).sum(axis=1) / np.linalg.norm(learned, axis=1)
        assert (cosines / np.linalg.norm(two.vectors, axis=1)).mean() > 0.6

    def test_the_figures_are_what_they_say(self) -> None:
        one, two = turned(12, noise=0.8)
        found = firth.align(one, two, held_out=0.5, seed=4)
        assert found.after is not None
        order = np.random.default_rng(4).permutation(COUNT)
        # Anchors come by the mean of their rows, then as in the first model.
        in_order = sorted(
            words(COUNT), key=lambda key: (one.get_index(key) + two.get_index(key), one.get_index(key))
        )
        held = [in_order[place] for place in order[:150]]
        cosines, hits = [], 0
        for key in held:
            vector = found.vectors[key]
            cosines.append(float(vector @ two[key] / np.linalg.norm(vector) / np.linalg.norm(two[key])))
            hits += two.similar_by_vector(vector, topn=1)[0][0] == key
        assert found.after.cosine == pytest.approx(np.mean(cosines), abs=1e-5)
        assert found.after.precision_at_1 == pytest.approx(hits / 150)
        assert 0 < hits < 150

    def test_centre_undoes_a_shift(self) -> None:
        points = latent(COUNT, DIM)
        one = model(points + 4, words(COUNT))
        two = model(points @ rotation(DIM, DIM) - 3, words(COUNT))
        plain = firth.align(one, two, normalize=False)
        moved = firth.align(one, two, normalize=False, centre=True)
        assert plain.after is not None and moved.after is not None
        assert moved.after.cosine > 0.9999 > plain.after.cosine
        np.testing.assert_allclose(moved.vectors.vectors, two.vectors, atol=1e-3)
        assert moved.centres is not None and plain.centres is None

    def test_normalize_makes_anchors_count_the_same(self) -> None:
        """A few very long anchors of another rotation would decide alone."""
        points = latent(COUNT, DIM)
        other = points @ rotation(DIM, DIM, seed=1)
        points[:10] *= 1000
        other[:10] = (points @ rotation(DIM, DIM, seed=2))[:10]
        one, two = model(points, words(COUNT)), model(other, words(COUNT))
        even, uneven = (firth.align(one, two, normalize=value) for value in (True, False))
        assert even.after is not None and uneven.after is not None
        assert even.after.cosine > 0.9 > uneven.after.cosine

    def test_given_anchors(self) -> None:
        """Two languages: other keys, and pairs that say which mean the same."""
        one, two = turned(10)
        foreign = firth.Vectors([f"mot{key[1:]}" for key in two], two.vectors)
        pairs = [(f"w{place}", f"mot{place}") for place in range(200)]
        found = firth.align(one, foreign, anchors=pairs, held_out=0.2)
        assert found.after is not None and found.n_anchors == 160
        assert found.after.precision_at_1 == 1
        assert foreign.similar_by_vector(found.vectors["w250"], topn=1)[0][0] == "mot250"
        same = firth.align(one, two, anchors=words(50))
        assert same.n_anchors == 45
        with pytest.warns(
            UserWarning, match=r"2 of 202 anchors are not in both models \(first 'zz' - 'w1'\)"
        ):
            firth.align(one, foreign, anchors=[*pairs, ("zz", "w1"), ("w1", "zz")])
        with pytest.raises(KeyNotFound, match="'mot1' is not in the"):
            firth.align(one, two, anchors=[("mot1", "w1")])
        with pytest.raises(SettingError, match="the one string 'w1'"):
            firth.align(one, two, anchors="w1")

    def test_restrict(self) -> None:
        one, two = turned(10)
        both = {*one.index_to_key[:150]} & {*two.index_to_key[:150]}
        assert firth.align(one, two, restrict=150, held_out=0).n_anchors == len(both)

    def test_without_held_out_words_there_is_no_fit(self) -> None:
        found = firth.align(*turned(10), held_out=0)
        assert found.before is None and found.after is None and found.n_anchors == COUNT
        assert json.dumps(found.to_dict())

    def test_the_seed_chooses_the_held_out_words(self) -> None:
        one, two = turned(10, noise=0.5)
        maps = [firth.align(one, two, seed=seed).map for seed in (0, 0, 1)]
        assert np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[0], maps[2])

    def test_zeros_and_nan_are_no_anchors(self) -> None:
        one, two = turned(10)
        matrix = one.vectors.copy()
        matrix[3], matrix[4] = 0, np.nan
        found = firth.align(firth.Vectors(one.index_to_key, matrix), two, held_out=0)
        assert found.n_anchors == COUNT - 2 and np.isfinite(found.map).all()

    def test_too_few_anchors(self) -> None:
        one, two = turned(10)
        with pytest.warns(UserWarning, match="5 anchors do not determine a map between 10 and 10 numbers"):
            firth.align(one, two, anchors=words(5), held_out=0)
        with pytest.raises(SettingError, match="1 anchors with vectors other than zero are too few"):
            firth.align(one, two, anchors=["w1"])

    def test_subwords_are_turned_too(self, tmp_path: Path) -> None:
        from firth.subwords import DenseRows, FastTextSubwords

        rng = np.random.default_rng(0)
        rows = FastTextSubwords(DenseRows(rng.normal(size=(100, DIM)).astype(np.float32)), 2, 4)
        keys = words(COUNT)
        one = firth.Vectors(keys, rows.vectors(keys), subwords=rows)
        found = firth.align(one, turned(14)[1])
        for word in ("w5", "unheard"):
            np.testing.assert_allclose(found.vectors[word], one[word] @ found.map, atol=1e-5)
        shifted = firth.align(one, turned(14)[1], centre=True).vectors
        assert shifted.subwords is None and "subwords left out" in shifted.metadata["changes"][-1]

    def test_refusals(self) -> None:
        one, two = turned(10)
        with pytest.raises(SettingError, match="model 1 and model 2 are the same"):
            firth.align(one, one)
        with pytest.raises(SettingError, match="no word in common"):
            firth.align(one, model(latent(3, 4), list("abc")))
        for value in (-0.1, 1.0, math.nan):
            with pytest.raises(SettingError, match="held_out is"):
                firth.align(one, two, held_out=value)


class TestAnchorFile:
    def test_words_and_pairs(self, tmp_path: Path) -> None:
        path = tmp_path / "anchors"
        path.write_bytes("\ufeffone\n\ntwo deux\r\nnew york\tla ville\n".encode())
        assert read_anchors(path) == [("one", "one"), ("two", "deux"), ("new york", "la ville")]

    def test_refusals(self, tmp_path: Path) -> None:
        path = tmp_path / "anchors"
        for data, part in (
            (b"a b\na b c\n", "line 2: 'a b c' is not one anchor word or two"),
            (b"a\nb\t\tc\n", "line 2"),
            (b"a\n\xff\n", "line 2: byte 0 of the line is no UTF-8"),
        ):
            path.write_bytes(data)
            with pytest.raises(FormatError, match=re.escape(part)):
                read_anchors(path)
        path.write_bytes(b"\n \n")
        with pytest.raises(SourceError, match="no anchor words"):
            read_anchors(path)
        with pytest.raises(StorageError, match="it is a folder"):
            read_anchors(tmp_path)
        with pytest.raises(StorageError, match="cannot read"):
            read_anchors(tmp_path / "none")


class TestVerb:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        one, two = turned(14)
        one.save(tmp_path / "a.safetensors")
        two.save(tmp_path / "b.vec")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
        code = cli.run(["align", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    def test_writes_the_vectors_and_shows_the_fit(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, out, err = self.run(capsys, "a.safetensors", "b.vec", "-o", "c.safetensors")
        assert code == 0 and "300 vectors of 14 written to c.safetensors" in err
        assert re.search(r"mean cosine +-?0\.\d{4} +1\.0000", out)
        assert re.search(r"nearest is the partner +0\.\d{4} +1\.0000", out)
        two = firth.Vectors.load("b.vec")
        mapped = firth.Vectors.load("c.safetensors")
        assert two.similar_by_vector(mapped["w77"], topn=1)[0][0] == "w77"
        assert "align: turned into the space of b.vec" in mapped.metadata["changes"][0]

    def test_without_output_only_the_fit(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = sorted(folder.iterdir())
        code, out, err = self.run(capsys, "a.safetensors", "b.vec", "--json")
        facts = json.loads(out)
        assert code == 0 and not err and facts["output"] is None and facts["after"]["precision_at_1"] == 1
        assert facts["dims"] == [10, 14] and before == sorted(folder.iterdir())

    def test_anchors_and_format(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "anchors").write_text("\n".join(words(100)))
        arguments = (
            "--anchors",
            "anchors",
            "--held-out",
            "0.2",
            "-o",
            "c.out",
            "--format",
            "glove",
            "--centre",
        )
        code, out, _ = self.run(capsys, "a.safetensors", "b.vec", *arguments)
        assert code == 0 and re.search(r"learned from +80", out)
        assert (folder / "c.out").read_text().startswith("w0 ")

    @pytest.mark.parametrize(
        ("arguments", "code", "part"),
        [
            (["a.safetensors"], 2, "B"),
            (["a.safetensors", "a.safetensors"], 2, "are the same file"),
            (["a.safetensors", "b.vec", "-o", "a.safetensors"], 2, "-o: a.safetensors is one of the files"),
            (["a.safetensors", "c.vec"], 1, "cannot read c.vec: there is no such file; did you mean 'b.vec'"),
            (["a.safetensors", "b.vec", "-o", "x.bin", "--format", "word3vec"], 2, "word3vec"),
            (["a.safetensors", "b.vec", "--held-out", "1"], 2, "--held-out must be"),
            (["a.safetensors", "b.vec", "--anchors", "none"], 1, "cannot read none"),
        ],
    )
    def test_refusals(
        self, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, part: str
    ) -> None:
        before = {path: path.read_bytes() for path in folder.iterdir()}
        found, out, err = self.run(capsys, *arguments)
        assert found == code and not out and part in err and len(err.splitlines()) == 1
        assert before == {path: path.read_bytes() for path in folder.iterdir()}

    def test_no_warning_in_an_ordinary_call(self, capsys: pytest.CaptureFixture[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert self.run(capsys, "a.safetensors", "b.vec")[0] == 0
