// The door: operators looked up in LibTorch's dispatcher by name and called boxed.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <vector>

#include "convert.h"
#include "direct.h"
#include "guards.h"

namespace torchgraft {

// One overload: its handle in the dispatcher, and its arguments prepared for conversion.
struct Overload {
  explicit Overload(const c10::OperatorHandle& handle);
  c10::OperatorHandle handle;
  std::string name;  // `aten::add.Tensor`
  std::vector<Parameter> parameters;
  size_t positional = 0;  // how many parameters may be given by position
  bool has_output_argument = false;
  bool writes_argument = false;  // which may then be the result
  bool callable = true;          // no argument that JavaScript cannot express
  Guard guard = nullptr;
  DirectCall direct = nullptr;  // for the frequent signatures
};

// What a JavaScript function of the door calls: all overloads of a name, or one of them.
struct OperatorFunction {
  std::string name;
  std::vector<Overload> overloads;
  bool numbers = false;  // one tensor is all it returns: calls may answer with a handle's number
};

void define_dispatch(napi_env env, napi_value exports);

}  // namespace torchgraft
