"""Reads the YAML configuration file: substitutes environment variables, converts and checks every field.

`python -m pipeline.job.yaml_file` prints the JSON Schema of the file, docs/config.schema.json. A test compares the two.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec import inspect as kinds

import pipeline.contract.config
from pipeline.contract.config import STREAM_DEFAULTS, STREAM_ID, JobConfig, StreamEntry
from pipeline.errors import ConfigError
from pipeline.redaction import redact_text

Place = tuple[str | int, ...]
"""path from the root of the configuration to a value, such as ("streams", "cam1", "classes", 0)"""

_Fields = TypeVar("_Fields", bound=msgspec.Struct)

_REFERENCE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(:(?P<default>[^{}]*))?\}")
_COMPLAINT = re.compile(r"(?P<fault>.*?)( - at `\$(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<field>\w+)|\[(?P<index>\d+)\]")
_FIELD_COMPLAINT = re.compile(r"Object (?P<fault>contains unknown|missing required) field `(?P<field>.*)`", re.DOTALL)
_YAML_TAG = "tag:yaml.org,2002:"
_LONGEST_SHOWN_VALUE = 60


def load_config(path: str | Path) -> JobConfig:
    """Read the YAML file at `path`. Raises ConfigError with one line that names the place of the error."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration file: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text, but byte {error.start} is not valid UTF-8") from None
    return parse_config(text, str(path), os.environ)


def parse_config(text: str, name: str, environment: Mapping[str, str]) -> JobConfig:
    """Parse the YAML document `text`; an empty document is an empty configuration.

    name          name of the file, for error messages
    environment   the environment variables that `${NAME}` refers to

    Raises ConfigError with one line: `NAME:LINE: FIELD: expected …, got VALUE`.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None or root.tag == _YAML_TAG + "null":
            return JobConfig()
        _prepare(root, (), environment, {})
        values = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        fault = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where}: {fault}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: cannot be read as YAML: {' '.join(str(error).split())}") from None

    def where_is(place: Place) -> str:
        return f"{name}:{_line_of(root, place)}: {_dotted(place) or 'the file'}"

    streams = values.get("streams") if isinstance(values, dict) else None
    for stream_id, entry in streams.items() if isinstance(streams, dict) else ():
        place = ("streams", stream_id)
        if not STREAM_ID.fullmatch(stream_id):
            raise ConfigError(f"{where_is(place)}: expected a stream id of 1 to 64 of the characters A-Z a-z 0-9 _ . -")
        convert_fields(entry, StreamEntry, where_is, place)
    return convert_fields(values, JobConfig, where_is)


def with_flags(config: JobConfig, flags: Mapping[str, Any]) -> JobConfig:
    """Return `config` with the command-line flags merged into it. A flag overrides the field of every stream, too.

    flags   field of JobConfig -> value, as text or already converted; None for a flag that was not given

    Raises ConfigError that names the flag.
    """
    given = {field: _number_or_text(value, field) for field, value in flags.items() if value is not None}
    converted = convert_fields(given, JobConfig, _flag_of)
    overruled = dict.fromkeys(given.keys() & set(StreamEntry.__struct_fields__))
    streams = {stream_id: msgspec.structs.replace(entry, **overruled) for stream_id, entry in config.streams.items()}
    return msgspec.structs.replace(config, **{field: getattr(converted, field) for field in given}, streams=streams)


def convert_fields(values: Any, kind: type[_Fields], where_is: Callable[[Place], str], base: Place = ()) -> _Fields:
    """Convert `values` to the struct `kind`.

    where_is   returns the name of a place for error messages
    base       place of `values` in the configuration

    Raises ConfigError for the first field that is unknown, of the wrong type or out of range.
    """
    for place, value in _leaves(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where_is(base + place)}: expected a finite number, got {value}")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        place, fault = _explain(str(error), values, kinds.type_info(kind))
        raise ConfigError(f"{where_is(base + place)}: {fault}") from None


def config_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the file, for editors. It allows `${NAME}` in place of a number."""
    schema = msgspec.json.schema(JobConfig)
    documentation = _documentation_of_fields()
    reference = {"type": "string", "pattern": r"^\$\{.*\}$"}
    for definition in schema["$defs"].values():
        for name, field in definition["properties"].items():
            default = {"default": field.pop("default")} if "default" in field else {}
            if default.get("default", 0) is None:
                default = {"default": getattr(STREAM_DEFAULTS, name, None)}
            field.pop("description", None)
            choices = field.get("anyOf", [field])
            scalar = all(choice.get("type") not in {"array", "object"} for choice in choices)
            if scalar and {"type": "string"} not in choices:
                choices = [*choices, reference]
            meaning = {"description": documentation[name]}
            definition["properties"][name] = (
                meaning | ({"anyOf": choices} if len(choices) > 1 else choices[0]) | default
            )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "MaskStream configuration"} | schema


