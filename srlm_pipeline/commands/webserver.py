"""Dagster's web server behind a guard: `python -m srlm_pipeline.commands.webserver`, arguments as `dagster-webserver`.

By itself the server takes mutations from any page that a browser on this machine has open: it runs them by GET, and
looks neither at the host that it is called by nor at the page that calls. Who may start a run may run code.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketClose

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

# Names by which the server may be called, parted by commas.
ALLOWED_HOSTS_VARIABLE = "SRLM_ALLOWED_HOSTS"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_REFUSED = 4403


class Guard:
    """ASGI middleware that lets through only what the server's own pages ask for.

    Args:
        app: What is guarded.
        hosts: Names by which the server may be called, without port.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to what is refused, and hand on the rest."""
        reason = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(code=_REFUSED, reason=reason)(scope, receive, send)
        else:
            await PlainTextResponse(f"Refused: {reason}.\n", status_code=403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        called = headers.get("host", "")
        if _name(f"//{called}") not in self._hosts:
            return f"this server is not called {called!r} (srlm ui --allowed-host)"
        origin = headers.get("origin")
        # A page of another port is another site too.
        if origin is not None and urlsplit(origin).netloc.lower() != called.lower():
            return "a page of another site asked for it"
        if scope["type"] == "websocket" or not scope["path"].endswith("/graphql"):
            return None
        if scope["method"] == "GET" and scope.get("query_string"):
            return "queries are posted"
        if scope["method"] == "POST" and not headers.get("content-type", "").startswith("application/json"):
            return "queries are posted as JSON"
        return None


def _name(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def main() -> None:
    """Start the server."""
    cli: Any = import_module("dagster_webserver.cli")
    hosts = os.environ.get(ALLOWED_HOSTS_VARIABLE, ",".join(LOOPBACK)).split(",")
    create = cli.create_app_from_workspace_process_context

    def guarded(*args: Any, **kwargs: Any) -> Any:
        app = create(*args, **kwargs)
        app.add_middleware(Guard, hosts=hosts)
        return app

    # Dagster offers no place for middleware.
    cli.create_app_from_workspace_process_context = guarded
    cli.main()


if __name__ == "__main__":
    main()
