"""What a client may ask for, and how much at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Everything that is bounded; over it a request is refused."""

    body_bytes: int = 256_000
    messages: int = 256
    prompt_tokens: int = 4096
    reply_tokens: int = 1024
    rows: int = 32
    """Replies that a model writes at a time."""
    cache_tokens: int = 32_768
    """Tokens of prompts and replies, all rows of a model together, that keys and values may be kept of."""
    queue: int = 64
    """Requests that wait for a place."""
    seconds: float = 120.0
    """From a request's arrival to the end of its reply."""
    body_seconds: float = 20.0
    """In which a request's head has to arrive, its body after that, and in which a client has to read on."""
    requests: int = 512
    """Requests of any kind at once, those included whose body is still arriving."""
