"""Messages with every field set, to a value that stands nowhere else, so that a field that is lost or mixed up shows."""

from itertools import count
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def filled(kind: type[M]) -> M:
    """A message of `kind` in which every field is set, all the way down."""
    message = kind()
    _fill(message, count(1))
    return message


def _fill(message: Message, numbers: "count[int]") -> None:
    if message.DESCRIPTOR.full_name == "google.protobuf.Timestamp":
        # Whole microseconds: what a datetime can hold.
        message.FromMicroseconds(1_800_000_000_000_000 + next(numbers))  # type: ignore[attr-defined]
        return
    for field in message.DESCRIPTOR.fields:
        target: Any = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value_type = field.message_type.fields_by_name["value"].cpp_type
            is_text = value_type == FieldDescriptor.CPPTYPE_STRING
            target[f"key-{next(numbers)}"] = f"value-{next(numbers)}" if is_text else next(numbers)
        elif field.is_repeated and field.message_type is not None:
            _fill(target.add(), numbers)
        elif field.is_repeated:
            target.append(_scalar(field, numbers))
        elif field.message_type is not None:
            target.SetInParent()
            _fill(target, numbers)
        else:
            setattr(message, field.name, _scalar(field, numbers))


def _scalar(field: Any, numbers: "count[int]") -> Any:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return f"text-{next(numbers)}"
        case FieldDescriptor.TYPE_BOOL:
            return True
        case FieldDescriptor.TYPE_ENUM:
            known = [value.number for value in field.enum_type.values if value.number]
            return known[next(numbers) % len(known)]
        case _:
            return next(numbers)
