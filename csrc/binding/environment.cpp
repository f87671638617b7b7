#include "environment.h"

#include <ATen/ThreadLocalState.h>
#include <c10/util/Exception.h>

#include "dispatch.h"
#include "errors.h"

namespace torchgraft {

Environment::Environment(napi_env environment) : env(environment) {}

Environment::~Environment() { handles.release_all(); }

Environment& Environment::of(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return *static_cast<Environment*>(data);
}

napi_value Environment::wrap(at::Tensor tensor) {
  if (!tensor.defined()) return null(env);
  napi_value constructor;
  if (!tensor_class) throw std::runtime_error("the addon was used before setup()");
  check(env, napi_get_reference_value(env, tensor_class, &constructor));
  return handles.make(env, constructor, std::move(tensor));
}

Handle* Environment::handle(napi_value value, const char* what) {
  Handle* found = type_of(env, value) == napi_object ? handles.find(env, value) : nullptr;
  if (!found) throw ArgumentError(std::string(what) + ": expected a Tensor, given " + describe(env, value));
  return found;
}

const at::Tensor& Environment::tensor(napi_value value, const char* what) {
  Handle* found = handle(value, what);
  if (!found->tensor.defined()) {
    throw ArgumentError(std::string(what) + ": the tensor was freed, by its scope or by dispose(). " + kFreedAdvice);
  }
  return found->tensor;
}

std::vector<at::Tensor> Environment::tensors(napi_value array, const char* what) {
  if (!is_array(env, array)) {
    throw ArgumentError(std::string(what) + ": expected an array of Tensors, given " + describe(env, array));
  }
  const uint32_t length = array_length(env, array);
  std::vector<at::Tensor> result;
  result.reserve(length);
  for (uint32_t i = 0; i < length; ++i) result.push_back(tensor(element(env, array, i), what));
  return result;
}

std::vector<at::Tensor> Environment::optional_tensors(napi_value array, const char* what) {
  if (!is_array(env, array)) {
    throw ArgumentError(std::string(what) + ": expected an array of Tensors or nulls, given " + describe(env, array));
  }
  const uint32_t length = array_length(env, array);
  std::vector<at::Tensor> result(length);
  for (uint32_t i = 0; i < length; ++i) {
    napi_value value = element(env, array, i);
    const napi_valuetype type = type_of(env, value);
    if (type != napi_null && type != napi_undefined) result[i] = tensor(value, what);
  }
  return result;
}

void Environment::defer_delete(napi_ref reference) {
  const std::lock_guard<std::mutex> lock(mutex_);
  doomed_.push_back(reference);
}

void Environment::delete_deferred() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const napi_ref reference : doomed_) napi_delete_reference(env, reference);
  doomed_.clear();
}

void Environment::on_main_thread(const std::function<void()>& call) {
  if (std::this_thread::get_id() == thread) {
    call();
    return;
  }
  Request request{&call, nullptr};
  std::unique_lock<std::mutex> lock(mutex_);
  requests_.push(&request);
  wake_.notify_all();
  wake_.wait(lock, [&] { return request.done; });
  if (request.error) std::rethrow_exception(request.error);
}

void Environment::pump(const std::function<void()>& work) {
  std::exception_ptr failure;
  bool finished = false;
  const at::ThreadLocalState state;
  std::thread worker([&] {
    const at::ThreadLocalStateGuard guard(state);
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    finished = true;
    wake_.notify_all();
  });
  {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return finished || !requests_.empty(); });
      if (requests_.empty()) break;
      Request* request = requests_.front();
      requests_.pop();
      lock.unlock();
      try {
        (*request->call)();
      } catch (...) {
        request->error = std::current_exception();
      }
      lock.lock();
      request->done = true;
      wake_.notify_all();
    }
  }
  worker.join();
  delete_deferred();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace torchgraft
