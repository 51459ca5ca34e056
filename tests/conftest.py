"""What all tests share: a cache folder of their own, and the folder of real data."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encoded texts go below pytest's folder, never into the user's cache."""
    os.environ["FIRTH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data: ``$FIRTH_DATA``, else ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("FIRTH_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder} (set FIRTH_DATA)")
    return folder
