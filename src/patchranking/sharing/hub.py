"""What to say where the Hugging Face Hub refuses or cannot be reached."""

from __future__ import annotations

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from patchranking.errors import reason

__all__ = ["not_loaded", "not_pushed"]

_LOG_IN = "log in by 'hf auth login', or set HF_TOKEN"


def not_loaded(error: Exception, repo_id: str, revision: str | None) -> str | None:
    """Why a pruner was not loaded from the Hub, in one sentence; None where the Hub is not the reason.

    Args:
        error: What huggingface_hub raised.
        repo_id: The repository.
        revision: The branch, tag or commit that was asked for.
    """
    if isinstance(error, GatedRepoError):
        return f"'{repo_id}' is given to those alone who accept its terms: do so on its page, and {_LOG_IN}."
    if isinstance(error, RevisionNotFoundError):
        return f"'{repo_id}' has no revision '{revision}': give a branch, a tag or a commit that it has."
    if isinstance(error, RepositoryNotFoundError):
        return f"The Hub has no repository '{repo_id}', or shows it to its owners alone: check the name, or {_LOG_IN}."
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"'{repo_id}' is not in the cache, and the Hub was not reached ({reason(error.__cause__ or error)}): go "
            "online, or give the folder of a pruner."
        )
    if isinstance(error, EntryNotFoundError):
        return f"'{repo_id}' is on the Hub and holds no pruner: it lacks config.json or model.safetensors."
    if isinstance(error, HfHubHTTPError):
        return _refused(error, repo_id)
    return None


def not_pushed(error: Exception, repo_id: str, branch: str | None) -> str:
    """Why a pruner was not pushed to the Hub, in one sentence.

    Args:
        error: What huggingface_hub raised.
        repo_id: The repository.
        branch: The branch that was asked for.
    """
    if isinstance(error, HFValidationError):
        return f"'{repo_id}' can be no repository's name: give 'org/name', of letters, digits, '-', '_' and '.'."
    if isinstance(error, LocalTokenNotFoundError):
        return f"Nothing was pushed to '{repo_id}', since there is no token: {_LOG_IN}."
    if isinstance(error, RevisionNotFoundError):
        return f"'{repo_id}' has no branch '{branch}': make it first, or leave branch out."
    if isinstance(error, HfHubHTTPError) and (refused := _refused(error, repo_id)):
        return refused
    return f"The push to '{repo_id}' failed ({reason(error)}): try again."


def _refused(error: HfHubHTTPError, repo_id: str) -> str | None:
    """What an answer means that is about who asks."""
    if error.response.status_code == 401:
        return f"The Hub does not know who asks for '{repo_id}', or does not accept the token: {_LOG_IN}."
    if error.response.status_code == 403:
        return f"The token may not do that with '{repo_id}': take one with that right, of an account that has it."
    return None
