"""Secrets, and how they stay out of what is published: tokens, and the paths of the machine that a run was made on.

    >>> without_secrets("https://ada:s3cret@host/v1?key=abc")
    'https://host/v1'

Two kinds of token are known: strings that look like one, and the exact values of the environment's own secrets.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any


TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gsk_[A-Za-z0-9]{16,}|xai-[A-Za-z0-9]{16,}|gh[opsu]_[A-Za-z0-9]{16,}"
    r"|AKIA[A-Z0-9]{16}|Bearer +[A-Za-z0-9._~+/-]{16,})"
)
"""Tokens as services write them. Fixed prefixes and one run of characters each, so that matching takes linear time."""

SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
"""Names of environment variables that hold secrets, such as `HF_TOKEN` and `OPENAI_API_KEY`."""

SHORTEST_SECRET = 8
"""Characters; shorter values occur in texts by chance."""

HIDDEN = "[secret]"

_ADDRESS = re.compile(r"\b(https?://)(?:[^\s/@?#]*@)?([^\s?#]*)(?:\?[^\s#]*)?")


def environment_secrets(environment: Mapping[str, str] | None = None) -> frozenset[str]:
    """The values of the environment's secrets."""
    variables = os.environ if environment is None else environment
    return frozenset(
        value
        for name, value in variables.items()
        if len(value) >= SHORTEST_SECRET and SECRET_NAME.search(name.upper()) and not os.path.isabs(value)
    )


def without_secrets(text: str, secrets: Iterable[str] | None = None) -> str:
    """A text with tokens hidden, and addresses without user, password and query.

    Args:
        text: Any text, such as an error message.
        secrets: Exact values to hide; by default the environment's.
    """
    for secret in environment_secrets() if secrets is None else secrets:
        text = text.replace(secret, HIDDEN)
    return TOKEN.sub(HIDDEN, _ADDRESS.sub(r"\1\2", text))


def holds_secret(content: bytes, secrets: Iterable[str] | None = None) -> bool:
    """Whether a file's bytes hold a token."""
    known = environment_secrets() if secrets is None else secrets
    return any(secret.encode() in content for secret in known) or TOKEN.search(content.decode("latin-1")) is not None


def public_settings(value: Any) -> Any:
    """Settings of a run as they may be shown: no secrets, and of a path of this machine only its last part."""
    if isinstance(value, Mapping):
        return {str(key): public_settings(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public_settings(item) for item in value]
    return public_name(value) if isinstance(value, str) else value


def public_name(text: str) -> str:
    """What stands for a text: paths lose their folders, and all texts their secrets."""
    if re.match(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]", text):
        text = re.split(r"[\\/]", text.rstrip("\\/"))[-1]
    return without_secrets(text)
