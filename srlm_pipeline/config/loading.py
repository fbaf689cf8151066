"""One YAML file, validated, becomes typed settings.

A configuration file may start from a preset (``preset: quickstart``) and name only what differs. Unknown
keys are refused together with the nearest valid names, because a misspelt learning rate that is silently
ignored costs a night.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from srlm_pipeline.config.sections import Section, is_path, item_section_of, section_of
from srlm_pipeline.config.settings import Settings, describe_fields
from srlm_pipeline.errors import SettingsError

PRESETS = ("quickstart", "paper", "single-gpu")
# Of a configuration, aliases written out; the largest preset has some two hundred.
_MOST_VALUES = 10_000
_SHOWN = 200
_NEAREST = 3
log = logging.getLogger(__name__)
# How the command line hands its --set options to the definitions that it loads; JSON.
OVERRIDES_VARIABLE = "SRLM_OVERRIDES"


def load_settings(source: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read, merge and validate settings.

    Args:
        source: Preset name or path of a YAML file. None: the ``SRLM_CONFIG`` environment variable, else
            ``quickstart``.
        overrides: Nested mapping laid over the file, e.g. ``{"dpo": {"beta": 0.2}}``.

    Raises:
        SettingsError: With one sentence for every wrong field.
    """
    source = source or os.environ.get("SRLM_CONFIG") or "quickstart"
    if str(source) in PRESETS:
        merged = _read_preset(str(source))
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise SettingsError(
                [f"there is no such file, and no preset of that name (presets: {', '.join(PRESETS)})"], str(source)
            )
        own = _long_form(_read_yaml(path.read_bytes(), str(path)))
        preset = own.get("preset", "quickstart")
        if preset not in PRESETS:
            raise SettingsError([f"preset: unknown preset {preset!r}{_nearest(str(preset), PRESETS)}"], str(path))
        folder = path.resolve().parent
        own = _absolute_paths(own, Settings, folder)
        if own.get("storage") and "://" not in str(own["storage"]):
            own["storage"] = str((folder / Path(str(own["storage"])).expanduser()).resolve())
        merged = _lay_over(_read_preset(preset), own)
    over = _lay_over(_long_form(json.loads(os.environ.get(OVERRIDES_VARIABLE, "{}"))), _long_form(overrides or {}))
    merged = _lay_over(merged, over)
    problems = _unknown_keys(merged, Settings) or _not_from_outside(over)
    if not problems:
        try:
            return Settings.model_validate(merged)
        except ValidationError as error:
            problems = [f"{_key(e['loc'])}: {e['msg']} (got {_shortened(e['input'])})" for e in error.errors()]
    raise SettingsError(problems, str(source))


