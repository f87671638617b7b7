#include "convert.h"

#include <ATen/core/Generator.h>
#include <ATen/core/List.h>

#include <cmath>

#include "errors.h"

namespace torchgraft {

Given inspect(Environment& environment, napi_value value) {
  Given given;
  given.value = value;
  given.type = type_of(environment.env, value);
  if (given.type == napi_object) {
    given.tensor = environment.handles.find(environment.env, value);
    if (!given.tensor) {
      given.array = is_array(environment.env, value);
      if (!given.array) check(environment.env, napi_is_typedarray(environment.env, value, &given.typed_array));
    }
  }
  return given;
}

bool whole_number(napi_env env, napi_value value, int64_t& result) {
  double number = 0;
  if (napi_get_value_double(env, value, &number) != napi_ok || std::trunc(number) != number ||
      std::abs(number) > 9007199254740992.0) {
    return false;
  }
  result = static_cast<int64_t>(number);
  return true;
}

bool plain_scalar(napi_env env, const Given& given, at::Scalar& result) {
  double number = 0;
  if (napi_get_value_double(env, given.value, &number) != napi_ok) return false;
  const bool whole = std::trunc(number) == number && std::abs(number) <= 9007199254740992.0;
  // -0 keeps its sign.
  if (whole && !(number == 0 && std::signbit(number))) {
    result = at::Scalar(static_cast<int64_t>(number));
  } else {
    result = at::Scalar(number);
  }
  return true;
}

namespace {

bool is_integral(napi_env env, napi_value value) {
  int64_t ignored = 0;
  return whole_number(env, value, ignored);
}

// Whether the first element speaks for a list of this kind. Conversion checks the others.
bool list_accepts(Environment& environment, Kind kind, const Given& given) {
  if (!given.array) return false;
  if (array_length(environment.env, given.value) == 0) return true;
  const Given first = inspect(environment, element(environment.env, given.value, 0));
  switch (kind) {
    case Kind::TensorList:
      return first.tensor != nullptr;
    case Kind::OptionalTensorList:
      return first.tensor || first.type == napi_null || first.absent();
    case Kind::IntList:
      return first.type == napi_bigint || (first.type == napi_number && is_integral(environment.env, first.value));
    case Kind::FloatList:
      return first.type == napi_number;
    case Kind::ScalarList:
      return first.type == napi_number || first.type == napi_bigint || first.type == napi_boolean;
    case Kind::BoolList:
      return first.type == napi_boolean;
    case Kind::StringList:
      return first.type == napi_string;
    default:
      return false;
  }
}

}  // namespace

bool accepts(Environment& environment, const Parameter& parameter, const Given& given) {
  const napi_env env = environment.env;
  if (given.type == napi_null || given.absent()) return parameter.optional || parameter.default_value.has_value();
  switch (parameter.kind) {
    case Kind::Tensor:
      return given.tensor != nullptr;
    case Kind::Scalar:
      return given.type == napi_number || given.type == napi_bigint || given.type == napi_boolean;
    case Kind::Int:
      return given.type == napi_bigint || (given.type == napi_number && is_integral(env, given.value));
    case Kind::Float:
      return given.type == napi_number;
    case Kind::Bool:
      return given.type == napi_boolean;
    case Kind::String:
      return given.type == napi_string;
    case Kind::DType:
      return given.type == napi_string && parse_dtype(to_string(env, given.value)).has_value();
    case Kind::Device:
      return given.type == napi_string && parse_device(to_string(env, given.value)).has_value();
    case Kind::Layout:
      return given.type == napi_string && parse_layout(to_string(env, given.value)).has_value();
    case Kind::MemoryFormat:
      return given.type == napi_string && parse_memory_format(to_string(env, given.value)).has_value();
    case Kind::Generator:
      return given.type == napi_external;
    case Kind::IntList:
      if (parameter.fixed_length > 0 && given.type == napi_number) return is_integral(env, given.value);
      return list_accepts(environment, parameter.kind, given);
    case Kind::FloatList:
    case Kind::BoolList:
      if (parameter.fixed_length > 0 && (given.type == napi_number || given.type == napi_boolean)) return true;
      return list_accepts(environment, parameter.kind, given);
    case Kind::TensorList:
    case Kind::OptionalTensorList:
    case Kind::ScalarList:
    case Kind::StringList:
      return list_accepts(environment, parameter.kind, given);
    case Kind::Unsupported:
      return false;
  }
  return false;
}

namespace {

// The name that messages give an argument: `aten::add.Tensor: argument 'other'`.
std::string label(const char* op, const Parameter& parameter) {
  return std::string(op) + ": argument '" + parameter.camel_name + "'";
}

at::Scalar to_scalar(napi_env env, const Given& given, const std::string& what) {
  at::Scalar result;
  switch (given.type) {
    case napi_number:
      if (plain_scalar(env, given, result)) return result;
      break;
    case napi_bigint:
      return at::Scalar(int_arg(env, given.value, what.c_str()));
    case napi_boolean:
      return at::Scalar(bool_arg(env, given.value, what.c_str()));
    default:
      break;
  }
  refuse_value(env, given.value, what.c_str(), "a number, bigint or boolean");
}

template <typename Element, typename Convert>
c10::List<Element> to_list(napi_env env, const Given& given, const std::string& what, const char* expected,
                           Convert&& convert) {
  if (!given.array) refuse_value(env, given.value, what.c_str(), expected);
  const uint32_t length = array_length(env, given.value);
  c10::List<Element> list;
  list.reserve(length);
  for (uint32_t i = 0; i < length; ++i) list.push_back(convert(element(env, given.value, i)));
  return list;
}

c10::IValue to_int_list(napi_env env, const Parameter& parameter, const Given& given, const std::string& what) {
  if (parameter.fixed_length > 0 && (given.type == napi_number || given.type == napi_bigint)) {
    return c10::IValue(std::vector<int64_t>(parameter.fixed_length, int_arg(env, given.value, what.c_str())));
  }
  if (!given.array) {
    refuse_value(env, given.value, what.c_str(),
                 parameter.fixed_length > 0 ? "an integer or an array of integers" : "an array of integers");
  }
  const uint32_t length = array_length(env, given.value);
  std::vector<int64_t> values(length);
  for (uint32_t i = 0; i < length; ++i) {
    values[i] = int_arg(env, element(env, given.value, i), (what + "[" + std::to_string(i) + "]").c_str());
  }
  return c10::IValue(std::move(values));
}

// The values of most calls, converted without preparing the text of an error; nothing when the value is another or
// wrong.
std::optional<c10::IValue> to_plain_ivalue(napi_env env, const Parameter& parameter, const Given& given) {
  int64_t integer = 0;
  double number = 0;
  bool flag = false;
  switch (parameter.kind) {
    case Kind::Int:
      if (whole_number(env, given.value, integer)) return c10::IValue(integer);
      return std::nullopt;
    case Kind::Float:
      if (napi_get_value_double(env, given.value, &number) == napi_ok) return c10::IValue(number);
      return std::nullopt;
    case Kind::Bool:
      if (napi_get_value_bool(env, given.value, &flag) == napi_ok) return c10::IValue(flag);
      return std::nullopt;
    case Kind::IntList: {
      if (!given.array) return std::nullopt;
      const uint32_t length = array_length(env, given.value);
      c10::List<int64_t> values;
      values.reserve(length);
      for (uint32_t i = 0; i < length; ++i) {
        if (!whole_number(env, element(env, given.value, i), integer)) return std::nullopt;
        values.push_back(integer);
      }
      return c10::IValue(std::move(values));
    }
    default:
      return std::nullopt;
  }
}

}  // namespace

c10::IValue to_ivalue(Environment& environment, const Parameter& parameter, const Given& given, const char* op) {
  const napi_env env = environment.env;
  if (given.type == napi_null || given.absent()) {
    if (given.absent() && parameter.default_value) return *parameter.default_value;
    if (parameter.optional) return c10::IValue();
    if (parameter.default_value) return *parameter.default_value;
    throw ArgumentError(label(op, parameter) + ": expected " + parameter.type_text + ", given " +
                        (given.absent() ? "nothing" : "null"));
  }
  // The common case needs no text.
  if (parameter.kind == Kind::Tensor && given.tensor) {
    if (!given.tensor->tensor.defined()) {
      throw ArgumentError(label(op, parameter) + ": the tensor was freed, by its scope or by dispose(). " +
                          kFreedAdvice);
    }
    return c10::IValue(given.tensor->tensor);
  }
  if (auto plain = to_plain_ivalue(env, parameter, given)) return std::move(*plain);
  const std::string what = label(op, parameter);
  switch (parameter.kind) {
    case Kind::Tensor:
      refuse_value(env, given.value, what.c_str(), "a Tensor");
    case Kind::TensorList:
      return to_list<at::Tensor>(env, given, what, "an array of Tensors",
                                 [&](napi_value value) { return environment.tensor(value, what.c_str()); });
    case Kind::OptionalTensorList:
      return to_list<std::optional<at::Tensor>>(env, given, what, "an array of Tensors or nulls",
                                                [&](napi_value value) -> std::optional<at::Tensor> {
                                                  const napi_valuetype type = type_of(env, value);
                                                  if (type == napi_null || type == napi_undefined) return std::nullopt;
                                                  return environment.tensor(value, what.c_str());
                                                });
    case Kind::Scalar:
      return to_scalar(env, given, what);
    case Kind::ScalarList: {
      c10::impl::GenericList list(c10::NumberType::get());
      if (!given.array) refuse_value(env, given.value, what.c_str(), "an array of numbers");
      for (uint32_t i = 0; i < array_length(env, given.value); ++i) {
        list.push_back(to_scalar(env, inspect(environment, element(env, given.value, i)), what));
      }
      return list;
    }
    case Kind::Int:
      return int_arg(env, given.value, what.c_str());
    case Kind::IntList:
      return to_int_list(env, parameter, given, what);
    case Kind::Float:
      return number_arg(env, given.value, what.c_str());
    case Kind::FloatList:
      if (parameter.fixed_length > 0 && given.type == napi_number) {
        return c10::IValue(std::vector<double>(parameter.fixed_length, number_arg(env, given.value, what.c_str())));
      }
      return to_list<double>(env, given, what, "an array of numbers",
                             [&](napi_value value) { return number_arg(env, value, what.c_str()); });
    case Kind::Bool:
      return bool_arg(env, given.value, what.c_str());
    case Kind::BoolList: {
      if (parameter.fixed_length > 0 && given.type == napi_boolean) {
        c10::List<bool> list;
        for (int32_t i = 0; i < parameter.fixed_length; ++i) list.push_back(bool_arg(env, given.value, what.c_str()));
        return list;
      }
      return to_list<bool>(env, given, what, "an array of booleans",
                           [&](napi_value value) { return bool_arg(env, value, what.c_str()); });
    }
    case Kind::String:
      return string_arg(env, given.value, what.c_str());
    case Kind::StringList:
      return to_list<std::string>(env, given, what, "an array of strings",
                                  [&](napi_value value) { return string_arg(env, value, what.c_str()); });
    case Kind::DType:
      return static_cast<int64_t>(dtype_arg(env, given.value, what.c_str()));
    case Kind::Device:
      return device_arg(env, given.value, what.c_str());
    case Kind::MemoryFormat:
      return static_cast<int64_t>(memory_format_arg(env, given.value, what.c_str()));
    case Kind::Layout: {
      const auto layout = parse_layout(string_arg(env, given.value, what.c_str()));
      if (!layout) refuse_value(env, given.value, what.c_str(), "a layout ('strided', 'sparse_coo', ...)");
      return static_cast<int64_t>(*layout);
    }
    case Kind::Generator: {
      void* data = nullptr;
      bool ours = false;
      if (given.type != napi_external ||
          napi_check_object_type_tag(env, given.value, &kGeneratorTag, &ours) != napi_ok || !ours ||
          napi_get_value_external(env, given.value, &data) != napi_ok) {
        refuse_value(env, given.value, what.c_str(), "a generator made by generator()");
      }
      return *static_cast<at::Generator*>(data);
    }
    case Kind::Unsupported:
      break;
  }
  throw ArgumentError(what + ": values of type " + parameter.type_text + " cannot be passed from JavaScript");
}

namespace {

template <typename List>
napi_value from_list(Environment& environment, const List& list) {
  napi_value array = new_array(environment.env, list.size());
  uint32_t index = 0;
  for (const auto& item : list) {
    set(environment.env, array, index++, from_ivalue(environment, c10::IValue(item)));
  }
  return array;
}

}  // namespace

napi_value from_ivalue(Environment& environment, const c10::IValue& value) {
  const napi_env env = environment.env;
  if (value.isTensor()) return environment.wrap(value.toTensor());
  if (value.isNone()) return null(env);
  if (value.isInt()) return from_int(env, value.toInt());
  if (value.isSymInt()) return from_int(env, value.toSymInt().guard_int(__FILE__, __LINE__));
  if (value.isDouble()) return from_double(env, value.toDouble());
  if (value.isBool()) return from_bool(env, value.toBool());
  if (value.isString()) return from_string(env, value.toStringRef());
  if (value.isScalar()) {
    const at::Scalar scalar = value.toScalar();
    if (scalar.isComplex()) {
      const auto complex = scalar.toComplexDouble();
      const double parts[] = {complex.real(), complex.imag()};
      napi_value array = new_array(env, 2);
      for (uint32_t i = 0; i < 2; ++i) set(env, array, i, from_double(env, parts[i]));
      return array;
    }
    if (scalar.isBoolean()) return from_bool(env, scalar.toBool());
    return scalar.isFloatingPoint() ? from_double(env, scalar.toDouble()) : from_int(env, scalar.toLong());
  }
  if (value.isDevice()) return from_string(env, value.toDevice().str());
  if (value.isList()) return from_list(environment, value.toListRef());
  if (value.isTuple()) {
    const auto& elements = value.toTupleRef().elements();
    napi_value array = new_array(env, elements.size());
    for (uint32_t i = 0; i < elements.size(); ++i) set(env, array, i, from_ivalue(environment, elements[i]));
    return array;
  }
  throw std::runtime_error("a result of type " + value.tagKind() + " cannot be passed to JavaScript");
}

}  // namespace torchgraft
