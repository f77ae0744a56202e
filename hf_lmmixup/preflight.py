"""What can be known of a training before its model is loaded: its keys, rewards, datastore, data and prompts.

    check("grpo", {"reward_funcs": ["hf_lmmixup.rewards.qualty_reward"], ...})
    ValueError: reward_funcs names 'hf_lmmixup.rewards.qualty_reward', but hf_lmmixup.rewards has no 'qualty_reward'.
    Did you mean 'quality_reward'? ...

`lmmixup check`, `lmmixup train` and `lmmixup run` ask here. Plain `trl` finds an unknown reward, a wrong setting of
the rewards and a missing datastore folder by itself, since it imports the rewards before it loads a model; it has no
limit for prompts.
"""

import argparse
import difflib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hf_lmmixup.process_environment import variables
from hf_lmmixup.prompt_lengths import measure_prompts
from hf_lmmixup.reward_settings import VARIABLES, check_settings


MAX_PROMPT = "HF_LMMIXUP_MAX_PROMPT_TOKENS"
"""Variable with the longest allowed prompt of a GRPO recipe: TRL has no key for it."""

TRL_REWARDS = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward", "get_soft_overlong_punishment")

LAUNCH_KEYS = "accelerate_config num_processes num_machines machine_rank main_process_ip main_process_port env".split()
"""Keys that `trl` passes on to the launcher."""

TOKEN_KEYS = ("hub_token", "push_to_hub_token")

BITSANDBYTES = ("paged_", "adamw_8bit", "adamw_bnb", "ademamix", "lion_", "rmsprop_bnb")
"""How the names of optimizers begin that bitsandbytes brings."""

NEEDS_DATASTORE = ("quality_reward", "mixup_reward")

REGISTERED = "mixture"
"""The dataset that `import hf_lmmixup` registers; the rewards of a GRPO recipe bring that import."""

DEFAULT_MAX_LENGTH = 1024
"""TRL's own `max_length` of SFT."""


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        rows: Rows to train on.
        longest: Tokens of the longest prompt.
        limit: The most tokens that a prompt may have; `None` if nothing limits it.
        warnings: What is allowed but hardly meant.
    """

    rows: int
    longest: int
    limit: int | None
    warnings: list[str] = field(default_factory=list)


def check(method: str, config: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Checked:
    """Find the mistakes of a training that would show only after its model is loaded, or never.

    Args:
        method: `sft` or `grpo`.
        config: The keys of its TRL recipe.
        environment: Variables on top of this process's own and of the recipe's `env`.

    Returns:
        What was found.

    Raises:
        ImportError: If the `train` extra is missing, or a package that the recipe asks for.
        ValueError: If the training cannot go well; the message says why and what to do.
    """
    for key in TOKEN_KEYS:
        if config.get(key):
            raise ValueError(f"{key} would be stored in every checkpoint. Remove it and set HF_TOKEN instead.")
    check_keys(method, config)
    given = {str(key): str(value) for key, value in (config.get("env") or {}).items()} | dict(environment or {})
    warnings = []
    if method == "grpo":
        check_rewards(config.get("reward_funcs") or [])
        _check_group(config)
        written = _whole(_defaults(method, config), "max_completion_length")
        with variables(given):
            _check_variables()
            warnings += _abstaining(config.get("reward_funcs") or [])
            limits = {MAX_PROMPT: int(os.environ[MAX_PROMPT])} if os.environ.get(MAX_PROMPT) else {}
        room = _whole(config, "vllm_max_model_length") - written
        if room > 0:
            limits["vllm_max_model_length - max_completion_length"] = room
    else:
        _check_name(config)
        written = 0
        limits = {"max_length": _whole({"max_length": DEFAULT_MAX_LENGTH, **config}, "max_length")}
    check_values(method, config)
    _check_packages(config)
    limits = {name: limit for name, limit in limits.items() if limit}
    return _check_prompts(method, config, limits, written, warnings)


def check_keys(method: str, config: Mapping[str, Any]) -> None:
    """Refuse keys that TRL does not know, as its own parser would.

    Raises:
        ImportError: If TRL is not installed.
        ValueError: If a key is unknown.
    """
    known = [*_actions(method), *LAUNCH_KEYS]
    for key in config:
        if key not in known:
            raise ValueError(f"Unknown key {key!r} for `trl {method}`.{_suggestion(key, known)}")


def check_values(method: str, config: Mapping[str, Any]) -> None:
    """Refuse values that TRL's parser would refuse, and texts in its lists of numbers, which it takes as they are.

    Raises:
        ImportError: If TRL is not installed.
        ValueError: If a value is a text that is no number, or none of the words that the key knows.
    """
    for key, value in config.items():
        action = _actions(method).get(key)
        for one in value if isinstance(value, list) else [value]:
            if action is None or one is None:
                continue
            if isinstance(one, str) and callable(action.type):
                try:
                    is_number = isinstance(action.type(one), (int, float))
                except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                    raise ValueError(f"{key}={value!r} is not what `trl {method}` takes: {error}.") from error
                if is_number and isinstance(value, list):
                    raise ValueError(f"{key}={value!r} holds the text {one!r}. YAML's numbers have a point: 1.0e-5.")
            if action.choices is not None and one not in action.choices:
                raise ValueError(
                    f"{key}={value!r} is unknown.{_suggestion(str(one), list(action.choices))} Expected one of "
                    f"{list(action.choices)}, in quotation marks where YAML reads something else."
                )


@cache
def _actions(method: str) -> dict[str, argparse.Action]:
    """What TRL's parser knows of each key."""
    try:
        parser = importlib.import_module(f"trl.scripts.{method}").make_parser()
    except ImportError as error:
        raise ImportError('Training needs TRL: pip install "hf-lmmixup[train]".') from error
    return {action.dest: action for action in reversed(parser._actions)}  # the first one, not its `--no_...`


