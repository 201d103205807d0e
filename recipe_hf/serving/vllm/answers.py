"""Answers of vLLM's that say which facts were used: `recipe` beside what is in them."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from ...modeling.outputs import Retrieval
from .asking import Asking

# The first event of a stream that tells of no error.
_EVENT = re.compile(rb'^data: \{(?!"error")', re.MULTILINE)
_OBJECT = re.compile(rb"^\s*\{")


def told(retrieval: Retrieval) -> dict[str, Any]:
    """What an answer says of a look-up: whether a fact was used, and which."""
    used = [retrieval, *retrieval.others] if retrieval.fired else []
    names = ("id", "statement", "score", "threshold", "probability")
    return {
        "fired": retrieval.fired,
        "facts": [{name: getattr(hit, name) for name in names} for hit in used],
        "num_prompt_tokens": retrieval.num_prompt_tokens,
    }


class Telling:
    """Sends an answer on, with `recipe` put into its JSON object, or into the first event after the look-up.

    It is an object, or a list of them for a request with several prompts. An answer to a request that looked nothing
    up, an error, and what is not JSON, stays as it is.

    Args:
        send: Where to.
        asking: The request.
    """

    def __init__(self, send: Send, asking: Asking) -> None:
        self._send = send
        self._asking = asking
        self._start: Message | None = None
        self._opening: re.Pattern[bytes] | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._opening = self._kind(message)
            if self._opening is _OBJECT:
                self._start = message  # Its length will be another.
                return
        elif message["type"] == "http.response.body" and self._opening is not None:
            message = self._with_recipe(message)
            if self._start is not None:
                start, self._start = self._start, None
                await self._send(start)
        await self._send(message)

    def _kind(self, start: Message) -> re.Pattern[bytes] | None:
        headers = MutableHeaders(raw=start["headers"])
        if start["status"] != 200 or "content-encoding" in headers:
            return None
        kind = headers.get("content-type", "").partition(";")[0]
        return {"application/json": _OBJECT, "text/event-stream": _EVENT}.get(kind)

    def _with_recipe(self, message: Message) -> Message:
        body = message.get("body", b"")
        opening = self._opening and self._opening.search(body)
        if opening and self._asking.is_found():
            recipe = b'"recipe": ' + self._recipe() + b", "
            body = body[: opening.end()] + recipe + body[opening.end() :]
            self._opening = None
            if self._start is not None:
                headers = MutableHeaders(raw=self._start["headers"])
                if "content-length" in headers:
                    headers["content-length"] = str(int(headers["content-length"]) + len(recipe))
        return {**message, "body": body}

    def _recipe(self) -> bytes:
        found = [told(each.retrieval) for each in self._asking.looked if each.retrieval is not None]
        return json.dumps(found[0] if len(found) == 1 else found).encode()
