"""Parameters as a form: ``form = edit(params)`` shows it, ``form.params`` has what was chosen, always valid.

Texts are read as the experiment files are (YAML 1.2: ``1e-5`` is a number, ``null`` is None), and checked by the same classes.
"""

import html
import inspect
from typing import Any, Literal, get_args, get_origin

import ipywidgets as widgets
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from brite_lib.errors import InputError
from brite_lib.params import StageParams

INPUT = {"flex": "0 0 12em", "width": "12em"}  # no widget: one made on import would be in every executed notebook


class ParameterForm(widgets.VBox):
    """One field per parameter, those of the stage itself open, and a line on what differs; what is wrong is said there and in its row.

    Attributes:
        params: the last valid parameters.
        fields: the input widgets by name of the parameter.
        message: the line, as HTML.
    """

    def __init__(self, params: StageParams):
        self.params = params
        self.message = widgets.HTML()
        self.fields = {name: _field(info, getattr(params, name)) for name, info in type(params).model_fields.items()}
        self._notes = {name: widgets.HTML() for name in self.fields}
        for name, widget in self.fields.items():
            widget.observe(lambda _, name=name: self._read(name), "value")
        groups = _groups(type(params))
        boxes = [widgets.VBox([self._row(name) for name in names]) for names in groups.values()]
        self._read()
        super().__init__([self.message, widgets.Accordion(boxes, titles=tuple(groups), selected_index=0)])

    def _row(self, name: str) -> widgets.HBox:
        label = widgets.HTML(f"<code>{name}</code>", layout=widgets.Layout(flex="0 0 13em"))
        return widgets.HBox([label, self.fields[name], self._notes[name]])

    def _read(self, edited: str | None = None) -> None:
        for name, note in self._notes.items():
            note.value = f'<span style="opacity:.7">{html.escape(type(self.params).model_fields[name].description or "")}</span>'
        try:
            values = {name: _value(name, widget) for name, widget in self.fields.items()}
            self.params = type(self.params).parse(values, where="form")
        except InputError as error:
            sentence = html.escape(str(error))
            self.message.value = f'<b role="alert">{sentence}</b>; the last valid parameters are kept'
            if edited:  # the line above may be out of sight
                self._notes[edited].value = f"<b>{sentence}</b>"
            return
        derived = type(self.params).parse({}).difference()  # a default itself
        changed = {name: value for name, value in self.params.difference().items() if derived.get(name) != value}
        shown = ", ".join(f"{name} = {value}" for name, value in changed.items())
        self.message.value = f"differs from the defaults: {html.escape(shown) or 'nothing'}"


def edit(params: StageParams) -> ParameterForm:
    """A form of a stage's parameters, for a notebook that a person runs: ``form = edit(params)``, then ``params = form.params``."""
    return ParameterForm(params)


def _groups(cls: type[StageParams]) -> dict[str, list[str]]:
    """Names of the parameters by what the class that declares them first is for, the stage's own before what it shares with others."""
    groups: dict[str, list[str]] = {}
    for name in cls.model_fields:
        owner = [base for base in cls.__mro__ if name in vars(base).get("__annotations__", {})][-1]
        groups.setdefault(owner.__name__, []).append(name)
    own_first = [base for base in cls.__mro__ if base.__name__ in groups]
    return {inspect.getdoc(base).splitlines()[0].partition(" (")[0].rstrip("."): groups[base.__name__] for base in own_first}


def _field(info: FieldInfo, value: Any) -> widgets.ValueWidget:
    if info.annotation is bool:
        return widgets.Checkbox(value, indent=False, layout=INPUT)
    if get_origin(info.annotation) is Literal:
        return widgets.Dropdown(options=get_args(info.annotation), value=value, layout=INPUT)
    return widgets.Text(_text(value), continuous_update=False, layout=INPUT)


def _text(value: Any) -> str:
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    return "null" if value is None else str(value)


def _value(name: str, widget: widgets.ValueWidget) -> Any:
    if not isinstance(widget, widgets.Text):
        return widget.value
    try:
        return "" if widget.value == "" else YAML(typ="safe", pure=True).load(widget.value)
    except YAMLError:
        raise InputError(f"form: {name}: {widget.value!r} cannot be read; quote a text with special characters") from None
