"""A chat request as OpenAI's API has it: what is understood, and no more."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ftbench.models.chat import Turn


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TextPart(_Strict):
    """A part of a message; text is the only kind."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """What one side said.

    OpenAI's clients send a reply back as they read it, with what it has not: those fields are taken as null alone.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @property
    def turn(self) -> Turn:
        """The same for the chat format."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class StreamOptions(_Strict):
    """What a stream tells besides."""

    include_usage: bool = False


class TextFormat(_Strict):
    """The only format of replies."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """The body of a request for a reply. What would change a reply and is not supported is refused, not ignored."""

    model: str = Field(description="one of those that /v1/models lists")
    messages: list[Message] = Field(min_length=1, description="the last one is the user's")
    max_tokens: int | None = Field(None, ge=1, description="of the reply")
    max_completion_tokens: int | None = Field(None, ge=1, description="the same under its newer name")
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default, is greedy, as evaluation is")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[str, Field(max_length=256)] | list[Annotated[str, Field(max_length=256)]] | None = Field(
        None, description="up to four strings before which the reply ends"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    response_format: TextFormat | None = None
    user: str | None = Field(None, description="ignored")

    @property
    def stops(self) -> list[str]:
        """All stop strings."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]

    @property
    def wanted(self) -> int | None:
        """Tokens that the reply may have, where that is said."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def first_fault(error: ValidationError) -> tuple[str, str | None]:
    """Return the first thing that is wrong with a body in a sentence, and which parameter that is of."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = [str(part) for part in fault["loc"] if not str(part).startswith(("function-", "list[", "constrained"))]
    # of a union pydantic names the member last, which no client knows
    name = ".".join(part for part in where if part not in ("str", "bool", "int", "float"))
    if fault["type"] == "extra_forbidden":
        return f"'{name[:80]}' is not supported here", name[:80] or None
    if fault["type"] == "json_invalid":
        return "the body is not valid JSON in UTF-8", None
    return f"{name or 'the body'}: {fault['msg'][:200]}", name or None


def request_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON schema of a body, and those that it refers to, by name."""
    body = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    return body, body.pop("$defs")
