"""Exported folders on the model hub; nothing is ever sent there but where somebody names a repository for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from srlm_pipeline import __version__
from srlm_pipeline.errors import HubError

_TOKEN = "HF_TOKEN"  # noqa: S105


def require_token() -> str:
    """Return the token in the environment; one that other tools have saved on this machine is not used.

    Raises:
        HubError: If there is none.
    """
    token = os.environ.get(_TOKEN, "").strip()
    if not token:
        raise HubError(None, f"{_TOKEN} holds no token: make one that may write on the hub, and put it there")
    return token


def push(folder: Path, repository: str, kind: Literal["model", "dataset"], public: bool) -> str:
    """Send a folder to the hub (`HF_ENDPOINT`) in one commit; the repository is made if it is not there.

    Args:
        folder: As an export has written it.
        repository: ``user/name``.
        kind: Of the repository.
        public: Whether everybody may see it, if it is made now.

    Returns:
        The repository's address.

    Raises:
        HubError: If there is no token, or the hub refuses or does not answer.
    """
    token = require_token()
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    hub = HfApi(token=token, library_name="srlm_pipeline", library_version=__version__)
    try:
        made = hub.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=folder,
            commit_message=f"srlm_pipeline {__version__}: {folder.name}",
        )
    except (OSError, ValueError, HFValidationError, httpx2.HTTPError) as error:
        said = str(error).strip().splitlines()
        raise HubError(repository, f"{folder} is written, and was not sent: {said[0] if said else error!r}") from error
    return str(made)
