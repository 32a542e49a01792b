"""What Envoy sends and takes (envoy.service.ratelimit.v3), as far as it is used here.

Only the numbers and kinds of fields go over the wire, so the messages stand here in a few lines,
in a pool of their own, in place of Envoy's many proto files.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

SERVICE, METHOD = "envoy.service.ratelimit.v3.RateLimitService", "ShouldRateLimit"
OK, OVER_LIMIT = 1, 2
UNITS = {"second": 1, "minute": 2, "hour": 3, "day": 4, "month": 5, "year": 6}

_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "Request": {"domain": (1, "string"), "descriptors": (2, "*Descriptor"), "hits": (3, "uint32")},
    "Descriptor": {"entries": (1, "*Entry"), "hits": (3, "UInt64Value")},
    "Entry": {"key": (1, "string"), "value": (2, "string")},
    "UInt64Value": {"value": (1, "uint64")},
    "Response": {"overall_code": (1, "int32"), "statuses": (2, "*Status")},
    "Status": {
        "code": (1, "int32"),
        "current_limit": (2, "Limit"),
        "limit_remaining": (3, "uint32"),
        "duration_until_reset": (4, "Duration"),
    },
    "Limit": {"requests_per_unit": (1, "uint32"), "unit": (2, "int32"), "name": (3, "string")},
    "Duration": {"seconds": (1, "int64")},
}
"""By message and field: its number and kind; * for many. Enumerations are numbers."""


def _pool() -> Any:
    package = "kuznia.limits"
    file = FileDescriptorProto(name="kuznia/limits.proto", package=package, syntax="proto3")
    for message, fields in _FIELDS.items():
        made = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = made.field.add(name=name, number=number)
            field.label = (
                FieldDescriptorProto.LABEL_REPEATED
                if kind.startswith("*")
                else FieldDescriptorProto.LABEL_OPTIONAL
            )
            kind = kind.lstrip("*")
            if kind in _FIELDS:
                field.type = FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".{package}.{kind}"
            else:
                field.type = getattr(FieldDescriptorProto, f"TYPE_{kind.upper()}")
    pool = DescriptorPool()
    pool.Add(file)
    return {
        name: GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in _FIELDS
    }


_CLASSES = _pool()
Request: Any = _CLASSES["Request"]
Response: Any = _CLASSES["Response"]
Status: Any = _CLASSES["Status"]
Limit: Any = _CLASSES["Limit"]
