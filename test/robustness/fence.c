// Preloaded into the hunt (barrage.test.ts): memory that LibTorch takes for a tensor ends where a page begins that
// nobody may touch, and is never given out again. A kernel that reads or writes beyond it, or after it was freed, ends
// the process in that very call, instead of damaging a heap that breaks at some later one. Linux only.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

// LibTorch asks for 64; the end of the memory is nearer to the page's with less, and its kernels do not need more.
static const size_t kLibTorchAlignment = 64;
static const size_t kAlignment = 16;
static const size_t kPage = 4096;
static const size_t kLargest = (size_t)1 << 33;
static const size_t kAddresses = (size_t)4 << 40;

static char* first_address;
static size_t used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t round_up(size_t size, size_t step) { return (size + step - 1) / step * step; }

__attribute__((constructor)) static void reserve_addresses(void) {
  void* p = mmap(NULL, kAddresses, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p != MAP_FAILED) first_address = p;
}

// A page that holds the number of open bytes, itself among them; the tensor's pages; and one that stays closed.
static int fenced(void** out, size_t size) {
  const size_t bytes = round_up(size, kAlignment);
  const size_t open = kPage + round_up(bytes, kPage);
  pthread_mutex_lock(&lock);
  char* start = first_address + used;
  const int full = kAddresses - used < open + kPage;
  if (!full) used += open + kPage;
  pthread_mutex_unlock(&lock);
  if (full || mprotect(start, open, PROT_READ | PROT_WRITE) != 0) return ENOMEM;
  *(size_t*)start = open;
  *out = start + open - bytes;
  return 0;
}

int posix_memalign(void** out, size_t alignment, size_t size) {
  static int (*next)(void**, size_t, size_t);
  if (first_address && alignment == kLibTorchAlignment && size <= kLargest) return fenced(out, size);
  if (!next) *(void**)&next = dlsym(RTLD_NEXT, "posix_memalign");
  return next(out, alignment, size);
}

void free(void* p) {
  static void (*next)(void*);
  if (first_address && (char*)p >= first_address && (char*)p < first_address + kAddresses) {
    char* start = (char*)((uintptr_t)p / kPage * kPage) - kPage;
    const size_t open = *(size_t*)start;
    madvise(start, open, MADV_DONTNEED);
    mprotect(start, open, PROT_NONE);
    return;
  }
  if (!next) *(void**)&next = dlsym(RTLD_NEXT, "free");
  next(p);
}
