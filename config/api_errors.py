"""How the API says no: the same reasons as the pages, as JSON."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError as DjangoValidationError
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser
from rest_framework.response import Response
from rest_framework.serializers import as_serializer_error
from rest_framework.views import exception_handler as default_handler

from labeling.exceptions import LabelingError, LeaseGone, NotQualified
from labeling.prompts import InvalidPrompt
from training.exceptions import Rejected


class BoundedJSONParser(JSONParser):
    """JSON whose nesting stays within what Python can follow."""

    def parse(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse(*args, **kwargs)
        except RecursionError:
            raise ParseError("The JSON is nested too deeply.") from None


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    if isinstance(error, InvalidPrompt):
        return Response({"detail": str(error)}, status=400)
    if isinstance(error, LeaseGone):
        return Response({"detail": str(error)}, status=410)
    if isinstance(error, NotQualified):
        return Response({"detail": str(error)}, status=403)
    if isinstance(error, DjangoValidationError):
        return Response(as_serializer_error(error), status=400)
    if isinstance(error, LabelingError | Rejected):
        return Response({"detail": str(error)}, status=409)
    return default_handler(error, context)
