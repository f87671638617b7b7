#include "handles.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_set>

namespace torchgraft {

namespace {

// A meta tensor's storage has a size and no memory; V8 ends the process when told of sizes that no machine has.
size_t held_bytes(const c10::Storage& storage) { return storage.device().is_meta() ? 0 : storage.nbytes(); }

}  // namespace

HandleTable::HandleTable() = default;

void HandleTable::set_key(napi_env env, napi_value symbol) {
  if (key_) check(env, napi_delete_reference(env, key_));
  check(env, napi_create_reference(env, symbol, 1, &key_));
}

double HandleTable::number_of(const Handle& handle) {
  return static_cast<double>(static_cast<uint64_t>(handle.generation) << kIndexBits | handle.index);
}

Handle* HandleTable::take_slot() {
  if (!free_) {
    const size_t first = chunks_.size() * kSlotsPerChunk;
    if (first + kSlotsPerChunk > size_t{1} << kIndexBits) throw std::runtime_error("too many live tensors");
    Handle* chunk = chunks_.emplace_back(std::make_unique<Handle[]>(kSlotsPerChunk)).get();
    for (uint32_t i = 0; i < kSlotsPerChunk; ++i) {
      chunk[i].index = static_cast<uint32_t>(first) + i;
      chunk[i].next = i + 1 < kSlotsPerChunk ? chunk + i + 1 : nullptr;
    }
    free_ = chunk;
  }
  Handle* handle = free_;
  free_ = handle->next;
  handle->next = nullptr;
  handle->used = true;
  ++handle->generation;
  return handle;
}

void HandleTable::link(Handle* handle, uint32_t scope) {
  handle->scope = scope;
  if (scope == 0) return;
  Scope& owner = scopes_[scope - 1];
  handle->previous = nullptr;
  handle->next = owner.first;
  if (owner.first) owner.first->previous = handle;
  owner.first = handle;
  ++owner.handles;
}

void HandleTable::unlink(Handle* handle) {
  if (handle->scope == 0) return;
  if (handle->previous) {
    handle->previous->next = handle->next;
  } else {
    scopes_[handle->scope - 1].first = handle->next;
  }
  if (handle->next) handle->next->previous = handle->previous;
  handle->previous = handle->next = nullptr;
  handle->scope = 0;
}

size_t HandleTable::owned_bytes(const at::Tensor& tensor) {
  // What a tensor takes besides its elements; without it, a million scalars would seem to weigh 4 MB and V8 would see
  // no reason to collect them.
  constexpr size_t overhead = 512;
  // Views share their base's storage, and some tensors have none.
  const c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
  if (!impl->has_storage()) return overhead;
  const c10::Storage& storage = impl->unsafe_storage();
  return overhead + (storage && storage.use_count() == 1 ? held_bytes(storage) : 0);
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

void HandleTable::on_collection(napi_env env, void*, void* hint) {
  auto* table = static_cast<HandleTable*>(hint);
  table->armed_ = false;
  table->sweep(env);
}

void HandleTable::arm(napi_env env) {
  napi_value object;
  if (napi_create_object(env, &object) == napi_ok &&
      napi_add_finalizer(env, object, nullptr, on_collection, this, nullptr) == napi_ok) {
    armed_ = true;
  }
}

void HandleTable::watch(napi_env env, Handle* handle, napi_value object) {
  if (handle->object || !handle->used) return;
  check(env, napi_create_reference(env, object, 0, &handle->object));
  ++watched_;
  handle->bytes = owned_bytes(handle->tensor);
  account(env, static_cast<int64_t>(handle->bytes));
  if (!armed_) arm(env);
}

bool HandleTable::own(Handle* handle, at::Tensor tensor) {
  handle->tensor = std::move(tensor);
  ++live_;
  const auto depth = static_cast<uint32_t>(scopes_.size());
  link(handle, depth);
  if (depth == 0) return true;
  Scope& scope = scopes_.back();
  scope.bytes += owned_bytes(handle->tensor);
  return scope.large();
}

double HandleTable::make_number(napi_env env, at::Tensor& tensor) {
  if (scopes_.empty() || scopes_.back().large()) return 0;
  maybe_sweep(env);
  Handle* handle = take_slot();
  // Should this tensor be what makes the scope large, the next ones are watched.
  own(handle, std::move(tensor));
  return number_of(*handle);
}

napi_value HandleTable::make(napi_env env, napi_value constructor, at::Tensor tensor) {
  maybe_sweep(env);
  Handle* handle = take_slot();
  napi_value number;
  napi_value object = nullptr;
  napi_status status = napi_create_double(env, number_of(*handle), &number);
  if (status == napi_ok) status = napi_new_instance(env, constructor, 1, &number, &object);
  if (status != napi_ok) {
    free(env, handle);
    check(env, status);
  }
  if (own(handle, std::move(tensor))) watch(env, handle, object);
  return object;
}

void HandleTable::attach(napi_env env, napi_value object, at::Tensor tensor) {
  maybe_sweep(env);
  Handle* handle = take_slot();
  napi_value key;
  napi_value number;
  napi_status status = napi_get_reference_value(env, key_, &key);
  if (status == napi_ok) status = napi_create_double(env, number_of(*handle), &number);
  if (status == napi_ok) status = napi_set_property(env, object, key, number);
  if (status != napi_ok) {
    free(env, handle);
    check(env, status);
  }
  if (own(handle, std::move(tensor))) watch(env, handle, object);
}

Handle* HandleTable::find(napi_env env, napi_value value) {
  napi_value key;
  napi_value number;
  double whole = 0;
  if (!key_ || napi_get_reference_value(env, key_, &key) != napi_ok) return nullptr;
  if (napi_get_property(env, value, key, &number) != napi_ok) {
    // A proxy or a getter that throws is not a tensor.
    bool pending = false;
    napi_value ignored;
    if (napi_is_exception_pending(env, &pending) == napi_ok && pending)
      napi_get_and_clear_last_exception(env, &ignored);
    return nullptr;
  }
  if (napi_get_value_double(env, number, &whole) != napi_ok || !(whole >= 1 && whole < 9007199254740992.0)) {
    return nullptr;
  }
  const auto bits = static_cast<uint64_t>(whole);
  const auto index = static_cast<uint32_t>(bits & ((uint64_t{1} << kIndexBits) - 1));
  const auto generation = static_cast<uint32_t>(bits >> kIndexBits);
  if (generation == 0 || index / kSlotsPerChunk >= chunks_.size()) return nullptr;
  Handle* handle = &chunks_[index / kSlotsPerChunk][index % kSlotsPerChunk];
  return handle->used && handle->generation == generation ? handle : &gone_;
}

void HandleTable::free(napi_env env, Handle* handle) {
  if (!handle->used) return;
  unlink(handle);
  if (handle->tensor.defined()) {
    handle->tensor.reset();
    --live_;
  }
  if (handle->object) {
    napi_delete_reference(env, handle->object);
    handle->object = nullptr;
    --watched_;
    account(env, -static_cast<int64_t>(handle->bytes));
    handle->bytes = 0;
  }
  handle->used = false;
  if (handle->generation == kLastGeneration) return;  // retired: its next number would be one that was used
  handle->next = free_;
  free_ = handle;
}

void HandleTable::retarget(napi_env env, Handle* handle, at::Tensor tensor) {
  handle->tensor = std::move(tensor);
  if (!handle->object) return;
  account(env, -static_cast<int64_t>(handle->bytes));
  handle->bytes = owned_bytes(handle->tensor);
  account(env, static_cast<int64_t>(handle->bytes));
}

uint32_t HandleTable::open_scope() {
  scopes_.emplace_back();
  return static_cast<uint32_t>(scopes_.size());
}

void HandleTable::close_scope(napi_env env, uint32_t token, const std::vector<Survivor>& survivors) {
  if (token == 0 || token != scopes_.size()) {
    throw OutOfRange("scopeClose: scopes must close in the reverse order of their opening");
  }
  // Survivors leave their scope first, whichever inner or outer one it is, so that the list holds only what dies.
  std::vector<Survivor> moved;
  for (const Survivor& survivor : survivors) {
    if (survivor.handle->scope == token) {
      unlink(survivor.handle);
      moved.push_back(survivor);
    }
  }
  while (Handle* handle = scopes_.back().first) free(env, handle);
  scopes_.pop_back();
  const auto depth = static_cast<uint32_t>(scopes_.size());
  for (const Survivor& survivor : moved) {
    link(survivor.handle, depth);
    if (depth > 0) scopes_.back().bytes += owned_bytes(survivor.handle->tensor);
    if (depth == 0 || scopes_.back().large()) watch(env, survivor.handle, survivor.object);
  }
}

void HandleTable::keep(napi_env env, Handle* handle, napi_value object) {
  unlink(handle);
  watch(env, handle, object);
}

void HandleTable::maybe_sweep(napi_env env) {
  if (watched_ < sweep_at_watched_ && told_bytes_ < sweep_at_bytes_) return;
  sweep(env);
  // The next sweep comes after growth in proportion to what stays, so its cost per creation is constant.
  sweep_at_watched_ = std::max<size_t>(4096, watched_ + watched_ / 2);
  sweep_at_bytes_ = std::max<size_t>(size_t{64} << 20, told_bytes_ + told_bytes_ / 4 + (size_t{32} << 20));
}

size_t HandleTable::sweep(napi_env env) {
  size_t freed = 0;
  for (const auto& chunk : chunks_) {
    const HandleScope scope(env);
    for (uint32_t i = 0; i < kSlotsPerChunk; ++i) {
      Handle* handle = &chunk[i];
      if (!handle->object) continue;
      napi_value object = nullptr;
      if (napi_get_reference_value(env, handle->object, &object) == napi_ok && object) continue;
      free(env, handle);
      ++freed;
    }
  }
  return freed;
}

void HandleTable::release_all() {
  for (const auto& chunk : chunks_) {
    for (uint32_t i = 0; i < kSlotsPerChunk; ++i) chunk[i].tensor.reset();
  }
  live_ = 0;
}

size_t HandleTable::bytes() const {
  std::unordered_set<const void*> storages;
  size_t total = 0;
  for (const auto& chunk : chunks_) {
    for (uint32_t i = 0; i < kSlotsPerChunk; ++i) {
      const at::Tensor& tensor = chunk[i].tensor;
      if (!tensor.defined() || !tensor.has_storage()) continue;
      const c10::Storage& storage = tensor.unsafeGetTensorImpl()->unsafe_storage();
      if (storage && storages.insert(storage.unsafeGetStorageImpl()).second) total += held_bytes(storage);
    }
  }
  return total;
}

}  // namespace torchgraft
