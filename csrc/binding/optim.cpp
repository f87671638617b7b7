// One native call per optimizer step: gradients are read here, and LibTorch's fused kernels update whole groups.
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include "binding.h"
#include "environment.h"

namespace torchgraft {

namespace {

struct Group {
  std::vector<at::Tensor> parameters, gradients, first, second, steps;
};

double option(napi_env env, napi_value group, const char* name) {
  return number_arg(env, property(env, group, name), (std::string("optimizerStep: ") + name).c_str());
}

bool flag(napi_env env, napi_value group, const char* name) {
  return bool_arg(env, property(env, group, name), (std::string("optimizerStep: ") + name).c_str());
}

// The parameters that have a gradient, with their state.
Group read_group(Environment& environment, napi_value group) {
  const napi_env env = environment.env;
  const auto list = [&](const char* name) {
    return environment.tensors(property(env, group, name), (std::string("optimizerStep: ") + name).c_str());
  };
  const auto parameters = list("parameters");
  const auto first = list("first");
  const auto second = list("second");
  const auto steps = list("steps");
  const auto fits = [&](const std::vector<at::Tensor>& state) {
    return state.empty() || state.size() == parameters.size();
  };
  if (!fits(first) || !fits(second) || !fits(steps)) {
    throw ArgumentError("optimizerStep: each state list must be empty or as long as the list of parameters");
  }
  Group result;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const at::Tensor& gradient = parameters[i].grad();
    if (!gradient.defined()) continue;
    // The fused kernels walk raw memory, so state and gradient must lie in memory as their parameter does.
    const auto same = [&](const at::Tensor& other) {
      return other.sizes().equals(parameters[i].sizes()) && other.scalar_type() == parameters[i].scalar_type() &&
             other.device() == parameters[i].device();
    };
    if ((!first.empty() && !same(first[i])) || (!second.empty() && !same(second[i]))) {
      throw ArgumentError("optimizerStep: a state tensor has another shape, dtype or device than its parameter");
    }
    const auto aligned = [&](const at::Tensor& other) {
      if (other.strides().equals(parameters[i].strides())) return other;
      at::Tensor copy = at::empty_like(parameters[i]);
      copy.copy_(other);
      return copy;
    };
    if ((!first.empty() && !first[i].strides().equals(parameters[i].strides())) ||
        (!second.empty() && !second[i].strides().equals(parameters[i].strides()))) {
      throw ArgumentError("optimizerStep: a state tensor has another memory layout than its parameter");
    }
    result.parameters.push_back(parameters[i]);
    result.gradients.push_back(aligned(gradient));
    if (!first.empty()) result.first.push_back(first[i]);
    if (!second.empty()) result.second.push_back(second[i]);
    if (!steps.empty()) result.steps.push_back(steps[i]);
  }
  return result;
}

void step_group(Environment& environment, napi_value options) {
  const napi_env env = environment.env;
  const std::string kind = string_arg(env, property(env, options, "kind"), "optimizerStep: kind");
  Group group = read_group(environment, options);
  if (group.parameters.empty()) return;
  const double lr = option(env, options, "lr");
  const double weight_decay = option(env, options, "weightDecay");
  const bool maximize = flag(env, options, "maximize");
  if (kind == "sgd") {
    at::_fused_sgd_(group.parameters, group.gradients, group.first, weight_decay, option(env, options, "momentum"), lr,
                    option(env, options, "dampening"), flag(env, options, "nesterov"), maximize,
                    flag(env, options, "isFirstStep"));
    return;
  }
  if (kind != "adam" && kind != "adamw") {
    throw ArgumentError("optimizerStep: kind: expected 'sgd', 'adam' or 'adamw', given '" + kind + "'");
  }
  if (group.first.empty() || group.second.empty() || group.steps.empty()) {
    throw ArgumentError("optimizerStep: " + kind + " needs first moments, second moments and step counts");
  }
  at::_foreach_add_(group.steps, 1);
  const double beta1 = option(env, options, "beta1");
  const double beta2 = option(env, options, "beta2");
  const double eps = option(env, options, "eps");
  if (kind == "adam") {
    at::_fused_adam_(group.parameters, group.gradients, group.first, group.second, {}, group.steps, lr, beta1, beta2,
                     weight_decay, eps, /*amsgrad=*/false, maximize);
  } else {
    at::_fused_adamw_(group.parameters, group.gradients, group.first, group.second, {}, group.steps, lr, beta1, beta2,
                      weight_decay, eps, /*amsgrad=*/false, maximize);
  }
  // The fused kernels write past the version counters, by which graphs and heads know that a tensor has changed.
  for (const at::Tensor& parameter : group.parameters) {
    if (!parameter.is_inference()) parameter.unsafeGetTensorImpl()->bump_version();
  }
}

napi_value optimizer_step(napi_env env, napi_callback_info info) {
  return guard(env, "optimizerStep", [&] {
    const Args<1> args(env, info);
    if (!is_array(env, args[0])) {
      throw ArgumentError("optimizerStep: groups: expected an array, given " + describe(env, args[0]));
    }
    const c10::AutoGradMode no_grad(false);
    Environment& environment = Environment::of(env);
    for (uint32_t i = 0; i < array_length(env, args[0]); ++i) step_group(environment, element(env, args[0], i));
    return undefined(env);
  });
}

napi_value zero_grad(napi_env env, napi_callback_info info) {
  return guard(env, "zeroGrad", [&] {
    const Args<2> args(env, info);
    const bool set_to_none = bool_arg(env, args[1], "zeroGrad: setToNone");
    const c10::AutoGradMode no_grad(false);
    for (const at::Tensor& parameter : Environment::of(env).tensors(args[0], "zeroGrad: parameters")) {
      at::Tensor& gradient = parameter.mutable_grad();
      if (!gradient.defined()) continue;
      if (set_to_none) {
        gradient.reset();
      } else {
        gradient.detach_().zero_();
      }
    }
    return undefined(env);
  });
}

napi_value clip_grad_norm(napi_env env, napi_callback_info info) {
  return guard(env, "clipGradNorm", [&] {
    const Args<2> args(env, info);
    Environment& environment = Environment::of(env);
    const double max_norm = number_arg(env, args[1], "clipGradNorm: maxNorm");
    if (!(max_norm > 0)) throw OutOfRange("clipGradNorm: maxNorm must be positive");
    const c10::AutoGradMode no_grad(false);
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& parameter : environment.tensors(args[0], "clipGradNorm: parameters")) {
      if (parameter.grad().defined()) gradients.push_back(parameter.grad());
    }
    if (gradients.empty()) return environment.wrap(at::zeros({}));
    const at::Tensor norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients, 2)), 2);
    const at::Tensor factor = (max_norm / (norm + 1e-6)).clamp_max(1.0);
    at::_foreach_mul_(gradients, factor);
    return environment.wrap(norm);
  });
}

}  // namespace

void define_optim(napi_env env, napi_value exports) {
  define(env, exports, {{"optimizerStep", optimizer_step}, {"zeroGrad", zero_grad}, {"clipGradNorm", clip_grad_norm}});
}

}  // namespace torchgraft
