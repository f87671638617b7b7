// Conversion between JavaScript values and LibTorch's, driven by the types of an operator's schema.
#pragma once

#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>

#include <optional>
#include <string>

#include "environment.h"

namespace torchgraft {

// Names as the JavaScript side spells them: 'float32', 'channels_last', 'cuda:0', 'strided'.
const char* dtype_name(at::ScalarType type);
std::optional<at::ScalarType> parse_dtype(std::string_view name);
at::ScalarType dtype_arg(napi_env env, napi_value value, const char* what);
at::Device device_arg(napi_env env, napi_value value, const char* what);
at::MemoryFormat memory_format_arg(napi_env env, napi_value value, const char* what);

// Marks the native objects that `generator()` makes.
inline constexpr napi_type_tag kGeneratorTag{0x9c1d5f0e6b7a4d21, 0x8a3e2f4c5d6b7a90};

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

// A caller's value with what is cheap to know about it.
struct Given {
  napi_value value = nullptr;
  napi_valuetype type = napi_undefined;
  Handle* tensor = nullptr;  // when it is one of our tensors
  bool array = false;
  bool typed_array = false;
  bool absent() const { return type == napi_undefined; }
};

Given inspect(Environment& environment, napi_value value);

// Whether `given` could be converted for `parameter`, judged by its type alone (and, for strings, its spelling).
bool accepts(Environment& environment, const Parameter& parameter, const Given& given);

// The whole number that a value is, exactly; false for anything else.
bool whole_number(napi_env env, napi_value value, int64_t& result);

// The scalar that a JavaScript number is: whole numbers count as integers, as in PyTorch when written without a point.
bool plain_scalar(napi_env env, const Given& given, at::Scalar& result);

// Converts, or throws an ArgumentError that names operator, argument, expected and given.
c10::IValue to_ivalue(Environment& environment, const Parameter& parameter, const Given& given, const char* op);

napi_value from_ivalue(Environment& environment, const c10::IValue& value);

}  // namespace torchgraft
