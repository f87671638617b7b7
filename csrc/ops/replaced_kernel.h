// Kernels of LibTorch that are replaced by ours, at import.
#pragma once

#include <c10/util/Exception.h>
#include <torch/library.h>

namespace torchgraft {

// Puts `kernel` in the place of LibTorch's CPU kernel of an operator. LibTorch reports every replacement by a warning,
// which would greet each user at the first import.
//
//   const ReplacedKernel batch_norm_kernel("native_batch_norm", batch_norm);
class ReplacedKernel {
 public:
  template <typename F>
  ReplacedKernel(const char* op, F* kernel) {
    Silence silence;
    const c10::WarningUtils::WarningHandlerGuard quiet(&silence);
    library_.impl(op, kernel);
  }

 private:
  class Silence : public c10::WarningHandler {
    void process(const c10::Warning&) override {}
  };
  torch::Library library_{torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__};
};

}  // namespace torchgraft
