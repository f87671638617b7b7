// Tensors as values: in and out of typed arrays, what they are, and their lifetime.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstring>
#include <limits>

#include "binding.h"
#include "convert.h"

namespace torchgraft {

namespace {

struct ArrayType {
  napi_typedarray_type array;
  at::ScalarType dtype;
};

constexpr ArrayType kArrayTypes[] = {
    {napi_float32_array, at::kFloat}, {napi_float64_array, at::kDouble}, {napi_int8_array, at::kChar},
    {napi_int16_array, at::kShort},   {napi_int32_array, at::kInt},      {napi_bigint64_array, at::kLong},
    {napi_uint8_array, at::kByte},    {napi_uint16_array, at::kHalf},
};

// The typed array that holds elements of `dtype` as they are; 16-bit floats come as raw words, 8-bit
// floats and bools as bytes.
napi_typedarray_type array_type_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBFloat16:
    case at::kUInt16:
      return napi_uint16_array;
    case at::kBool:
    case at::ScalarType::Float8_e4m3fn:
    case at::ScalarType::Float8_e5m2:
    case at::ScalarType::Float8_e4m3fnuz:
    case at::ScalarType::Float8_e5m2fnuz:
    case at::ScalarType::Float8_e8m0fnu:
      return napi_uint8_array;
    case at::kComplexFloat:
      return napi_float32_array;
    case at::kComplexDouble:
      return napi_float64_array;
    default:
      for (const ArrayType& entry : kArrayTypes) {
        if (entry.dtype == dtype) return entry.array;
      }
  }
  throw ArgumentError(std::string("toTypedArray: dtype ") + dtype_name(dtype) + " has no typed array");
}

size_t checked_numel(const std::vector<int64_t>& shape, const char* what) {
  size_t numel = 1;
  for (const int64_t size : shape) {
    if (size < 0) throw OutOfRange(std::string(what) + ": sizes must not be negative, given " + std::to_string(size));
    if (size != 0 && numel > std::numeric_limits<int64_t>::max() / 16 / static_cast<size_t>(size)) {
      throw OutOfRange(std::string(what) + ": the shape has too many elements");
    }
    numel *= static_cast<size_t>(size);
  }
  return numel;
}

napi_value from_typed_array(napi_env env, napi_callback_info info) {
  return guard(env, "fromTypedArray", [&]() -> napi_value {
    const Args<3> args(env, info);
    napi_typedarray_type type;
    size_t length = 0;
    void* data = nullptr;
    if (napi_get_typedarray_info(env, args[0], &type, &length, &data, nullptr, nullptr) != napi_ok) {
      throw ArgumentError("fromTypedArray: data: expected a typed array, given " + describe(env, args[0]));
    }
    const std::vector<int64_t> shape = ints_arg(env, args[1], "fromTypedArray: shape");
    at::ScalarType dtype = at::kFloat;
    bool known = false;
    if (type_of(env, args[2]) == napi_string) {
      dtype = dtype_arg(env, args[2], "fromTypedArray: dtype");
      known = true;
      if (array_type_of(dtype) != type) {
        throw ArgumentError(std::string("fromTypedArray: elements of this typed array are not those of dtype ") +
                            dtype_name(dtype) + "; leave dtype out and convert with to()");
      }
    } else {
      for (const ArrayType& entry : kArrayTypes) {
        if (entry.array == type) {
          dtype = entry.dtype;
          known = type != napi_uint16_array;
        }
      }
    }
    if (!known) {
      throw ArgumentError(
          "fromTypedArray: expected Float32Array, Float64Array, Int8Array, Int16Array, Int32Array, BigInt64Array, "
          "Uint8Array, or Uint16Array with dtype 'float16' or 'bfloat16'");
    }
    // Complex numbers come as pairs.
    const size_t numel = checked_numel(shape, "fromTypedArray: shape");
    const size_t expected = numel * (c10::isComplexType(dtype) ? 2 : 1);
    if (expected != length) {
      throw OutOfRange("fromTypedArray: the shape asks for " + std::to_string(expected) + " elements, the array has " +
                       std::to_string(length));
    }
    at::Tensor tensor = at::empty(shape, at::TensorOptions().dtype(dtype).device(at::kCPU));
    if (numel > 0) std::memcpy(tensor.data_ptr(), data, numel * tensor.element_size());
    return Environment::of(env).wrap(std::move(tensor));
  });
}