def _defaults(method: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe, and TRL's defaults of the others."""
    return {key: action.default for key, action in _actions(method).items()} | dict(config)


def check_rewards(paths: Sequence[str]) -> None:
    """Import every reward.

    Raises:
        ValueError: If a reward does not exist or cannot be called.
    """
    if not paths or isinstance(paths, str):
        found = "is empty" if not paths else f"is one text, {paths!r}, and no list"
        raise ValueError(f"reward_funcs {found}: list at least one, such as [hf_lmmixup.rewards.format_reward].")
    for path in paths:
        module_name, dot, name = str(path).rpartition(".")
        if not dot:
            if name not in TRL_REWARDS:
                raise ValueError(f"reward_funcs names {name!r}. Expected a dotted path or one of {list(TRL_REWARDS)}.")
            continue
        try:
            with _current_directory_importable():
                module = importlib.import_module(module_name)
        except ImportError as error:
            raise ValueError(f"reward_funcs names {path!r}, but {module_name} cannot be imported: {error}") from error
        if not callable(getattr(module, name, None)):
            there = [other for other in vars(module) if other.endswith(("_reward", "_monitor"))]
            raise ValueError(
                f"reward_funcs names {path!r}, but {module_name} has no {name!r}.{_suggestion(name, there)} "
                f"It offers {there}."
            )


def _check_group(config: Mapping[str, Any]) -> None:
    rewards, weights = config.get("reward_funcs") or [], config.get("reward_weights")
    if weights is not None and (not isinstance(weights, list) or len(weights) != len(rewards)):
        raise ValueError(f"reward_weights={weights!r} does not match reward_funcs. Expected {len(rewards)} numbers.")
    if config.get("num_generations") is not None and _whole(config, "num_generations") < 2:
        raise ValueError(
            f"num_generations={config['num_generations']}: GRPO compares those of one prompt. Expected at least 2."
        )
    known = _defaults("grpo", config)
    steps = _whole(known, "steps_per_generation") or _whole(known, "gradient_accumulation_steps")
    batch = _whole(known, "generation_batch_size") or _whole(known, "per_device_train_batch_size") * steps
    if (group := _whole(known, "num_generations")) and batch % group:
        raise ValueError(
            f"{batch} completions are sampled at a time (generation_batch_size, or per_device_train_batch_size x "
            f"steps_per_generation), which do not part into groups of num_generations={group}."
        )


def _check_packages(config: Mapping[str, Any]) -> None:
    wanted: dict[str, Any] = {name: name in (config.get("report_to") or ()) for name in ("trackio", "wandb")}
    wanted["bitsandbytes"] = config.get("load_in_4bit") or str(config.get("optim")).startswith(BITSANDBYTES)
    wanted["vllm"] = config.get("use_vllm")
    for package in wanted:
        if wanted[package] and importlib.util.find_spec(package) is None:
            raise ImportError(f"This training needs {package}: pip install {package}.")


def _whole(config: Mapping[str, Any], key: str) -> int:
    """A number of the recipe; 0 where there is none."""
    try:
        return int(config.get(key) or 0)
    except (TypeError, ValueError):
        raise ValueError(f"{key}={config[key]!r} is not a whole number.") from None


def _check_name(config: Mapping[str, Any]) -> None:
    named = [config.get("dataset_name"), *(part.get("path") for part in config.get("datasets") or [])]
    if REGISTERED in named:
        raise ValueError(
            f"`trl sft` does not know the name {REGISTERED!r}, since nothing in it imports hf_lmmixup. Name a folder, "
            "such as dataset_scripts/mixture, or a repository on the Hub."
        )


def _check_variables() -> None:
    for name in os.environ:
        if name.startswith("HF_LMMIXUP_") and name not in (*VARIABLES, MAX_PROMPT):
            raise ValueError(f"Unknown variable {name}.{_suggestion(name, [*VARIABLES, MAX_PROMPT])}")
    value = os.environ.get(MAX_PROMPT, "")
    if value and not value.isdecimal():
        raise ValueError(f"{MAX_PROMPT}={value!r} is not a number of tokens.")
    check_settings()


def _abstaining(paths: Sequence[str]) -> list[str]:
    names = [path for path in paths if path.rpartition(".")[2] in NEEDS_DATASTORE]
    if names and not os.environ.get("HF_LMMIXUP_DATASTORE"):
        return [f"HF_LMMIXUP_DATASTORE is not set, so {names[0]} cannot judge quality. Set it in `env:`."]
    return []


def _check_prompts(
    method: str, config: Mapping[str, Any], limits: Mapping[str, int], written: int, warnings: list[str]
) -> Checked:
    measured = measure_prompts(config)
    if method == "grpo" and measured.room is not None:
        limits = {**limits, "the model's positions - max_completion_length": measured.room - written}
    name, limit = min(limits.items(), key=lambda item: item[1], default=("", None))
    if limit is not None and measured.longest > limit:
        shorten = "Make clusters smaller" if limit > 0 else "Lower max_completion_length"
        raise ValueError(
            f"The prompt of row {measured.row} of {config.get('dataset_name')} has {measured.longest:,} tokens; the "
            f"limit is {limit:,} ({name}), which {measured.over(limit)} of {measured.rows:,} rows pass. "
            f"{'Raise max_length' if method == 'sft' else shorten} or drop such rows."
        )
    return Checked(measured.rows, measured.longest, limit, [*warnings, *measured.warnings(method, limit)])


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    """TRL finds modules in the current directory, so the check does."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())
