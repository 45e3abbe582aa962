"""What a form sends. Forms of ours carry a few short fields and no file, so no more than that is read."""

from collections.abc import Mapping
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl

from fastapi import Depends, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

_LONGEST = 16_384
_MOST_FIELDS = 50
_MEDIA_TYPE = "application/x-www-form-urlencoded"


async def form_of(request: Request) -> Mapping[str, str]:
    """Return a form's fields; of one that was sent twice, the last.

    Raises:
        HTTPException: 415 where it is no such form, 413 where it is too long, 422 where it can't be read.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _MEDIA_TYPE:
        raise HTTPException(415, f"Send the form as {_MEDIA_TYPE}.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST:
            raise HTTPException(413, f"A form may be {_LONGEST} bytes long.")
    try:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError as error:
        raise HTTPException(422, "The form can't be read.") from error
    if any("\0" in value for value in fields.values()):
        raise HTTPException(422, "A field holds a NUL character, which no database keeps.")
    return fields


Model = TypeVar("Model", bound=BaseModel)


def read_form(form: Mapping[str, str], model: type[Model]) -> Model:
    """Read a form's fields as a model has them; raise `RequestValidationError` where they mean nothing."""
    try:
        return model.model_validate(dict(form))
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("form", *each["loc"])} for each in error.errors()]) from error


Form = Annotated[Mapping[str, str], Depends(form_of)]
