"""The base of everything a scenario file can set: frozen, nothing unknown allowed, documented field by field."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of settings; docstrings below its fields become their descriptions in the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
