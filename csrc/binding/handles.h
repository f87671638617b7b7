// JavaScript handles of native tensors: who owns what, and when it is freed.
//
// A handle is a slot that holds one reference to a native tensor, wrapped by one JavaScript object. It ends in one of
// three ways: its scope closes, `free` is called, or its object is collected. Node-API's finalizers wait for the event
// loop, so a synchronous loop would never free anything; instead the table keeps a weak reference per object and sweeps
// when slots or bytes have grown: a weak reference reads empty as soon as its object is collected.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <unordered_set>
#include <vector>

#include "napi.h"

namespace torchgraft {

struct Handle {
  at::Tensor tensor;        // undefined once freed
  napi_ref object = nullptr;  // weak; null while the slot is unused
  Handle* previous = nullptr;  // neighbors in the list of the scope, or in the free list (next only)
  Handle* next = nullptr;
  uint32_t scope = 0;  // depth of the scope that owns the handle; 0 is none
  size_t bytes = 0;    // what the collector was told
};

class HandleTable {
 public:
  HandleTable() = default;
  HandleTable(const HandleTable&) = delete;
  HandleTable& operator=(const HandleTable&) = delete;

  // Attaches `tensor` to `object`, which must be fresh.
  void attach(napi_env env, napi_value object, at::Tensor tensor);
  // The handle behind a value, or null when the value is not one of our objects.
  Handle* find(napi_env env, napi_value value) const;
  void free(napi_env env, Handle* handle);
  // The handle's tensor has been exchanged: account for its new size.
  void retarget(napi_env env, Handle* handle, at::Tensor tensor);

  uint32_t open_scope();
  void close_scope(napi_env env, uint32_t token, const std::vector<Handle*>& survivors);
  void keep(Handle* handle);

  size_t sweep(napi_env env);
  void release_all();

  size_t live() const { return live_; }
  size_t bytes() const;

 private:
  static constexpr size_t kChunkBytes = size_t{1} << 16;
  static constexpr size_t kSlotsPerChunk = kChunkBytes / sizeof(Handle);

  static void on_collected(napi_env env, void* data, void* hint);
  // The object is gone: end the handle.
  void release(napi_env env, Handle* handle);
  Handle* take_slot();
  void give_back(Handle* handle);
  void unlink(Handle* handle);
  void link(Handle* handle, uint32_t scope);
  void drop_tensor(napi_env env, Handle* handle);
  void account(napi_env env, int64_t change);
  void maybe_sweep(napi_env env);
  static size_t owned_bytes(const at::Tensor& tensor);

  struct ChunkDeleter {
    void operator()(Handle* chunk) const;
  };
  std::vector<std::unique_ptr<Handle, ChunkDeleter>> chunks_;
  // Addresses of the chunks, which are aligned to their size: tells our pointers from those of other addons.
  std::unordered_set<uintptr_t> chunk_addresses_;
  Handle* free_ = nullptr;
  std::vector<Handle*> scopes_;  // head of each open scope's list
  size_t used_ = 0;              // slots taken, freed tensors included
  size_t live_ = 0;              // slots with a tensor
  size_t told_bytes_ = 0;        // sum of Handle::bytes
  int64_t untold_ = 0;           // change not yet reported to the collector
  size_t sweep_at_used_ = 4096;
  size_t sweep_at_bytes_ = size_t{64} << 20;
};

}  // namespace torchgraft
