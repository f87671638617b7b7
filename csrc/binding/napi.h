// The one place that includes Node-API, and the small vocabulary that the binding speaks with it.
#pragma once

#include <node_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace torchgraft {

// The caller passed something of the wrong type: becomes a JavaScript TypeError.
struct ArgumentError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The caller passed something of the right type but outside what is possible: becomes a RangeError.
struct OutOfRange : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A JavaScript exception is already pending or stored; only unwind.
struct PendingException {};

// Throws when a Node-API call fails: PendingException if JavaScript threw, std::runtime_error otherwise.
void check(napi_env env, napi_status status);

std::string to_string(napi_env env, napi_value value);
napi_value from_string(napi_env env, std::string_view text);
napi_value from_double(napi_env env, double value);
napi_value from_bool(napi_env env, bool value);
// A number where it is exact, a bigint beyond 2^53.
napi_value from_int(napi_env env, int64_t value);
napi_value undefined(napi_env env);
napi_value null(napi_env env);
napi_value new_array(napi_env env, size_t length);
napi_value from_ints(napi_env env, const int64_t* values, size_t count);
void set(napi_env env, napi_value object, const char* key, napi_value value);
void set(napi_env env, napi_value array, uint32_t index, napi_value value);

napi_valuetype type_of(napi_env env, napi_value value);
bool is_array(napi_env env, napi_value value);
uint32_t array_length(napi_env env, napi_value array);
napi_value element(napi_env env, napi_value array, uint32_t index);
napi_value property(napi_env env, napi_value object, const char* key);

// What a value is, for messages: `string "abc"`, `number 3.5`, `Array of 2`, `undefined`.
std::string describe(napi_env env, napi_value value);

// Conversions that name the argument when they refuse it; `what` reads like `scopeClose: token`.
double number_arg(napi_env env, napi_value value, const char* what);
int64_t int_arg(napi_env env, napi_value value, const char* what);
bool bool_arg(napi_env env, napi_value value, const char* what);
std::string string_arg(napi_env env, napi_value value, const char* what);
std::vector<int64_t> ints_arg(napi_env env, napi_value value, const char* what);

// The arguments of one call, padded with undefined up to N.
template <size_t N>
struct Args {
  size_t count = N;
  napi_value values[N > 0 ? N : 1];
  Args(napi_env env, napi_callback_info info) {
    check(env, napi_get_cb_info(env, info, &count, values, nullptr, nullptr));
  }
  napi_value operator[](size_t i) const { return values[i]; }
};

// Bounds the lifetime of the values created within, also when an exception leaves.
class HandleScope {
 public:
  explicit HandleScope(napi_env env) : env_(env) { check(env, napi_open_handle_scope(env, &scope_)); }
  ~HandleScope() { napi_close_handle_scope(env_, scope_); }
  HandleScope(const HandleScope&) = delete;
  HandleScope& operator=(const HandleScope&) = delete;

 private:
  napi_env env_;
  napi_handle_scope scope_ = nullptr;
};

// Runs `body` and turns whatever it throws into a JavaScript exception. Every entry point passes through here.
napi_value report_exception(napi_env env, const char* function) noexcept;

template <typename Body>
napi_value guard(napi_env env, const char* function, Body&& body) noexcept {
  try {
    return body();
  } catch (...) {
    return report_exception(env, function);
  }
}

using Callback = napi_value (*)(napi_env, napi_callback_info);

struct Export {
  const char* name;
  Callback callback;
};

void define(napi_env env, napi_value exports, std::initializer_list<Export> list);

}  // namespace torchgraft
