"""Ranges of constructor parameters that pydantic has no name for; the config is validated against them."""

from typing import Annotated

from pydantic import Field

Fraction = Annotated[float, Field(ge=0, le=1)]
AtLeastTwo = Annotated[int, Field(ge=2)]
AboveOne = Annotated[float, Field(gt=1)]
