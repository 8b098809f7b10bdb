"""The base of everything a scenario file can set: frozen, nothing unknown allowed, documented field by field."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

TargetModules = Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] | None


class Settings(BaseModel):
    """A group of settings; docstrings below its fields become their descriptions in the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def require_read(kind: str, target_modules: TargetModules) -> None:
    """ValueError for target modules of a kind of training that has none."""
    if target_modules is not None and kind != "lora":
        raise ValueError(f"method.target_modules are LoRA's; this method trains by {kind}")
