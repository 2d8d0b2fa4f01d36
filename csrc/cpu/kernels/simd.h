// Vectors of fp32, in which the kernels are written together with the products of product.h.
//
// setup.py compiles every source of this folder once per instruction set, which MASKED_SWIN_ISA names. GCC/Clang vector
// types make one source serve all. A source includes C headers only and keeps everything in the namespace of its
// instruction set: the linker could merge an inline function of the C++ library, compiled here for AVX-512, into code
// that older machines run.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define MASKED_SWIN_LANES 16
#elif defined(__AVX2__)
#define MASKED_SWIN_LANES 8
#else
#define MASKED_SWIN_LANES 4
#endif
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace masked_swin {
namespace MASKED_SWIN_ISA {

constexpr int LANES = MASKED_SWIN_LANES;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif
// 24 accumulators leave room for 4 loads, 12 for 2.
constexpr int ACCUMULATORS = REGISTERS == 32 ? 24 : 12;
constexpr int VECTORS = REGISTERS == 32 ? 4 : 2;  // of one product block

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t VecInt __attribute__((vector_size(LANES * 4)));
typedef float VecUnaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
INLINE void store(float* p, Vec v) { *reinterpret_cast<VecUnaligned*>(p) = v; }
INLINE Vec splat(float a) {  // keeps all bits, those of words too
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_set1_ps(a));
#else
  return a - Vec{};
#endif
}
INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b if either is NaN
constexpr int round_up(int n) { return (n + LANES - 1) / LANES * LANES; }

// e^x with relative error 2e-7; 0 or denormal below -87, where fp32 has no normal number left; NaN stays NaN. x must
// not exceed 88.
INLINE Vec exp(Vec x) {
  const Vec t = x * 1.44269504f;
#if defined(__AVX512F__)
  const Vec n =
      reinterpret_cast<Vec>(_mm512_maskz_roundscale_ps(0xffff, reinterpret_cast<__m512>(t), _MM_FROUND_TO_NEAREST_INT));
  const Vec r = t - n;
#else
  // Adding 1.5 * 2^23 rounds to an integer, and 127 more makes the lowest bits those of the exponent of 2^n.
  const Vec shifter = splat(12582912.0f + 127.0f), clamped = max(splat(-127.0f), t), shifted = clamped + shifter;
  const Vec r = clamped - (shifted - shifter);
#endif
  // 2^r on [-0.5, 0.5]: minimax polynomial of degree 6
  Vec p = splat(1.5353362e-4f);
  p = p * r + 1.3398874e-3f;
  p = p * r + 9.6184373e-3f;
  p = p * r + 5.5503324e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.9314720e-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(
      _mm512_maskz_scalef_ps(0xffff, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
  return p * reinterpret_cast<Vec>(reinterpret_cast<VecInt>(shifted) << 23);  // 2^-127 comes out as 0
#endif
}

template <int... I>
struct Sequence {};
template <int N, int... I>
struct MakeSequence : MakeSequence<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSequence<0, I...> {
  typedef Sequence<I...> type;
};
typedef MakeSequence<LANES>::type Lanes;

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define MASKED_SWIN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef MASKED_SWIN_SHUFFLE  // GCC before 12
#define MASKED_SWIN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, VecInt{__VA_ARGS__})
#endif

// One step of a transposition: swap the off-diagonal S x S blocks of rows a and b.
template <int S, int... I>
INLINE void exchange(Vec& a, Vec& b, Sequence<I...>) {
  const Vec low = MASKED_SWIN_SHUFFLE(a, b, ((I & S) ? LANES + I - S : I)...);
  b = MASKED_SWIN_SHUFFLE(a, b, ((I & S) ? LANES + I : I + S)...);
  a = low;
}

template <int S>
INLINE void exchange_all(Vec (&r)[LANES]) {
  if constexpr (S < LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & S)) exchange<S>(r[i], r[i + S], Lanes());
    exchange_all<2 * S>(r);
  }
}

#if defined(__AVX512F__)
// The same for 16 lanes with shuffles that need no index registers: 4 x 4 blocks inside 128-bit quarters, then the
// quarters.
INLINE void transpose(Vec (&r)[LANES]) {
  __m512 t[16], *v = reinterpret_cast<__m512*>(r);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
      const __m512d a = _mm512_castps_pd(t[i + k]), b = _mm512_castps_pd(t[i + k + 2]);
      v[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      v[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
#pragma GCC unroll 2
  for (int half = 0; half < 16; half += 8)
#pragma GCC unroll 4
    for (int i = half; i < half + 4; i++) {
      t[i] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd);
    }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    v[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
  }
}
#elif defined(__AVX2__)
INLINE void transpose(Vec (&r)[LANES]) {  // pairs, quarters, then halves
  __m256 t[8], *v = reinterpret_cast<__m256*>(r);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
      v[i + 2 * k] = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0x44);
      v[i + 2 * k + 1] = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0xee);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m256 low = _mm256_permute2f128_ps(v[i], v[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x31);
    v[i] = low;
  }
}
#else
INLINE void transpose(Vec (&r)[LANES]) { exchange_all<1>(r); }
#endif

