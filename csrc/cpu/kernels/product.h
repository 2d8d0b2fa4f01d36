// The one product of all kernels, in fp32 or with bf16 operands: acc[rows][vectors] += broadcast(a) * vector(b).
#pragma once
#include "simd.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {

// The arithmetic of products: `DEPTH` values along the sum share a 32-bit word. Sums are fp32.
struct Fp32 {
  static constexpr int DEPTH = 1;
  template <class F>
  static float word(F&& value) {
    return value(0);
  }
  static INLINE Vec multiply_add(Vec sum, Vec a, Vec b) { return sum + a * b; }
};
#if defined(__AVX512BF16__)
#define MASKED_SWIN_BF16
struct Bf16 {
  static constexpr int DEPTH = 2;
  template <class F>
  static float word(F&& value) {
    const __m128bh both = _mm_cvtneps_pbh(_mm_set_ps(0.0f, 0.0f, value(1), value(0)));
    float bits;
    memcpy(&bits, &both, sizeof(bits));
    return bits;
  }
  static INLINE Vec multiply_add(Vec sum, Vec a, Vec b) {
    return reinterpret_cast<Vec>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
  }
  // Words of two rows: lane i holds the rounded values i of `first` and of `second`.
  static INLINE Vec pair(Vec first, Vec second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512bh both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first));
    return reinterpret_cast<Vec>(_mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(both)));
  }
  // Stores words of neighbouring values: half a vector.
  static INLINE void store_narrow(float* p, Vec v) {
    const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
    memcpy(p, &half, sizeof(half));
  }
};
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define MASKED_SWIN_BF16
struct Bf16 {
  static constexpr int DEPTH = 2;
  template <class F>
  static float word(F&& value) {
    const bfloat16x4_t both = vcvt_bf16_f32(float32x4_t{value(0), value(1), 0.0f, 0.0f});
    float bits;
    memcpy(&bits, &both, sizeof(bits));
    return bits;
  }
  static INLINE Vec multiply_add(Vec sum, Vec a, Vec b) {
    return reinterpret_cast<Vec>(vbfdotq_f32(reinterpret_cast<float32x4_t>(sum), reinterpret_cast<bfloat16x8_t>(a),
                                             reinterpret_cast<bfloat16x8_t>(b)));
  }
  static INLINE Vec pair(Vec first, Vec second) {
    const auto narrow = [](Vec v) { return vreinterpret_u16_bf16(vcvt_bf16_f32(reinterpret_cast<float32x4_t>(v))); };
    const uint16x4x2_t zipped = vzip_u16(narrow(first), narrow(second));
    return reinterpret_cast<Vec>(vcombine_u16(zipped.val[0], zipped.val[1]));
  }
  static INLINE void store_narrow(float* p, Vec v) {
    const bfloat16x4_t half = vcvt_bf16_f32(reinterpret_cast<float32x4_t>(v));
    memcpy(p, &half, sizeof(half));
  }
};
#endif
template <class A>
constexpr int word_count(int depth) {
  return (depth + A::DEPTH - 1) / A::DEPTH;
}

// [k][column] floats -> [word of k][column]. Fp32: `from` itself. `to` may be `from`.
template <class A>
static const float* by_rows(const float* from, int depth, int columns, int stride, float* to) {
  if constexpr (A::DEPTH == 1) {
    return from;
  } else {
    for (int k = 0; k < depth; k += 2)
      for (int c = 0; c < columns; c += LANES) {
        const float* row = from + (size_t)k * stride + c;
        store(to + (size_t)(k / 2) * stride + c, A::pair(load(row), k + 1 < depth ? load(row + stride) : Vec{}));
      }
    return to;
  }
}

// [row][k] floats -> [row][word of k]; `depth` is rounded up to vectors, and an even stride halved.
template <class A>
static const float* by_columns(const float* from, int rows, int depth, int stride, float* to) {
  if constexpr (A::DEPTH == 1) {
    return from;
  } else {
    for (int r = 0; r < rows; r++)
      for (int k = 0; k < depth; k += LANES)
        A::store_narrow(to + ((size_t)r * stride + k) / 2, load(from + (size_t)r * stride + k));
    return to;
  }
}

struct Operand {  // word (row, k) at p[row * row_stride + k * k_stride]
  const float* p;
  int row_stride, k_stride;
};