def _not_from_outside(over: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with overrides: whoever reaches the launchpad must not have other people's code run."""
    model = over.get("model")
    if isinstance(model, Mapping) and model.get("trust_remote_code"):
        return ["model.trust_remote_code: can be switched on in the configuration file alone, by no override"]
    return []


def parse_override(text: str) -> dict[str, Any]:
    """Turn ``dpo.beta=0.2`` into ``{"dpo": {"beta": 0.2}}``; the value is read as YAML.

    Raises:
        SettingsError: If there is no ``=`` or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SettingsError([f"{text!r} is not of the form section.key=value"], "--set")
    try:
        nested: Any = _parse_yaml(value)
    except ValueError as error:
        raise SettingsError([f"{_shortened(text)}: the value is not valid YAML: {error}"], "--set") from error
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return dict(nested)


def merge_overrides(texts: list[str]) -> dict[str, Any]:
    """Merge several ``section.key=value`` texts, later ones winning."""
    merged: dict[str, Any] = {}
    for text in texts:
        merged = _lay_over(merged, _long_form(parse_override(text)))
    return merged


def _read_preset(name: str) -> dict[str, Any]:
    text = files("srlm_pipeline.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return _read_yaml(text, name)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 5.5e-6 and 1e-4 as numbers, as everyone but YAML 1.1 does."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _parse_yaml(text: str | bytes) -> Any:
    """Return what a YAML document says.

    Raises:
        ValueError: Also for what YAML allows and nobody means: a key given twice, aliases that grow beyond measure.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _written_out(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for with all aliases written out.

    Args:
        node: Of the document.
        known: Results so far, by the nodes' identities.

    Raises:
        MarkedYAMLError: If there are too many, or a mapping has a key twice.
    """
    if id(node) in known:
        return known[id(node)]
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value in names[:place]:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
    known[id(node)] = 1 + sum(_written_out(child, known) for child in children)
    if known[id(node)] > _MOST_VALUES:
        raise yaml.MarkedYAMLError(problem="its aliases stand for too many values", problem_mark=node.start_mark)
    return known[id(node)]


def _read_yaml(text: str | bytes, name: str) -> dict[str, Any]:
    try:
        content = _parse_yaml(text)
    except ValueError as error:
        raise SettingsError([f"not valid YAML: {error}"], name) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError([f"expected `key: value` lines, found a {type(content).__name__}"], name)
    return content


def _long_form(content: Any, model: type[BaseModel] = Settings) -> Any:
    """Write out the sections given as a plain text, and former names as those of now, so that layers can be merged."""
    short = model.short_form if issubclass(model, Section) else None
    if short and isinstance(content, str):
        return {short: content}
    if not isinstance(content, Mapping):
        return content

    def written_out(key: str, value: Any) -> Any:
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        if section := section_of(annotation):
            return _long_form(value, section)
        items = item_section_of(annotation)
        return [_long_form(item, items) for item in value] if items and isinstance(value, list) else value

    return {k: written_out(k, v) for k, v in _with_new_names(content, model).items()}


def _with_new_names(content: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    renamed = model.renamed if issubclass(model, Section) else {}
    for old in content.keys() & renamed.keys():
        # Where both are given, the new name's is meant.
        log.warning("the setting %s is called %s now; the former name still works", old, renamed[old])
    return {renamed.get(k, k): v for k, v in content.items() if renamed.get(k) not in content}


def _absolute_paths(content: Any, model: type[BaseModel], folder: Path) -> Any:
    """Relative paths in a configuration file are relative to that file, where there is something of that name."""
    if not isinstance(content, Mapping):
        return content
    # A server's model is a name there, whatever lies here.
    asked = bool(content.get("server"))

    def absolute(key: str, value: Any) -> Any:
        field = model.model_fields.get(key)
        if field is None:
            return value
        if section := section_of(field.annotation):
            return _absolute_paths(value, section, folder)
        if isinstance(value, list):
            items = item_section_of(field.annotation)
            return [_absolute_paths(item, items, folder) if items else absolute(key, item) for item in value]
        found = isinstance(value, str) and is_path(field, value) and not asked and (folder / value).exists()
        return str((folder / value).resolve()) if found else value

    return {key: absolute(key, value) for key, value in content.items()}


def _lay_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _lay_over(merged[key], value)
        else:
            merged[key] = value
    return merged


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _key(location: tuple[int | str, ...]) -> str:
    # Pydantic marks an error in a mapping's key so.
    return ".".join(str(part) for part in location if part != "[key]")


def _unknown_keys(content: Mapping[str, Any], model: type[BaseModel], prefix: str = "") -> list[str]:
    problems: list[str] = []
    for key, value in content.items():
        if key not in model.model_fields:
            valid = [k for k, _, _ in describe_fields()] if not prefix else list(model.model_fields)
            near = _nearest(str(key), list(dict.fromkeys([*model.model_fields, *valid])))
            problems.append(f"{prefix}{key}: unknown setting{near}")
            continue
        annotation = model.model_fields[key].annotation
        section, items = section_of(annotation), item_section_of(annotation)
        if section is not None and isinstance(value, Mapping):
            problems += _unknown_keys(value, section, f"{prefix}{key}.")
        if items is not None and isinstance(value, list):
            for place, item in enumerate(value):
                problems += _unknown_keys(item, items, f"{prefix}{key}.{place}.") if isinstance(item, Mapping) else []
    return problems


def _nearest(word: str, valid: Sequence[str]) -> str:
    """Return a hint with the three names that are most like a word, or where all names are listed."""
    # A name without its section is as near as one with it.
    ends = {name.rpartition(".")[2]: name for name in reversed(valid)}
    close = difflib.get_close_matches(word, [*valid, *ends], n=2 * _NEAREST, cutoff=0.4)
    found = list(dict.fromkeys(name if name in valid else ends[name] for name in close))[:_NEAREST]
    if not found and len(valid) <= _NEAREST:
        found = list(valid)
    if not found:
        return "; `srlm settings` lists all"
    quoted = [repr(name) for name in found]
    return f"; did you mean {' or '.join(filter(None, (', '.join(quoted[:-1]), quoted[-1])))}?"
