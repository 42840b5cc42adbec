"""What all parameters share: strict validation with one-sentence errors, number types and paths."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from brite_lib.errors import InputError

PROJECT_ROOT = Path(__file__).resolve().parents[2]


def _number(value: Any) -> Any:
    """``"1e-5"`` (papermill's YAML 1.1) is a number, ``true`` is none."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, BeforeValidator(_number), Field(gt=0)]
NonNegativeInt = Annotated[int, BeforeValidator(_number), Field(ge=0)]


def resolve_path(path: str | Path) -> Path:
    """A path as given if it exists, else below the project root (a notebook's working directory varies).

    Raises:
        InputError: for what no path can be: a name that is too long, ``~`` of an unknown user.
    """
    try:
        found = Path(path).expanduser()
        return found if found.exists() or found.is_absolute() else PROJECT_ROOT / found
    except (OSError, RuntimeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise InputError(f"{str(path)[:60]}: is no path: {reason}") from None


def is_toy(data: str) -> bool:
    """Whether the problems are the embedded task's."""
    return data == "toy" or data.startswith("toy:")


def is_path(name: str) -> bool:
    """Whether a model or data name means something on this disk.

    It does if it exists, starts with ``/``, ``.`` or ``~``, ends like a data file, or contains ``/`` and is not ``org/name``;
    ``org/name`` itself is a path if ``org`` is a directory here (so a misspelt ``assets/tiny-bsae`` is not sent to the hub).
    """
    parts = name.split("/")
    return (
        name.startswith(("/", ".", "~"))
        or name.removesuffix(".gz").endswith((".jsonl", ".parquet", ".json", ".csv"))
        or len(parts) > 2
        or (len(parts) == 2 and (not all(parts) or resolve_path(parts[0]).is_dir()))
        or resolve_path(name).exists()
    )


class Strict(BaseModel):
    """Base of all parameters: unknown names are errors that suggest the nearest known one."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _only_known_names(cls, values: Any) -> Any:
        """As pydantic would, but in a sentence that suggests the nearest name."""
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(f"{name}: is no parameter of {cls.__name__}{suggestion(str(name), cls.model_fields)}")
        return values

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "") -> Self:
        """Validate ``values``.

        Raises:
            InputError: one sentence naming ``where``, the key and what is wrong with it.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(_sentence(error, where)) from None

    def difference(self) -> dict[str, Any]:
        """The settings that are not the default, ready for JSON."""
        return self.model_dump(mode="json", exclude_defaults=True)


def read_mapping(path: Path, what: str, where: str = "") -> dict[str, Any]:
    """A YAML 1.2 file (``1e-5`` is a number) that holds one mapping.

    Args:
        what: is mapped, for the error.
        where: names the file in errors; empty: its path.

    Raises:
        InputError: one sentence, if it is something else.
    """
    from ruamel.yaml import YAML  # here, as `make gpu-check` starts without it
    from ruamel.yaml.error import YAMLError

    where = where or str(path)
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise InputError(f"{where}: must be a mapping of {what}, found {found}")
    return values


def suggestion(name: str, known: Any) -> str:
    """``"; did you mean 'steps'?"`` when a known name is near, else the known names."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else (f"; known: {', '.join(known)}" if known else "")


def _sentence(error: ValidationError, where: str) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    problem = "is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    if key and first["type"] != "missing":
        problem += f" (got {json.dumps(first['input'], default=str)[:80]})"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return ": ".join(part for part in (where, key, problem) if part) + more
