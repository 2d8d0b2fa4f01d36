// Runs an operation's steps on torch's threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "run.h"

namespace masked_swin {

struct TorchThreads {
  template <class F>
  void operator()(int64_t count, const F& f) const {
    torch::stable::parallel_for(0, count, 1, f);
  }
};

template <class Problem>
void run_forward(const Problem& problem, const Steps<Problem>& steps, int64_t windows) {
  const bool done = Run(problem, steps, windows, TorchThreads()).forward();
  STD_TORCH_CHECK(done, "masked_swin: out of memory for scratch");
}

template <class Problem>
void run_backward(const Problem& problem, const Steps<Problem>& steps, int64_t windows) {
  const bool done = Run(problem, steps, windows, TorchThreads()).backward();
  STD_TORCH_CHECK(done, "masked_swin: out of memory for scratch");
}

// Calls a kernel that takes ranges of `count` independent rows.
template <class Problem>
void run_rows(const Problem& problem, void (*kernel)(const Problem&, int64_t first, int64_t last), int64_t count) {
  TorchThreads()(count, [&](int64_t first, int64_t last) { kernel(problem, first, last); });
}

}  // namespace masked_swin
