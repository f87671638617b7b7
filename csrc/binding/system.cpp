// What is not about single tensors: random numbers, threads, devices, versions.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Generator.h>
#include <torch/version.h>

#include "binding.h"
#include "convert.h"
#include "guards.h"

namespace torchgraft {

namespace {

uint64_t seed_arg(napi_env env, napi_value value, const char* what) {
  if (type_of(env, value) == napi_bigint) {
    uint64_t seed = 0;
    bool lossless = false;
    check(env, napi_get_value_bigint_uint64(env, value, &seed, &lossless));
    if (lossless) return seed;
  }
  return static_cast<uint64_t>(int_arg(env, value, what));
}

at::Generator default_generator(const at::Device& device) { return at::globalContext().defaultGenerator(device); }

napi_value manual_seed(napi_env env, napi_callback_info info) {
  return guard(env, "manualSeed", [&] {
    const Args<1> args(env, info);
    const uint64_t seed = seed_arg(env, args[0], "manualSeed: seed");
    const auto reseed = [seed](at::Generator generator) {
      const std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_current_seed(seed);
    };
    reseed(at::detail::getDefaultCPUGenerator());
    if (at::globalContext().hasCUDA()) {
      for (c10::DeviceIndex i = 0; i < at::globalContext().getAcceleratorHooksInterface().deviceCount(); ++i) {
        reseed(default_generator(at::Device(at::kCUDA, i)));
      }
    }
    return undefined(env);
  });
}

napi_value make_generator(napi_env env, napi_callback_info info) {
  return guard(env, "generator", [&] {
    const Args<2> args(env, info);
    const at::Device device = device_arg(env, args[0], "generator: device");
    auto generator = std::make_unique<at::Generator>(default_generator(device).clone());
    generator->set_current_seed(seed_arg(env, args[1], "generator: seed"));
    napi_value result;
    check(env, napi_create_external(
                   env, generator.get(), [](napi_env, void* data, void*) { delete static_cast<at::Generator*>(data); },
                   nullptr, &result));
    generator.release();
    check(env, napi_type_tag_object(env, result, &kGeneratorTag));
    return result;
  });
}

napi_value rng_state(napi_env env, napi_callback_info info) {
  return guard(env, "rngState", [&] {
    const Args<1> args(env, info);
    at::Generator generator = default_generator(device_arg(env, args[0], "rngState: device"));
    const std::lock_guard<std::mutex> lock(generator.mutex());
    return Environment::of(env).wrap(generator.get_state());
  });
}

napi_value set_rng_state(napi_env env, napi_callback_info info) {
  return guard(env, "setRngState", [&] {
    const Args<2> args(env, info);
    at::Generator generator = default_generator(device_arg(env, args[0], "setRngState: device"));
    const at::Tensor& state = Environment::of(env).tensor(args[1], "setRngState: state");
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(state);
    return undefined(env);
  });
}

napi_value num_threads(napi_env env, napi_callback_info) {
  return guard(env, "numThreads", [&] { return from_int(env, at::get_num_threads()); });
}

napi_value set_num_threads(napi_env env, napi_callback_info info) {
  return guard(env, "setNumThreads", [&] {
    const Args<1> args(env, info);
    const int64_t count = int_arg(env, args[0], "setNumThreads: count");
    if (count < 1 || count > 1024)
      throw OutOfRange("setNumThreads: expected 1 to 1024, given " + std::to_string(count));
    at::set_num_threads(static_cast<int>(count));
    return undefined(env);
  });
}

napi_value allow_unchecked(napi_env env, napi_callback_info info) {
  return guard(env, "allowUncheckedOperators", [&] {
    const Args<1> args(env, info);
    allow_unchecked_operators(bool_arg(env, args[0], "allowUncheckedOperators: allow"));
    return undefined(env);
  });
}

napi_value device_count(napi_env env, napi_callback_info info) {
  return guard(env, "deviceCount", [&] {
    const Args<1> args(env, info);
    const at::DeviceType type = device_arg(env, args[0], "deviceCount: type").type();
    if (type == at::kCPU) return from_int(env, 1);
    if (type != at::kCUDA || !at::globalContext().hasCUDA()) return from_int(env, 0);
    return from_int(env, at::globalContext().getAcceleratorHooksInterface().deviceCount());
  });
}

napi_value synchronize(napi_env env, napi_callback_info info) {
  return guard(env, "synchronize", [&] {
    const Args<1> args(env, info);
    const at::Device device = device_arg(env, args[0], "synchronize: device");
    if (!device.is_cpu() && !device.is_meta()) {
      c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.has_index() ? device.index() : 0);
    }
    return undefined(env);
  });
}

// The word that follows `key` in LibTorch's description of itself; empty if the key is missing.
std::string word_after(const std::string& text, const std::string& key) {
  const size_t at = text.find(key);
  if (at == std::string::npos) return "";
  const size_t begin = at + key.size();
  return text.substr(begin, text.find_first_of(", \n", begin) - begin);
}

napi_value build_info(napi_env env, napi_callback_info) {
  return guard(env, "buildInfo", [&] {
    napi_value result;
    check(env, napi_create_object(env, &result));
    // Read at run time where LibTorch can say it, so that a mismatch with the headers shows.
    const std::string config = at::show_config();
    const std::string cuda = word_after(config, "CUDA Runtime ");
    set(env, result, "torch", from_string(env, word_after(config, "TORCH_VERSION=")));
    set(env, result, "compiledAgainst", from_string(env, TORCH_VERSION));
    set(env, result, "cuda", cuda.empty() ? null(env) : from_string(env, cuda));
#ifdef TORCHGRAFT_WITH_CUDA
    set(env, result, "cudaKernels", from_bool(env, true));
#else
    set(env, result, "cudaKernels", from_bool(env, false));
#endif
    set(env, result, "cxx", from_string(env, at::get_cxx_flags()));
    set(env, result, "parallel", from_string(env, at::get_parallel_info()));
    return result;
  });
}

}  // namespace

void define_system(napi_env env, napi_value exports) {
  define(env, exports,
         {{"manualSeed", manual_seed},
          {"generator", make_generator},
          {"rngState", rng_state},
          {"setRngState", set_rng_state},
          {"numThreads", num_threads},
          {"setNumThreads", set_num_threads},
          {"allowUncheckedOperators", allow_unchecked},
          {"deviceCount", device_count},
          {"synchronize", synchronize},
          {"buildInfo", build_info}});
}

}  // namespace torchgraft
