"""Upload an exported folder to the hub."""

from pathlib import Path

from luthier.errors import UserError


def push(folder: Path, repo_id: str, public: bool = False) -> str:
    """Upload ``folder`` to the model repository ``repo_id``, made if need be; its address.

    The token is the one of `hf auth login` or ``$HF_TOKEN``; the hub the one of ``$HF_ENDPOINT``.

    Raises:
        UserError: not logged in, no right to write there, a name that cannot be, or no hub there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi(library_name="luthier")
    try:
        where = api.create_repo(repo_id, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=where.repo_id, folder_path=folder, commit_message="Upload from Luthier"
        )
    except LocalTokenNotFoundError:
        raise UserError("not logged in to the hub: run `hf auth login` first") from None
    except HFValidationError as error:
        raise UserError(f"'{repo_id}' is not a valid repository name: {error}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise UserError(
                f"the hub does not let you write to {repo_id}: run `hf auth login` with a token that "
                "may write"
            ) from None
        raise UserError(f"the hub refused {repo_id}: {error}; {folder} is intact") from error
    except Exception as error:  # of its HTTP client, whichever that is; nothing of ours runs there
        raise UserError(f"the hub does not answer: {error}; {folder} is intact") from error
    return str(where)
