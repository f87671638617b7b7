// Gradients: backward, grad, hooks, and autograd nodes whose backward is a JavaScript function.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include "binding.h"
#include "environment.h"

namespace torchgraft {

namespace {

// A JavaScript function that LibTorch calls, perhaps from another thread.
class JsCallback {
 public:
  JsCallback(Environment& environment, napi_value function) : environment_(&environment) {
    check(environment.env, napi_create_reference(environment.env, function, 1, &reference_));
    ++environment.hooks;
  }
  JsCallback(const JsCallback&) = delete;
  JsCallback& operator=(const JsCallback&) = delete;

  // The graph may die on an autograd thread, where no JavaScript reference may be touched: ask for the main thread's
  // help only when this is it; otherwise the reference waits for the environment's next visit.
  ~JsCallback() {
    --environment_->hooks;
    if (std::this_thread::get_id() == environment_->thread) {
      napi_delete_reference(environment_->env, reference_);
    } else {
      environment_->defer_delete(reference_);
    }
  }

  // Calls the function with `arguments` built on the JavaScript thread and hands its result to `read`.
  template <typename Build, typename Read>
  void call(Build&& build, Read&& read) {
    environment_->on_main_thread([&] {
      const napi_env env = environment_->env;
      const HandleScope scope(env);
      napi_value function;
      napi_value receiver = undefined(env);
      check(env, napi_get_reference_value(env, reference_, &function));
      napi_value argument = build(*environment_);
      napi_value result = nullptr;
      const napi_status status = napi_call_function(env, receiver, function, 1, &argument, &result);
      if (status != napi_ok) store_exception();
      read(*environment_, result);
    });
  }

 private:
  // Keeps what the function threw until LibTorch's stack has unwound, and starts the unwinding.
  [[noreturn]] void store_exception() {
    const napi_env env = environment_->env;
    bool pending = false;
    check(env, napi_is_exception_pending(env, &pending));
    if (pending) {
      napi_value error;
      check(env, napi_get_and_clear_last_exception(env, &error));
      napi_value box = new_array(env, 1);
      set(env, box, uint32_t{0}, error);
      check(env, napi_create_reference(env, box, 1, &environment_->callback_error));
    }
    throw std::runtime_error("a JavaScript callback of autograd threw");
  }

  Environment* environment_;
  napi_ref reference_ = nullptr;
};

napi_value wrap_list(Environment& environment, const torch::autograd::variable_list& list) {
  napi_value array = new_array(environment.env, list.size());
  for (uint32_t i = 0; i < list.size(); ++i) set(environment.env, array, i, environment.wrap(list[i]));
  return array;
}

// An autograd node that asks JavaScript for the gradients of its inputs.
struct JsNode : torch::autograd::Node {
  JsNode(std::string node_name, std::shared_ptr<JsCallback> function)
      : label(std::move(node_name)), callback(std::move(function)) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    torch::autograd::variable_list result;
    if (!callback) throw std::runtime_error(label + ": the graph has been freed; pass retainGraph to go back twice");
    callback->call([&](Environment& environment) { return wrap_list(environment, grads); },
                   [&](Environment& environment, napi_value value) {
                     result = environment.optional_tensors(value, "the backward function's result");
                   });
    if (result.size() != num_outputs()) {
      throw std::runtime_error(label + ": backward returned " + std::to_string(result.size()) + " gradients for " +
                               std::to_string(num_outputs()) + " inputs");
    }
    return result;
  }

  void release_variables() override { callback.reset(); }
  std::string name() const override { return label; }

  std::string label;
  std::shared_ptr<JsCallback> callback;
};

// LibTorch holds its nodes by shared_ptr up to some version and by intrusive_ptr from then on: take what an edge holds.
using NodePointer = std::decay_t<decltype(torch::autograd::Edge::function)>;

template <typename Pointer, typename... Arguments>
Pointer make_node(Arguments&&... arguments) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    return std::make_shared<JsNode>(std::forward<Arguments>(arguments)...);
  } else {
    return c10::make_intrusive<JsNode>(std::forward<Arguments>(arguments)...);
  }
}

