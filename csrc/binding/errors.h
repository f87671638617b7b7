// How a native failure becomes a JavaScript error.
#pragma once

#include <string>

#include "napi.h"

namespace torchgraft {

inline constexpr const char* kFreedAdvice = "Return it from the scope or wrap it in keep() if it must live longer.";

// LibTorch's refusal of an operator call: becomes a TorchError that carries the operator's name.
struct TorchFailure : std::runtime_error {
  TorchFailure(std::string op, const std::string& message)
      : std::runtime_error(message), operator_name(std::move(op)) {}
  std::string operator_name;
};

// The part of LibTorch's message that helps: without dispatcher tables, backtraces and internal file names.
std::string first_words(const std::string& what);

}  // namespace torchgraft
