"""Smaller and cleaner vectors: all-but-the-top, truncation, int8 and float16 in the native file."""

import json
import struct
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import firth
from firth import cli, quantize
from firth.errors import FormatError, SettingError, ShapeError

KINDS = ["int8", "float16"]


def table(rows: int = 300, dim: int = 12, context: bool = False, seed: int = 0) -> firth.Vectors:
    """Vectors with a common mean and one strong direction."""
    rng = np.random.default_rng(seed)
    strong = rng.normal(size=(rows, 1)) * np.linspace(5, -5, dim)
    matrix = (rng.normal(size=(rows, dim)) + strong + 3).astype(np.float32)
    return firth.Vectors(
        [f"w{row}" for row in range(rows)],
        matrix,
        counts=range(rows, 0, -1),
        context=rng.normal(size=(rows, dim)) if context else None,
    )


def sample_header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return header


class TestAllButTheTop:
    def test_is_the_algorithm_of_the_paper(self) -> None:
        vectors = table()
        exact = vectors.vectors.astype(np.float64)
        centred = exact - exact.mean(axis=0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        expected = centred.copy()
        for axis in axes[:2]:
            expected -= np.outer(centred @ axis, axis)
        cleaned = vectors.all_but_the_top(2)
        np.testing.assert_allclose(cleaned.vectors, expected, atol=1e-4)
        assert cleaned.vector_size == 12 and cleaned.counts is not None and cleaned.context is None
        assert cleaned.metadata["changes"][-1].startswith(
            "all_but_the_top: the mean and 2 components removed"
        )

    @pytest.mark.parametrize(("dim", "expected"), [(2, 1), (99, 1), (149, 1), (151, 2), (300, 3)])
    def test_removes_one_component_for_each_hundred_numbers(self, dim: int, expected: int) -> None:
        cleaned = table(rows=4, dim=dim).all_but_the_top()
        assert f"and {expected} components" in cleaned.metadata["changes"][-1]

    def test_of_one_number_only_the_mean_goes(self) -> None:
        vectors = table(dim=1)
        np.testing.assert_allclose(
            vectors.all_but_the_top().vectors, vectors.vectors - vectors.vectors.mean(), atol=1e-5
        )

    @pytest.mark.parametrize("n", [-1, 12])
    def test_wrong_n(self, n: int) -> None:
        with pytest.raises(SettingError, match=rf"n is {n}; 0 to 11 components"):
            table().all_but_the_top(n)


class TestTruncate:
    def test_after_reduce_is_the_smaller_reduce(self) -> None:
        vectors = table()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cut = vectors.reduce(12).truncate(4)
        np.testing.assert_allclose(cut.vectors, vectors.reduce(4).vectors, atol=1e-5)

    def test_the_note_survives_the_file(self, tmp_path: Path) -> None:
        table().reduce(8).quantized("int8").save(tmp_path / "v.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert firth.Vectors.load(tmp_path / "v.safetensors").truncate(3).vector_size == 3

    def test_warns_where_the_numbers_are_not_ordered(self) -> None:
        with pytest.warns(UserWarning, match=r"reduce\(4\) keeps the most"):
            cut = table(context=True).truncate(4)
        assert cut.context is not None and cut.context.vector_size == 4
        assert np.array_equal(cut.vectors, table().vectors[:, :4])

    def test_warns_where_the_first_numbers_were_removed(self) -> None:
        with pytest.warns(UserWarning, match="reduce"):
            table().reduce(12).all_but_the_top(1).truncate(4)

    def test_the_whole_is_no_loss(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(table().truncate(12).vectors, table().vectors)

    @pytest.mark.parametrize("dim", [0, 13])
    def test_wrong_dim(self, dim: int) -> None:
        with pytest.raises(SettingError, match=rf"dim is {dim}; 1 to 12 is possible"):
            table().truncate(dim)


class TestQuantized:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("context", [False, True])
    def test_what_is_loaded_is_what_was_rounded(self, kind: str, context: bool, tmp_path: Path) -> None:
        vectors = table(context=context)
        small = vectors.quantized(kind)
        assert small.storage == kind and f"stored as {kind}" in repr(small) and kind in small._repr_html_()
        assert not np.array_equal(small.vectors, vectors.vectors)
        bound = np.abs(vectors.vectors).max(axis=1, keepdims=True) / (250 if kind == "int8" else 2048)
        assert (np.abs(small.vectors - vectors.vectors) <= bound).all()

        path = tmp_path / "v.safetensors"
        small.save(path)
        again = firth.Vectors.load(path)
        assert again.storage == kind and np.array_equal(again.vectors, small.vectors)
        assert again.index_to_key == small.index_to_key and again.metadata == small.metadata
        assert again.counts is not None and np.array_equal(again.counts, np.arange(300, 0, -1))
        assert (again.context is not None) == context
        if again.context is not None and small.context is not None:
            assert np.array_equal(again.context.vectors, small.context.vectors)

        again.save(tmp_path / "twice.safetensors")
        assert (tmp_path / "twice.safetensors").read_bytes() == path.read_bytes()

    def test_the_file_is_small_aligned_and_holds_scales(self, tmp_path: Path) -> None:
        rows, dim = 999, 33
        vectors = table(rows, dim, context=True)
        vectors.quantized("int8").save(tmp_path / "v.safetensors")
        header = sample_header(tmp_path / "v.safetensors")
        assert header["vectors"]["dtype"] == "I8" and header["vectors_scale"]["shape"] == [rows]
        width = {"I64": 8, "F32": 4, "I8": 1, "U8": 1}
        for name, entry in header.items():
            if name != "__metadata__":
                assert entry["data_offsets"][0] % width[entry["dtype"]] == 0, name

    def test_other_readers_of_safetensors_open_it(self, tmp_path: Path) -> None:
        from safetensors.numpy import load_file

        small = table().quantized("int8")
        small.save(tmp_path / "v.safetensors")
        arrays = load_file(tmp_path / "v.safetensors")
        again = quantize.from_int8(arrays["vectors"], arrays["vectors_scale"])
        assert np.array_equal(again, small.vectors)

    @pytest.mark.parametrize("kind", KINDS)
    def test_limit(self, kind: str, tmp_path: Path) -> None:
        small = table(context=True).quantized(kind)
        small.save(tmp_path / "v.safetensors")
        first = firth.Vectors.load(tmp_path / "v.safetensors", limit=7)
        assert np.array_equal(first.vectors, small.vectors[:7]) and len(first) == 7
        assert first.context is not None and len(first.context) == 7

    def test_any_row_keeps_its_scale(self) -> None:
        """Rows that were made of codes and scales give them again, whatever the scale.

        (127 s) / 127 is not the float32 s for one of every 128 s, but it is for those that come of
        dividing by 127: so a file of int8 loads and saves without drifting.
        """
        rng = np.random.default_rng(1)
        rows = rng.normal(size=(200_000, 3)) * np.exp(rng.normal(size=(200_000, 1)) * 5)
        codes, scale = quantize.to_int8(rows.astype(np.float32))
        again, same = quantize.to_int8(quantize.from_int8(codes, scale))
        assert np.array_equal(again, codes) and np.array_equal(same, scale)

    def test_derived_vectors_know_what_they_are(self) -> None:
        small = table().quantized("int8")
        assert small.subset(["w3", "w1"]).storage == "int8"
        assert small.quantized("float32").storage == "float32"
        assert small.reduce(4).storage == small.normalized().storage == "float32"
        assert small.with_vectors({"new": small["w1"]}).storage == "float32"

    def test_refusals(self) -> None:
        with pytest.raises(SettingError, match="one of float32, float16, int8"):
            table().quantized("int4")
        with pytest.raises(ShapeError, match="row 0 holds"):
            firth.Vectors(["a"], np.array([[1e6]], np.float32)).quantized("float16")

    @pytest.mark.parametrize("value", [np.nan, -1.0])
    def test_a_damaged_scale_is_told(self, value: float, tmp_path: Path) -> None:
        path = tmp_path / "v.safetensors"
        table().quantized("int8").save(path)
        data = bytearray(path.read_bytes())
        begin = 8 + struct.unpack("<Q", data[:8])[0] + sample_header(path)["vectors_scale"]["data_offsets"][0]
        data[begin + 8 : begin + 12] = struct.pack("<f", value)
        path.write_bytes(data)
        with pytest.raises(FormatError, match="the scale of row 2"):
            firth.Vectors.load(path)

    def test_a_missing_scale_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "v.safetensors"
        table().quantized("int8").save(path)
        path.write_bytes(path.read_bytes().replace(b"vectors_scale", b"vectors_skale"))
        with pytest.raises(FormatError, match="'vectors_scale' is missing"):
            firth.Vectors.load(path)

    @pytest.mark.parametrize("kind", KINDS)
    def test_loading_takes_the_matrix_and_no_more(self, kind: str, tmp_path: Path) -> None:
        rows, dim = 20_000, 64
        firth.Vectors([f"w{row}" for row in range(rows)], np.ones((rows, dim), np.float32)).quantized(
            kind
        ).save(tmp_path / "v.safetensors")
        tracemalloc.start()
        try:
            loaded = firth.Vectors.load(tmp_path / "v.safetensors")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert loaded.vectors.nbytes <= peak <= 1.3 * loaded.vectors.nbytes


class TestVerb:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        table().save(tmp_path / "a.safetensors")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_does_all_in_order(self, capsys: pytest.CaptureFixture[str]) -> None:
        options = ["--remove-top", "1", "--dim", "6", "--truncate", "4", "--storage", "int8"]
        assert cli.run(["reduce", "a.safetensors", "-o", "b.safetensors", *options]) == 0
        assert "300 vectors of 4, stored as int8 written to b.safetensors" in capsys.readouterr().err
        found = firth.Vectors.load("b.safetensors")
        expected = table().all_but_the_top(1).reduce(6).truncate(4).quantized("int8")
        assert np.array_equal(found.vectors, expected.vectors) and found.storage == "int8"

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["reduce", "a.safetensors", "-o", "b.txt", "--dim", "2", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["dim"] == 2 and facts["storage"] == "float32" and "reduce" in facts["changes"][0]

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            ([], "needs --remove-top, --dim, --truncate or --storage"),
            (["--dim", "13"], "dim is 13; 1 to 12 is possible"),
            (["--dim", "0"], "--dim must be at least 1"),
            (["--remove-top", "12"], "n is 12; 0 to 11"),
            (["--storage", "int4"], "--storage is 'int4'"),
            (["--storage", "int8", "--format", "glove"], "--storage int8 is for safetensors; glove"),
        ],
    )
    def test_refusals(
        self, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
    ) -> None:
        assert cli.run(["reduce", "a.safetensors", "-o", "b", *arguments]) == 2
        out, err = capsys.readouterr()
        assert not out and part in err and not (folder / "b").exists()

    def test_not_over_the_input(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = (folder / "a.safetensors").read_bytes()
        assert cli.run(["reduce", "a.safetensors", "-o", "./a.safetensors", "--dim", "2"]) == 2
        assert "one of the files that are read" in capsys.readouterr().err
        assert (folder / "a.safetensors").read_bytes() == before