// The first `count` <= LANES values of a vector. Nothing past them is touched; a load fills up with 0.
INLINE Vec load_first(const float* p, int count) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
#elif defined(__AVX2__)
  static constexpr int32_t ONES_THEN_ZEROS[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
  const void* mask = ONES_THEN_ZEROS + LANES - count;
  return reinterpret_cast<Vec>(_mm256_maskload_ps(p, _mm256_loadu_si256(static_cast<const __m256i*>(mask))));
#else
  Vec v = {};
  memcpy(&v, p, sizeof(float) * count);
  return v;
#endif
}
INLINE void store_first(float* p, Vec v, int count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)  // a masked store takes 40 micro-operations on AMD
  if (count >= LANES) return store(p, v);
  __m128 part = _mm256_castps256_ps128(reinterpret_cast<__m256>(v));
  if (count & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps(reinterpret_cast<__m256>(v), 1);
    p += 4;
  }
  if (count & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
    part = _mm_movehl_ps(part, part);
    p += 2;
  }
  if (count & 1) _mm_store_ss(p, part);
#else
  memcpy(p, &v, sizeof(float) * count);
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__) || defined(__aarch64__)
#define MASKED_SWIN_PERMUTE
#endif

// Some lanes of a vector, chosen by a bit each.
class LaneSet {
 public:
  LaneSet() = default;
  explicit LaneSet(uint32_t bits) {
#if defined(MASKED_SWIN_PERMUTE)
    for (int i = 0, count = 0; i < LANES; i++) {
      const int32_t chosen = bits >> i & 1;
      chosen_[i] = -chosen;
      source_[i] = lane_number(count);
      lane_[count] = lane_number(i);
      count += chosen;
    }
#else
    bits_ = bits;
#endif
  }

  // A chosen lane becomes the next value of p, another one that of `other`. Reads up to LANES values.
  INLINE Vec expand(const float* p, Vec other) const {
#if defined(__AVX512F__)
    const __m512 v = reinterpret_cast<__m512>(load(p));
    return reinterpret_cast<Vec>(
        _mm512_mask_expand_ps(reinterpret_cast<__m512>(other), static_cast<__mmask16>(bits_), v));
#elif defined(MASKED_SWIN_PERMUTE)
    return chosen_ ? permuted(load(p), source_) : other;
#else
    for (int i = 0; i < LANES; i++)
      if (bits_ >> i & 1) other[i] = *p++;
    return other;
#endif
  }

  // The reverse: stores the chosen lanes adjacently, and arbitrary values past them, up to LANES in all. Returns the
  // other lanes, and 0 in these.
  INLINE Vec compress(float* p, Vec v) const {
#if defined(__AVX512F__)
    const __mmask16 mask = static_cast<__mmask16>(bits_);
    const __m512 all = reinterpret_cast<__m512>(v);
    store(p, reinterpret_cast<Vec>(_mm512_maskz_compress_ps(mask, all)));
    return reinterpret_cast<Vec>(_mm512_maskz_mov_ps(static_cast<__mmask16>(~mask), all));
#elif defined(MASKED_SWIN_PERMUTE)
    store(p, permuted(v, lane_));
    return chosen_ ? Vec{} : v;
#else
    for (int i = 0; i < LANES; i++)
      if (bits_ >> i & 1) {
        *p++ = v[i];
        v[i] = 0.0f;
      }
    return v;
#endif
  }

