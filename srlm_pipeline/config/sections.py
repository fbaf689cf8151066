"""What a group of settings is, and what a change of one of them means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_DATA = "embedded"
EMBEDDED_ENCODER = "all-MiniLM-L6-v2"
Role = Literal["result", "verdict", "resources"]
_ROLE, _NO_PATHS = "role", "no_paths"


def verdict(default: Any, **more: Any) -> Any:
    """Return a field that decides only what is thought of a result, as a threshold does; see `role_of`."""
    return Field(default, json_schema_extra={_ROLE: "verdict"}, **more)


def resources(default: Any, **more: Any) -> Any:
    """Return a field that decides only how something is computed, as a batch size does; see `role_of`."""
    return Field(default, json_schema_extra={_ROLE: "resources"}, **more)


def role_of(field: FieldInfo) -> Role:
    """Return what a change of a setting means.

    ``result``: something else comes out, so what was made with another value is stale. ``verdict``: the same comes
    out, and is judged anew. ``resources``: the same comes out, and nothing is done again.
    """
    extra = field.json_schema_extra
    role: Any = extra.get(_ROLE, "result") if isinstance(extra, dict) else "result"
    return cast("Role", role)


def path(default: Any, *words: str, **more: Any) -> Any:
    """Return a field that may name a file or folder; relative ones are relative to the configuration file.

    Args:
        default: Of the field.
        words: Values that are never paths, beside the default.
        more: Arguments of `pydantic.Field`.
    """
    return Field(default, json_schema_extra={_NO_PATHS: [default, *words]}, **more)


def is_path(field: FieldInfo, value: object) -> bool:
    """Whether a value of a field may be a path."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and _NO_PATHS in extra and value not in cast("list[str]", extra[_NO_PATHS])


class Section(BaseModel):
    """A group of settings; immutable, and closed to unknown keys.

    Attributes:
        short_form: The field that a plain text in place of the whole section stands for, if there is one.
        apart: Results that are no part of the section's fingerprint: most of its readers do not depend on them.
        renamed: Former names of fields, with those that they have now.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    short_form: ClassVar[str | None] = None
    apart: ClassVar[frozenset[str]] = frozenset()
    renamed: ClassVar[Mapping[str, str]] = {}

    def results(self) -> dict[str, Any]:
        """Return what the section's readers make something else of, by name."""
        fields = type(self).model_fields
        return {k: v for k, v in self if k not in self.apart and role_of(fields[k]) == "result"}

    def short(self) -> Any:
        """Return the field that stands for the whole section, or the section itself."""
        return getattr(self, self.short_form) if self.short_form else self

    @field_validator("*")
    @classmethod
    def _names_something(cls, value: Any, info: ValidationInfo) -> Any:
        # A blank path would be the folder that happens to be the current one.
        if isinstance(value, str) and not value.strip() and is_path(cls.model_fields[str(info.field_name)], value):
            raise ValueError("is blank; name a file, a folder, or what else the setting takes")
        return value

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, value: Any) -> Any:
        return {cls.short_form: value} if cls.short_form and isinstance(value, str) else value


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a setting is, if it is one."""
    if get_origin(annotation) in (tuple, dict):
        return None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def item_section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section of which a setting is a list, if it is one."""
    return section_of(get_args(annotation)[0]) if get_origin(annotation) is tuple else None
