// The multiply-adds a second that this processor can do: many independent chains of them, in registers.
#include <stdint.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, CHAINS = 24;
#elif defined(__AVX__)
constexpr int LANES = 8, CHAINS = 12;
#else
constexpr int LANES = 4, CHAINS = 12;
#endif
typedef float Vec __attribute__((vector_size(LANES * 4)));

struct Float {
  static constexpr int MACS = LANES;
  Vec factor, term;
  Float() {
    volatile float opaque = 0.5f;  // the compiler must not know it
    factor = opaque - Vec{};
    term = factor;
  }
  void operator()(Vec& sum) const { sum = sum * factor + term; }
};

#if defined(__AVX512BF16__)
struct BFloat16 {
  static constexpr int MACS = 2 * LANES;
  __m512bh pairs;
  BFloat16() {
    volatile int opaque = 0;
    pairs = (__m512bh)_mm512_set1_epi32(opaque);
  }
  void operator()(Vec& sum) const { sum = (Vec)_mm512_dpbf16_ps((__m512)sum, pairs, pairs); }
};
#endif

// Of the calling thread, over `seconds`, once it has run for a tenth of that.
template <class Step>
double thread_rate(double seconds) {
  using clock = std::chrono::steady_clock;
  const Step step;
  Vec sum[CHAINS] = {};
  auto run = [&](double least) {
    const auto start = clock::now();
    double elapsed = 0;
    int64_t steps = 0;
    while (elapsed < least) {
      for (int i = 0; i < 2000; i++)
#pragma GCC unroll 24
        for (int c = 0; c < CHAINS; c++) step(sum[c]);
      steps += 2000;
      elapsed = std::chrono::duration<double>(clock::now() - start).count();
    }
    return static_cast<double>(steps) * CHAINS * Step::MACS / elapsed;
  };
  run(seconds / 10);
  const double rate = run(seconds);
  for (Vec& s : sum) {
    volatile float used = s[0];
    (void)used;
  }
  return rate;
}

template <class Step>
double rate(int threads, double seconds) {
  std::vector<double> rates(threads);
  std::vector<std::thread> pool;
  for (double& mine : rates) pool.emplace_back([&mine, seconds] { mine = thread_rate<Step>(seconds); });
  for (std::thread& thread : pool) thread.join();
  double sum = 0;
  for (double each : rates) sum += each;
  return sum;
}

}  // namespace

extern "C" double fp32_macs_per_second(int threads, double seconds) { return rate<Float>(threads, seconds); }

// 0 without such an instruction.
extern "C" double bf16_macs_per_second([[maybe_unused]] int threads, [[maybe_unused]] double seconds) {
#if defined(__AVX512BF16__)
  return rate<BFloat16>(threads, seconds);
#else
  return 0;
#endif
}