// An array buffer; a RangeError when there is no memory for it. (napi_create_arraybuffer ends the process then, so
// large ones are made as JavaScript makes them.)
napi_value new_array_buffer(napi_env env, size_t bytes, void** data) {
  constexpr size_t large = size_t{64} << 20;
  napi_value buffer;
  if (bytes < large) {
    check(env, napi_create_arraybuffer(env, bytes, data, &buffer));
    return buffer;
  }
  napi_value global;
  check(env, napi_get_global(env, &global));
  const napi_value length = from_double(env, static_cast<double>(bytes));
  check(env, napi_new_instance(env, property(env, global, "ArrayBuffer"), 1, &length, &buffer));
  check(env, napi_get_arraybuffer_info(env, buffer, data, nullptr));
  return buffer;
}

napi_value to_typed_array(napi_env env, napi_callback_info info) {
  return guard(env, "toTypedArray", [&]() -> napi_value {
    const Args<1> args(env, info);
    const at::Tensor& tensor = Environment::of(env).tensor(args[0], "toTypedArray: tensor");
    if (tensor.is_meta()) throw ArgumentError("toTypedArray: a tensor on the meta device has no data");
    const napi_typedarray_type type = array_type_of(tensor.scalar_type());
    const at::Tensor plain = tensor.detach().to(at::kCPU).contiguous().resolve_conj().resolve_neg();
    const size_t bytes = plain.numel() * plain.element_size();
    const size_t length = plain.numel() * (c10::isComplexType(plain.scalar_type()) ? 2 : 1);
    void* data = nullptr;
    const napi_value buffer = new_array_buffer(env, bytes, &data);
    if (bytes > 0) std::memcpy(data, plain.const_data_ptr(), bytes);
    napi_value result;
    check(env, napi_create_typedarray(env, type, length, buffer, 0, &result));
    return result;
  });
}

napi_value item(napi_env env, napi_callback_info info) {
  return guard(env, "item", [&] {
    const Args<1> args(env, info);
    Environment& environment = Environment::of(env);
    return from_ivalue(environment, environment.tensor(args[0], "item: tensor").item());
  });
}

napi_value adopt(napi_env env, napi_callback_info info) {
  return guard(env, "adopt", [&] {
    const Args<2> args(env, info);
    Environment& environment = Environment::of(env);
    at::Tensor tensor = environment.tensor(args[1], "adopt: tensor");
    if (type_of(env, args[0]) != napi_object || environment.handles.find(env, args[0])) {
      throw ArgumentError("adopt: expected a fresh object, given " + describe(env, args[0]));
    }
    environment.handles.attach(env, args[0], std::move(tensor));
    return args[0];
  });
}

napi_value set_data(napi_env env, napi_callback_info info) {
  return guard(env, "setData", [&] {
    const Args<2> args(env, info);
    Environment& environment = Environment::of(env);
    Handle* handle = environment.handle(args[0], "setData: tensor");
    at::Tensor tensor = environment.tensor(args[0], "setData: tensor");
    const at::Tensor source = environment.tensor(args[1], "setData: source").detach();
    // A gradient of another device or dtype would no longer fit its tensor.
    if (tensor.grad().defined() &&
        (tensor.grad().device() != source.device() || tensor.grad().scalar_type() != source.scalar_type())) {
      tensor.mutable_grad() = tensor.grad().to(source.options());
    }
    tensor.set_data(source);
    environment.handles.retarget(env, handle, std::move(tensor));
    return undefined(env);
  });
}

napi_value shape(napi_env env, napi_callback_info info) {
  return guard(env, "shape", [&] {
    const Args<1> args(env, info);
    const auto sizes = Environment::of(env).tensor(args[0], "shape").sizes();
    return from_ints(env, sizes.data(), sizes.size());
  });
}

napi_value strides(napi_env env, napi_callback_info info) {
  return guard(env, "strides", [&] {
    const Args<1> args(env, info);
    const auto strides = Environment::of(env).tensor(args[0], "stride").strides();
    return from_ints(env, strides.data(), strides.size());
  });
}

napi_value numel(napi_env env, napi_callback_info info) {
  return guard(env, "numel", [&] {
    const Args<1> args(env, info);
    return from_int(env, Environment::of(env).tensor(args[0], "numel").numel());
  });
}

napi_value dim(napi_env env, napi_callback_info info) {
  return guard(env, "dim", [&] {
    const Args<1> args(env, info);
    return from_int(env, Environment::of(env).tensor(args[0], "dim").dim());
  });
}

napi_value dtype(napi_env env, napi_callback_info info) {
  return guard(env, "dtype", [&] {
    const Args<1> args(env, info);
    return from_string(env, dtype_name(Environment::of(env).tensor(args[0], "dtype").scalar_type()));
  });
}

