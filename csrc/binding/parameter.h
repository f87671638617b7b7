// What an operator's schema says of its arguments.
#pragma once

#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>

#include <optional>
#include <string>
#include <string_view>

namespace torchgraft {

// What a schema's argument takes.
enum class Kind : uint8_t {
  Tensor,
  TensorList,
  OptionalTensorList,
  Scalar,
  ScalarList,
  Int,
  IntList,
  Float,
  FloatList,
  Bool,
  BoolList,
  String,
  StringList,
  DType,
  Device,
  Layout,
  MemoryFormat,
  Generator,
  Unsupported,
};

struct Parameter {
  std::string name;        // as in the schema
  std::string camel_name;  // as in JavaScript
  std::string type_text;
  Kind kind = Kind::Unsupported;
  bool optional = false;
  bool keyword_only = false;
  bool output = false;
  bool symbolic = false;     // SymInt: the interpreter's value is the same, kept for messages
  int32_t fixed_length = 0;  // N of int[N], which also takes a single number
  std::optional<c10::IValue> default_value;
};

Parameter make_parameter(const c10::Argument& argument);

// snake_case to camelCase; leading and trailing underscores stay.
std::string camel_case(std::string_view snake);

}  // namespace torchgraft
