// The addon's entry: one Environment per JavaScript environment, and the list of its parts.
#include "binding.h"
#include "cpu_allocator.h"
#include "dispatch.h"
#include "environment.h"

namespace torchgraft {

namespace {

napi_value setup(napi_env env, napi_callback_info info) {
  return guard(env, "setup", [&] {
    const Args<1> args(env, info);
    Environment& environment = Environment::of(env);
    const auto take = [&](const char* name, napi_ref& slot) {
      napi_value value = property(env, args[0], name);
      if (type_of(env, value) != napi_function) throw ArgumentError(std::string("setup: ") + name + " must be a class");
      if (slot) check(env, napi_delete_reference(env, slot));
      check(env, napi_create_reference(env, value, 1, &slot));
    };
    if (type_of(env, args[0]) != napi_object) throw ArgumentError("setup: expected an object of classes");
    napi_value key = property(env, args[0], "key");
    if (type_of(env, key) != napi_symbol) throw ArgumentError("setup: key must be a symbol");
    environment.handles.set_key(env, key);
    take("Tensor", environment.tensor_class);
    take("TorchError", environment.error_class);
    return undefined(env);
  });
}

}  // namespace

}  // namespace torchgraft

NAPI_MODULE_INIT() {
  using namespace torchgraft;
  install_cpu_allocator();
  auto environment = std::make_unique<Environment>(env);
  const napi_status status = napi_set_instance_data(
      env, environment.get(), [](napi_env, void* data, void*) { delete static_cast<Environment*>(data); }, nullptr);
  if (status != napi_ok) {
    napi_throw_error(env, nullptr, "torchgraft: the addon could not be attached to this environment");
    return nullptr;
  }
  environment.release();
  return guard(env, "torchgraft", [&] {
    define(env, exports, {{"setup", setup}});
    define_dispatch(env, exports);
    define_tensor(env, exports);
    define_autograd(env, exports);
    define_modes(env, exports);
    define_macs(env, exports);
    define_system(env, exports);
    define_files(env, exports);
    define_optim(env, exports);
    return exports;
  });
}
