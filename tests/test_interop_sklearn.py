"""``DocumentTransformer`` among scikit-learn's estimators. Skipped where scikit-learn is not installed."""

import pickle
import warnings
from typing import Any

import numpy as np
import pytest

import firth
from firth.errors import SettingError

sklearn = pytest.importorskip(
    "sklearn", reason="scikit-learn is not installed (pip install 'firth[sklearn]')"
)

from firth.documents import SIF, DocumentTransformer, Mean, TextEncoder  # noqa: E402

TEXTS = ["cat dog", "dog cat cat", "red blue", "blue red red", "cat", "blue", "", "zzz"]
ANIMALS = [1, 1, 0, 0, 1, 0, 1, 1]


def vectors() -> firth.Vectors:
    matrix = np.random.default_rng(0).normal(size=(4, 3))
    return firth.Vectors(["cat", "dog", "red", "blue"], matrix, counts=[4, 3, 2, 1])


@pytest.fixture(params=[None, Mean(), SIF(a=1e-2)], ids=["default", "mean", "sif"])
def estimator(request: Any) -> Any:
    return DocumentTransformer(vectors(), request.param, firth.Tokenizer(lower=True))


def test_scikit_learns_own_checks(estimator: Any) -> None:
    """``check_estimator``; for estimators of texts it has one check, the tests below are the rest."""
    from sklearn.exceptions import SkipTestWarning
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(estimator)
    assert results and all(result["status"] == "passed" for result in results)


def test_checks_that_do_not_depend_on_the_kind_of_input(estimator: Any) -> None:
    """The parts of scikit-learn's suite that give the estimator no numbers."""
    from sklearn.utils import estimator_checks as checks

    name = type(estimator).__name__
    for check in (
        checks.check_no_attributes_set_in_init,
        checks.check_get_params_invariance,
        checks.check_set_params,
        checks.check_estimator_repr,
        checks.check_estimator_cloneable,
        checks.check_do_not_raise_errors_in_init_or_set_params,
        checks.check_estimator_tags_renamed,
    ):
        check(name, estimator)


def test_rows_are_those_of_the_encoder(estimator: Any) -> None:
    encoder = TextEncoder(vectors(), estimator.pooling or Mean(), tokenizer=firth.Tokenizer(lower=True))
    found = estimator.fit_transform(TEXTS)
    assert found.shape == (8, 3) and found.dtype == np.float32
    np.testing.assert_array_equal(found, encoder.fit(TEXTS).encode(TEXTS))
    np.testing.assert_array_equal(found, estimator.fit(TEXTS).transform(TEXTS))
    np.testing.assert_array_equal(found, estimator.fit_transform(iter(TEXTS)))
    assert not found[6].any() and not found[7].any()
    assert estimator.components_.shape == (int(isinstance(estimator.pooling, SIF)), 3)


def test_fit_keeps_parameters_and_is_repeatable(estimator: Any) -> None:
    before = estimator.get_params()
    assert estimator.fit(TEXTS) is estimator
    first = estimator.transform(TEXTS)
    assert estimator.get_params() == before
    np.testing.assert_array_equal(estimator.fit(TEXTS).transform(TEXTS), first)
    np.testing.assert_array_equal(estimator.transform(TEXTS[::-1])[::-1], first)
    for text, row in zip(TEXTS, first, strict=True):
        np.testing.assert_allclose(estimator.transform([text])[0], row, atol=1e-7)


def test_clones_share_the_vectors_and_pickles_keep_what_was_learned(estimator: Any) -> None:
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError

    copied = clone(estimator)
    assert copied.vectors is estimator.vectors
    with pytest.raises(NotFittedError):
        copied.transform(TEXTS)
    estimator.fit(TEXTS)
    other = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(other.transform(TEXTS), estimator.transform(TEXTS))


def test_names_and_containers(estimator: Any) -> None:
    with pytest.raises(sklearn.exceptions.NotFittedError):
        estimator.get_feature_names_out()
    estimator.fit(TEXTS)
    names = estimator.get_feature_names_out()
    assert names.tolist() == [f"documenttransformer{place}" for place in range(3)]
    try:
        import pandas as pd
    except ImportError:
        return
    frame = estimator.set_output(transform="pandas").transform(pd.Series(TEXTS, index=range(10, 18)))
    assert frame.columns.tolist() == names.tolist() and frame.index.tolist() == list(range(10, 18))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_pipeline_and_a_search() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(DocumentTransformer(vectors()), LogisticRegression())
    words = TEXTS[:6] * 4
    search = GridSearchCV(model, {"documenttransformer__pooling": [Mean(), SIF(), SIF(1e-4)]}, cv=2)
    search.fit(words, ANIMALS[:6] * 4)
    assert search.score(words, ANIMALS[:6] * 4) == 1.0
    assert search.predict(["dog dog", "red"]).tolist() == [1, 0]


def test_what_is_no_text_is_a_value_error(estimator: Any) -> None:
    with pytest.raises(ValueError, match="not the one text 'cat dog'"):
        estimator.fit("cat dog")
    with pytest.raises(ValueError, match="not the one text 'cat dog'"):
        estimator.fit(TEXTS).transform("cat dog")
    with pytest.raises(ValueError, match="document 1 is float nan"):
        estimator.fit_transform(["cat", float("nan")])
    with pytest.raises(ValueError, match="document 0 is ndarray"):
        estimator.transform(np.eye(2))
    with pytest.raises(SettingError, match="Vectors are expected, got str"):
        DocumentTransformer("glove.txt").fit(TEXTS)
