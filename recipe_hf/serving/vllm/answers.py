"""Answers of vLLM's that say which facts were used: `recipe` beside what is in them."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from ..openai.generation import about
from .asking import Asking

# Where an object begins that has something in it, and an event that tells of no error.
_OBJECT = re.compile(rb'^\s*\{(?=\s*")')
_EVENT = re.compile(rb'^data: \{(?=")(?!"error")', re.MULTILINE)


class Telling:
    """Sends an answer on, with `recipe` put into its JSON object, or into the first event after the look-up.

    Of a request with several prompts it tells what was found for the first one; a whole answer to it tells in each
    choice what was found for its own. An answer for which nothing was looked up, an error, and what is not JSON, stays
    as it is.

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
            body = message.get("body", b"")
            told = self._told(body, message.get("more_body", False))
            if self._start is not None:
                headers = MutableHeaders(raw=self._start["headers"])
                if "content-length" in headers:
                    headers["content-length"] = str(int(headers["content-length"]) + len(told) - len(body))
                start, self._start = self._start, None
                await self._send(start)
            message = {**message, "body": told}
        await self._send(message)

    def _kind(self, start: Message) -> re.Pattern[bytes] | None:
        headers = MutableHeaders(raw=start["headers"])
        if start["status"] != 200 or "content-encoding" in headers:
            return None
        kind = headers.get("content-type", "").partition(";")[0]
        return {"application/json": _OBJECT, "text/event-stream": _EVENT}.get(kind)

    def _told(self, body: bytes, more: bool) -> bytes:
        """A part of the answer, with `recipe` if that is its place."""
        opening = self._opening and self._opening.search(body)
        if not opening or not (found := [about(retrieval) for retrieval in self._asking.found()]):
            return body
        whole = self._opening is _OBJECT and not more
        self._opening = None
        if whole and len(found) > 1:
            return _in_choices(body, found)
        recipe = b'"recipe": ' + json.dumps(found[0]).encode() + b", "
        return body[: opening.end()] + recipe + body[opening.end() :]


def _in_choices(body: bytes, found: list[dict[str, Any]]) -> bytes:
    answer = json.loads(body)
    choices = answer.get("choices", [])
    for position, choice in enumerate(choices):
        choice["recipe"] = found[position * len(found) // len(choices)]
    return json.dumps({"recipe": found[0], **answer}, ensure_ascii=False).encode()
