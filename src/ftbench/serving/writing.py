"""From tokens to the text of a reply, piece by piece: whole characters, and nothing of a stop string."""

from collections.abc import Sequence

from ftbench.models.chat import ChatFormat

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class ReplyText:
    """The text of a reply that grows by tokens; all pieces together are what `ChatFormat.reply_text` gives.

    Args:
        chat: the format that the reply is written in.
        stops: strings before which the reply ends.
    """

    def __init__(self, chat: ChatFormat, stops: Sequence[str] = ()) -> None:
        self._chat = chat
        self._stops = tuple(stop for stop in stops if stop)
        self.tokens: list[int] = []
        self.sent = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token in, and return what is now certain; `stopped` says whether a stop string has been met."""
        self.tokens.append(token)
        text = self._chat.written_text(self.tokens)  # a stop string may be blank, or end so
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped = True
            return self._send(text[: min(found)].strip())
        return self._send(text[: len(text) - self._uncertain(text)].strip())

    def finish(self) -> str:
        """Return the rest of the reply."""
        return "" if self.stopped else self._send(self._chat.reply_text(self.tokens))

    def _send(self, text: str) -> str:
        if not text.startswith(self.sent):
            return ""
        piece = text[len(self.sent) :]
        self.sent = text
        return piece

    def _uncertain(self, text: str) -> int:
        """How many characters at the end may still change, or be the beginning of a stop string."""
        held = len(text) - len(text.rstrip(UNFINISHED))
        for stop in self._stops:
            longest = min(len(stop) - 1, len(text))
            held = max(held, next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0))
        return held
