"""Text that comes token by token: whole characters, up to where a stop string begins."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNKNOWN = "\ufffd"  # What a tokenizer makes of a character that is not whole yet.


class Decoder:
    """Turns tokens into text as they come. The parts make what the tokens are decoded to together."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # What precedes decides how a token is written: the last ones that made whole characters are kept for that.
        self._context = 0
        self._shown = ""

    def add(self, token: int) -> str:
        """The whole characters that are there since the last token."""
        self._ids.append(token)
        text = self._text()
        whole = text.rstrip(_UNKNOWN)
        new = whole[len(self._shown) :]
        self._shown += new
        if whole == text:
            del self._ids[: self._context]
            self._context = len(self._ids)
            self._shown = self._text()
        return new

    def end(self) -> str:
        """What is left of a character that did not become whole."""
        return self._text()[len(self._shown) :]

    def _text(self) -> str:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)


class StopStrings:
    """Holds back what may be the beginning of a stop string, and ends the text where one is whole."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What of the text so far can be shown that was not yet."""
        self._held += text
        places = [place for string in self._strings if (place := self._held.find(string)) >= 0]
        if places:
            self.found = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = max((self._begun(string) for string in self._strings), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        shown, self._held = self._held, ""
        return shown

    def _begun(self, string: str) -> int:
        """How many characters of a string the text ends with."""
        most = min(len(string) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(string[:n])), 0)
