// Thread-local modes of LibTorch: gradients, inference, autocast. JavaScript restores them in `finally`.
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>

#include "binding.h"
#include "convert.h"

namespace torchgraft {

namespace {

napi_value grad_mode(napi_env env, napi_callback_info) {
  return guard(env, "gradMode", [&] { return from_bool(env, c10::GradMode::is_enabled()); });
}

napi_value set_grad_mode(napi_env env, napi_callback_info info) {
  return guard(env, "setGradMode", [&] {
    const Args<1> args(env, info);
    c10::GradMode::set_enabled(bool_arg(env, args[0], "setGradMode: enabled"));
    return undefined(env);
  });
}

napi_value inference_enter(napi_env env, napi_callback_info info) {
  return guard(env, "inferenceMode", [&] {
    const Args<1> args(env, info);
    auto& modes = Environment::of(env).inference_modes;
    modes.push_back(std::make_unique<c10::InferenceMode>(bool_arg(env, args[0], "inferenceMode: enabled")));
    return from_int(env, static_cast<int64_t>(modes.size()));
  });
}

napi_value inference_exit(napi_env env, napi_callback_info info) {
  return guard(env, "inferenceMode", [&] {
    const Args<1> args(env, info);
    auto& modes = Environment::of(env).inference_modes;
    if (modes.empty() || int_arg(env, args[0], "inferenceMode: token") != static_cast<int64_t>(modes.size())) {
      throw OutOfRange("inferenceMode: modes must end in the reverse order of their beginning");
    }
    modes.pop_back();
    return undefined(env);
  });
}

napi_value autocast_enter(napi_env env, napi_callback_info info) {
  return guard(env, "autocast", [&] {
    const Args<3> args(env, info);
    const at::DeviceType device = device_arg(env, args[0], "autocast: device").type();
    const at::ScalarType dtype = dtype_arg(env, args[1], "autocast: dtype");
    const bool enabled = bool_arg(env, args[2], "autocast: enabled");
    if (dtype != at::kBFloat16 && dtype != at::kHalf) {
      throw ArgumentError(std::string("autocast: dtype: expected 'bfloat16' or 'float16', given '") +
                          dtype_name(dtype) + "'");
    }
    if (!at::autocast::is_autocast_available(device)) {
      throw ArgumentError("autocast: device: there is no autocast for this device");
    }
    auto& states = Environment::of(env).autocast_states;
    states.push_back({device, at::autocast::is_autocast_enabled(device), at::autocast::get_autocast_dtype(device)});
    at::autocast::increment_nesting();
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, dtype);
    return from_int(env, static_cast<int64_t>(states.size()));
  });
}

napi_value autocast_exit(napi_env env, napi_callback_info info) {
  return guard(env, "autocast", [&] {
    const Args<1> args(env, info);
    auto& states = Environment::of(env).autocast_states;
    if (states.empty() || int_arg(env, args[0], "autocast: token") != static_cast<int64_t>(states.size())) {
      throw OutOfRange("autocast: regions must end in the reverse order of their beginning");
    }
    const AutocastState previous = states.back();
    states.pop_back();
    // The outermost region's end drops the cached casts of the weights.
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(previous.device, previous.enabled);
    at::autocast::set_autocast_dtype(previous.device, previous.dtype);
    return undefined(env);
  });
}

}  // namespace

void define_modes(napi_env env, napi_value exports) {
  define(env, exports,
         {{"gradMode", grad_mode},
          {"setGradMode", set_grad_mode},
          {"inferenceEnter", inference_enter},
          {"inferenceExit", inference_exit},
          {"autocastEnter", autocast_enter},
          {"autocastExit", autocast_exit}});
}

}  // namespace torchgraft