// Runs the engine; where JavaScript functions may be called from device threads, this thread serves them meanwhile.
void run_engine(Environment& environment, const std::vector<at::Tensor>& tensors, const std::function<void()>& work) {
  bool all_cpu = true;
  for (const at::Tensor& tensor : tensors) all_cpu &= tensor.is_cpu() || tensor.is_meta();
  if (environment.hooks == 0 || all_cpu) {
    work();
  } else {
    environment.pump(work);
  }
}

napi_value requires_grad(napi_env env, napi_callback_info info) {
  return guard(env, "requiresGrad", [&] {
    const Args<1> args(env, info);
    return from_bool(env, Environment::of(env).tensor(args[0], "requiresGrad").requires_grad());
  });
}

napi_value set_requires_grad(napi_env env, napi_callback_info info) {
  return guard(env, "requiresGrad_", [&] {
    const Args<2> args(env, info);
    const at::Tensor& tensor = Environment::of(env).tensor(args[0], "requiresGrad_: tensor");
    const bool flag = bool_arg(env, args[1], "requiresGrad_: flag");
    if (flag && !torch::autograd::isDifferentiableType(tensor.scalar_type())) {
      throw ArgumentError("requiresGrad_: only floating point and complex tensors can require gradients");
    }
    if (!flag && !tensor.is_leaf()) {
      throw ArgumentError("requiresGrad_: only leaf tensors can stop requiring gradients; use detach()");
    }
    tensor.set_requires_grad(flag);
    return undefined(env);
  });
}

napi_value is_leaf(napi_env env, napi_callback_info info) {
  return guard(env, "isLeaf", [&] {
    const Args<1> args(env, info);
    return from_bool(env, Environment::of(env).tensor(args[0], "isLeaf").is_leaf());
  });
}

napi_value grad_fn(napi_env env, napi_callback_info info) {
  return guard(env, "gradFn", [&] {
    const Args<1> args(env, info);
    const auto& node = Environment::of(env).tensor(args[0], "gradFn").grad_fn();
    return node ? from_string(env, node->name()) : null(env);
  });
}

napi_value grad(napi_env env, napi_callback_info info) {
  return guard(env, "grad", [&] {
    const Args<1> args(env, info);
    Environment& environment = Environment::of(env);
    return environment.wrap(environment.tensor(args[0], "grad").grad());
  });
}

napi_value set_grad(napi_env env, napi_callback_info info) {
  return guard(env, "grad", [&] {
    const Args<2> args(env, info);
    Environment& environment = Environment::of(env);
    const at::Tensor& tensor = environment.tensor(args[0], "grad: tensor");
    const napi_valuetype type = type_of(env, args[1]);
    if (type == napi_null || type == napi_undefined) {
      tensor.mutable_grad().reset();
      return undefined(env);
    }
    const at::Tensor& value = environment.tensor(args[1], "grad: value");
    if (!value.sizes().equals(tensor.sizes()) || value.device() != tensor.device() ||
        value.scalar_type() != tensor.scalar_type()) {
      throw ArgumentError("grad: shape, dtype and device must be those of the tensor");
    }
    tensor.mutable_grad() = value;
    return undefined(env);
  });
}

napi_value retain_grad(napi_env env, napi_callback_info info) {
  return guard(env, "retainGrad", [&] {
    const Args<1> args(env, info);
    Environment::of(env).tensor(args[0], "retainGrad").retain_grad();
    return undefined(env);
  });
}

napi_value backward(napi_env env, napi_callback_info info) {
  return guard(env, "backward", [&] {
    const Args<5> args(env, info);
    Environment& environment = Environment::of(env);
    const auto outputs = environment.tensors(args[0], "backward: outputs");
    const auto grads = environment.optional_tensors(args[1], "backward: gradients");
    const bool retain = bool_arg(env, args[2], "backward: retainGraph");
    const bool create = bool_arg(env, args[3], "backward: createGraph");
    const auto inputs = environment.tensors(args[4], "backward: inputs");
    run_engine(environment, outputs,
               [&] { torch::autograd::backward(outputs, grads, retain || create, create, inputs); });
    return undefined(env);
  });
}

