// Dtypes, devices, layouts and memory formats as the JavaScript side spells them: 'float32', 'cuda:0', 'strided',
// 'channels_last'.
#pragma once

#include <ATen/core/ScalarType.h>
#include <c10/core/Device.h>
#include <c10/core/Layout.h>
#include <c10/core/MemoryFormat.h>

#include <optional>
#include <string>
#include <string_view>

#include "napi.h"

namespace torchgraft {

const char* dtype_name(at::ScalarType type);

// Nothing for a name that there is not.
std::optional<at::ScalarType> parse_dtype(std::string_view name);
std::optional<at::Device> parse_device(const std::string& name);
std::optional<at::Layout> parse_layout(std::string_view name);
std::optional<at::MemoryFormat> parse_memory_format(std::string_view name);

// What messages say was expected where a dtype was.
inline constexpr const char* kDTypeList =
    "a dtype ('float32', 'float64', 'float16', 'bfloat16', 'int8', 'int16', 'int32', 'int64', 'uint8', 'bool', "
    "'complex64', 'complex128')";

// Throws an ArgumentError: `what` is the function and its argument, `expected` what would be right.
[[noreturn]] void refuse_value(napi_env env, napi_value value, const char* what, const std::string& expected);

at::ScalarType dtype_arg(napi_env env, napi_value value, const char* what);
at::Device device_arg(napi_env env, napi_value value, const char* what);
at::MemoryFormat memory_format_arg(napi_env env, napi_value value, const char* what);

}  // namespace torchgraft
