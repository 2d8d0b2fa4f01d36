// The steps of a Swin block: see table.h.
#include "swin_block_backward.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

size_t prepared_size(const Problem& a) { return Prepared(a, nullptr).size; }
size_t sums_size(const Problem& a) { return Sums(a, nullptr).size; }
int prepare_jobs(const Problem& a) { return PREPARE_JOBS + a.bias.heads; }

#if defined(MASKED_SWIN_BF16)
typedef Bf16 Narrow;
#else
typedef Fp32 Narrow;
#endif

void prepare(const Problem& a, float* prepared, int job) {
  const Prepared p(a, prepared);
  if (job < PREPARE_JOBS) return a.bf16 ? prepare_job<Narrow>(a, p, job) : prepare_job<Fp32>(a, p, job);
  PreparedBias::fill(a.bias, prepared, job - PREPARE_JOBS);
}

template <class Window, class... S>
bool each_window(const Problem& a, const float* prepared, int64_t first, int64_t last, const S&... sums) {
  Window window(a, prepared);
  Scratch scratch([&](Scratch& s) { window.lay_out(s); });
  if (!scratch.ok()) return false;
  for (int64_t w = first; w < last; w++) {
    window.enter(w);
    if (window.N) window.run(sums...);  // mode visible may leave none
  }
  return true;
}

template <template <class, class> class Window, class... S>
bool run(const Problem& a, const float* prepared, int64_t first, int64_t last, const S&... sums) {
  typedef FixedSizes<60, 120, 64, 10> Published;
  if (Published::fit(a))
    return (a.bf16 ? each_window<Window<Published, Narrow>, S...>
                   : each_window<Window<Published, Fp32>, S...>)(a, prepared, first, last, sums...);
  return (a.bf16 ? each_window<Window<AnySizes, Narrow>, S...>
                 : each_window<Window<AnySizes, Fp32>, S...>)(a, prepared, first, last, sums...);
}

bool forward(const Problem& a, const float* prepared, int64_t first, int64_t last) {
  return run<Forward>(a, prepared, first, last);
}

bool backward(const Problem& a, const float* prepared, float* sums, int64_t first, int64_t last) {
  return run<Backward>(a, prepared, first, last, Sums(a, sums));
}

}  // namespace

extern const Steps<SwinBlock> swin_block_steps = {prepared_size, sums_size, prepare_jobs, finish_jobs,
                                                  prepare,       forward,   backward,     finish};

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
