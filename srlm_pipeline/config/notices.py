"""What people are told of while nobody watches."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from srlm_pipeline.config.sections import Section

Occasion = Literal["promoted", "refused", "failed", "alarm"]


class NoticeSettings(Section):
    """Messages by mail, chat or webhook; none without addresses."""

    variable: str = Field(
        "SRLM_NOTICE_URLS",
        description="environment variable with addresses as Apprise knows them, parted by blanks: "
        "mailtos://user:password@host, slack://..., json://host/path",
    )
    about: tuple[Occasion, ...] = Field(
        get_args(Occasion),
        description="promoted, refused: the verdict on a model; failed: a run; alarm: a monitor that failed",
    )
    max_retries: int = Field(3, ge=0, description="of one message, with growing pauses")
