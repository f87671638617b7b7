// Calls past the interpreter: operators of frequent signatures are called as the C++ functions they are, without the
// stack of boxed values that the general way needs. Same dispatch, same result, about half the cost of a small
// operator.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <vector>

#include "convert.h"

namespace torchgraft {

struct Overload;

// Calls the overload with the first `count` of its arguments given by position and defaults for the others. Nothing,
// and no effect, when a value is not plainly of the argument's type; the general way then converts it or says what is
// wrong.
using DirectCall = std::optional<at::Tensor> (*)(Environment&, const Overload&, const Given* given, size_t count);

// How to call an overload of this handle directly, or null when its signature is none of those known here.
DirectCall find_direct_call(const c10::OperatorHandle& handle, const std::vector<Parameter>& parameters);

}  // namespace torchgraft
