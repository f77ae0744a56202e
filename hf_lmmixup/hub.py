"""Publishing on the Hub: a run's dataset, distiller, datastore and report.

    pushed = push_dataset("runs/pile", "ada/pile-distilled")
    load_dataset("ada/pile-distilled", revision=pushed.tag)

Repositories are private unless the caller says otherwise, and that is read back from the Hub before a byte leaves.
Everything goes in one commit, and only what differs from the Hub's files, so that a second push makes no commit. The
tag comes last, when every file has been read back with the right SHA-256: what has the tag is whole. A push that was
stopped anywhere is finished by the same push again.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from hf_lmmixup.artifacts import PREPARATIONS, SOURCES, Source
from hf_lmmixup.card_markup import one_line
from hf_lmmixup.cards import render_dataset_card
from hf_lmmixup.hub_repository import HubRepository, PushError
from hf_lmmixup.licenses import OTHER, UNKNOWN, merge
from hf_lmmixup.patience import first_line, insist
from hf_lmmixup.publication import Publication


__all__ = [
    "PushError",
    "Pushed",
    "prepare",
    "publish",
    "push_dataset",
    "push_datastore",
    "push_distiller",
    "push_report",
    "render_dataset_card",
]

logger = logging.getLogger(__name__)

TAG = re.compile(r"(?!.*\.\.)[A-Za-z0-9](?:[A-Za-z0-9._+-]*[A-Za-z0-9_+-])?")
"""Names that git, the Hub and addresses take as they are."""


@dataclass(frozen=True)
class Pushed:
    """A finished push.

    Attributes:
        url: Where it is.
        commit: The commit that holds the files.
        tag: The tag on them.
        private: Visibility, as the Hub says.
        commits: How many commits this push made: 0 if everything was there, else 1.
        uploaded: Names of the files that were sent.
        deleted: Names of old files that were removed.
        licenses: What the card says.
    """

    url: str
    commit: str
    tag: str
    private: bool
    commits: int
    uploaded: tuple[str, ...]
    deleted: tuple[str, ...]
    licenses: tuple[str, ...]


def push_dataset(path: str | Path, repo_id: str, **options: Any) -> Pushed:
    """Publish a distilled dataset; `load_dataset(repo_id)` reads it without this package.

    Args:
        path: A run directory, or its `dataset` folder.
        repo_id: `OWNER/NAME`.
        options: Those of `prepare` and `publish`.

    Returns:
        What is on the Hub now.

    Raises:
        ValueError: If `path` holds no dataset, or the licenses of the sources exclude each other.
        PushError: If the Hub refuses, or the repository is public and `public` is not set.
    """
    return _push("dataset", path, repo_id, **options)


def push_distiller(path: str | Path, repo_id: str, **options: Any) -> Pushed:
    """Publish a distiller: a whole model for `AutoModelForCausalLM`, or a LoRA adapter for `PeftModel`.

    Args:
        path: A run directory, its `distiller` folder, or any model or adapter folder.
        repo_id: `OWNER/NAME`.
        options: Those of `prepare` and `publish`; `merge_adapter` publishes an adapter merged into its base model.

    Returns:
        What is on the Hub now.
    """
    return _push("distiller", path, repo_id, **options)


def push_datastore(path: str | Path, repo_id: str, **options: Any) -> Pushed:
    """Publish a datastore as a dataset repository; `ScoredDatastore.from_pretrained(repo_id)` reads it.

    Args:
        path: A run directory, or its `datastore` folder.
        repo_id: `OWNER/NAME`.
        options: Those of `prepare` and `publish`.

    Returns:
        What is on the Hub now.
    """
    return _push("datastore", path, repo_id, **options)


def push_report(path: str | Path, repo_id: str, **options: Any) -> Pushed:
    """Publish the report of a run as a static Space.

    Args:
        path: A run directory, or its `report.html`.
        repo_id: `OWNER/NAME`.
        options: Those of `prepare` and `publish`.

    Returns:
        What is on the Hub now.
    """
    return _push("report", path, repo_id, **options)


def _push(
    kind: str, path: str | Path, repo_id: str, *, public: bool = False, tag: str | None = None, **options: Any
) -> Pushed:
    api = options.setdefault("api", HfApi())
    return publish(prepare(kind, path, repo_id, **options), public=public, tag=tag, api=api)


def prepare(
    kind: str,
    path: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    api: HfApi | None = None,
    **options: Any,
) -> Publication:
    """Decide what a push would send, without sending anything.

    Args:
        kind: `dataset`, `distiller`, `datastore` or `report`.
        path: A run directory, or the artifact in it.
        repo_id: `OWNER/NAME`.
        license: Hub license id of what no source on the Hub accounts for, such as your own raw rows.
        api: The Hub to ask for the licenses of the sources.
        options: For a distiller `base_model` (Hub id, for an adapter whose base is a local folder), `merge_adapter`,
            and `datasets` (Hub ids of what it was trained on; their licenses are inherited, too).

    Returns:
        The files, with their digests.

    Raises:
        ValueError: If there is nothing to publish, a file holds a token, or licenses exclude each other.
    """
    if kind not in PREPARATIONS:
        raise ValueError(f"kind={kind!r} cannot be pushed. Expected one of {sorted(PREPARATIONS)}.")
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"repo_id={repo_id!r} names no owner. Expected OWNER/NAME, such as ada/{repo_id}.")
    sources = SOURCES[kind](Path(path), **options)
    licenses = _licenses(api or HfApi(), sources, license)
    return PREPARATIONS[kind](Path(path), repo_id, licenses=licenses, **options)


def publish(
    publication: Publication, *, public: bool = False, tag: str | None = None, api: HfApi | None = None
) -> Pushed:
    """Bring a repository to hold what was prepared, and tag it.

    Args:
        publication: What `prepare` returned.
        public: Whether anybody may read it. A repository becomes public last, when everything in it is in order.
        tag: Name of the tag; by default `content-` and a digest of the files.
        api: The Hub.

    Returns:
        What is on the Hub now.

    Raises:
        ValueError: If the tag cannot be the name of one.
        PushError: If the Hub refuses for good or keeps failing, the repository is public and `public` is not set, the
            tag stands for other files, or the files read back are not those sent.
    """
    api = api or HfApi()
    if tag is not None and not TAG.fullmatch(tag):
        raise ValueError(f"tag={tag!r} cannot be the name of a tag. Expected one such as v1 or v1.0-rc.2.")
    try:
        return _publish(HubRepository(api, publication), public=public, tag=tag or f"content-{publication.digest}")
    except OfflineModeIsEnabled:
        raise PushError("HF_HUB_OFFLINE is set, so nothing can be sent. Unset it, then push again.") from None
    except HTTPError as error:
        raise PushError(_explained(error, publication)) from None


def _publish(repository: HubRepository, *, public: bool, tag: str) -> Pushed:
    private = repository.claim(public=public)
    repository.tagged(tag)  # one that stands for other files is found before anything is sent
    commit, commits, uploaded, deleted = repository.upload()
    repository.read_back(commit)
    commit = repository.tag(tag, commit)
    if public and private:
        private = repository.make_public()
    licenses = repository.publication.licenses
    return Pushed(repository.url, commit, tag, private, commits, uploaded, deleted, licenses)


def _licenses(api: HfApi, sources: Sequence[Source], given: str | None) -> tuple[str, ...]:
    """What covers all sources; the given license stands for those that nothing is known of."""
    known = {
        source.name: source.license or (_license_on_hub(api, source) if source.repo_type else None)
        for source in sources
    }
    licenses = merge({name: value or given for name, value in known.items()})
    if given and licenses != merge({"given": given}):
        asked = ", ".join(f"{name} ({value or 'not known'})" for name, value in known.items())
        raise ValueError(
            f"license={given!r} does not cover the sources {asked}: together they ask for {', '.join(licenses)}. "
            "Leave the license out to inherit it."
        )
    return licenses


def _license_on_hub(api: HfApi, source: Source) -> str | None:
    """A license that the card of a repository names; None if it names none or cannot be read."""
    try:
        info = insist(lambda: api.repo_info(source.name, repo_type=source.repo_type))
    except (HTTPError, OfflineModeIsEnabled) as error:
        logger.warning("The license of %s is not known: %s", source.name, first_line(error))
        return None
    card = getattr(info, "card_data", None) or {}
    value = card.get("license")
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else UNKNOWN
    if value == OTHER and isinstance(name := card.get("license_name"), str):
        value = f"{OTHER}:{one_line(name)}"
    return value if isinstance(value, str) and value != UNKNOWN else None


def _explained(error: HTTPError, publication: Publication) -> str:
    response = error.response if isinstance(error, HfHubHTTPError) else None
    status = response.status_code if response is not None else 0
    advice = {
        401: "Log in with `hf auth login`, or set HF_TOKEN to a token with write access.",
        403: f"The token may not write to {publication.repo_id}. Use one with write access to it.",
    }.get(status, "What was done is kept; push again to finish.")
    return f"The Hub did not take {publication.repo_id} ({first_line(error)}). {advice}"
