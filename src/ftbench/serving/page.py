"""The chat page, in one piece: it fetches nothing but this server's own answers."""

import base64
import hashlib
import json
from importlib.resources import files

from ftbench.serving.limits import Limits


def page(limits: Limits, *, keyed: bool) -> tuple[str, str]:
    """Return the page's HTML, and the content security policy under which nothing else runs in it."""
    folder = files("ftbench.serving")
    style, script, body = ((folder / f"page.{kind}").read_text("utf-8") for kind in ("css", "js", "html"))
    settings = json.dumps({"keyed": keyed, "reply_tokens": limits.reply_tokens, "messages": limits.messages})
    script = script.replace("/* settings */ {}", settings)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    return body.replace("/* style */", style).replace("/* script */", script), policy


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
