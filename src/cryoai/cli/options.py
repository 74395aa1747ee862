"""The options of ``cryoai reconstruct``, taken from the model that holds them: names, types and descriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, create_model
from pydantic.fields import FieldInfo

from cryoai.run.config import ReconstructConfig

# Of the groups, which --config reaches whole, what is asked for often: option, group and name.
_OF_GROUPS = {"encoder": ("hybrid", "encoder")}


# What is a number or a word is read as such, and judged by the configuration, which says what is wrong in words.
_READ_AS = {"classes": int | str}


def _field(info: FieldInfo, annotation: Any = None) -> tuple[Any, None]:
    """The same option, or nothing: what was not given must not hide what a file says."""
    help_text = info.description or ""
    if info.default not in (None, False):
        help_text += f" Default: {info.default}."
    annotation = annotation or info.annotation
    return Annotated[annotation | None, Parameter(help=help_text, negative=(), show_default=False)], None


def _options() -> dict[str, tuple[Any, None]]:
    model = ReconstructConfig()
    fields = {
        name: _field(info, _READ_AS.get(name))
        for name, info in ReconstructConfig.model_fields.items()
        if not isinstance(getattr(model, name), BaseModel)
    }
    for option, (group, name) in _OF_GROUPS.items():
        fields[option] = _field(type(getattr(model, group)).model_fields[name])
    return fields


if TYPE_CHECKING:

    class ReconstructOptions(BaseModel):
        """Options that a user may give; ranges and combinations are checked by `load_config`."""

        def __init__(self, **options: Any) -> None: ...

else:
    ReconstructOptions = create_model("ReconstructOptions", __config__=ConfigDict(frozen=True), **_options())


def given_options(options: BaseModel | None) -> dict[str, Any]:
    """Those that were given, under the names of `ReconstructConfig`; ``"group.name"`` for one of a group."""
    values = {} if options is None else options.model_dump(exclude_none=True)
    return {".".join(_OF_GROUPS[name]) if name in _OF_GROUPS else name: value for name, value in values.items()}
