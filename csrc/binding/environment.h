// Everything native that belongs to one JavaScript environment (the main thread or one worker). No process-wide state.
#pragma once

#include <c10/core/InferenceMode.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <queue>
#include <thread>
#include <unordered_map>
#include <vector>

#include "handles.h"
#include "napi.h"

namespace torchgraft {

struct AutocastState {
  at::DeviceType device;
  bool enabled;
  at::ScalarType dtype;
};

struct OperatorFunction;  // dispatch.cpp

class Environment {
 public:
  explicit Environment(napi_env env);
  ~Environment();
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
  static Environment& of(napi_env env);

  napi_env env;
  std::thread::id thread = std::this_thread::get_id();
  HandleTable handles;

  napi_ref tensor_class = nullptr;
  napi_ref error_class = nullptr;
  // An error that a JavaScript callback threw while LibTorch was on the stack; rethrown when the stack has unwound.
  napi_ref callback_error = nullptr;
  // JavaScript functions that autograd may call.
  std::atomic<size_t> hooks{0};

  std::vector<std::unique_ptr<c10::InferenceMode>> inference_modes;
  std::vector<AutocastState> autocast_states;
  std::unordered_map<std::string, std::unique_ptr<OperatorFunction>> operators;

  // A new instance of the Tensor class around `tensor`; null for an undefined tensor.
  napi_value wrap(at::Tensor tensor);
  // The tensor behind a value, or an ArgumentError that names `what`; also refuses freed ones.
  const at::Tensor& tensor(napi_value value, const char* what);
  Handle* handle(napi_value value, const char* what);
  std::vector<at::Tensor> tensors(napi_value array, const char* what);
  // Like tensors(), with null (or undefined) read as an undefined tensor.
  std::vector<at::Tensor> optional_tensors(napi_value array, const char* what);

  // Deletes a reference on the JavaScript thread, at its next visit to the addon.
  void defer_delete(napi_ref reference);
  void delete_deferred();

  // Runs `call` on the JavaScript thread: at once when already there, else handed over to whoever runs `pump`.
  void on_main_thread(const std::function<void()>& call);
  // Runs `work` on another thread while this one serves on_main_thread calls.
  void pump(const std::function<void()>& work);

 private:
  struct Request {
    const std::function<void()>* call;
    std::exception_ptr error;
    bool done = false;
  };
  std::mutex mutex_;
  std::condition_variable wake_;
  std::queue<Request*> requests_;
  std::vector<napi_ref> doomed_;
};

}  // namespace torchgraft
