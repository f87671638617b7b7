#include "handles.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace torchgraft {

void HandleTable::ChunkDeleter::operator()(Handle* chunk) const {
  for (size_t i = 0; i < kSlotsPerChunk; ++i) chunk[i].~Handle();
  std::free(chunk);
}

Handle* HandleTable::take_slot() {
  if (!free_) {
    void* memory = std::aligned_alloc(kChunkBytes, kChunkBytes);
    if (!memory) throw std::bad_alloc();
    Handle* chunk = static_cast<Handle*>(memory);
    for (size_t i = 0; i < kSlotsPerChunk; ++i) {
      new (chunk + i) Handle();
      chunk[i].next = i + 1 < kSlotsPerChunk ? chunk + i + 1 : nullptr;
    }
    chunks_.emplace_back(chunk);
    chunk_addresses_.insert(reinterpret_cast<uintptr_t>(chunk));
    free_ = chunk;
  }
  Handle* handle = free_;
  free_ = handle->next;
  handle->next = nullptr;
  ++used_;
  return handle;
}

void HandleTable::give_back(Handle* handle) {
  handle->object = nullptr;
  handle->next = free_;
  free_ = handle;
  --used_;
}

void HandleTable::link(Handle* handle, uint32_t scope) {
  handle->scope = scope;
  if (scope == 0) return;
  Handle*& head = scopes_[scope - 1];
  handle->previous = nullptr;
  handle->next = head;
  if (head) head->previous = handle;
  head = handle;
}

void HandleTable::unlink(Handle* handle) {
  if (handle->scope == 0) return;
  if (handle->previous) {
    handle->previous->next = handle->next;
  } else {
    scopes_[handle->scope - 1] = handle->next;
  }
  if (handle->next) handle->next->previous = handle->previous;
  handle->previous = handle->next = nullptr;
  handle->scope = 0;
}

size_t HandleTable::owned_bytes(const at::Tensor& tensor) {
  // Views share their base's storage and weigh nothing; neither do tensors without storage.
  const c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
  if (!impl->has_storage()) return 0;
  const c10::Storage& storage = impl->unsafe_storage();
  return storage && storage.use_count() == 1 ? storage.nbytes() : 0;
}

void HandleTable::account(napi_env env, int64_t change) {
  told_bytes_ += change;
  untold_ += change;
  constexpr int64_t grain = int64_t{1} << 20;
  if (untold_ > grain || untold_ < -grain) {
    int64_t total = 0;
    napi_adjust_external_memory(env, untold_, &total);
    untold_ = 0;
  }
}

void HandleTable::on_collected(napi_env env, void* data, void* hint) {
  auto* handle = static_cast<Handle*>(data);
  static_cast<HandleTable*>(hint)->release(env, handle);
}

void HandleTable::release(napi_env env, Handle* handle) {
  unlink(handle);
  drop_tensor(env, handle);
  // Without its reference the object's finalizer will not run, so each handle is released once.
  napi_delete_reference(env, handle->object);
  give_back(handle);
}

void HandleTable::attach(napi_env env, napi_value object, at::Tensor tensor) {
  maybe_sweep(env);
  Handle* handle = take_slot();
  napi_ref reference = nullptr;
  const napi_status status = napi_wrap(env, object, handle, on_collected, this, &reference);
  if (status != napi_ok) {
    give_back(handle);
    check(env, status);
  }
  handle->object = reference;
  handle->bytes = owned_bytes(tensor);
  handle->tensor = std::move(tensor);
  ++live_;
  link(handle, static_cast<uint32_t>(scopes_.size()));
  account(env, static_cast<int64_t>(handle->bytes));
}

Handle* HandleTable::find(napi_env env, napi_value value) const {
  void* data = nullptr;
  if (napi_unwrap(env, value, &data) != napi_ok || !data) return nullptr;
  const uintptr_t chunk = reinterpret_cast<uintptr_t>(data) & ~(kChunkBytes - 1);
  return chunk_addresses_.count(chunk) ? static_cast<Handle*>(data) : nullptr;
}

void HandleTable::drop_tensor(napi_env env, Handle* handle) {
  if (!handle->tensor.defined()) return;
  handle->tensor.reset();
  --live_;
  account(env, -static_cast<int64_t>(handle->bytes));
  handle->bytes = 0;
}

void HandleTable::free(napi_env env, Handle* handle) {
  unlink(handle);
  drop_tensor(env, handle);
}

void HandleTable::retarget(napi_env env, Handle* handle, at::Tensor tensor) {
  account(env, -static_cast<int64_t>(handle->bytes));
  handle->bytes = owned_bytes(tensor);
  account(env, static_cast<int64_t>(handle->bytes));
  if (!handle->tensor.defined()) ++live_;
  handle->tensor = std::move(tensor);
}

uint32_t HandleTable::open_scope() {
  scopes_.push_back(nullptr);
  return static_cast<uint32_t>(scopes_.size());
}

void HandleTable::close_scope(napi_env env, uint32_t token, const std::vector<Handle*>& survivors) {
  if (token == 0 || token != scopes_.size()) {
    throw OutOfRange("scopeClose: scopes must close in the reverse order of their opening");
  }
  // Survivors leave their scope first, whichever inner or outer one it is, so that the list holds only what dies.
  std::vector<Handle*> moved;
  for (Handle* handle : survivors) {
    if (handle->scope == token) {
      unlink(handle);
      moved.push_back(handle);
    }
  }
  while (Handle* handle = scopes_.back()) free(env, handle);
  scopes_.pop_back();
  for (Handle* handle : moved) link(handle, static_cast<uint32_t>(scopes_.size()));
}

void HandleTable::keep(Handle* handle) { unlink(handle); }

void HandleTable::maybe_sweep(napi_env env) {
  if (used_ < sweep_at_used_ && told_bytes_ < sweep_at_bytes_) return;
  sweep(env);
  // The next sweep comes after growth in proportion to what stays, so its cost per creation is constant.
  sweep_at_used_ = std::max<size_t>(4096, used_ + used_ / 2);
  sweep_at_bytes_ = std::max<size_t>(size_t{64} << 20, told_bytes_ + told_bytes_ / 4 + (size_t{32} << 20));
}

size_t HandleTable::sweep(napi_env env) {
  size_t freed = 0;
  for (const auto& chunk : chunks_) {
    const HandleScope scope(env);
    for (size_t i = 0; i < kSlotsPerChunk; ++i) {
      Handle* handle = chunk.get() + i;
      if (!handle->object) continue;
      napi_value object = nullptr;
      if (napi_get_reference_value(env, handle->object, &object) == napi_ok && object) continue;
      release(env, handle);
      ++freed;
    }
  }
  return freed;
}

void HandleTable::release_all() {
  for (const auto& chunk : chunks_) {
    for (size_t i = 0; i < kSlotsPerChunk; ++i) chunk.get()[i].tensor.reset();
  }
  live_ = 0;
}

size_t HandleTable::bytes() const {
  std::unordered_set<const void*> storages;
  size_t total = 0;
  for (const auto& chunk : chunks_) {
    for (size_t i = 0; i < kSlotsPerChunk; ++i) {
      const at::Tensor& tensor = chunk.get()[i].tensor;
      if (!tensor.defined() || !tensor.has_storage()) continue;
      const c10::Storage& storage = tensor.unsafeGetTensorImpl()->unsafe_storage();
      if (storage && storages.insert(storage.unsafeGetStorageImpl()).second) total += storage.nbytes();
    }
  }
  return total;
}

}  // namespace torchgraft
