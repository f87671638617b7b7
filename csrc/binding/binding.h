// The parts of the addon's surface, one source file each; addon.cpp puts them together.
#pragma once

#include "napi.h"

namespace torchgraft {

void define_dispatch(napi_env env, napi_value exports);
void define_tensor(napi_env env, napi_value exports);
void define_autograd(napi_env env, napi_value exports);
void define_modes(napi_env env, napi_value exports);
void define_macs(napi_env env, napi_value exports);
void define_system(napi_env env, napi_value exports);
void define_files(napi_env env, napi_value exports);
void define_optim(napi_env env, napi_value exports);

}  // namespace torchgraft
