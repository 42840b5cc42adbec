"""One problem: a question with its gold answer."""

from pydantic import BaseModel, ConfigDict, Field


class Problem(BaseModel):
    """A row of a problem set.

    ``rationale`` is a human's, where the data has one; ``tests`` and ``choices`` serve code and multiple choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    rationale: str | None = None
    level: str | None = None
    choices: list[str] | None = None
    tests: str | None = None
