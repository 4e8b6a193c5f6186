"""A merged folder on a model hub, by the hub's own client."""

from pathlib import Path

from imod_core.artifacts import MANIFEST
from imod_core.console import console
from imod_core.errors import InputError, first_line

NOT_PUSHED = [MANIFEST, ".*"]
"""The manifest names folders of this machine."""


def check_target(repo: str) -> None:
    """Refuse a repository name that no hub takes, before hours of work.

    Raises:
        InputError: it is no `owner/name`.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(
            f"'{repo}' is no name of a hub repository ({str(error).splitlines()[0]}): give OWNER/NAME."
        ) from None
    if repo.count("/") != 1:
        raise InputError(f"'{repo}' is no name of a hub repository: give OWNER/NAME.")


def push(folder: Path, repo: str) -> str:
    """Upload `folder` to the model repository `repo`, private if it is new; returns its address.

    Raises:
        InputError: the hub refused or could not be reached; `folder` is as it was.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, private=True, exist_ok=True)
        console.print(f"Uploading {folder} to {address}")
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            ignore_patterns=list(NOT_PUSHED),
            commit_message="Merged model with its parity report",
        )
    except Exception as error:  # also those of the client's HTTP library, which is another in each of its versions
        raise InputError(
            f"{folder} is whole, but could not be pushed to {repo} ({first_line(error)}): see that the hub can be "
            f"reached, log in with `hf auth login`, then run `hf upload {repo} {folder}`."
        ) from None
    return str(address)
