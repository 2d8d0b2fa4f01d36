// Runs an operation's steps in parallel, without torch: tests/checks/threads.cpp brings threads of its own.
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "kernels/table.h"

namespace masked_swin {

const Kernels& kernels();  // of the instruction set in use, chosen once

// The number of chunks depends on that of windows alone. Sums over windows then have the same order, and results the
// same bits, for any number of threads. The chunks' sums, `size` floats each, take at most 64 MB.
inline int64_t chunk_count(int64_t windows, size_t size) {
  const int64_t room = (int64_t{1} << 24) / static_cast<int64_t>(std::max<size_t>(size, 1));
  return std::clamp<int64_t>(std::min(windows / 16, room), 1, 64);
}

// Memory that the calling thread keeps from call to call. Its content is arbitrary.
struct Buffers {
  std::vector<float> prepared, sums;
  static float* grown(std::vector<float>& buffer, size_t size) {
    constexpr size_t LINE = 64;  // bytes; vectors that cross cache lines are slow
    const size_t spare = LINE / sizeof(float);
    if (buffer.size() < size + spare) {
      buffer = {};  // frees the old memory first
      buffer.resize(size + spare);
    }
    void* start = buffer.data();
    size_t space = buffer.size() * sizeof(float);
    return static_cast<float*>(std::align(LINE, size * sizeof(float), start, space));
  }
  static Buffers& mine() {
    static thread_local Buffers buffers;
    return buffers;
  }
};

// One call of an operation. `parallel_for(count, f)` calls f(begin, end) on some threads with ranges that cover every
// i < count once. It returns when all calls have returned. A method returns false if memory for scratch ran out.
template <class Problem, class ParallelFor>
class Run {
 public:
  Run(const Problem& problem, const Steps<Problem>& steps, int64_t windows, ParallelFor parallel_for)
      : problem_(problem), steps_(steps), windows_(windows), parallel_for_(parallel_for) {
    prepared_ = Buffers::grown(Buffers::mine().prepared, steps.prepared_size(problem));
    each(steps.prepare_jobs(problem), [&](int64_t job) {
      steps_.prepare(problem_, prepared_, static_cast<int>(job));
      return true;
    });
  }

  bool forward() {
    return each(chunks(), [&](int64_t i) { return steps_.forward(problem_, prepared_, first(i), first(i + 1)); });
  }

  bool backward() {
    const size_t size = (steps_.sums_size(problem_) + 15) / 16 * 16;
    float* sums = Buffers::grown(Buffers::mine().sums, size * chunks());
    const bool done = each(chunks(), [&](int64_t i) {
      std::fill_n(sums + size * i, size, 0.0f);
      return steps_.backward(problem_, prepared_, sums + size * i, first(i), first(i + 1));
    });
    if (!done) return false;
    const int64_t parts = std::min<int64_t>(64, static_cast<int64_t>(size));
    each(parts, [&](int64_t part) {
      const size_t begin = size * part / parts, end = size * (part + 1) / parts;
      for (int64_t i = 1; i < chunks(); i++) kernels().add(sums + begin, sums + size * i + begin, end - begin);
      return true;
    });
    return each(steps_.finish_jobs(problem_), [&](int64_t job) {
      steps_.finish(problem_, prepared_, sums, static_cast<int>(job));
      return true;
    });
  }

 private:
  int64_t chunks() const { return chunk_count(windows_, steps_.sums_size(problem_)); }
  int64_t first(int64_t chunk) const { return windows_ * chunk / chunks(); }

  template <class F>
  bool each(int64_t count, const F& f) {
    std::atomic<bool> failed{false};
    parallel_for_(count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        if (!f(i)) failed = true;
    });
    return !failed;
  }

  const Problem& problem_;
  const Steps<Problem>& steps_;
  int64_t windows_;
  ParallelFor parallel_for_;
  float* prepared_;
};

}  // namespace masked_swin