// out(row, column, sum_k broadcast(a) * vector(b)) for ROWS x NV vectors; `depth` in words.
template <class A, int ROWS, int NV, class Out>
static INLINE void product_block(int depth, Operand a, const float* __restrict b, int b_stride, Out&& out) {
  Vec sum[ROWS][NV] = {};
  for (int k = 0; k < depth; k++) {
    Vec x[NV];
#pragma GCC unroll 4
    for (int l = 0; l < NV; l++) x[l] = load(b + (size_t)k * b_stride + l * LANES);
#pragma GCC unroll 24
    for (int i = 0; i < ROWS; i++) {
      const Vec w = splat(a.p[(ptrdiff_t)i * a.row_stride + (ptrdiff_t)k * a.k_stride]);
#pragma GCC unroll 4
      for (int l = 0; l < NV; l++) sum[i][l] = A::multiply_add(sum[i][l], w, x[l]);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int l = 0; l < NV; l++) out(i, l * LANES, sum[i][l]);
}

template <class A, int ROWS, int NV, class Out>
static INLINE void product_rows(int rows, int depth, Operand a, const float* b, int b_stride, Out&& out) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS)
      product_block<A, ROWS, NV>(depth, a, b, b_stride, out);
    else
      product_rows<A, ROWS - 1, NV>(rows, depth, a, b, b_stride, out);
  }
}

template <class A, int NV, int MAX_ROWS, class Out>
static void product_columns(int rows, int depth, Operand a, const float* b, int b_stride, Out&& out) {
  if (rows % MAX_ROWS == 0) {
    for (int done = 0; done < rows; done += MAX_ROWS, a.p += (ptrdiff_t)MAX_ROWS * a.row_stride)
      product_block<A, MAX_ROWS, NV>(depth, a, b, b_stride,
                                     [&](int i, int l, Vec v) INLINE_LAMBDA { out(done + i, l, v); });
    return;
  }
  const int blocks = (rows + MAX_ROWS - 1) / MAX_ROWS;  // of nearly equal height: no thin last block
  for (int block = 0, done = 0; block < blocks; block++) {
    const int height = (rows - done) / (blocks - block);
    product_rows<A, MAX_ROWS, NV>(height, depth, a, b, b_stride,
                                  [&](int i, int l, Vec v) INLINE_LAMBDA { out(done + i, l, v); });
    a.p += (ptrdiff_t)height * a.row_stride;
    done += height;
  }
}

// out(i, l, sum_{k < depth} a(i, k) * b[k][l .. l + LANES)) for i < rows and l < width in steps of LANES; b is read up
// to round_up(width); `depth` counts values.
template <class A, class Out>
static void product(int rows, int width, int depth, Operand a, const float* b, int b_stride, Out&& out) {
  int l = 0, left = round_up(width) / LANES;
  auto shifted = [&](int i, int at, Vec v) INLINE_LAMBDA { out(i, l + at, v); };
  for (; left >= VECTORS; left -= VECTORS, l += VECTORS * LANES)
    product_columns<A, VECTORS, ACCUMULATORS / VECTORS>(rows, word_count<A>(depth), a, b + l, b_stride, shifted);
  if constexpr (VECTORS > 2) {
    if (left >= 2) {
      product_columns<A, 2, ACCUMULATORS / 2>(rows, word_count<A>(depth), a, b + l, b_stride, shifted);
      left -= 2;
      l += 2 * LANES;
    }
  }
  // One vector a row: more rows hide the latency, as many as there are registers for them and their operands.
  constexpr int MAX_ROWS = ACCUMULATORS < 14 ? ACCUMULATORS : 14;
  if (left == 1) product_columns<A, 1, MAX_ROWS>(rows, word_count<A>(depth), a, b + l, b_stride, shifted);
}

// Stores the product to c.
template <class A>
static void product(int rows, int width, int depth, Operand a, const float* b, int b_stride, float* c, int c_stride) {
  product<A>(rows, width, depth, a, b, b_stride,
             [=](int i, int l, Vec v) INLINE_LAMBDA { store(c + (ptrdiff_t)i * c_stride + l, v); });
}

// c[i][0 .. width) = or += factor * product, for a long sum over tokens: SUM_TOKENS at a time, which makes its rounding
// error several times smaller at no cost. Nothing past `width` is touched.
constexpr int SUM_TOKENS = 64;
template <class A>
static void token_sum(int rows, int width, int tokens, Operand a, const float* b, int b_stride, float factor, bool add,
                      float* c, int c_stride) {
  for (int first = 0; first < tokens; first += SUM_TOKENS) {
    const int count = tokens - first < SUM_TOKENS ? tokens - first : SUM_TOKENS, at = first / A::DEPTH;
    const Operand part{a.p + (ptrdiff_t)at * a.k_stride, a.row_stride, a.k_stride};
    const bool keep = add || first > 0;
    product<A>(rows, width, count, part, b + (size_t)at * b_stride, b_stride, [=](int i, int l, Vec v) INLINE_LAMBDA {
      float* to = c + (ptrdiff_t)i * c_stride + l;
      if (l + LANES <= width)
        store(to, keep ? load(to) + v * factor : v * factor);
      else
        store_first(to, keep ? load_first(to, width - l) + v * factor : v * factor, width - l);
    });
  }
  if (tokens == 0 && !add)
    for (int i = 0; i < rows; i++) memset(c + (ptrdiff_t)i * c_stride, 0, sizeof(float) * width);
}

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
