"""Upload an exported folder to a model hub, with the token of huggingface_hub."""

from pathlib import Path

from fedsdr.errors import UserError, one_line


def check_hub_name(name: str) -> None:
    """UserError for what cannot be the name of a repository on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub: {one_line(str(error))}") from None


def push_to_hub(folder: Path, name: str) -> str:
    """Upload the folder to the repository `name`, which is made private if it is new; return a line
    with its address. UserError for what the hub or the network refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are OSError and the error of the HTTP library that huggingface_hub uses.
    refused: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)
    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message="fedsdr export"
        )
    except refused as error:  # no token, no network, no right to write
        raise UserError(
            f"--push-to-hub: {one_line(str(error))}; {folder} is written. For a token: hf auth "
            f"login; then: hf upload {name} {folder}"
        ) from error
    return f"uploaded to {repository}"
