#include "napi.h"

#include <cmath>

namespace torchgraft {

void check(napi_env env, napi_status status) {
  if (status == napi_ok) return;
  bool pending = false;
  napi_is_exception_pending(env, &pending);
  if (pending || status == napi_pending_exception) throw PendingException{};
  const napi_extended_error_info* info = nullptr;
  napi_get_last_error_info(env, &info);
  throw std::runtime_error(info && info->error_message ? info->error_message : "a Node-API call failed");
}

std::string to_string(napi_env env, napi_value value) {
  // Most strings here are dtype and device names: read them in one call.
  char small[64];
  size_t length = 0;
  check(env, napi_get_value_string_utf8(env, value, small, sizeof small, &length));
  if (length + 1 < sizeof small) return std::string(small, length);
  check(env, napi_get_value_string_utf8(env, value, nullptr, 0, &length));
  std::string text(length, '\0');
  check(env, napi_get_value_string_utf8(env, value, text.data(), length + 1, &length));
  return text;
}

napi_value from_string(napi_env env, std::string_view text) {
  napi_value value;
  check(env, napi_create_string_utf8(env, text.data(), text.size(), &value));
  return value;
}

napi_value from_double(napi_env env, double number) {
  napi_value value;
  check(env, napi_create_double(env, number, &value));
  return value;
}

napi_value from_bool(napi_env env, bool flag) {
  napi_value value;
  check(env, napi_get_boolean(env, flag, &value));
  return value;
}

napi_value from_int(napi_env env, int64_t number) {
  constexpr int64_t exact = int64_t{1} << 53;
  napi_value value;
  if (number >= -exact && number <= exact) {
    check(env, napi_create_int64(env, number, &value));
  } else {
    check(env, napi_create_bigint_int64(env, number, &value));
  }
  return value;
}

napi_value undefined(napi_env env) {
  napi_value value;
  check(env, napi_get_undefined(env, &value));
  return value;
}

napi_value null(napi_env env) {
  napi_value value;
  check(env, napi_get_null(env, &value));
  return value;
}

napi_value new_array(napi_env env, size_t length) {
  napi_value value;
  check(env, napi_create_array_with_length(env, length, &value));
  return value;
}

napi_value from_ints(napi_env env, const int64_t* values, size_t count) {
  napi_value array = new_array(env, count);
  for (size_t i = 0; i < count; ++i) set(env, array, static_cast<uint32_t>(i), from_int(env, values[i]));
  return array;
}

void set(napi_env env, napi_value object, const char* key, napi_value value) {
  check(env, napi_set_named_property(env, object, key, value));
}

void set(napi_env env, napi_value array, uint32_t index, napi_value value) {
  check(env, napi_set_element(env, array, index, value));
}

napi_valuetype type_of(napi_env env, napi_value value) {
  napi_valuetype type;
  check(env, napi_typeof(env, value, &type));
  return type;
}

bool is_array(napi_env env, napi_value value) {
  bool result = false;
  check(env, napi_is_array(env, value, &result));
  return result;
}

uint32_t array_length(napi_env env, napi_value array) {
  uint32_t length = 0;
  check(env, napi_get_array_length(env, array, &length));
  // No operator takes so many; the holes of an array of 2^32 - 1 would be visited one by one.
  constexpr uint32_t most = uint32_t{1} << 24;
  if (length > most) throw OutOfRange("an array of " + std::to_string(length) + " elements is too long");
  return length;
}

napi_value element(napi_env env, napi_value array, uint32_t index) {
  napi_value value;
  check(env, napi_get_element(env, array, index, &value));
  return value;
}

napi_value property(napi_env env, napi_value object, const char* key) {
  napi_value value;
  check(env, napi_get_named_property(env, object, key, &value));
  return value;
}

std::string describe(napi_env env, napi_value value) {
  switch (type_of(env, value)) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean: {
      bool flag = false;
      check(env, napi_get_value_bool(env, value, &flag));
      return flag ? "true" : "false";
    }
    case napi_number: {
      double number = 0;
      check(env, napi_get_value_double(env, value, &number));
      char text[32];
      std::snprintf(text, sizeof text, "number %.17g", number);
      // The shortest spelling that reads back equal, as JavaScript prints it.
      for (int digits = 1; digits < 17; ++digits) {
        char shorter[32];
        std::snprintf(shorter, sizeof shorter, "%.*g", digits, number);
        if (std::strtod(shorter, nullptr) == number) return std::string("number ") + shorter;
      }
      return text;
    }
    case napi_string: {
      std::string text = to_string(env, value);
      if (text.size() > 40) text = text.substr(0, 40) + "...";
      return "string \"" + text + "\"";
    }
    case napi_symbol:
      return "a symbol";
    case napi_function:
      return "a function";
    case napi_bigint:
      return "a bigint";
    case napi_external:
      return "a native object";
    case napi_object:
      break;
  }
  if (is_array(env, value)) return "Array of " + std::to_string(array_length(env, value));
  bool typed = false;
  check(env, napi_is_typedarray(env, value, &typed));
  return typed ? "a typed array" : "an object";
}

namespace {
[[noreturn]] void refuse(napi_env env, napi_value value, const char* what, const char* expected) {
  throw ArgumentError(std::string(what) + ": expected " + expected + ", given " + describe(env, value));
}
}  // namespace

double number_arg(napi_env env, napi_value value, const char* what) {
  double number = 0;
  if (napi_get_value_double(env, value, &number) != napi_ok) refuse(env, value, what, "a number");
  return number;
}

int64_t int_arg(napi_env env, napi_value value, const char* what) {
  if (type_of(env, value) == napi_bigint) {
    int64_t integer = 0;
    bool lossless = false;
    check(env, napi_get_value_bigint_int64(env, value, &integer, &lossless));
    if (!lossless) throw OutOfRange(std::string(what) + ": the bigint does not fit into 64 bits");
    return integer;
  }
  double number = 0;
  if (napi_get_value_double(env, value, &number) != napi_ok || std::trunc(number) != number ||
      std::abs(number) > 9007199254740992.0) {
    refuse(env, value, what, "an integer");
  }
  return static_cast<int64_t>(number);
}

bool bool_arg(napi_env env, napi_value value, const char* what) {
  bool flag = false;
  if (napi_get_value_bool(env, value, &flag) != napi_ok) refuse(env, value, what, "a boolean");
  return flag;
}

std::string string_arg(napi_env env, napi_value value, const char* what) {
  if (type_of(env, value) != napi_string) refuse(env, value, what, "a string");
  return to_string(env, value);
}

std::vector<int64_t> ints_arg(napi_env env, napi_value value, const char* what) {
  if (!is_array(env, value)) refuse(env, value, what, "an array of integers");
  const uint32_t length = array_length(env, value);
  std::vector<int64_t> result(length);
  for (uint32_t i = 0; i < length; ++i) result[i] = int_arg(env, element(env, value, i), what);
  return result;
}

void define(napi_env env, napi_value exports, std::initializer_list<Export> list) {
  for (const Export& entry : list) {
    napi_value function;
    check(env, napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, entry.callback, nullptr, &function));
    set(env, exports, entry.name, function);
  }
}

}  // namespace torchgraft
