// Conversion between JavaScript values and LibTorch's, driven by the types of an operator's schema.
#pragma once

#include <ATen/core/ivalue.h>

#include "environment.h"
#include "names.h"
#include "parameter.h"

namespace torchgraft {

// Marks the native objects that `generator()` makes.
inline constexpr napi_type_tag kGeneratorTag{0x9c1d5f0e6b7a4d21, 0x8a3e2f4c5d6b7a90};

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
