#include "names.h"

#include <array>

#include "errors.h"

namespace torchgraft {

namespace {

struct DTypeName {
  const char* name;
  at::ScalarType type;
};

constexpr std::array<DTypeName, 20> kDTypes{{
    {"float32", at::kFloat},
    {"float64", at::kDouble},
    {"float16", at::kHalf},
    {"bfloat16", at::kBFloat16},
    {"int8", at::kChar},
    {"int16", at::kShort},
    {"int32", at::kInt},
    {"int64", at::kLong},
    {"uint8", at::kByte},
    {"bool", at::kBool},
    {"complex64", at::kComplexFloat},
    {"complex128", at::kComplexDouble},
    {"uint16", at::kUInt16},
    {"uint32", at::kUInt32},
    {"uint64", at::kUInt64},
    {"float8_e4m3fn", at::ScalarType::Float8_e4m3fn},
    {"float8_e5m2", at::ScalarType::Float8_e5m2},
    {"float8_e4m3fnuz", at::ScalarType::Float8_e4m3fnuz},
    {"float8_e5m2fnuz", at::ScalarType::Float8_e5m2fnuz},
    {"float8_e8m0fnu", at::ScalarType::Float8_e8m0fnu},
}};

}  // namespace

std::optional<at::MemoryFormat> parse_memory_format(std::string_view name) {
  if (name == "contiguous_format") return at::MemoryFormat::Contiguous;
  if (name == "channels_last") return at::MemoryFormat::ChannelsLast;
  if (name == "channels_last_3d") return at::MemoryFormat::ChannelsLast3d;
  if (name == "preserve_format") return at::MemoryFormat::Preserve;
  return std::nullopt;
}

std::optional<at::Layout> parse_layout(std::string_view name) {
  if (name == "strided") return at::kStrided;
  if (name == "sparse_coo") return at::kSparse;
  if (name == "sparse_csr") return at::kSparseCsr;
  if (name == "sparse_csc") return at::kSparseCsc;
  if (name == "sparse_bsr") return at::kSparseBsr;
  if (name == "sparse_bsc") return at::kSparseBsc;
  // Not mkldnn: LibTorch makes such tensors of any dtype and then works on them as if they were float32.
  return std::nullopt;
}

std::optional<at::Device> parse_device(const std::string& name) {
  try {
    return at::Device(name);
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

[[noreturn]] void refuse_value(napi_env env, napi_value value, const char* what, const std::string& expected) {
  throw ArgumentError(std::string(what) + ": expected " + expected + ", given " + describe(env, value));
}

const char* dtype_name(at::ScalarType type) {
  for (const DTypeName& entry : kDTypes) {
    if (entry.type == type) return entry.name;
  }
  return c10::toString(type);
}

std::optional<at::ScalarType> parse_dtype(std::string_view name) {
  for (const DTypeName& entry : kDTypes) {
    if (name == entry.name) return entry.type;
  }
  return std::nullopt;
}

at::ScalarType dtype_arg(napi_env env, napi_value value, const char* what) {
  if (type_of(env, value) == napi_string) {
    if (const auto type = parse_dtype(to_string(env, value))) return *type;
  }
  refuse_value(env, value, what, kDTypeList);
}

at::Device device_arg(napi_env env, napi_value value, const char* what) {
  if (type_of(env, value) == napi_string) {
    if (const auto device = parse_device(to_string(env, value))) return *device;
  }
  refuse_value(env, value, what, "a device ('cpu', 'meta', 'cuda', 'cuda:0', ...)");
}

at::MemoryFormat memory_format_arg(napi_env env, napi_value value, const char* what) {
  if (type_of(env, value) == napi_string) {
    if (const auto format = parse_memory_format(to_string(env, value))) return *format;
  }
  refuse_value(env, value, what, "'contiguous_format', 'channels_last', 'channels_last_3d' or 'preserve_format'");
}

}  // namespace torchgraft
