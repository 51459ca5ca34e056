"""Two or more models side by side: ``firth.compare`` and ``firth compare``."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import firth
from firth import cli
from firth.comparison import Comparison
from firth.errors import KeyNotFound, SettingError, SourceError
from twins import latent, model, rotation, words

COUNT, DIM = 240, 12
SWAPPED = ("w3", "w100")  # change places in the second model


@pytest.fixture(scope="module")
def pair() -> tuple[firth.Vectors, firth.Vectors]:
    """The same points turned into 20 numbers, but two words have changed places and some are missing."""
    points = latent(COUNT, DIM)
    turned = points @ rotation(DIM, 20)
    a, b = (int(word[1:]) for word in SWAPPED)
    turned[[a, b]] = turned[[b, a]]
    keys = words(COUNT)
    one = model(points, keys, counts=True)
    return one, model(turned[40:][::-1], keys[40:][::-1]).with_vectors(
        {"w3": turned[3].astype(np.float32), "else": np.ones(20, np.float32)}
    )


def compared(pair: tuple[firth.Vectors, firth.Vectors], **settings: object) -> Comparison:
    return firth.compare(*pair, names=["one", "two"], **settings)  # type: ignore[arg-type]


class TestFunction:
    def test_coverage(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        one, two = compared(pair).coverage
        assert (one.keys, one.dim, one.shared, one.only) == (240, 12, 201, 39)
        assert (two.keys, two.dim, two.shared, two.only) == (202, 20, 201, 1)
        assert one.first_only[:3] == ("w0", "w1", "w2") and two.first_only == ("else",)
        counted = np.arange(240, 0, -1)
        assert one.tokens == pytest.approx((counted[40:].sum() + counted[3]) / counted.sum())
        assert two.tokens is None

    def test_neighbours_side_by_side(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        report = compared(pair, words=["w50"], topn=6).words[0]
        for company, vectors in zip(report.companies, pair, strict=True):
            assert list(company.neighbours) == vectors.most_similar("w50", topn=6)
        lists = [{key for key, _ in company.neighbours} for company in report.companies]
        assert set(report.shared) == lists[0] & lists[1] and report.shared
        for own, other, company in zip(lists, lists[::-1], report.companies, strict=True):
            assert set(company.only) == own - other
        assert report.companies[0].row == 50 and report.companies[0].count == 190
        assert report.companies[1].count is None

    def test_neighbours_that_another_model_does_not_know(
        self, pair: tuple[firth.Vectors, firth.Vectors]
    ) -> None:
        company = compared(pair, words=["w40"], topn=200).words[0].companies[0]
        assert {"w0", "w39"} <= set(company.unknown) and not {"w3", "w41"} & set(company.unknown)

    def test_correlation_of_a_word_is_that_of_its_cosines(
        self, pair: tuple[firth.Vectors, firth.Vectors]
    ) -> None:
        report = compared(pair, words=["w60", "w3"])
        shared = [f"w{place}" for place in range(COUNT) if place >= 40 or place == 3]
        for word, word_report in zip(("w60", "w3"), report.words, strict=True):
            others = [key for key in shared if key != word]
            cosines = [[one.similarity(word, key) for key in others] for one in pair]
            ranks = [np.argsort(np.argsort(values)) for values in cosines]
            expected = np.corrcoef(ranks)[0, 1]
            assert word_report.correlations[0][:2] == ("one", "two")
            assert word_report.correlations[0][2] == pytest.approx(expected, abs=1e-4)

    def test_the_words_that_changed_places_differ_most(
        self, pair: tuple[firth.Vectors, firth.Vectors]
    ) -> None:
        found = compared(pair, differ=4).pairs[0]
        assert {shift.word for shift in found.most[:2]} == set(SWAPPED)
        assert found.most[0].distance > 5 * found.most[2].distance
        assert all(a.distance >= b.distance for a, b in zip(found.most, found.most[1:], strict=False))
        assert all(a.distance <= b.distance for a, b in zip(found.least, found.least[1:], strict=False))
        assert found.least[0].distance == pytest.approx(0, abs=1e-5)
        assert found.overlap > 0.9 and found.words == 201 and found.k == 25

    def test_distance_is_the_measure_of_the_paper(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        shift = compared(pair, differ=1).pairs[0].most[0]
        shared = [key for key in pair[0] if key in pair[1]]
        one, two = (vectors.subset(shared) for vectors in pair)
        near = [[key for key, _ in vectors.most_similar(shift.word, topn=25)] for vectors in (one, two)]
        union = sorted({*near[0], *near[1]})
        a, b = (np.array([vectors.similarity(shift.word, key) for key in union]) for vectors in (one, two))
        expected = 1 - a @ b / math.sqrt((a @ a) * (b @ b))
        assert shift.distance == pytest.approx(expected, abs=1e-5)
        assert shift.common == len({*near[0]} & {*near[1]})
        assert shift.neighbours == (tuple(near[0][:5]), tuple(near[1][:5]))

    def test_among_judges_the_frequent_only(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        found = compared(pair, among=30, differ=30).pairs[0]
        every = sorted((key for key in pair[0] if key in pair[1]), key=lambda key: self.place(pair, key))
        assert {shift.word for shift in found.most} == set(every[:30]) and found.words == 30

    @staticmethod
    def place(pair: tuple[firth.Vectors, firth.Vectors], key: str) -> tuple[int, int]:
        rows = [vectors.get_index(key) for vectors in pair]
        return sum(rows), rows[0]

    def test_frequent_is_the_mean_of_the_rows(self) -> None:
        points = latent(40, 5)
        order = [*range(20, 40), *range(20)]
        one = model(points, words(40))
        two = model(points[order], [f"w{place}" for place in order])
        found = firth.compare(one, two, among=2, differ=2).pairs[0]
        assert {shift.word for shift in found.most} == {"w0", "w20"}  # rows 0 + 20 and 20 + 0

    def test_the_correlation_of_models(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        same = model(latent(COUNT, DIM) @ rotation(DIM, 20, seed=5), words(COUNT))
        unlike = model(np.random.default_rng(9).normal(size=(COUNT, 30)), words(COUNT))
        turned, random = (firth.compare(pair[0], other, differ=0).pairs[0] for other in (same, unlike))
        assert turned.spearman > 0.9999 and turned.n_pairs == COUNT * (COUNT - 1) // 2
        assert abs(random.spearman) < 0.1 and random.most == () and math.isnan(random.overlap)

    def test_many_pairs_are_drawn_by_the_seed(self) -> None:
        points = latent(800, 4)
        one, two = model(points, words(800)), model(points, words(800), noise=1)
        found = [firth.compare(one, two, differ=0, seed=seed).pairs[0] for seed in (1, 1, 2)]
        assert found[0].spearman == found[1].spearman != found[2].spearman
        assert found[0].n_pairs == 100_000 and abs(found[0].spearman - found[2].spearman) < 0.01

    def test_three_models(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        third = model(latent(COUNT, DIM), words(COUNT), noise=0.2)
        report = firth.compare(*pair, third, words=["w0", "w50"], names=["a", "b", "c"])
        assert [one.models for one in report.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
        first = report.words[0]
        assert [company.missing for company in first.companies] == [False, True, False]
        assert [names[:2] for names in first.correlations] == [("a", "c")]
        assert len(report.words[1].correlations) == 3

    def test_a_word_that_one_model_lacks(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        report = compared(pair, words=["w12"]).words[0]
        missing = report.companies[1]
        assert missing.missing and missing.neighbours == () and "w212" in missing.close
        assert missing.heading() == "two (missing)"
        assert report.shared == () and report.companies[0].only == () and report.correlations == ()

    def test_scores_in_columns(self, pair: tuple[firth.Vectors, firth.Vectors], tmp_path: Path) -> None:
        pairs = tmp_path / "pairs.tsv"
        rng = np.random.default_rng(0)
        a, b, scores = rng.integers(0, 240, 60), rng.integers(0, 240, 60), rng.random(60)
        lines = [f"w{x}\tw{y}\t{score:.3f}\n" for x, y, score in zip(a, b, scores, strict=True)]
        pairs.write_text("".join(lines))
        questions = tmp_path / "questions.txt"
        questions.write_text(": one\nw50 w51 w52 w53\nw0 w1 w2 w3\n")
        rows = compared(pair, pairs=pairs, analogies=[questions]).scores
        assert [(row.measure, row.vocabulary) for row in rows] == [
            ("spearman", "own"),
            ("spearman", "shared"),
            ("accuracy", "own"),
            ("accuracy", "shared"),
        ]
        for place, vectors in enumerate(pair):
            score = firth.evaluate.word_pairs(vectors, pairs)
            assert rows[0].values[place] == score.spearman and rows[0].found[place] == score.found
        assert rows[1].found[0] == rows[1].found[1] < rows[0].found[0] and rows[0].total == 60
        assert rows[2].found == (2, 1) and rows[3].found == (1, 1) and rows[2].total == 2

    def test_a_test_file_that_one_model_knows(
        self, pair: tuple[firth.Vectors, firth.Vectors], tmp_path: Path
    ) -> None:
        known, unknown = tmp_path / "known", tmp_path / "unknown"
        known.write_text("w0 w1 3\nw0 w2 4\nw1 w2 5\n")
        unknown.write_text("red green 3\n")
        rows = compared(pair, pairs=known).scores
        assert len(rows) == 1 and rows[0].found == (3, 0) and math.isnan(rows[0].values[1])
        assert compared(pair, pairs=known).to_dict()["scores"][0]["values"][1] is None
        with pytest.raises(SourceError, match="none of its 1 pairs"):
            compared(pair, pairs=unknown)

    def test_rows_of_zeros_and_nan_are_not_judged(self) -> None:
        points = latent(60, 6)
        one = points.copy()
        one[5], one[7] = 0, np.nan
        found = firth.compare(model(one, words(60)), model(points, words(60)), differ=60).pairs[0]
        judged = {shift.word for shift in found.most}
        assert len(judged) == 58 and not {"w5", "w7"} & judged and found.spearman > 0.99

    @pytest.mark.parametrize("count", [1, 2])
    def test_hardly_any_words(self, count: int) -> None:
        points = latent(count, 3)
        report = firth.compare(
            model(points, words(count)), model(points @ rotation(3, 5), words(count)), words=["w0"]
        )
        assert math.isnan(report.pairs[0].spearman) and report.shared == count
        assert json.dumps(report.to_dict(), allow_nan=False)
        assert len(report.words[0].companies[0].neighbours) == count - 1

    def test_restrict(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        report = compared(pair, restrict=150, words=["w100"])
        assert [one.keys for one in report.coverage] == [150, 150]
        assert report.shared == len({*pair[0].index_to_key[:150]} & {*pair[1].index_to_key[:150]})
        with pytest.raises(KeyNotFound, match="'w3' is not in the vocabulary of any of the 2 models"):
            compared(pair, restrict=2, words=["w3"])

    def test_subwords_make_words_that_are_missing(self) -> None:
        from firth.subwords import DenseRows, FastTextSubwords

        rng = np.random.default_rng(0)
        rows = FastTextSubwords(DenseRows(rng.normal(size=(100, 4)).astype(np.float32)), 2, 3)
        keys = words(30)
        one = firth.Vectors(keys, rows.vectors(keys), subwords=rows)
        two = model(latent(31, 5), [*keys, "w12345"])
        report = firth.compare(one, two, words=["w12345"], names=["one", "two"]).words[0]
        made = report.companies[0]
        assert made.row is None and not made.missing and made.heading() == "one (from subwords)"
        assert len(made.neighbours) == 10 and len(report.correlations) == 1

    def test_a_model_without_keys_is_told(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        from firth.subwords import DenseRows, FloretSubwords

        rows = FloretSubwords(DenseRows(np.ones((9, 12), np.float32)), 2, 3)
        keyless = firth.Vectors([], np.zeros((0, 12), np.float32), subwords=rows)
        with pytest.raises(SettingError, match="model 2 has subwords and no keys; vectors_for_all"):
            firth.compare(pair[0], keyless)
        chosen = keyless.vectors_for_all(words(COUNT))
        assert firth.compare(pair[0], chosen, differ=0).shared == COUNT

    def test_refusals(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        one, two = pair
        with pytest.raises(SettingError, match="needs two models or more, got 1"):
            firth.compare(one)
        with pytest.raises(SettingError, match="model 1 and model 3 are the same"):
            firth.compare(one, two, one)
        with pytest.raises(SettingError, match=r"no word in common: their keys begin \('w0', 'w1', 'w2'"):
            firth.compare(one, model(latent(5, 3), list("abcde")))
        with pytest.raises(KeyNotFound, match=r"'w0x' is not in the vocabulary of any .* did you mean 'w0'"):
            firth.compare(one, two, words=["w0x"])
        with pytest.raises(SettingError, match="the one string 'w1'"):
            firth.compare(one, two, words="w1")
        with pytest.raises(SettingError, match="names are"):
            firth.compare(one, two, names=["a", "a"])
        for name, value in (("topn", 0), ("differ", -1), ("among", 0), ("restrict", 0)):
            with pytest.raises(SettingError, match=f"{name} is {value}"):
                compared(pair, **{name: value})

    def test_names_are_those_of_the_files(
        self, pair: tuple[firth.Vectors, firth.Vectors], tmp_path: Path
    ) -> None:
        for place, (folder, vectors) in enumerate(zip("xy", pair, strict=True)):
            (tmp_path / folder).mkdir()
            vectors.save(tmp_path / folder / "v.safetensors")
            vectors.save(tmp_path / f"{place}.safetensors")
        same = [firth.Vectors.load(tmp_path / folder / "v.safetensors") for folder in "xy"]
        assert firth.compare(*same).names == ("x/v.safetensors", "y/v.safetensors")
        other = [firth.Vectors.load(tmp_path / f"{place}.safetensors") for place in (0, 1)]
        assert firth.compare(*other).names == ("0.safetensors", "1.safetensors")
        assert firth.compare(*pair).names == ("model 1", "model 2")


def test_files_that_others_wrote(data: Path) -> None:
    """GloVe and the C tool's vectors: 50 and 200 numbers, another text, another case."""
    glove = firth.Vectors.load(data / "pretrained" / "glove.6B.50d.first50k.txt.xz", limit=10_000)
    small = firth.Vectors.load(data / "pretrained" / "word2vec_c" / "vectors.txt")
    report = firth.compare(glove, small, words=["river"], pairs=data / "eval" / "EN-WS-353-ALL.txt")
    assert [one.dim for one in report.coverage] == [50, 200]
    assert report.shared == len({*glove} & {*small}) > 800
    assert "lake" in [key for key, _ in report.words[0].companies[0].neighbours]
    assert report.scores[0].values[0] > 0.4 and report.pairs[0].n_pairs == 100_000
    found = firth.align(small, glove)
    assert found.before is not None and found.after is not None
    assert found.after.cosine > 0.1 + found.before.cosine
    merged = firth.merge(glove, small, weights=[1, 0.2])
    assert len(merged) == len({*glove} | {*small}) and merged.vector_size == 250
    score = firth.evaluate.word_pairs(merged, data / "eval" / "EN-WS-353-ALL.txt").spearman
    assert score > report.scores[0].values[0] - 0.02