def _number_or_text(value: Any, field: str) -> Any:
    """The number that the text of a flag stands for, if its field is a number; else `value` itself."""
    if not isinstance(value, str) or _takes_text(_kind_at(kinds.type_info(JobConfig), (field,))):
        return value
    for number in (int, float):
        with suppress(ValueError):
            return number(value)
    return value


def _dotted(place: Place) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


def _flag_of(place: Place) -> str:
    return "--" + str(place[0]).replace("_", "-")


def _prepare(node: yaml.Node, place: Place, environment: Mapping[str, str], visited: dict[int, bool]) -> None:
    """Substitute environment variables in the tree, and refuse duplicate keys, keys that are not text, and cycles.

    visited   id of a node -> whether the walk is inside it; with anchors, one node can be at several places
    """
    if id(node) in visited:
        if visited[id(node)]:
            raise yaml.constructor.ConstructorError(problem="refers to itself", problem_mark=node.start_mark)
        return
    visited[id(node)] = True
    if isinstance(node, yaml.MappingNode):
        known: set[str] = set()
        for key, value in node.value:
            if key.tag == _YAML_TAG + "merge":
                _prepare(value, place, environment, visited)
                continue
            if key.tag != _YAML_TAG + "str":
                number = isinstance(key, yaml.ScalarNode) and key.value
                fault = f"expected a name, got {key.value}: write it in quotes" if number else "expected a name"
                raise yaml.constructor.ConstructorError(problem=fault, problem_mark=key.start_mark)
            if key.value in known:
                raise yaml.constructor.ConstructorError(
                    problem=f"{_dotted((*place, key.value))} is given twice: remove one",
                    problem_mark=key.start_mark,
                )
            known.add(key.value)
            _prepare(value, (*place, key.value), environment, visited)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _prepare(item, (*place, index), environment, visited)
    elif isinstance(node, yaml.ScalarNode) and node.tag == _YAML_TAG + "str":
        _fill_in(node, place, environment)
    visited[id(node)] = False


def _fill_in(node: yaml.ScalarNode, place: Place, environment: Mapping[str, str]) -> None:
    """Replace `${NAME}` and `${NAME:default}`.

    A value that consists of one reference alone is read as YAML, so that it can be a number, unless the field takes
    text.
    """
    whole = _REFERENCE.fullmatch(node.value)

    def value_of(reference: re.Match[str]) -> str:
        value = environment.get(reference["name"], reference["default"])
        if value is None:
            raise yaml.constructor.ConstructorError(
                problem=f"{_dotted(place)}: the environment variable {reference['name']} is not set: "
                f"set it, or write ${{{reference['name']}:default}}",
                problem_mark=node.start_mark,
            )
        return value

    if "${" in _REFERENCE.sub("", node.value):
        raise yaml.constructor.ConstructorError(
            problem=f"{_dotted(place)}: expected ${{NAME}} or ${{NAME:default}} with a name of letters, digits and _",
            problem_mark=node.start_mark,
        )
    node.value = _REFERENCE.sub(value_of, node.value)
    if whole and not (node.value and _takes_text(_kind_at(kinds.type_info(JobConfig), place))):
        tag = str(yaml.resolver.Resolver().resolve(yaml.ScalarNode, node.value, (True, False)))  # type: ignore[no-untyped-call]
        if tag.removeprefix(_YAML_TAG) in {"null", "bool", "int", "float"}:
            node.tag = tag


def _kind_at(kind: kinds.Type | None, place: Place) -> kinds.Type | None:
    """The type of the value at `place` within `kind`; None if no value is expected there."""
    for step in place:
        kind = next((choice for choice in _choices(kind) if not isinstance(choice, kinds.NoneType)), None)
        if isinstance(kind, kinds.StructType):
            kind = next((field.type for field in kind.fields if field.name == step), None)
        elif isinstance(kind, kinds.DictType):
            kind = kind.value_type
        elif isinstance(kind, kinds.ListType):
            kind = kind.item_type
        else:
            return None
    return kind