napi_value device(napi_env env, napi_callback_info info) {
  return guard(env, "device", [&] {
    const Args<1> args(env, info);
    return from_string(env, Environment::of(env).tensor(args[0], "device").device().str());
  });
}

napi_value is_contiguous(napi_env env, napi_callback_info info) {
  return guard(env, "isContiguous", [&] {
    const Args<2> args(env, info);
    const at::Tensor& tensor = Environment::of(env).tensor(args[0], "isContiguous: tensor");
    const auto format = memory_format_arg(env, args[1], "isContiguous: memoryFormat");
    return from_bool(env, tensor.is_contiguous(format));
  });
}

napi_value same_storage(napi_env env, napi_callback_info info) {
  return guard(env, "sameStorage", [&] {
    const Args<2> args(env, info);
    Environment& environment = Environment::of(env);
    const at::Tensor& a = environment.tensor(args[0], "sameStorage: a");
    const at::Tensor& b = environment.tensor(args[1], "sameStorage: b");
    return from_bool(env, a.has_storage() && b.has_storage() && a.is_alias_of(b));
  });
}

napi_value is_freed(napi_env env, napi_callback_info info) {
  return guard(env, "isFreed", [&] {
    const Args<1> args(env, info);
    return from_bool(env, !Environment::of(env).handle(args[0], "isFreed: tensor")->tensor.defined());
  });
}

napi_value is_tensor(napi_env env, napi_callback_info info) {
  return guard(env, "isTensor", [&] {
    const Args<1> args(env, info);
    return from_bool(env, inspect(Environment::of(env), args[0]).tensor != nullptr);
  });
}

napi_value free_tensor(napi_env env, napi_callback_info info) {
  return guard(env, "free", [&] {
    const Args<1> args(env, info);
    Environment& environment = Environment::of(env);
    environment.handles.free(env, environment.handle(args[0], "free: tensor"));
    return undefined(env);
  });
}

napi_value scope_open(napi_env env, napi_callback_info) {
  return guard(env, "scopeOpen", [&] { return from_int(env, Environment::of(env).handles.open_scope()); });
}

napi_value scope_close(napi_env env, napi_callback_info info) {
  return guard(env, "scopeClose", [&] {
    const Args<2> args(env, info);
    Environment& environment = Environment::of(env);
    const int64_t token = int_arg(env, args[0], "scopeClose: token");
    if (!is_array(env, args[1])) {
      throw ArgumentError("scopeClose: survivors: expected an array of Tensors, given " + describe(env, args[1]));
    }
    std::vector<Survivor> survivors(array_length(env, args[1]));
    for (uint32_t i = 0; i < survivors.size(); ++i) {
      napi_value survivor = element(env, args[1], i);
      survivors[i] = {environment.handle(survivor, "scopeClose: survivors"), survivor};
    }
    environment.handles.close_scope(env, static_cast<uint32_t>(token), survivors);
    return undefined(env);
  });
}

napi_value keep(napi_env env, napi_callback_info info) {
  return guard(env, "keep", [&] {
    const Args<1> args(env, info);
    Environment& environment = Environment::of(env);
    environment.handles.keep(env, environment.handle(args[0], "keep: tensor"), args[0]);
    return args[0];
  });
}

napi_value memory(napi_env env, napi_callback_info) {
  return guard(env, "memory", [&] {
    const HandleTable& handles = Environment::of(env).handles;
    napi_value result;
    check(env, napi_create_object(env, &result));
    set(env, result, "tensors", from_int(env, static_cast<int64_t>(handles.live())));
    set(env, result, "bytes", from_int(env, static_cast<int64_t>(handles.bytes())));
    return result;
  });
}

napi_value sweep(napi_env env, napi_callback_info) {
  return guard(env, "sweep",
               [&] { return from_int(env, static_cast<int64_t>(Environment::of(env).handles.sweep(env))); });
}

}  // namespace

void define_tensor(napi_env env, napi_value exports) {
  define(env, exports,
         {{"fromTypedArray", from_typed_array},
          {"toTypedArray", to_typed_array},
          {"item", item},
          {"adopt", adopt},
          {"setData", set_data},
          {"shape", shape},
          {"strides", strides},
          {"numel", numel},
          {"dim", dim},
          {"dtype", dtype},
          {"device", device},
          {"isContiguous", is_contiguous},
          {"sameStorage", same_storage},
          {"isFreed", is_freed},
          {"isTensor", is_tensor},
          {"free", free_tensor},
          {"scopeOpen", scope_open},
          {"scopeClose", scope_close},
          {"keep", keep},
          {"memory", memory},
          {"sweep", sweep}});
}

}  // namespace torchgraft
