#include "guards.h"

#include <algorithm>
#include <atomic>
#include <string_view>

#include "argument_guards.h"
#include "dispatch.h"
#include "napi.h"

namespace torchgraft {

namespace {

// Steps of LibTorch's own trust their caller: with shapes, dtypes or sizes that do not fit, many read and write outside
// of their memory or divide by zero. Their names tell them apart: an underscore or one of kInnerPrefixes in front, or
// `_backward`. The public operators that use them check first and remain. These few of them check as well.
constexpr std::string_view kChecked[] = {
    "_foreach_add", "_foreach_mul", "_log_softmax", "_softmax", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
    "_version",
};

// One library's or one step's part of a public operator: `batch_norm_update_stats`, `native_group_norm`, `mkldnn_...`.
constexpr std::string_view kInnerPrefixes[] = {"_",       "batch_norm_", "cudnn_", "fbgemm_",
                                               "miopen_", "mkldnn_",     "native_"};

// The same by other names: these take weights packed by operators that cannot be called from here, and the last is for
// devices that bring their own kernel; what stands in its place computes nothing.
constexpr std::string_view kUnchecked[] = {
    "quantized_gru_cell",      "quantized_lstm_cell",      "quantized_rnn_relu_cell",
    "quantized_rnn_tanh_cell", "convolution_overrideable",
};

constexpr std::string_view kNamespace = "aten::";

std::atomic<bool> unchecked_allowed{false};

void refuse(const Overload& overload, const torch::jit::Stack&) {
  if (unchecked_allowed) return;
  throw ArgumentError(overload.name +
                      ": is an inner step of LibTorch that does not check its arguments, so that a wrong one would end "
                      "the process; call the public operator that it belongs to, or, where you are sure of the "
                      "arguments, call allowUncheckedOperators() first");
}

bool is_inner_step(std::string_view name) {
  if (!name.starts_with(kNamespace)) return false;
  name.remove_prefix(kNamespace.size());
  if (std::ranges::find(kUnchecked, name) != std::end(kUnchecked)) return true;
  if (std::ranges::find(kChecked, name) != std::end(kChecked)) return false;
  if (name.starts_with("__")) return false;  // __and__, __lshift__: public
  return name.find("_backward") != std::string_view::npos ||
         std::ranges::any_of(kInnerPrefixes, [&](std::string_view prefix) { return name.starts_with(prefix); });
}

}  // namespace

Guard find_guard(const std::string& name) {
  const auto found = argument_guards().find(name);
  if (found != argument_guards().end()) return found->second;
  return is_inner_step(name) ? refuse : nullptr;
}

void allow_unchecked_operators(bool allow) { unchecked_allowed = allow; }

}  // namespace torchgraft
