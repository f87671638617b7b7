#include "parameter.h"

#include <ATen/core/jit_type.h>

#include <cctype>

namespace torchgraft {

std::string camel_case(std::string_view snake) {
  std::string result;
  size_t i = 0;
  while (i < snake.size() && snake[i] == '_') result += snake[i++];
  size_t end = snake.size();
  while (end > i && snake[end - 1] == '_') --end;
  for (; i < end; ++i) {
    if (snake[i] == '_' && i + 1 < end) {
      result += static_cast<char>(std::toupper(static_cast<unsigned char>(snake[++i])));
    } else {
      result += snake[i];
    }
  }
  return result + std::string(snake.substr(end));
}

namespace {

// The kind of a type that is not optional.
Kind kind_of(const c10::Type& type) {
  switch (type.kind()) {
    case c10::TypeKind::TensorType:
      return Kind::Tensor;
    case c10::TypeKind::NumberType:
      return Kind::Scalar;
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
      return Kind::Int;
    case c10::TypeKind::FloatType:
    case c10::TypeKind::SymFloatType:
      return Kind::Float;
    case c10::TypeKind::BoolType:
    case c10::TypeKind::SymBoolType:
      return Kind::Bool;
    case c10::TypeKind::StringType:
      return Kind::String;
    case c10::TypeKind::ScalarTypeType:
      return Kind::DType;
    case c10::TypeKind::DeviceObjType:
      return Kind::Device;
    case c10::TypeKind::LayoutType:
      return Kind::Layout;
    case c10::TypeKind::MemoryFormatType:
      return Kind::MemoryFormat;
    case c10::TypeKind::GeneratorType:
      return Kind::Generator;
    default:
      return Kind::Unsupported;
  }
}

Kind list_kind_of(const c10::Type& element) {
  if (element.kind() == c10::TypeKind::OptionalType) {
    const auto inner = element.castRaw<c10::OptionalType>()->getElementType();
    return inner->kind() == c10::TypeKind::TensorType ? Kind::OptionalTensorList : Kind::Unsupported;
  }
  switch (kind_of(element)) {
    case Kind::Tensor:
      return Kind::TensorList;
    case Kind::Scalar:
      return Kind::ScalarList;
    case Kind::Int:
      return Kind::IntList;
    case Kind::Float:
      return Kind::FloatList;
    case Kind::Bool:
      return Kind::BoolList;
    case Kind::String:
      return Kind::StringList;
    default:
      return Kind::Unsupported;
  }
}

}  // namespace

Parameter make_parameter(const c10::Argument& argument) {
  Parameter parameter;
  parameter.name = argument.name();
  parameter.camel_name = camel_case(argument.name());
  parameter.keyword_only = argument.kwarg_only();
  parameter.output = argument.is_out();
  parameter.default_value = argument.default_value();
  // real_type keeps the schema's own words (ScalarType, SymInt) where type has the interpreter's int.
  c10::TypePtr type = argument.real_type();
  parameter.type_text = type->str();
  if (type->kind() == c10::TypeKind::OptionalType) {
    parameter.optional = true;
    type = type->castRaw<c10::OptionalType>()->getElementType();
  }
  if (type->kind() == c10::TypeKind::ListType) {
    parameter.kind = list_kind_of(*type->castRaw<c10::ListType>()->getElementType());
    parameter.fixed_length = argument.N().value_or(0);
    if (parameter.fixed_length > 0) {
      const size_t bracket = parameter.type_text.rfind("[]");
      if (bracket != std::string::npos) {
        parameter.type_text.insert(bracket + 1, std::to_string(parameter.fixed_length));
      }
    }
  } else {
    parameter.kind = kind_of(*type);
  }
  return parameter;
}

}  // namespace torchgraft
