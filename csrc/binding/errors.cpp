#include "errors.h"

#include <c10/util/Exception.h>

#include "environment.h"

namespace torchgraft {

std::string first_words(const std::string& what) {
  std::string text = what.substr(0, what.find("\nException raised from"));
  // The dispatcher appends the table of all its backends; the first line says it all.
  const size_t table = text.find("'aten::");
  const bool lists_backends = text.rfind("Could not run", 0) == 0 && table != std::string::npos;
  const size_t end = text.find('\n');
  if (lists_backends) {
    const size_t sentence = text.find(". This could be because");
    return text.substr(0, std::min(sentence, end));
  }
  if (end != std::string::npos) text.resize(end);
  while (!text.empty() && (text.back() == ' ' || text.back() == '.')) text.pop_back();
  return text;
}

namespace {

void throw_torch_error(napi_env env, const std::string& operator_name, const std::string& message) {
  Environment& environment = Environment::of(env);
  napi_value constructor = nullptr;
  if (!environment.error_class || napi_get_reference_value(env, environment.error_class, &constructor) != napi_ok ||
      !constructor) {
    napi_throw_error(env, nullptr, message.c_str());
    return;
  }
  napi_value details;
  check(env, napi_create_object(env, &details));
  set(env, details, "operator", from_string(env, operator_name));
  napi_value arguments[] = {from_string(env, message), details};
  napi_value error;
  check(env, napi_new_instance(env, constructor, 2, arguments, &error));
  napi_throw(env, error);
}

void rethrow(napi_env env, const char* function) {
  Environment& environment = Environment::of(env);
  if (environment.callback_error) {
    napi_value error = nullptr;
    napi_get_reference_value(env, environment.callback_error, &error);
    napi_delete_reference(env, environment.callback_error);
    environment.callback_error = nullptr;
    if (error) {
      napi_value wrapped = nullptr;
      // Primitives cannot be referenced, so callbacks store what they caught in a one-element array.
      if (napi_get_element(env, error, 0, &wrapped) == napi_ok) error = wrapped;
      napi_throw(env, error);
      return;
    }
  }
  try {
    throw;
  } catch (const PendingException&) {
    // JavaScript's own exception is on its way already.
  } catch (const ArgumentError& error) {
    napi_throw_type_error(env, nullptr, error.what());
  } catch (const OutOfRange& error) {
    napi_throw_range_error(env, nullptr, error.what());
  } catch (const TorchFailure& error) {
    throw_torch_error(env, error.operator_name, error.what());
  } catch (const c10::Error& error) {
    throw_torch_error(env, function, std::string(function) + ": " + first_words(error.what_without_backtrace()));
  } catch (const std::bad_alloc&) {
    throw_torch_error(env, function, std::string(function) + ": out of memory");
  } catch (const std::exception& error) {
    throw_torch_error(env, function, std::string(function) + ": " + first_words(error.what()));
  } catch (...) {
    throw_torch_error(env, function, std::string(function) + ": an unknown native error");
  }
}

}  // namespace

napi_value report_exception(napi_env env, const char* function) noexcept {
  try {
    rethrow(env, function);
  } catch (...) {
    bool pending = false;
    napi_is_exception_pending(env, &pending);
    if (!pending) napi_throw_error(env, nullptr, "torchgraft: a native error could not be reported");
  }
  return nullptr;
}

}  // namespace torchgraft
