#include "dispatch.h"

#include <algorithm>
#include <sstream>

#include "errors.h"

namespace torchgraft {

Overload::Overload(const c10::OperatorHandle& operator_handle) : handle(operator_handle) {
  const c10::FunctionSchema& schema = handle.schema();
  name = schema.name();
  guard = find_guard(name);
  if (!schema.overload_name().empty()) name += "." + schema.overload_name();
  for (const c10::Argument& argument : schema.arguments()) {
    parameters.push_back(make_parameter(argument));
    const Parameter& parameter = parameters.back();
    if (!parameter.keyword_only) ++positional;
    has_output_argument |= parameter.output;
    writes_argument |= argument.alias_info() && argument.alias_info()->isWrite();
    // An argument that JavaScript cannot express is no obstacle while its default serves.
    callable &= parameter.kind != Kind::Unsupported || parameter.default_value || parameter.optional;
  }
  if (!guard) direct = find_direct_call(handle, parameters);
}

namespace {

constexpr size_t kMaxArguments = 32;

// The arguments of a call: by position, then perhaps by name.
struct Call {
  Given given[kMaxArguments];
  size_t count = 0;
  struct Named {
    std::string name;
    Given value;
  };
  std::vector<Named> named;
};

bool is_options(napi_env env, const Given& given) {
  if (given.type != napi_object || given.tensor || given.array || given.typed_array) return false;
  bool buffer = false;
  check(env, napi_is_arraybuffer(env, given.value, &buffer));
  return !buffer;
}

void read_options(Environment& environment, napi_value options, Call& call) {
  const napi_env env = environment.env;
  napi_value keys;
  check(env, napi_get_property_names(env, options, &keys));
  const uint32_t count = array_length(env, keys);
  for (uint32_t i = 0; i < count; ++i) {
    napi_value key = element(env, keys, i);
    napi_value value;
    check(env, napi_get_property(env, options, key, &value));
    if (type_of(env, value) == napi_undefined) continue;
    call.named.push_back({to_string(env, key), inspect(environment, value)});
  }
}

// Index of the parameter with this JavaScript name, or -1.
int find_parameter(const Overload& overload, const std::string& name) {
  for (size_t i = 0; i < overload.parameters.size(); ++i) {
    if (overload.parameters[i].camel_name == name || overload.parameters[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

bool matches(Environment& environment, const Overload& overload, const Call& call) {
  if (!overload.callable || call.count > overload.positional) return false;
  for (size_t i = 0; i < call.count; ++i) {
    if (!accepts(environment, overload.parameters[i], call.given[i])) return false;
  }
  size_t named_required = 0;
  for (const Call::Named& named : call.named) {
    const int index = find_parameter(overload, named.name);
    if (index < 0 || static_cast<size_t>(index) < call.count) return false;
    const Parameter& parameter = overload.parameters[index];
    if (!accepts(environment, parameter, named.value)) return false;
    if (!parameter.default_value) ++named_required;
  }
  size_t required = 0;
  for (size_t i = call.count; i < overload.parameters.size(); ++i) {
    required += !overload.parameters[i].default_value;
  }
  return required == named_required;
}

std::string describe_call(Environment& environment, const Call& call) {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  const auto one = [&](const Given& given) {
    return given.tensor ? std::string("Tensor") : describe(environment.env, given.value);
  };
  for (size_t i = 0; i < call.count; ++i) add(one(call.given[i]));
  for (const Call::Named& named : call.named) add(named.name + ": " + one(named.value));
  return "(" + text + ")";
}

std::string schema_text(const Overload& overload) {
  std::ostringstream text;
  text << overload.handle.schema();
  return text.str();
}

[[noreturn]] void refuse_call(Environment& environment, const OperatorFunction& function, const Call& call) {
  std::string message = function.name + ": no overload takes " + describe_call(environment, call) + ". There is:";
  size_t shown = 0;
  for (const Overload& overload : function.overloads) {
    if (overload.has_output_argument || !overload.callable) continue;
    if (++shown > 6) {
      message += "\n  ...";
      break;
    }
    message += "\n  " + schema_text(overload);
  }
  throw ArgumentError(message);
}

// An overload that was asked for by name, or is the only one: say exactly what is wrong with the call.
void check_call(Environment& environment, const Overload& overload, const Call& call) {
  if (!overload.callable) {
    throw ArgumentError(overload.name +
                        ": takes values that cannot be passed from JavaScript: " + schema_text(overload));
  }
  if (call.count > overload.positional) {
    throw ArgumentError(overload.name + ": takes at most " + std::to_string(overload.positional) +
                        " positional arguments, given " + std::to_string(call.count) + " " +
                        describe_call(environment, call) + ": " + schema_text(overload));
  }
  for (const Call::Named& named : call.named) {
    const int index = find_parameter(overload, named.name);
    if (index < 0) {
      throw ArgumentError(overload.name + ": has no argument '" + named.name + "': " + schema_text(overload));
    }
    if (static_cast<size_t>(index) < call.count) {
      throw ArgumentError(overload.name + ": argument '" + named.name + "' was given by position and by name");
    }
  }
}

std::string describe_tensors(const Overload& overload, const torch::jit::Stack& stack) {
  std::ostringstream text;
  const auto one = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) {
      text << "undefined";
      return;
    }
    text << dtype_name(tensor.scalar_type()) << " " << tensor.sizes();
    if (!tensor.is_cpu()) text << " on " << tensor.device();
  };
  const char* separator = " [";
  for (size_t i = 0; i < stack.size() && i < overload.parameters.size(); ++i) {
    if (stack[i].isTensor()) {
      text << separator << overload.parameters[i].camel_name << ": ";
      one(stack[i].toTensor());
      separator = ", ";
    } else if (stack[i].isTensorList()) {
      const auto list = stack[i].toTensorList();
      text << separator << overload.parameters[i].camel_name << ": " << list.size() << " tensors";
      for (size_t j = 0; j < list.size() && j < 4; ++j) {
        text << (j ? ", " : " (");
        one(list.get(j));
      }
      if (list.size() > 4) text << ", ...";
      if (list.size() > 0) text << ")";
      separator = ", ";
    }
  }
  const std::string result = text.str();
  return result.empty() ? result : result + "]";
}

// The operator's arguments in the schema's order, defaults filled in.
torch::jit::Stack make_stack(Environment& environment, const Overload& overload, const Call& call) {
  const size_t total = overload.parameters.size();
  torch::jit::Stack stack;
  stack.reserve(std::max(total, size_t{4}));
  const Given nothing{};
  for (size_t i = 0; i < total; ++i) {
    const Given* given = &nothing;
    if (i < call.count) {
      given = &call.given[i];
    } else {
      for (const Call::Named& named : call.named) {
        if (find_parameter(overload, named.name) == static_cast<int>(i)) given = &named.value;
      }
    }
    stack.push_back(to_ivalue(environment, overload.parameters[i], *given, overload.name.c_str()));
  }
  return stack;
}

// A result that is one of the tensors passed in (in-place and out= operators) is the caller's own object again.
napi_value wrap_result(Environment& environment, const Overload& overload, const Call& call, const c10::IValue& value) {
  if (!value.isTensor()) return from_ivalue(environment, value);
  const at::Tensor& tensor = value.toTensor();
  const auto same = [&](const Given& given) {
    return given.tensor && given.tensor->tensor.defined() && given.tensor->tensor.is_same(tensor);
  };
  const c10::AliasInfo* alias =
      overload.handle.schema().arguments().empty() ? nullptr : overload.handle.schema().arguments()[0].alias_info();
  if (alias && alias->isWrite() && call.count > 0 && same(call.given[0])) return call.given[0].value;
  if (overload.has_output_argument) {
    for (const Call::Named& named : call.named) {
      if (same(named.value)) return named.value.value;
    }
  }
  return environment.wrap(tensor);
}

// The result of an operator that returns one new tensor: where a scope is sure to end it, the number of its handle, for
// which JavaScript makes the object itself, several times faster than it can be made from here.
napi_value new_result(Environment& environment, const OperatorFunction& function, at::Tensor tensor) {
  if (!function.numbers || !tensor.defined()) return environment.wrap(std::move(tensor));
  const double number = environment.handles.make_number(environment.env, tensor);
  return number > 0 ? from_double(environment.env, number) : environment.wrap(std::move(tensor));
}

// LibTorch's refusal in our words, with the shapes that were given.
[[noreturn]] void fail(Environment& environment, const Overload& overload, const Call& call,
                       const std::exception& error) {
  // Boxed kernels consume the stack, so the message takes the shapes from the caller's tensors again.
  torch::jit::Stack again;
  try {
    again = make_stack(environment, overload, call);
  } catch (...) {
    // An argument that changed meanwhile only costs the message its shapes.
  }
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  const std::string what = torch_error ? torch_error->what_without_backtrace() : error.what();
  throw TorchFailure(overload.name, overload.name + ": " + first_words(what) + describe_tensors(overload, again));
}

// The result of the direct call, or null where there is none or a value is not plain.
napi_value run_directly(Environment& environment, const OperatorFunction& function, const Overload& overload,
                        const Call& call) {
  if (!overload.direct || !call.named.empty() || call.count > overload.positional) return nullptr;
  std::optional<at::Tensor> result;
  try {
    result = overload.direct(environment, overload, call.given, call.count);
  } catch (const std::exception& error) {
    if (environment.callback_error) throw;
    fail(environment, overload, call, error);
  }
  return result ? new_result(environment, function, std::move(*result)) : nullptr;
}

napi_value run(Environment& environment, const OperatorFunction& function, const Overload& overload, const Call& call) {
  torch::jit::Stack stack = make_stack(environment, overload, call);
  if (overload.guard) overload.guard(overload, stack);
  try {
    overload.handle.callBoxed(stack);
  } catch (const std::exception& error) {
    if (environment.callback_error) throw;
    fail(environment, overload, call, error);
  }
  const size_t results = stack.size();
  if (results == 0) return undefined(environment.env);
  if (results == 1) {
    if (!stack[0].isTensor() || overload.writes_argument) {
      return wrap_result(environment, overload, call, stack[0]);
    }
    return new_result(environment, function, std::move(stack[0]).toTensor());
  }
  napi_value array = new_array(environment.env, results);
  for (size_t i = 0; i < results; ++i) {
    set(environment.env, array, static_cast<uint32_t>(i), wrap_result(environment, overload, call, stack[i]));
  }
  return array;
}

napi_value invoke(napi_env env, napi_callback_info info) {
  napi_value values[kMaxArguments];
  size_t count = kMaxArguments;
  void* data = nullptr;
  if (napi_get_cb_info(env, info, &count, values, nullptr, &data) != napi_ok) return nullptr;
  const auto& function = *static_cast<const OperatorFunction*>(data);
  return guard(env, function.name.c_str(), [&]() -> napi_value {
    Environment& environment = Environment::of(env);
    if (count > kMaxArguments) {
      throw ArgumentError(function.name + ": given " + std::to_string(count) + " arguments, which is too many");
    }
    Call call;
    for (size_t i = 0; i < count; ++i) call.given[call.count++] = inspect(environment, values[i]);
    if (call.count > 0 && is_options(env, call.given[call.count - 1])) {
      read_options(environment, call.given[--call.count].value, call);
    }
    while (call.count > 0 && call.given[call.count - 1].absent()) --call.count;
    const bool sole = function.overloads.size() == 1;
    for (const Overload& overload : function.overloads) {
      if (napi_value result = run_directly(environment, function, overload, call)) return result;
      if (!sole && matches(environment, overload, call)) return run(environment, function, overload, call);
    }
    if (sole) {
      check_call(environment, function.overloads[0], call);
      return run(environment, function, function.overloads[0], call);
    }
    refuse_call(environment, function, call);
  });
}

// Overloads in the order in which calls try them: results in new tensors before `out`, exact names before variants,
// fewer arguments before more. Dimension names, which JavaScript strings would match by accident, come by name only.
void order(std::vector<Overload>& overloads) {
  std::stable_sort(overloads.begin(), overloads.end(), [](const Overload& a, const Overload& b) {
    if (a.has_output_argument != b.has_output_argument) return !a.has_output_argument;
    if (a.parameters.size() != b.parameters.size()) return a.parameters.size() < b.parameters.size();
    return a.name < b.name;
  });
}

std::unique_ptr<OperatorFunction> find_operator(const std::string& name, const std::string* overload_name) {
  auto function = std::make_unique<OperatorFunction>();
  function->name = overload_name && !overload_name->empty() ? name + "." + *overload_name : name;
  auto& dispatcher = c10::Dispatcher::singleton();
  if (overload_name) {
    const auto found = dispatcher.findSchema({name, *overload_name});
    if (found) function->overloads.emplace_back(*found);
  } else {
    // The names of all operators, grouped once: the dispatcher itself only answers exact names.
    static const auto* groups = [] {
      auto* result = new std::unordered_map<std::string, std::vector<std::string>>();
      for (const c10::OperatorName& entry : c10::Dispatcher::singleton().getAllOpNames()) {
        (*result)[entry.name].push_back(entry.overload_name);
      }
      return result;
    }();
    std::vector<std::string> overloads;
    const auto group = groups->find(name);
    if (group != groups->end()) {
      overloads = group->second;
      std::sort(overloads.begin(), overloads.end());
    }
    for (const std::string& overload : overloads) {
      if (const auto found = dispatcher.findSchema({name, overload})) function->overloads.emplace_back(*found);
    }
    order(function->overloads);
  }
  if (function->overloads.empty()) return nullptr;
  return function;
}

napi_value operator_(napi_env env, napi_callback_info info) {
  return guard(env, "operator", [&]() -> napi_value {
    const Args<2> args(env, info);
    Environment& environment = Environment::of(env);
    const std::string name = string_arg(env, args[0], "operator: name");
    const napi_valuetype overload_type = type_of(env, args[1]);
    const bool any = overload_type == napi_null || overload_type == napi_undefined;
    const std::string overload = any ? "" : string_arg(env, args[1], "operator: overload");
    const std::string key = name + (any ? "|" : "." + overload);
    auto& slot = environment.operators[key];
    if (!slot) {
      slot = find_operator(name, any ? nullptr : &overload);
      if (!slot) {
        environment.operators.erase(key);
        return undefined(env);
      }
      slot->numbers = std::all_of(slot->overloads.begin(), slot->overloads.end(), [](const Overload& candidate) {
        const auto& returns = candidate.handle.schema().returns();
        return returns.size() == 1 && returns[0].type()->kind() == c10::TypeKind::TensorType;
      });
    }
    napi_value function;
    check(env, napi_create_function(env, name.c_str(), name.size(), invoke, slot.get(), &function));
    set(env, function, "numbers", from_bool(env, slot->numbers));
    return function;
  });
}

napi_value describe_arguments(napi_env env, const std::vector<c10::Argument>& arguments) {
  napi_value array = new_array(env, arguments.size());
  for (uint32_t i = 0; i < arguments.size(); ++i) {
    const Parameter parameter = make_parameter(arguments[i]);
    napi_value entry;
    check(env, napi_create_object(env, &entry));
    set(env, entry, "name", from_string(env, parameter.name));
    set(env, entry, "type", from_string(env, parameter.type_text));
    set(env, entry, "kwargOnly", from_bool(env, parameter.keyword_only));
    std::ostringstream value;
    if (parameter.default_value) value << *parameter.default_value;
    set(env, entry, "defaultValue", parameter.default_value ? from_string(env, value.str()) : null(env));
    set(env, entry, "isOut", from_bool(env, parameter.output));
    set(env, array, i, entry);
  }
  return array;
}

napi_value schemas(napi_env env, napi_callback_info) {
  return guard(env, "schemas", [&] {
    auto names = c10::Dispatcher::singleton().getAllOpNames();
    std::sort(names.begin(), names.end(), [](const auto& a, const auto& b) {
      return std::tie(a.name, a.overload_name) < std::tie(b.name, b.overload_name);
    });
    napi_value array = new_array(env, 0);
    uint32_t index = 0;
    for (const c10::OperatorName& name : names) {
      const auto found = c10::Dispatcher::singleton().findSchema(name);
      if (!found) continue;
      const c10::FunctionSchema& schema = found->schema();
      napi_value entry;
      check(env, napi_create_object(env, &entry));
      set(env, entry, "name", from_string(env, schema.name()));
      set(env, entry, "overload", from_string(env, schema.overload_name()));
      std::ostringstream text;
      text << schema;
      set(env, entry, "text", from_string(env, text.str()));
      set(env, entry, "arguments", describe_arguments(env, schema.arguments()));
      set(env, entry, "returns", describe_arguments(env, schema.returns()));
      set(env, array, index++, entry);
    }
    return array;
  });
}

}  // namespace

void define_dispatch(napi_env env, napi_value exports) {
  define(env, exports, {{"operator", operator_}, {"schemas", schemas}});
}

}  // namespace torchgraft
