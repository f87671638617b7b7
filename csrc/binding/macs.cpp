// Counting multiply-accumulates: while a count is open on a thread, every convolution and matrix product that LibTorch
// runs there adds its own, whatever operator it is part of. On the meta device that costs no arithmetic.
#include <ATen/record_function.h>

#include <memory>
#include <string_view>
#include <vector>

#include "binding.h"

namespace torchgraft {

namespace {

struct Count {
  at::CallbackHandle handle;
  double macs = 0;
};

thread_local std::vector<Count> counts;

double product(at::IntArrayRef sizes) {
  double result = 1;
  for (const int64_t size : sizes) result *= static_cast<double>(size);
  return result;
}

// The tensor at `index`, or null.
const at::Tensor* tensor_at(c10::ArrayRef<const c10::IValue> values, size_t index) {
  if (index >= values.size() || !values[index].isTensor()) return nullptr;
  const at::Tensor& tensor = values[index].toTensor();
  return tensor.defined() ? &tensor : nullptr;
}

// Rows x inner x columns of a product of (batches of) matrices.
double of_product(const at::Tensor* a, const at::Tensor* b) {
  return a && b && b->dim() > 0 ? product(a->sizes()) * static_cast<double>(b->size(-1)) : 0;
}

// What a call adds, read off its inputs, which are gone when it ends: a fixed number, and one for each output element.
struct Call : at::ObserverContext {
  double fixed = 0;
  double per_output = 0;
};

void read_convolution(const at::RecordFunction& function, Call& call) {
  const auto inputs = function.inputs();
  const at::Tensor* input = tensor_at(inputs, 0);
  const at::Tensor* weight = tensor_at(inputs, 1);
  if (!input || !weight || weight->dim() == 0 || weight->size(0) == 0) return;
  const double each = product(weight->sizes()) / static_cast<double>(weight->size(0));
  const bool transposed = inputs.size() > 6 && inputs[6].isBool() && inputs[6].toBool();
  (transposed ? call.fixed : call.per_output) = transposed ? product(input->sizes()) * each : each;
}

// Scores and their product with the values, [B, H, N, d] each.
double of_attention(const at::RecordFunction& call) {
  const at::Tensor* q = tensor_at(call.inputs(), 0);
  const at::Tensor* k = tensor_at(call.inputs(), 1);
  const at::Tensor* v = tensor_at(call.inputs(), 2);
  if (!q || !k || !v || q->dim() < 2 || k->dim() < 2 || v->dim() < 1 || q->size(-1) == 0) return 0;
  const double scores = product(q->sizes()) * static_cast<double>(k->size(-2));
  return scores + scores / static_cast<double>(q->size(-1)) * static_cast<double>(v->size(-1));
}

std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& function) {
  const std::string_view name = function.name();
  auto call = std::make_unique<Call>();
  if (name == "aten::convolution") {
    read_convolution(function, *call);
  } else if (name == "aten::mm" || name == "aten::bmm") {
    call->fixed = of_product(tensor_at(function.inputs(), 0), tensor_at(function.inputs(), 1));
  } else if (name == "aten::addmm" || name == "aten::baddbmm") {
    call->fixed = of_product(tensor_at(function.inputs(), 1), tensor_at(function.inputs(), 2));
  } else if (name == "aten::_scaled_dot_product_flash_attention" ||
             name == "aten::_scaled_dot_product_flash_attention_for_cpu" ||
             name == "aten::_scaled_dot_product_efficient_attention" ||
             name == "aten::_scaled_dot_product_fused_attention_overrideable") {
    call->fixed = of_attention(function);
  } else {
    return nullptr;
  }
  return call;
}

void on_end(const at::RecordFunction& function, at::ObserverContext* context) {
  const auto* call = static_cast<const Call*>(context);
  if (!call) return;
  double macs = call->fixed;
  const auto outputs = function.outputs();
  if (call->per_output > 0 && !outputs.empty() && outputs[0].isTensor()) {
    macs += call->per_output * product(outputs[0].toTensor().sizes());
  }
  for (Count& count : counts) count.macs += macs;
}

napi_value macs_enter(napi_env env, napi_callback_info) {
  return guard(env, "countMacs", [&] {
    // One observer serves nested counts.
    const at::CallbackHandle handle = counts.empty()
                                          ? at::addThreadLocalCallback(at::RecordFunctionCallback(on_start, on_end)
                                                                           .needsInputs(true)
                                                                           .needsOutputs(true)
                                                                           .scopes({at::RecordScope::FUNCTION}))
                                          : counts.front().handle;
    counts.push_back({handle, 0});
    return from_int(env, static_cast<int64_t>(counts.size()));
  });
}

napi_value macs_exit(napi_env env, napi_callback_info info) {
  return guard(env, "countMacs", [&] {
    const Args<1> args(env, info);
    if (counts.empty() || int_arg(env, args[0], "countMacs: token") != static_cast<int64_t>(counts.size())) {
      throw OutOfRange("countMacs: counts must end in the reverse order of their beginning");
    }
    const Count last = counts.back();
    counts.pop_back();
    if (counts.empty()) at::removeCallback(last.handle);
    return from_double(env, last.macs);
  });
}

}  // namespace

void define_macs(napi_env env, napi_value exports) {
  define(env, exports, {{"macsEnter", macs_enter}, {"macsExit", macs_exit}});
}

}  // namespace torchgraft
