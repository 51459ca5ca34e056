"""One set of vectors from several: ``firth.merge`` and ``firth merge``."""

import json
from pathlib import Path

import numpy as np
import pytest

import firth
from firth import cli
from firth.comparison import METHODS, MISSING
from firth.errors import SettingError
from twins import latent, model, rotation, words

COUNT, DIM = 200, 8
ONE, TWO = words(150), words(COUNT)[50:][::-1]  # 50 words each has alone; the second's come backwards


def unit(matrix: np.ndarray) -> np.ndarray:
    rows = matrix.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def pair() -> tuple[firth.Vectors, firth.Vectors]:
    """Two views of the same points, of 8 and 12 numbers, with noise of their own."""
    points = latent(COUNT, DIM)
    one = model(points[:150], ONE, noise=0.3, counts=True)
    two = model((points @ rotation(DIM, 12))[50:][::-1], TWO, noise=0.3, seed=2, counts=True)
    return one, two


def both(pair: tuple[firth.Vectors, firth.Vectors], word: str) -> tuple[np.ndarray, np.ndarray]:
    one, two = (unit(vectors[word][None])[0] for vectors in pair)
    return one, two


class TestWordsThatAllHave:
    def test_concat(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        merged = firth.merge(*pair, weights=[1, 0.5])
        one, two = both(pair, "w70")
        np.testing.assert_allclose(merged["w70"], np.hstack([one, 0.5 * two]), atol=1e-6)
        cosines = [vectors.similarity("w70", "w90") for vectors in pair]
        expected = (cosines[0] + 0.25 * cosines[1]) / 1.25
        assert merged.similarity("w70", "w90") == pytest.approx(expected, abs=1e-6)

    def test_average(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        merged = firth.merge(*pair, method="average", weights=[1, 3])
        one, two = both(pair, "w70")
        np.testing.assert_allclose(merged["w70"], (np.pad(one, (0, 4)) + 3 * two) / 4, atol=1e-6)

    def test_align_then_average(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        merged = firth.merge(*pair, method="align")
        shared = [key for key in ONE if key in TWO]
        x, y = (unit(vectors.subset(shared).vectors) for vectors in pair)
        left, _, right = np.linalg.svd(x.T @ y, full_matrices=False)
        one, two = both(pair, "w70")
        np.testing.assert_allclose(merged["w70"], (one @ left @ right + two) / 2, atol=1e-5)
        # In one space, two views of a point lie together; without the turn they do not.
        plain = firth.merge(*pair, method="average")
        assert np.linalg.norm(merged["w70"]) > 0.9 > np.linalg.norm(plain["w70"])

    def test_svd(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        whole = firth.merge(*pair, weights=[1, 0.5])
        merged = firth.merge(*pair, method="svd", dim=5, weights=[1, 0.5])
        left, sizes, _ = np.linalg.svd(whole.vectors.astype(np.float64), full_matrices=False)
        expected = left[:, :5] * sizes[:5]
        np.testing.assert_allclose(np.abs(merged.vectors), np.abs(expected), atol=1e-4)
        assert firth.merge(*pair, method="svd").vector_size == 12
        full = firth.merge(*pair, method="svd", dim=20, weights=[1, 0.5])
        assert full.similarity("w70", "w90") == pytest.approx(whole.similarity("w70", "w90"), abs=1e-5)


class TestWordsThatOneLacks:
    def test_rows_and_counts(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        merged = firth.merge(*pair)
        assert merged.index_to_key == [*ONE, *(key for key in TWO if key not in ONE)]
        assert merged.counts is not None and pair[0].counts is not None and pair[1].counts is not None
        for key in ("w0", "w60", "w199"):
            counts = [int(one.counts[one.get_index(key)]) for one in pair if key in one]  # type: ignore[index]
            assert merged.counts[merged.get_index(key)] == sum(counts)
        bare = firth.Vectors(pair[1].index_to_key, pair[1].vectors)
        assert firth.merge(pair[0], bare).counts is None

    def test_map_is_ridge_regression_on_the_shared(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        one, two = pair
        merged = firth.merge(one, two)
        shared = [key for key in ONE if key in TWO]
        x, y = (unit(vectors.subset(shared).vectors) for vectors in pair)
        penalty = 0.01 * np.trace(x.T @ x) / x.shape[1]
        turn = np.linalg.solve(x.T @ x + penalty * np.eye(8), x.T @ y)
        own = unit(one["w3"][None])
        np.testing.assert_allclose(merged["w3"][:8], own[0], atol=1e-6)
        np.testing.assert_allclose(merged["w3"][8:], unit(own @ turn)[0], atol=1e-5)

    def test_map_is_nearer_to_the_truth_than_zeros(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        """The part that a model lacks is known here: the points have it."""
        truth = unit(latent(COUNT, DIM) @ rotation(DIM, 12))
        merged = firth.merge(*pair)
        found = unit(merged.subset(ONE[:50]).vectors[:, 8:])
        cosines = (found * truth[:50]).sum(axis=1)
        assert cosines.mean() > 0.9

    def test_zero(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        one, two = pair
        own = unit(one["w3"][None])[0]
        concat = firth.merge(one, two, missing="zero")
        np.testing.assert_allclose(concat["w3"], np.pad(own, (0, 12)), atol=1e-6)
        average = firth.merge(one, two, method="average", missing="zero", weights=[2, 1])
        np.testing.assert_allclose(average["w3"], np.pad(own, (0, 4)), atol=1e-6)

    def test_drop(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        merged = firth.merge(*pair, missing="drop")
        assert merged.index_to_key == ONE[50:]
        whole = firth.merge(*pair)
        assert np.array_equal(merged["w60"], whole["w60"])

    def test_three_models_predict_from_all_that_have_the_word(self) -> None:
        points = latent(COUNT, DIM)
        keys = words(COUNT)
        one = model(points, keys)
        two = model(points @ rotation(DIM, 9, 1), keys)
        three = model((points @ rotation(DIM, 10, 2))[20:], keys[20:])
        merged = firth.merge(one, two, three, method="concat")
        truth = unit(points @ rotation(DIM, 10, 2))
        assert ((unit(merged.vectors[:20, 17:]) * truth[:20]).sum(axis=1) > 0.99).all()
        turned = firth.merge(one, two, three, method="align")
        assert turned.vector_size == 10 and np.linalg.norm(turned.vectors, axis=1).min() > 0.99

    def test_maps_are_learned_on_what_two_models_have(self) -> None:
        """A third model that shares few words with the others must not spoil their map."""
        points = latent(COUNT, DIM)
        keys = words(COUNT)
        one = model(points, keys)
        two = model((points @ rotation(DIM, 9, 1))[20:], keys[20:])
        few = model(points[:4] @ rotation(DIM, 10, 2), ["w0", "w1", "w150", "w151"])
        merged = firth.merge(one, two, few)
        truth = unit(points @ rotation(DIM, 9, 1))
        assert ((unit(merged.vectors[:20, 8:17]) * truth[:20]).sum(axis=1) > 0.99)[2:].all()

    def test_a_row_of_nan_spoils_no_other(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        matrix = pair[0].vectors.copy()
        matrix[70] = np.nan
        broken = firth.Vectors(pair[0].index_to_key, matrix)
        for method in ("concat", "average", "align"):
            merged = firth.merge(broken, pair[1], method=method).vectors
            assert np.flatnonzero(~np.isfinite(merged).all(axis=1)).tolist() == [70], method

    def test_rows_of_zeros_stay_finite(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        empty = pair[0].with_vectors({"w3": np.zeros(8), "w70": np.zeros(8)})
        for method in METHODS:
            for missing in MISSING:
                assert np.isfinite(firth.merge(empty, pair[1], method=method, missing=missing).vectors).all()


def test_the_merged_are_better_than_either(pair: tuple[firth.Vectors, firth.Vectors]) -> None:
    """Two noisy views of one space: what they agree on is nearer to the space than either."""
    points = unit(latent(COUNT, DIM))
    shared = [key for key in ONE if key in TWO]
    truth = (points @ points.T)[50:150, 50:150]

    def agreement(vectors: firth.Vectors) -> float:
        rows = unit(vectors.subset(shared).vectors)
        return float(np.corrcoef((rows @ rows.T).ravel(), truth.ravel())[0, 1])

    parents = max(map(agreement, pair))
    for method in ("concat", "svd", "align"):
        assert agreement(firth.merge(*pair, method=method)) > parents, method


def test_metadata_say_what_was_merged(pair: tuple[firth.Vectors, firth.Vectors], tmp_path: Path) -> None:
    pair[0].save(tmp_path / "a.safetensors")
    merged = firth.merge(firth.Vectors.load(tmp_path / "a.safetensors"), pair[1], weights=[1, 0.5])
    notes = merged.metadata["merge"]
    assert notes["method"] == "concat" and notes["missing"] == "map" and notes["shared"] == 100
    assert notes["models"][0] == {"name": "a.safetensors", "keys": 150, "dim": 8, "weight": 1.0}
    assert notes["models"][1]["name"] == "model 2" and notes["models"][1]["weight"] == 0.5


def test_subwords_are_left_out_with_a_warning(pair: tuple[firth.Vectors, firth.Vectors]) -> None:
    from firth.subwords import DenseRows, FastTextSubwords

    rows = FastTextSubwords(DenseRows(np.ones((5, 8), np.float32)), 2, 3)
    one = firth.Vectors(ONE, pair[0].vectors, subwords=rows)
    with pytest.warns(UserWarning, match="the subwords of model 1 are left out"):
        assert firth.merge(one, pair[1]).subwords is None


def test_refusals(pair: tuple[firth.Vectors, firth.Vectors]) -> None:
    one, two = pair
    with pytest.raises(SettingError, match="needs two models or more, got 1"):
        firth.merge(one)
    with pytest.raises(SettingError, match="are the same"):
        firth.merge(one, two, two)
    with pytest.raises(SettingError, match="no word in common"):
        firth.merge(one, model(latent(3, 4), list("abc")))
    with pytest.raises(SettingError, match="one of concat, svd, average, align"):
        firth.merge(one, two, method="sum")
    with pytest.raises(SettingError, match="one of map, zero, drop"):
        firth.merge(one, two, missing="guess")
    with pytest.raises(SettingError, match="2 models have 3 weights"):
        firth.merge(one, two, weights=[1, 2, 3])
    for weights in ([1, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(SettingError, match="must be above 0"):
            firth.merge(one, two, weights=weights)
    with pytest.raises(SettingError, match=r"'average' of 8 and 12 numbers gives 12, which reduce\(5\)"):
        firth.merge(one, two, method="average", dim=5)
    for dim in (0, 21):
        with pytest.raises(SettingError, match=rf"dim is {dim}; models of \[8, 12\] numbers give 1 to 20"):
            firth.merge(one, two, method="svd", dim=dim)
    other = model(latent(2, 4), ["w0", "new"])
    with pytest.raises(SettingError, match="model 1 and model 2 have one word in common, too few to learn"):
        firth.merge(one, other)
    assert len(firth.merge(one, other, missing="zero")) == 151
    with pytest.raises(SettingError, match="one word in common"):
        firth.merge(one, other, missing="zero", method="align")
    chain = [model(latent(4, 3), list(keys)) for keys in ("abcd", "cdef", "efab")]
    with pytest.raises(SettingError, match="no word that all 3 models have"):
        firth.merge(*chain, missing="drop")
    assert len(firth.merge(*chain)) == 6


class TestVerb:
    @pytest.fixture(autouse=True)
    def folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[firth.Vectors, firth.Vectors]
    ) -> Path:
        pair[0].save(tmp_path / "a.safetensors")
        pair[1].save(tmp_path / "b.txt")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
        code = cli.run(["merge", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    def test_writes_the_merged(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, err = self.run(
            capsys, "a.safetensors", "b.txt", "-o", "c.safetensors", "--weights", "1,0.5"
        )
        assert code == 0 and not out and "200 vectors of 20 written to c.safetensors" in err
        expected = firth.merge(
            firth.Vectors.load("a.safetensors"), firth.Vectors.load("b.txt"), weights=[1, 0.5]
        )
        assert np.array_equal(firth.Vectors.load("c.safetensors").vectors, expected.vectors)

    def test_json_and_settings(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ("--method", "svd", "--dim", "4", "--missing", "drop", "--json", "-o", "c.txt")
        code, out, err = self.run(capsys, "a.safetensors", "b.txt", *arguments)
        facts = json.loads(out)
        assert code == 0 and not err and facts["vectors"] == 100 and facts["dim"] == 4
        assert facts["method"] == "svd" and facts["models"][1]["name"] == "b.txt"
        assert Path("c.txt").read_text().startswith("100 4\n")

    @pytest.mark.parametrize(
        ("arguments", "code", "part"),
        [
            (["a.safetensors", "-o", "c"], 2, "needs two models or more, got 1"),
            (["a.safetensors", "b.txt"], 2, "--output"),
            (["a.safetensors", "b.txt", "a.safetensors", "-o", "c"], 2, "are the same file"),
            (["a.safetensors", "b.txt", "-o", "./b.txt"], 2, "-o: b.txt is one of the files that are read"),
            (
                ["a.safetensors", "c.txt", "-o", "d"],
                1,
                "cannot read c.txt: there is no such file; did you mean",
            ),
            (["a.safetensors", "b.txt", "-o", "no/c"], 1, "the folder no does not exist"),
            (["a.safetensors", "b.txt", "-o", "c", "--weights", "1;2"], 2, "--weights is '1;2'"),
            (["a.safetensors", "b.txt", "-o", "c", "--method", "sum"], 2, "method is 'sum'"),
            (["a.safetensors", "b.txt", "-o", "c", "--dim", "3"], 2, "dim is for method='svd'"),
        ],
    )
    def test_refusals(
        self, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, part: str
    ) -> None:
        before = {path: path.read_bytes() for path in folder.iterdir()}
        found, out, err = self.run(capsys, *arguments)
        assert found == code and not out and part in err and len(err.splitlines()) == 1
        assert before == {path: path.read_bytes() for path in folder.iterdir()}