napi_value gradients(napi_env env, napi_callback_info info) {
  return guard(env, "grad", [&] {
    const Args<6> args(env, info);
    Environment& environment = Environment::of(env);
    const auto outputs = environment.tensors(args[0], "grad: outputs");
    const auto inputs = environment.tensors(args[1], "grad: inputs");
    const auto grads = environment.optional_tensors(args[2], "grad: gradOutputs");
    const bool retain = bool_arg(env, args[3], "grad: retainGraph");
    const bool create = bool_arg(env, args[4], "grad: createGraph");
    const bool allow_unused = bool_arg(env, args[5], "grad: allowUnused");
    torch::autograd::variable_list result;
    run_engine(environment, outputs,
               [&] { result = torch::autograd::grad(outputs, inputs, grads, retain || create, create, allow_unused); });
    return wrap_list(environment, result);
  });
}

napi_value register_hook(napi_env env, napi_callback_info info) {
  return guard(env, "registerHook", [&] {
    const Args<2> args(env, info);
    Environment& environment = Environment::of(env);
    const at::Tensor& tensor = environment.tensor(args[0], "registerHook: tensor");
    if (!tensor.requires_grad()) throw ArgumentError("registerHook: the tensor does not require a gradient");
    if (type_of(env, args[1]) != napi_function) {
      throw ArgumentError("registerHook: hook: expected a function, given " + describe(env, args[1]));
    }
    auto callback = std::make_shared<JsCallback>(environment, args[1]);
    const unsigned id = tensor.register_hook([callback](const at::Tensor& gradient) {
      at::Tensor replaced = gradient;
      callback->call([&](Environment& self) { return self.wrap(gradient); },
                     [&](Environment& self, napi_value value) {
                       const napi_valuetype type = type_of(self.env, value);
                       if (type != napi_undefined && type != napi_null) {
                         replaced = self.tensor(value, "the hook's result");
                       }
                     });
      return replaced;
    });
    return from_int(env, id);
  });
}

napi_value remove_hook(napi_env env, napi_callback_info info) {
  return guard(env, "removeHook", [&] {
    const Args<2> args(env, info);
    const at::Tensor& tensor = Environment::of(env).tensor(args[0], "removeHook: tensor");
    tensor.remove_hook(static_cast<unsigned>(int_arg(env, args[1], "removeHook: id")));
    return undefined(env);
  });
}

napi_value custom_function(napi_env env, napi_callback_info info) {
  return guard(env, "customFunction", [&] {
    const Args<4> args(env, info);
    Environment& environment = Environment::of(env);
    const std::string name = string_arg(env, args[0], "customFunction: name");
    const auto inputs = environment.tensors(args[1], "customFunction: inputs");
    const auto outputs = environment.tensors(args[2], "customFunction: outputs");
    if (type_of(env, args[3]) != napi_function) {
      throw ArgumentError("customFunction: backward: expected a function, given " + describe(env, args[3]));
    }
    bool needed = at::GradMode::is_enabled();
    bool any = false;
    for (const at::Tensor& input : inputs) any |= input.requires_grad();
    needed &= any;
    torch::autograd::variable_list results;
    for (const at::Tensor& output : outputs) results.push_back(output.detach());
    if (needed) {
      const auto node = make_node<NodePointer>(name, std::make_shared<JsCallback>(environment, args[3]));
      node->set_next_edges(torch::autograd::collect_next_edges(inputs));
      for (at::Tensor& result : results) {
        if (torch::autograd::isDifferentiableType(result.scalar_type())) {
          torch::autograd::set_history(result, node);
        } else {
          node->add_input_metadata(torch::autograd::Node::undefined_input());
        }
      }
    }
    return wrap_list(environment, results);
  });
}

}  // namespace

void define_autograd(napi_env env, napi_value exports) {
  define(env, exports,
         {{"requiresGrad", requires_grad},
          {"setRequiresGrad", set_requires_grad},
          {"isLeaf", is_leaf},
          {"gradFn", grad_fn},
          {"grad", grad},
          {"setGrad", set_grad},
          {"retainGrad", retain_grad},
          {"backward", backward},
          {"gradients", gradients},
          {"registerHook", register_hook},
          {"removeHook", remove_hook},
          {"customFunction", custom_function}});
}

}  // namespace torchgraft
