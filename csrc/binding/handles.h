// JavaScript handles of native tensors: who owns what, and when it is freed.
//
// A handle is a slot that holds one reference to a native tensor. Its JavaScript object knows it by a number, under a
// symbol of ours: the slot's index and how often the slot has been used, so that an object whose tensor is gone cannot
// mistake a later one for its own. A handle ends in one of three ways: its scope closes, `free` is called, or its
// object is collected.
//
// Only the third needs a weak reference, and that is what a call costs most. So a handle gets one only when nothing
// else is sure to end it: outside scopes, and in scopes that have grown large. Node-API's finalizers wait for the event
// loop, so a synchronous loop would never free anything; instead the table sweeps when handles or bytes have grown: a
// weak reference reads empty as soon as its object is collected. One object with a finalizer stands for all others, so
// that a collection is followed by a sweep also when nothing grows.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "napi.h"

namespace torchgraft {

struct Handle {
  at::Tensor tensor;           // undefined once freed
  napi_ref object = nullptr;   // weak; null while a scope is sure to end the handle
  Handle* previous = nullptr;  // neighbors in the list of the scope, or in the free list (next only)
  Handle* next = nullptr;
  uint32_t index = 0;
  uint32_t generation = 0;  // how often the slot has been taken; 0 is never a live one
  uint32_t scope = 0;       // depth of the scope that owns the handle; 0 is none
  bool used = false;
  size_t bytes = 0;  // what the collector was told
};

// A tensor on its way out of a scope, with the object that holds it.
struct Survivor {
  Handle* handle;
  napi_value object;
};

class HandleTable {
 public:
  HandleTable();
  HandleTable(const HandleTable&) = delete;
  HandleTable& operator=(const HandleTable&) = delete;

  // The key under which objects keep their number.
  void set_key(napi_env env, napi_value symbol);
  // A new object of `constructor` that holds `tensor`.
  napi_value make(napi_env env, napi_value constructor, at::Tensor tensor);
  // The number of a new handle whose object JavaScript makes, or 0 where the object would need watching.
  double make_number(napi_env env, at::Tensor& tensor);
  // Attaches `tensor` to `object`, which must be fresh.
  void attach(napi_env env, napi_value object, at::Tensor tensor);
  // The handle behind a value: null when the value is not one of our objects, a handle without a tensor when its tensor
  // has been freed.
  Handle* find(napi_env env, napi_value value);
  void free(napi_env env, Handle* handle);
  // The handle's tensor has been exchanged: account for its new size.
  void retarget(napi_env env, Handle* handle, at::Tensor tensor);

  uint32_t open_scope();
  void close_scope(napi_env env, uint32_t token, const std::vector<Survivor>& survivors);
  void keep(napi_env env, Handle* handle, napi_value object);

  size_t sweep(napi_env env);
  void release_all();

  size_t live() const { return live_; }
  size_t bytes() const;

 private:
  static constexpr uint32_t kSlotsPerChunk = 1024;
  static constexpr uint32_t kIndexBits = 24;
  static constexpr uint32_t kLastGeneration = (uint32_t{1} << 29) - 1;  // number and index fit into 53 bits
  static constexpr size_t kLargeScopeHandles = 1024;
  static constexpr size_t kLargeScopeBytes = size_t{1} << 30;

  struct Scope {
    Handle* first = nullptr;
    size_t handles = 0;  // ever made in it
    size_t bytes = 0;
    bool large() const { return handles > kLargeScopeHandles || bytes > kLargeScopeBytes; }
  };

  static double number_of(const Handle& handle);
  static size_t owned_bytes(const at::Tensor& tensor);
  static void on_collection(napi_env env, void* data, void* hint);
  Handle* take_slot();
  // Puts the tensor into the handle; whether the collector must be able to end it.
  bool own(Handle* handle, at::Tensor tensor);
  // Lets the collector end the handle.
  void watch(napi_env env, Handle* handle, napi_value object);
  void arm(napi_env env);
  void unlink(Handle* handle);
  void link(Handle* handle, uint32_t scope);
  void account(napi_env env, int64_t change);
  void maybe_sweep(napi_env env);

  std::vector<std::unique_ptr<Handle[]>> chunks_;
  Handle gone_;  // stands for every handle that has ended
  napi_ref key_ = nullptr;
  Handle* free_ = nullptr;
  std::vector<Scope> scopes_;
  size_t live_ = 0;        // handles in use
  size_t watched_ = 0;     // those with a weak reference
  size_t told_bytes_ = 0;  // sum of Handle::bytes
  int64_t untold_ = 0;     // change not yet reported to the collector
  bool armed_ = false;     // the object that stands for all others is alive
  size_t sweep_at_watched_ = 4096;
  size_t sweep_at_bytes_ = size_t{64} << 20;
};

}  // namespace torchgraft
