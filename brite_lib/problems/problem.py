"""One problem: a question with its gold answer."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Problem(BaseModel):
    """A row of a problem set; its columns are given by name or in this order.

    ``rationale`` is a human's, where the data has one; ``tests`` and ``choices`` serve code and multiple choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    rationale: str | None = None
    level: str | None = None
    choices: list[str] | None = None
    tests: str | None = None

    def __init__(self, *columns: Any, **named: Any):
        known = list(type(self).model_fields)
        if len(columns) > len(known):
            raise TypeError(f"a Problem has {len(known)} columns ({', '.join(known)}), found {len(columns)} values")
        super().__init__(**dict(zip(known, columns, strict=False)), **named)
