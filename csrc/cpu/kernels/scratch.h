// Scratch memory of the kernels, kept by each thread.
#pragma once
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

struct Arena {
  char* memory = nullptr;
  size_t size = 0;
  void grow(size_t requested) {
    free(memory);
    void* block = nullptr;
    size = posix_memalign(&block, 64, requested) ? 0 : requested;
    memory = size ? static_cast<char*>(block) : nullptr;
    if (memory) memset(memory, 0, size);
  }
  ~Arena() { free(memory); }
};
thread_local Arena arena;

// Cuts the thread's memory into buffers, whose content is arbitrary. The memory stays with the thread: fresh pages for
// every call would cost a tenth of its time.
class Scratch {
 public:
  // Two passes over the same code: the first adds up the sizes, the second hands out addresses.
  template <class F>
  explicit Scratch(F&& lay_out) {
    lay_out(*this);
    if (used_ > arena.size) arena.grow(used_);
    memory_ = arena.memory;
    used_ = 0;
    if (ok()) lay_out(*this);
  }
  Scratch(const Scratch&) = delete;
  bool ok() const { return memory_; }

  template <class... T>
  void take(size_t count, T*&... buffers) {
    (take_one(count, buffers), ...);
  }

 private:
  template <class T>
  void take_one(size_t count, T*& buffer) {
    buffer = reinterpret_cast<T*>(memory_ + used_);
    // An odd number of cache lines keeps equal columns of neighbouring buffers out of one cache set.
    used_ += ((count * sizeof(T) + 63) / 64 | 1) * 64;
  }

  char* memory_ = nullptr;
  size_t used_ = 0;
};

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