def _choices(kind: kinds.Type | None) -> tuple[kinds.Type, ...]:
    """The alternatives of a union; for any other type, the type itself."""
    if isinstance(kind, kinds.UnionType):
        return kind.types
    return () if kind is None else (kind,)


def _takes_text(kind: kinds.Type | None) -> bool:
    return any(isinstance(choice, kinds.StrType) for choice in _choices(kind))


def _explain(complaint: str, values: Any, kind: kinds.Type) -> tuple[Place, str]:
    """The place of an msgspec error message, and its description in the words of this module."""
    match = _COMPLAINT.fullmatch(complaint)
    path = (match and match["path"]) or ""
    place: Place = tuple(step["field"] or int(step["index"]) for step in _STEP.finditer(path))
    value = values
    for step in place:
        value = value[step]
    about_field = _FIELD_COMPLAINT.match(complaint)
    if about_field is None:
        return place, f"expected {_describe(_kind_at(kind, place))}, got {_show(value)}"
    field = about_field["field"]
    if about_field["fault"] == "missing required":
        return (*place, field), f"expected {_describe(_kind_at(kind, (*place, field)))}, found nothing"
    owner = _kind_at(kind, place)
    known = [known.name for known in owner.fields] if isinstance(owner, kinds.StructType) else []
    return (*place, field), f"unknown field with the value {_show(value[field])}: {_suggest(field, known)}"


def _suggest(field: str, known: list[str]) -> str:
    if field not in known and field in JobConfig.__struct_fields__:
        return "it is an option of the whole job: set it at the top of the file"
    if field in StreamEntry.__struct_fields__:
        return "it is an option of a stream: set it under streams.NAME"
    close = difflib.get_close_matches(field.lower().replace("-", "_"), known, n=1)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"


def _describe(kind: kinds.Type | None) -> str:
    """The values that a field takes, in words."""
    match kind:
        case kinds.Metadata(type=inner, extra_json_schema=extra):
            return str((extra or {}).get("description", _describe(inner)))
        case kinds.UnionType(types=types):
            return " or ".join(_describe(choice) for choice in types if not isinstance(choice, kinds.NoneType))
        case kinds.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case kinds.IntType() | kinds.FloatType():
            name = "a whole number" if isinstance(kind, kinds.IntType) else "a number"
            if kind.ge is not None and kind.le is not None:
                return f"{name} from {kind.ge:g} to {kind.le:g}"
            if kind.ge is not None:
                return f"{name}, {kind.ge:g} or more"
            return f"{name} above {kind.gt:g}" if kind.gt is not None else name
        case kinds.StrType():
            return "text"
        case kinds.ListType(item_type=item):
            return f"a list{' of one or more' if kind.min_length else ''}, each {_describe(item)}"
        case _:
            return "a mapping"


def _show(value: Any) -> str:
    """A value for an error message: shortened, on one line, without credentials."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = redact_text(str(value))
    text = text if len(text) <= _LONGEST_SHOWN_VALUE else text[: _LONGEST_SHOWN_VALUE - 1] + "…"
    return repr(text) if isinstance(value, str) else text


def _leaves(values: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value that is neither a mapping nor a list, with its place."""
    if isinstance(values, dict | list):
        for step, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _leaves(value, (*place, step))
    else:
        yield place, values


def _line_of(node: yaml.Node, place: Place) -> int:
    """The line number, from 1, of the field at `place`, or of its closest parent that is in the file."""
    line = node.start_mark.line
    for step in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == step), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line
    return int(line) + 1


def _documentation_of_fields() -> dict[str, str]:
    """Field -> its docstring in pipeline/contract/config.py, on one line."""
    documentation: dict[str, str] = {}
    for definition in ast.parse(inspect.getsource(pipeline.contract.config)).body:
        if not isinstance(definition, ast.ClassDef):
            continue
        for field, text in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                documentation.setdefault(ast.unparse(field.target), " ".join(str(text.value.value).split()))
    return documentation


if __name__ == "__main__":
    print(json.dumps(config_json_schema(), indent=2))
