"""Where a second copy of everything that is finished is kept."""

from __future__ import annotations

from pydantic import Field

from srlm_pipeline.config.sections import Section


class ArchiveSettings(Section):
    """A durable copy of the project elsewhere; SRLM_ARCHIVE_URL overrides the address."""

    url: str | None = Field(
        None, description="any address that fsspec knows, e.g. s3://bucket/prefix; default: none, all stays local"
    )
    max_retries: int = Field(3, ge=0, description="of one file, with growing pauses")
