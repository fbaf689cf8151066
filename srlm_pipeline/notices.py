"""Telling people what happened while nobody watched: by mail, to a chat, to any webhook.

Addresses are those of Apprise (https://github.com/caronc/apprise/wiki), e.g. ``mailtos://user:password@host``,
``slack://...`` or ``json://host/path``. They hold secrets, and so come from the environment alone and appear in no
message.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from srlm_pipeline.config import NoticeSettings, Occasion, Settings
from srlm_pipeline.errors import NoticeError
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.store import ProjectStore

if TYPE_CHECKING:
    import apprise

# Seconds; every further one is twice as long.
_FIRST_PAUSE = 2.0


@dataclass(frozen=True)
class Notice:
    """Something that people want to know.

    Attributes:
        key: What happened to what, e.g. ``promoted/M2/3fa9...``; of one key one notice is sent.
        occasion: Of which kind it is.
        title: One line.
        text: The rest, in plain words.
    """

    key: str
    occasion: Occasion
    title: str
    text: str


def failure(project: str, run_id: str, job: str, reasons: Sequence[str]) -> Notice:
    """Return the notice of a failed run; whoever sees the failure first sends it."""
    return Notice(
        f"failed/{run_id}", "failed", f"{project}: the run `{job}` failed", "\n".join(f"- {r}" for r in reasons)
    )


def addresses(settings: NoticeSettings) -> list[str]:
    """Return the addresses in the environment."""
    return os.environ.get(settings.variable, "").split()


def tell(notice: Notice, settings: Settings, store: ProjectStore, warn: Callable[[str], None]) -> bool:
    """Send a notice to all addresses, unless nobody asked for its kind or it was sent before.

    That nobody could be told is no reason for anything else to fail.

    Args:
        notice: What to say.
        settings: `notices` is read.
        store: Keeps what was sent.
        warn: Called with the reason if it could not be sent.

    Returns:
        Whether it was sent now.
    """
    chosen, sent = settings.notices, Journal(store.journal_folder("notices"))
    told = addresses(chosen)
    if notice.occasion not in chosen.about or not told or sent.find([notice.key]):
        return False
    try:
        deliver(told, notice.title, notice.text, chosen)
    except NoticeError as error:
        warn(str(error))
        return False
    now = datetime.now(UTC).isoformat(timespec="seconds")
    sent.append({notice.key: {"occasion": notice.occasion, "title": notice.title, "sent": now}})
    return True


def deliver(
    told: Sequence[str],
    title: str,
    text: str,
    settings: NoticeSettings,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Send a message; an address that took it is not tried again.

    Args:
        told: Addresses.
        title: One line.
        text: The rest.
        settings: How often to try.
        pause: Called with the seconds to wait before another try.

    Raises:
        NoticeError: If an address cannot be read, or took nothing in all attempts; it is named by its number, for it
            holds secrets.
    """
    services = dict(enumerate(_services(told, settings), start=1))
    for attempt in range(settings.max_retries + 1):
        if attempt:
            pause(_FIRST_PAUSE * 2 ** (attempt - 1))
        services = {n: service for n, service in services.items() if not service.notify(title=title, body=text)}
        if not services:
            return
    raise NoticeError(
        f"address {', '.join(map(str, services))} in {settings.variable} did not take a message in "
        f"{settings.max_retries + 1} attempts: {title}"
    )


def service_names(settings: NoticeSettings) -> list[str]:
    """Return what kinds of service the addresses are of, e.g. ``Slack``.

    Raises:
        NoticeError: If an address cannot be read.
    """
    return [str(service[0].service_name) for service in _services(addresses(settings), settings)]


def _services(told: Sequence[str], settings: NoticeSettings) -> list[apprise.Apprise]:
    import apprise

    # It logs addresses, and what servers answer.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    services = []
    for number, address in enumerate(told, start=1):
        services.append(apprise.Apprise())
        if not services[-1].add(address):
            raise NoticeError(f"address {number} in {settings.variable} is none that Apprise knows")
    return services
