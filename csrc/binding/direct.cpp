#include "direct.h"

#include <c10/core/SymIntArrayRef.h>
#include <c10/util/SmallVector.h>

#include <string>
#include <tuple>
#include <utility>

#include "dispatch.h"

namespace torchgraft {
namespace {

// One argument: where its value waits for the call. `take` reads what the caller gave and `take_default` the schema's
// default; both say whether they could. `type` is the schema's spelling, without the length of a list.
template <typename Type>
struct Slot;

template <>
struct Slot<const at::Tensor&> {
  static constexpr const char* type = "Tensor";
  const at::Tensor* value = nullptr;
  bool take(napi_env, const Given& given) {
    if (!given.tensor || !given.tensor->tensor.defined()) return false;
    value = &given.tensor->tensor;
    return true;
  }
  bool take_default(const c10::IValue&) { return false; }
  const at::Tensor& get() const { return *value; }
};

template <>
struct Slot<const std::optional<at::Tensor>&> {
  static constexpr const char* type = "Tensor?";
  std::optional<at::Tensor> value;
  bool take(napi_env, const Given& given) {
    if (given.type == napi_null) return true;
    if (!given.tensor || !given.tensor->tensor.defined()) return false;
    value = given.tensor->tensor;
    return true;
  }
  bool take_default(const c10::IValue& standard) { return standard.isNone(); }
  const std::optional<at::Tensor>& get() const { return value; }
};

template <>
struct Slot<const at::Scalar&> {
  static constexpr const char* type = "Scalar";
  at::Scalar value;
  bool take(napi_env env, const Given& given) { return given.type == napi_number && plain_scalar(env, given, value); }
  bool take_default(const c10::IValue& standard) {
    value = standard.toScalar();
    return true;
  }
  const at::Scalar& get() const { return value; }
};

template <>
struct Slot<bool> {
  static constexpr const char* type = "bool";
  bool value = false;
  bool take(napi_env env, const Given& given) {
    return given.type == napi_boolean && napi_get_value_bool(env, given.value, &value) == napi_ok;
  }
  bool take_default(const c10::IValue& standard) {
    value = standard.toBool();
    return true;
  }
  bool get() const { return value; }
};

template <>
struct Slot<int64_t> {
  static constexpr const char* type = "int";
  int64_t value = 0;
  bool take(napi_env env, const Given& given) {
    return given.type == napi_number && whole_number(env, given.value, value);
  }
  bool take_default(const c10::IValue& standard) {
    value = standard.toInt();
    return true;
  }
  int64_t get() const { return value; }
};

template <>
struct Slot<c10::SymInt> : Slot<int64_t> {
  static constexpr const char* type = "SymInt";
  c10::SymInt get() const { return value; }
};

template <>
struct Slot<at::IntArrayRef> {
  static constexpr const char* type = "int[]";
  c10::SmallVector<int64_t, 6> values;
  bool take(napi_env env, const Given& given) {
    if (!given.array) return false;
    const uint32_t length = array_length(env, given.value);
    // A long list is no list of sizes; the general way grows with what it reads instead of with what is claimed.
    if (length > 64) return false;
    values.resize(length);
    for (uint32_t i = 0; i < length; ++i) {
      if (!whole_number(env, element(env, given.value, i), values[i])) return false;
    }
    return true;
  }
  bool take_default(const c10::IValue& standard) {
    const auto list = standard.toIntList();
    values.assign(list.begin(), list.end());
    return true;
  }
  at::IntArrayRef get() const { return values; }
};

template <>
struct Slot<c10::SymIntArrayRef> : Slot<at::IntArrayRef> {
  static constexpr const char* type = "SymInt[]";
  c10::SymIntArrayRef get() const { return c10::fromIntArrayRefSlow(values); }
};

template <typename... Arguments>
struct Signature {
  using Function = at::Tensor(Arguments...);
  using Slots = std::tuple<Slot<Arguments>...>;
  static constexpr auto positions = std::index_sequence_for<Arguments...>();

  static bool fits(const std::vector<std::string>& types) {
    return types == std::vector<std::string>{Slot<Arguments>::type...};
  }

  // Whether the kernels behind the schema were registered as this C++ function; typed() throws where they were not.
  static bool registered(const c10::OperatorHandle& handle) {
    try {
      handle.typed<Function>();
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }

  static std::optional<at::Tensor> call(Environment& environment, const Overload& overload, const Given* given,
                                        size_t count) {
    return call(environment.env, overload, given, count, positions);
  }

 private:
  template <size_t... I>
  static std::optional<at::Tensor> call(napi_env env, const Overload& overload, const Given* given, size_t count,
                                        std::index_sequence<I...>) {
    Slots slots;
    const auto take = [&](auto& slot, size_t i) {
      if (i < count) return slot.take(env, given[i]);
      const auto& standard = overload.parameters[i].default_value;
      return standard && slot.take_default(*standard);
    };
    if (!(take(std::get<I>(slots), I) && ...)) return std::nullopt;
    return overload.handle.typed<Function>().call(std::get<I>(slots).get()...);
  }
};

template <typename... Signatures>
DirectCall find_among(const c10::OperatorHandle& handle, const std::vector<std::string>& types) {
  DirectCall found = nullptr;
  const auto consider = [&]<typename S>(S) {
    if (!found && S::fits(types) && S::registered(handle)) found = &S::call;
  };
  (consider(Signatures{}), ...);
  return found;
}

using T = const at::Tensor&;
using OptionalT = const std::optional<at::Tensor>&;
using Number = const at::Scalar&;
using Sizes = c10::SymIntArrayRef;

}  // namespace

DirectCall find_direct_call(const c10::OperatorHandle& handle, const std::vector<Parameter>& parameters) {
  const auto& returns = handle.schema().returns();
  if (returns.size() != 1 || returns[0].type()->kind() != c10::TypeKind::TensorType) return nullptr;
  std::vector<std::string> types;
  for (const Parameter& parameter : parameters) {
    if (parameter.output) return nullptr;
    std::string type = parameter.type_text;
    const size_t bracket = type.find('[');
    if (parameter.fixed_length > 0 && bracket != std::string::npos) {
      type.erase(bracket + 1, type.find(']', bracket) - bracket - 1);
    }
    types.push_back(std::move(type));
  }
  return find_among<Signature<T>,                                                  // relu, exp, t
                    Signature<T, T>,                                               // mul, matmul
                    Signature<T, T, Number>,                                       // add
                    Signature<T, Number>,                                          // mul by a number
                    Signature<T, Number, Number>,                                  // add of a number
                    Signature<T, T, T>,                                            // baddbmm's kin, torchgraft::
                    Signature<T, T, T, Number>,                                    // addcmul
                    Signature<T, T, T, Number, Number>,                            // addmm
                    Signature<T, T, OptionalT>,                                    // linear
                    Signature<T, int64_t>,                                         // unsqueeze
                    Signature<T, int64_t, int64_t>,                                // transpose, flatten
                    Signature<T, int64_t, c10::SymInt>,                            // select
                    Signature<T, int64_t, c10::SymInt, c10::SymInt>,               // narrow
                    Signature<T, at::IntArrayRef>,                                 // permute
                    Signature<T, Sizes>,                                           // view, reshape
                    Signature<T, Sizes, bool>,                                     // expand
                    Signature<T, T, OptionalT, Sizes, Sizes, Sizes, c10::SymInt>>  // conv2d
      (handle, types);
}

}  // namespace torchgraft