class Page(HTMLParser):
    """Reads a page and keeps its texts and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.outside: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [(name, value) for name, value in attrs if name in ("src", "href", "onerror")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class TestPage:
    def test_everything_is_escaped_and_nothing_loaded(self) -> None:
        evil = ["<script>alert(1)</script>", "a&b", '"quoted"', "\x07bell", "\ud800", "<img src=x onerror=y>"]
        points = latent(20, 4)
        keys = [*evil, *words(14)]
        report = firth.compare(
            model(points, [*keys[:-1], "<b>only"]), model(points, keys), words=evil, names=["<i>one", "two"]
        )
        text = report.to_html()
        text.encode("utf-8")
        page = Page(text)
        assert not {"script", "img", "i", "b", "link"} & set(page.tags) and not page.outside
        assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
        joined = " ".join(page.texts)
        for key in ("<script>alert(1)</script>", "a&b", '"quoted"', "<i>one", "<b>only", "\ufffdbell"):
            assert key in joined
        assert "\x07" not in text

    def test_what_is_in_it(self, pair: tuple[firth.Vectors, firth.Vectors]) -> None:
        report = compared(pair, words=["w50", "w12"])
        texts = " ".join(Page(report.to_html()).texts)
        for part in ("Vocabularies", "w50", "two (missing)", "Company differs most", "Company differs least"):
            assert part in texts
        assert report._repr_html_() in report.to_html()


@pytest.fixture
def files(pair: tuple[firth.Vectors, firth.Vectors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a.safetensors and b.txt, the current one."""
    pair[0].save(tmp_path / "a.safetensors")
    pair[1].save(tmp_path / "b.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestVerb:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
        code = cli.run(["compare", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    def test_table(self, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, err = self.run(capsys, "a.safetensors", "b.txt", "w50", "w12", "--top", "3")
        assert code == 0 and not err
        assert re.search(r"a\.safetensors +b\.txt\n", out) and "shared: " in out
        assert "b.txt (missing)" in out and "not in b.txt; close there: " in out
        assert "Company differs most" in out and "Company differs least" in out
        assert not any(line != line.rstrip() for line in out.splitlines())

    def test_json(self, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(capsys, "a.safetensors", "b.txt", "w50", "--json", "--differ", "0")
        facts = json.loads(out)
        assert code == 0 and facts["models"] == ["a.safetensors", "b.txt"] and facts["shared"] == 201
        assert facts["words"][0]["models"][1]["neighbours"][0][0].startswith("w")
        assert facts["pairs"][0]["overlap"] is None and facts["pairs"][0]["most"] == []

    def test_html(self, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, err = self.run(capsys, "a.safetensors", "b.txt", "--html", "page.html")
        assert code == 0 and "page written to page.html" in err
        assert (files / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

    def test_scores(self, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (files / "pairs").write_text("w50 w51 3\nw50 w90 1\nw60 w61 2\n")
        _, out, _ = self.run(capsys, "a.safetensors", "b.txt", "--pairs", "pairs", "--differ", "0")
        assert re.search(r"pairs +spearman +own +1\.0000|pairs +spearman +own +-?0\.\d{4} \(3 of 3\)", out)

    def test_models_end_where_words_begin(
        self, files: Path, pair: tuple[firth.Vectors, firth.Vectors], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A file, or an ending of files, before the first word is a model; after it, all are words."""
        pair[0].save(files / "third", format="glove")
        (files / "w50").mkdir()  # a folder without vectors is a word
        _, out, _ = self.run(capsys, "a.safetensors", "b.txt", "third", "w50", "--json")
        facts = json.loads(out)
        assert facts["models"] == ["a.safetensors", "b.txt", "third"]
        assert [one["word"] for one in facts["words"]] == ["w50"]
        code, _, err = self.run(capsys, "a.safetensors", "b.txt", "w50", "third")
        assert code == 1 and "'third' is not in the vocabulary of any of the 2 models" in err
        code, _, err = self.run(capsys, "a.safetensors", "b.txt", "c.vec", "w50")
        assert code == 1 and "cannot read c.vec: there is no such file" in err

    def test_words_that_look_like_files_or_options(
        self, files: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        keys = ["third", "-x", "a.b"]
        for name, seed in (("c.txt", 1), ("d.txt", 2)):
            model(latent(3, 4, seed), keys).save(files / name)
        (files / "third").write_text("no vectors")
        arguments = ("c.txt", "d.txt", "--word", "third", "--json", "--", "a.b", "-x")
        _, out, _ = self.run(capsys, *arguments)
        assert [one["word"] for one in json.loads(out)["words"]] == ["a.b", "-x", "third"]

    @pytest.mark.parametrize(
        ("arguments", "code", "part"),
        [
            (["a.safetensors"], 2, "needs two files of vectors or more"),
            (["a.safetensors", "a.safetensors"], 2, "are the same file"),
            (["a.safetensors", "./a.safetensors"], 2, "are the same file"),
            (
                ["a.safetensor", "b.txt"],
                1,
                "cannot read a.safetensor: there is no such file; did you mean 'a.saf",
            ),
            (["a.safetensors", "w50"], 1, "cannot read w50: there is no such file"),
            (["a.safetensors", "b.txt", "w50x"], 1, "did you mean 'w50'"),
            (
                ["a.safetensors", "b.txt", "--html", "b.txt"],
                2,
                "--html: b.txt is one of the files that are read",
            ),
            (["a.safetensors", "b.txt", "--html", "no/page"], 1, "the folder no does not exist"),
            (["a.safetensors", "b.txt", "--differ", "-1"], 2, "--differ must be at least 0"),
            (["a.safetensors", "b.txt", "--pairs", "none"], 1, "none"),
        ],
    )
    def test_refusals(
        self, files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, part: str
    ) -> None:
        before = {path: path.read_bytes() for path in files.iterdir()}
        found, out, err = self.run(capsys, *arguments)
        assert found == code and not out and part in err and len(err.splitlines()) == 1
        assert before == {path: path.read_bytes() for path in files.iterdir()}
