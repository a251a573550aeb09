"""Messages of a gRPC protocol, from the fields that we use of it: no generated code that must fit protobuf's version.

Fields that are not named are skipped when they are read, and keep their defaults where they are written.
"""

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

MESSAGE = re.compile(r"message (\w+) \{([^}]*)\}")
FIELD = re.compile(r"(repeated )?(map<string, (\w+)>|\w+) (\w+) = (\d+);")
SCALARS = {
    "double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9, "bytes": 12, "uint32": 13,
}  # fmt: skip
MESSAGE_TYPE, OPTIONAL, REPEATED = 11, 1, 3

Field = descriptor_pb2.FieldDescriptorProto


def messages(package: str, text: str) -> dict[str, Any]:
    """The message classes of some `message Name { type name = 1; repeated type name = 2; map<string, type> ... }`."""
    file = descriptor_pb2.FileDescriptorProto(name=f"recall/{package}.proto", package=package, syntax="proto3")
    for name, body in MESSAGE.findall(text):
        message = file.message_type.add(name=name)
        for repeated, kind, value, field, number in FIELD.findall(body):
            if value:
                entry = f"{field.title().replace('_', '')}Entry"
                nested = message.nested_type.add(name=entry)
                nested.options.map_entry = True
                _add(nested.field, package, ("key", 1, "string"), OPTIONAL)
                _add(nested.field, package, ("value", 2, value), OPTIONAL)
                _add(message.field, package, (field, int(number), f"{name}.{entry}"), REPEATED)
            else:
                _add(message.field, package, (field, int(number), kind), REPEATED if repeated else OPTIONAL)
    pool = descriptor_pool.DescriptorPool()  # of its own: official stubs of the same names may be loaded too
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{message.name}"))
        for message in file.message_type
    }


def _add(fields: Any, package: str, declared: tuple[str, int, str], label: int) -> None:
    name, number, kind = declared
    field = fields.add(name=name, number=number, label=label, type=SCALARS.get(kind, MESSAGE_TYPE))
    if kind not in SCALARS:
        field.type_name = f".{package}.{kind}"
