"""What a request may ask for, as one schema: it reads the body, and OpenAPI shows it.

pydantic reads and checks the JSON; what it finds wrong becomes one :class:`Refusal`, in the words
of all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from shoal.core.distribution import installed_version
from shoal.serve.limits import Limits
from shoal.serve.requests import Refusal, seen

if TYPE_CHECKING:
    from pydantic import BaseModel

_DEFAULT_K = 5


def question_type(limits: Limits, labels: int) -> type[BaseModel]:
    """The object that a request's body holds.

    Args:
        limits: how much one request may ask for.
        labels: how many there are; a smaller number than 5 is the default of `k`.

    Example:
        >>> question_type(Limits(), labels=100)(texts=["a red mug"])
        Question(texts=['a red mug'], k=5)
    """
    from pydantic import ConfigDict, Field, create_model

    about = f"At most {limits.max_texts}, of at most {limits.max_characters} characters each."
    text = Annotated[str, Field(max_length=limits.max_characters)]
    texts = Field(max_length=limits.max_texts, description=about, examples=[["a red mug"]])
    k = Field(ge=1, le=min(limits.max_k, labels), description="Labels per text.")
    parts: dict[str, Any] = {
        "texts": (Annotated[list[text], texts], ...),
        "k": (Annotated[int, k], min(_DEFAULT_K, labels)),
    }
    return create_model("Question", __config__=ConfigDict(extra="forbid", strict=True), **parts)


def read_question(body: bytes, kind: type[BaseModel]) -> Any:
    """Read what a body asks for: an object with `texts` and `k`.

    Args:
        body: the JSON.
        kind: of :func:`question_type`.

    Raises:
        Refusal: 400 if the body is no JSON, 422 if it asks for something else or for too much.

    Example:
        >>> read_question(b'{"texts": ["a red mug"], "k": 2}', question_type(Limits(), labels=9)).k
        2
    """
    from pydantic import ValidationError

    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        refusal = _refusal(error.errors(include_url=False)[0], kind)
    raise refusal


def _refusal(wrong: Any, kind: type[BaseModel]) -> Refusal:
    """The first thing that pydantic found wrong, in the words of the service."""
    what, where, got = wrong["type"], wrong["loc"], wrong["input"]
    if what == "json_invalid":
        return Refusal(400, "body", "JSON in UTF-8", wrong["ctx"]["error"], "correct it")
    if what == "extra_forbidden":
        return Refusal(422, "body", 'only "texts" and "k"', seen(where[0]), "leave it out")
    if not where:
        return Refusal(422, "body", 'an object with "texts"', seen(got), "wrap the texts in one")
    if where[0] == "k":
        most = kind.model_json_schema()["properties"]["k"]["maximum"]
        remedy = "change it or leave it out"
        return Refusal(422, "k", f"a whole number in 1 … {most}", seen(got), remedy)
    name = "texts" if len(where) == 1 else f"texts[{where[1]}]"
    if what == "too_long":
        most = wrong["ctx"]["max_length"]
        return Refusal(422, name, f"at most {most}", len(got), "split the request")
    if what == "string_too_long":
        most = wrong["ctx"]["max_length"]
        return Refusal(422, name, f"at most {most} characters", len(got), "shorten it")
    if name == "texts":
        got = None if what == "missing" else got
        remedy = "put even one text into a list"
        return Refusal(422, name, "a list of strings", seen(got), remedy)
    return Refusal(422, name, "a string", seen(got), "quote it")


def openapi(kind: type[BaseModel], token: bool) -> dict[str, Any]:
    """The service in OpenAPI 3.1, for clients that are generated and for readers.

    Args:
        kind: of :func:`question_type`.
        token: whether requests must bring one.

    Example:
        >>> sorted(openapi(question_type(Limits(), labels=9), token=False)["paths"])
        ['/health', '/metrics', '/predict']
    """
    protected = {"security": [{"token": []}]} if token else {}
    asked = {"required": True, "content": _json(kind.model_json_schema())}
    predicted = _answers("Labels of each text, best first.", _json(_object(predictions=_ROWS)))
    predict = {"summary": "The best labels of each text.", "requestBody": asked, **protected}
    health = {"summary": "What is served, and whether it answers; status 503 where it does not."}
    state = _object(model={"type": "string"}, labels=_COUNT, ready={"type": "boolean"})
    metrics = {"summary": "Counts and times, as Prometheus reads them.", **protected}
    text = {"text/plain": {"schema": {"type": "string"}}}
    scheme = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}} if token else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "shoal serve", "version": installed_version()},
        "paths": {
            "/predict": {"post": predict | predicted},
            "/health": {"get": health | _answers("The state of the service.", _json(state))},
            "/metrics": {"get": metrics | _answers("The metrics.", text)},
        },
        "components": {"schemas": {"Error": _ERROR}} | scheme,
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answers(what: str, content: dict[str, Any]) -> dict[str, Any]:
    """The answer with status 200, and the one that stands for all others."""
    error = _json({"$ref": "#/components/schemas/Error"})
    refused = {"description": "What is wrong, and what to do.", "content": error}
    return {"responses": {"200": {"description": what, "content": content}, "default": refused}}


_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_ROWS = {
    "type": "array",
    "items": {
        "type": "array",
        "items": _object(label=_TEXT, title=_TEXT, score={"type": "number"}, position=_COUNT),
    },
}
_ERROR = _object(error=_object(name=_TEXT, expected=_TEXT, got=_TEXT, remedy=_TEXT))
