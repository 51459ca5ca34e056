"""Vectors to and from the Hugging Face hub, through huggingface_hub (the extra ``hub``).

A repository holds the folder that sentence-transformers and model2vec open (``formats/static_folder``), or
one native file. Only these files are fetched, and none of them can run code.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firth.errors import FirthError, MissingExtra, SettingError, StorageError

FOLDER, NATIVE = "static-folder", "safetensors"
NATIVE_FILE = "vectors.safetensors"
WEIGHTS = "model.safetensors"
FILES = ("config.json", "modules.json", WEIGHTS, "tokenizer.json", "README.md", NATIVE_FILE)


def fetched(
    name: str | os.PathLike[str], filename: str | None, revision: str | None, token: str | None
) -> Path:
    """The file or folder to load: ``name`` itself if it is there, else what the hub has under that name.

    Arguments and errors as for ``Vectors.from_pretrained``.
    """
    place = Path(name)
    if place.exists():
        return _inside(place, filename)
    if not isinstance(name, str):
        raise StorageError(f"cannot read {place}: there is no such file or folder")
    hub = _hub("from_pretrained")
    if filename is not None:
        return Path(_asked(name, lambda: hub.hf_hub_download(name, filename, revision=revision, token=token)))
    wanted = [*FILES, *(f"*/{file}" for file in FILES)]
    folder = Path(
        _asked(
            name,
            lambda: hub.snapshot_download(name, revision=revision, token=token, allow_patterns=wanted),
        )
    )
    place = _inside(folder, None)
    if place == folder and not [*folder.glob(WEIGHTS), *folder.glob(f"*/{WEIGHTS}")]:
        raise StorageError(
            f"{name!r} on the hub has neither {NATIVE_FILE} nor {WEIGHTS}; filename= names another file of it"
        )
    return place


def _inside(place: Path, filename: str | None) -> Path:
    if filename is not None:
        return place / filename
    native = place / NATIVE_FILE
    return native if native.is_file() else place


def pushed(
    save: Callable[[Path, str], None],
    repo_id: str,
    format: str,
    private: bool | None,
    revision: str | None,
    token: str | None,
    message: str,
) -> str:
    """Write a folder by ``save(path, format)`` and upload it; the address of the commit.

    Arguments and errors as for ``Vectors.push_to_hub``.
    """
    if format not in (FOLDER, NATIVE):
        raise SettingError(f"push_to_hub(): format is {format!r}; {FOLDER!r} or {NATIVE!r} is expected")
    hub = _hub("push_to_hub")
    with tempfile.TemporaryDirectory(prefix="firth-") as temporary:
        # The name of the folder is the title of its model card.
        folder = Path(temporary) / (repo_id.rpartition("/")[2] or "vectors")
        if format == NATIVE:
            folder.mkdir()
            save(folder / NATIVE_FILE, format)
        else:
            save(folder, format)
        api = hub.HfApi(token=token, library_name="firth")

        def upload() -> Any:
            made = api.create_repo(repo_id, private=private, exist_ok=True)
            return api.upload_folder(
                repo_id=made.repo_id, folder_path=folder, revision=revision, commit_message=message
            )

        return str(_asked(repo_id, upload).commit_url)


def _hub(caller: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra(
            f"{caller}(): the Hugging Face hub needs huggingface_hub: pip install 'firth[hub]'"
        ) from error
    return huggingface_hub


def _asked(name: str, request: Callable[[], Any]) -> Any:
    """What the hub answers, its refusals as one sentence."""
    errors: Any = importlib.import_module("huggingface_hub.errors")
    try:
        return request()
    except FirthError:
        raise
    except errors.HFValidationError as error:
        raise SettingError(
            f"{name!r} is neither a file or folder that is there nor a repository's name on the hub, "
            "which is like 'user/name'"
        ) from error
    except (OSError, ValueError, errors.HTTPError, errors.EntryNotFoundError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StorageError(f"the hub does not give or take {name!r}: {reason}") from error
