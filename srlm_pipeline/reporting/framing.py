"""Pages as MLflow shows them: each in a frame of its own that may run scripts, but can open no other page.

So the report carries the pages that it links to, and shows them in its own place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from html import escape

from srlm_pipeline.reporting.pages import render
from srlm_pipeline.reporting.reading import page_digest

_LINK = re.compile(r'<a href="(?P<name>[^"#]+)(?:#[^"]*)?"[^>]*>(?P<text>[^<]*)</a>')
_POLICY = re.compile(r'(<meta http-equiv="Content-Security-Policy" content=")[^"]*(">)')
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def framed(page: str, artifacts: Mapping[str, str], within: Collection[str] = ()) -> str:
    """Return a page whose links to pages that cannot be opened say where to look.

    Args:
        page: What `pages.render` returned.
        artifacts: Of the pages that it links to, by their addresses, what they are called in the run's list.
        within: Addresses of pages that can be shown in its place; links to these stay.
    """

    def told(link: re.Match[str]) -> str:
        address = link["name"]
        if ":" in address or address in within:
            return link[0]
        where = (
            f"{escape(artifacts[address])}, in the list of artifacts"
            if address in artifacts
            else "with that iteration's report"
        )
        return f'{link["text"]} <span class="soft small">({where})</span>'

    # Texts of others hold no "<" here.
    return _LINK.sub(told, page)


def with_pages(own: str, pages: Mapping[str, str]) -> str:
    """Return a page that carries others, and shows them in its own place when their links are followed.

    Args:
        own: The page's address, by which others link back to it.
        pages: It and the others, by address, as `pages.render` returned them.
    """
    told = {address: framed(page, {}, within=pages) for address, page in pages.items()}
    page = told.pop(own)
    script = render("framed.js")
    # Its own, and those of the pages that it shows; a policy that allows styles by digest allows no others.
    scripts = [script, *(text for other in told.values() for text in _SCRIPT.findall(other))]
    allowed = " ".join(f"'{page_digest(text)}'" for text in dict.fromkeys(scripts))
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"
    page = _POLICY.sub(lambda meta: f"{meta[1]}{policy}{meta[2]}", page, count=1)
    # Nothing in it may end the element.
    carried = json.dumps(told).replace("<", "\\u003c")
    data = f'<script type="application/json" id="pages" data-own="{escape(own)}">{carried}</script>'
    before, end, after = page.rpartition("</body>")
    return f"{before}{data}\n<script>{script}</script>\n{end}{after}"