 private:
#if defined(MASKED_SWIN_PERMUTE)
#if defined(__AVX2__)
  static int32_t lane_number(int i) { return i; }
  static INLINE Vec permuted(Vec v, VecInt from) {
    return reinterpret_cast<Vec>(
        _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(v), reinterpret_cast<__m256i>(from)));
  }
#else
  static int32_t lane_number(int i) { return i * 0x04040404 + 0x03020100; }  // its four bytes
  static INLINE Vec permuted(Vec v, VecInt from) {
    return reinterpret_cast<Vec>(vqtbl1q_u8(reinterpret_cast<uint8x16_t>(v), reinterpret_cast<uint8x16_t>(from)));
  }
#endif
  VecInt chosen_, source_, lane_ = {};  // of each lane: -1 or 0, its number among the chosen; of that number: the lane
#else
  uint32_t bits_;
#endif
};

INLINE Vec inverse_root(Vec x) {
#if defined(__AVX512F__)
  return 1.0f / reinterpret_cast<Vec>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return 1.0f / reinterpret_cast<Vec>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
#elif defined(__aarch64__)
  return 1.0f / reinterpret_cast<Vec>(vsqrtq_f32(reinterpret_cast<float32x4_t>(x)));
#else
  float roots[LANES];
  store(roots, x);
  for (int i = 0; i < LANES; i++) roots[i] = 1.0f / __builtin_sqrtf(roots[i]);
  return load(roots);
#endif
}

INLINE bool all_above(Vec a, Vec b) {  // false if any is NaN
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GT_OQ) == 0xffff;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(a > b)) == 0xff;
#elif defined(__aarch64__)
  return vminvq_u32(reinterpret_cast<uint32x4_t>(a > b)) != 0;
#else
  bool all = true;
  for (int i = 0; i < LANES; i++) all = all && a[i] > b[i];
  return all;
#endif
}

INLINE float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
  const __m256 all = reinterpret_cast<__m256>(v);
  const __m128 four = _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return two[0] + two[1];
#elif defined(__aarch64__)
  return vaddvq_f32(reinterpret_cast<float32x4_t>(v));
#else
  float total = 0.0f;
  for (int i = 0; i < LANES; i++) total += v[i];
  return total;
#endif
}

// out[c][i] = rows[i][c] for c < columns, i < count; columns of `out` from count up to `width` are 0.
static void gather_transposed(const float* const* rows, int count, int width, int columns, float* out, int out_stride) {
  for (int i = 0; i < width; i += LANES)
    for (int c = 0; c < columns; c += LANES) {
      Vec r[LANES];
      const int wide = columns - c < LANES ? columns - c : LANES;
      if (i + LANES <= count && wide == LANES) {
#pragma GCC unroll 16
        for (int k = 0; k < LANES; k++) r[k] = load(rows[i + k] + c);
      } else {
#pragma GCC unroll 16
        for (int k = 0; k < LANES; k++) r[k] = i + k < count ? load_first(rows[i + k] + c, wide) : Vec{};
      }
      transpose(r);
      for (int k = 0; k < wide; k++) store(out + (size_t)(c + k) * out_stride + i, r[k]);
    }
}

// rows[i][c] = in[c][i] for c < columns, i < count. Reads `in` up to column round_up(count).
static void scatter_transposed(const float* in, int in_stride, int count, int columns, float* const* rows) {
  for (int i = 0; i < count; i += LANES)
    for (int c = 0; c < columns; c += LANES) {
      Vec r[LANES];
      const int wide = columns - c < LANES ? columns - c : LANES;
      for (int k = 0; k < LANES; k++) r[k] = k < wide ? load(in + (size_t)(c + k) * in_stride + i) : Vec{};
      transpose(r);
      for (int k = 0; k < LANES && i + k < count; k++) {
        if (wide == LANES)
          store(rows[i + k] + c, r[k]);
        else
          store_first(rows[i + k] + c, r[k], wide);
      }
    }
}

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
