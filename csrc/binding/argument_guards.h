// What LibTorch's own kernels do not check: arguments with which they write out of bounds, divide by zero or never end.
#pragma once

#include <string>
#include <unordered_map>

#include "guards.h"

namespace torchgraft {

// By the operator's name, for all its overloads.
const std::unordered_map<std::string, Guard>& argument_guards();

}  // namespace torchgraft
