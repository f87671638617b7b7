// Checks of arguments that LibTorch leaves out, where leaving them out ends the process or never returns.
#pragma once

#include <ATen/core/stack.h>

#include <string>

namespace torchgraft {

struct Overload;

// Throws ArgumentError or OutOfRange; `stack` holds the operator's arguments in the order of its schema.
using Guard = void (*)(const Overload& overload, const torch::jit::Stack& stack);

// The guard of an operator by its name without overload (`aten::range`); null for most public ones.
Guard find_guard(const std::string& name);

// Whether LibTorch's inner steps, which do not check their arguments, may be called; they are refused by default.
void allow_unchecked_operators(bool allow);

}  // namespace torchgraft
