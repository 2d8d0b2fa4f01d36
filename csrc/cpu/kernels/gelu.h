// gelu(u) = u Phi(u), the exact form, and its derivative. Absolute errors are those of fp32 itself, about 1e-7.
#pragma once
#include <math.h>

#include "simd.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

#if defined(__AVX2__)

// With H(x) = Phi(x) - 1/2 and S(x) = H(x) + x phi(x): gelu(u) = u/2 + |u| H(|u|) and gelu'(u) = 1/2 + sign(u) S(|u|).
// H and S are polynomials on as many intervals as a vector has lanes; a permutation looks up the coefficients. Half the
// time of erf by an exponential.
class Gelu {
 public:
  static constexpr int INTERVALS = LANES, DEGREE = INTERVALS == 16 ? 5 : 6, SIZE = 2 * (DEGREE + 1) * INTERVALS;

  explicit Gelu(const float* table) : table_(table) {}

  INLINE Vec value(Vec u) const {
    Vec x, r;
    const VecInt interval = locate(u, x, r);
    return u * 0.5f + x * polynomial(table_, interval, r);
  }
  INLINE void both(Vec u, Vec& value, Vec& slope) const {
    Vec x, r;
    const VecInt interval = locate(u, x, r);
    value = u * 0.5f + x * polynomial(table_, interval, r);
    const Vec s = polynomial(table_ + SIZE / 2, interval, r);
    const VecInt sign = reinterpret_cast<VecInt>(u) & static_cast<int32_t>(0x80000000);
    slope = reinterpret_cast<Vec>(reinterpret_cast<VecInt>(s) ^ sign) + 0.5f;
  }

  // Interpolation in the Chebyshev nodes of each interval; in the last one H = S = 1/2.
  static void fill(float* table) {
    for (int function = 0; function < 2; function++, table += SIZE / 2)
      for (int interval = 0; interval < INTERVALS; interval++) {
        double node[DEGREE + 1], difference[DEGREE + 1], power[DEGREE + 1] = {};
        for (int i = 0; i <= DEGREE; i++) {
          node[i] = 0.5 * ::cos(M_PI * (i + 0.5) / (DEGREE + 1));
          const double x = (interval + 0.5 + node[i]) / PER_UNIT, half = 0.5 * ::erf(x * M_SQRT1_2);
          const double density = ::exp(-0.5 * x * x) * 0.3989422804014327;
          difference[i] = interval + 1 == INTERVALS ? 0.5 : function == 0 ? half : half + x * density;
        }
        for (int order = 1; order <= DEGREE; order++)
          for (int i = DEGREE; i >= order; i--)
            difference[i] = (difference[i] - difference[i - 1]) / (node[i] - node[i - order]);
        for (int i = DEGREE; i >= 0; i--) {  // power = power * (r - node) + difference
          for (int k = DEGREE; k > 0; k--) power[k] = power[k - 1] - node[i] * power[k];
          power[0] = difference[i] - node[i] * power[0];
        }
        for (int k = 0; k <= DEGREE; k++) table[k * INTERVALS + interval] = static_cast<float>(power[k]);
      }
  }

 private:
  static constexpr float PER_UNIT =
      INTERVALS == 16 ? 2.5f : 1.2f;  // the last interval begins at 6 or 5.8: Phi is 1 - 3e-9

  // x = |u| = (interval + 0.5 + r) / PER_UNIT, but for the last interval, whose r does not matter.
  static INLINE VecInt locate(Vec u, Vec& x, Vec& r) {
    x = reinterpret_cast<Vec>(reinterpret_cast<VecInt>(u) & 0x7fffffff);
    const Vec t = x * PER_UNIT - 0.5f, last = splat(INTERVALS - 1), at = t < last ? t : last;
    const Vec shifted = at + 12582912.0f;  // 1.5 * 2^23: the nearest integer is in the lowest bits
    r = at - (shifted - 12582912.0f);
    return reinterpret_cast<VecInt>(shifted);
  }
  static INLINE Vec polynomial(const float* table, VecInt interval, Vec r) {
    Vec p = lookup(table + DEGREE * INTERVALS, interval);
#pragma GCC unroll 8
    for (int k = DEGREE - 1; k >= 0; k--) p = p * r + lookup(table + k * INTERVALS, interval);
    return p;
  }
  static INLINE Vec lookup(const float* entries, VecInt index) {  // by the lowest bits
#if defined(__AVX512F__)
    return reinterpret_cast<Vec>(
        _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), reinterpret_cast<__m512>(load(entries))));
#else
    return reinterpret_cast<Vec>(
        _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(load(entries)), reinterpret_cast<__m256i>(index)));
#endif
  }

  const float* table_;
};

#else

class Gelu {
 public:
  static constexpr int SIZE = 0;

  explicit Gelu(const float*) {}
  static void fill(float*) {}

  INLINE Vec value(Vec u) const {
    Vec value, slope;
    both(u, value, slope);
    return value;
  }
  INLINE void both(Vec u, Vec& value, Vec& slope) const {  // Phi by Abramowitz & Stegun 7.1.26
    const Vec t = 1.0f / (1.0f + max(u, -u) * (0.3275911f * 0.70710678f));
    const Vec e = exp(u * u * -0.5f);
    Vec q = t * 0.5307027145f - 0.7265760135f;
    q = q * t + 0.7107068705f;
    q = q * t - 0.142248368f;
    q = q * t + 0.127414796f;
    q = q * t * e;  // Phi(-|u|)
    const Vec phi = u < 0.0f ? q : 1.0f - q;
    value = u * phi;
    slope = u * e * 0.39894228f + phi;
  }
};

#endif

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
