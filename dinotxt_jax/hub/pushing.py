"""Uploads a model directory with a card to a repository of the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dinotxt_jax.errors import UserError
from dinotxt_jax.hub.card import model_card
from dinotxt_jax.storage.addresses import is_remote, to_address
from dinotxt_jax.storage.files import read_json
from dinotxt_jax.storage.model_directory import read_description
from weights_convert.fetching import HUB, hub_library

_CARD = "README.md"


def push(
    model: str, target: str, *, results: str = "", licence: str = "other", private: bool = True
) -> str:
    """Uploads a model directory in one commit; the repository is created if it does not exist.

    Args:
        model: the model directory, on a local disk, with all its arrays.
        target: hf://ORG/NAME.
        results: an evaluation's output folder, whose figures go into the card; "" for none.
        licence: the licence's identifier on the hub.
        private: whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        UserError: the directory or the results cannot be read, the arrays of the backbone are
            elsewhere, or the hub refuses.
    """
    hub, errors = hub_library(target)
    repository = target.removeprefix(HUB)
    if not target.startswith(HUB) or repository.count("/") != 1 or "@" in repository:
        raise UserError(f"--to={target} is not of the form hf://ORG/NAME; correct it.")
    description = read_description(model)
    address = to_address(model)
    if is_remote(address):
        raise UserError(f"--model={model} is in a bucket; copy it to a local disk first.")
    if description.backbone_path is not None:
        raise UserError(
            f"{model} names {description.backbone_path} as the directory of its backbone, which "
            "others do not have; train with config.include_backbone=True."
        )
    measured = {}
    if results:
        file = to_address(results) / "results.json"
        measured = read_json(file, "results of an evaluation", "correct --results")
    card = model_card(repository, description, measured, licence)
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _CARD).write_text(card)
            operations = [
                hub.CommitOperationAdd(str(file.relative_to(root)), str(file))
                for root in (Path(folder), Path(str(address)))
                for file in sorted(root.rglob("*"))
                if file.is_file()
            ]
            commit = api.create_commit(
                repository, operations, commit_message=f"Upload {address.name} by dinotxt_jax"
            )
    except errors as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{target} could not be written ({reason}); log in (hf auth login) with an account "
            "that may write there."
        ) from error
    return str(commit.commit_url)
